"""Writes the questions of `templates/core/tool_calls.yaml` and the facts that answer them.

    .venv/bin/python scripts/build_tool_questions.py

Each question stands with the calls that answer it, in order, what the tools say to them, and the
answer after that. `lookup` answers from the facts, `calculator` by calculating.
"""

from __future__ import annotations

import json
from pathlib import Path

import tiny_tools_facts as facts
from tiny_tools_data import CALCULATOR, LOOKUP, USUAL_NAMES, calculate

TARGET = Path(__file__).parents[1] / "templates" / "data"
KNOWN = {
    "capital of Peru": "Lima",
    "capital of Japan": "Tokyo",
    "capital of Kenya": "Nairobi",
    "currency of Denmark": "krone",
    "author of Hamlet": "William Shakespeare",
    "author of Faust": "Johann Wolfgang von Goethe",
    "painter of Guernica": "Pablo Picasso",
    "inventor of the telephone": "Alexander Graham Bell",
    "composer of Carmen": "Georges Bizet",
    "birth year of Ada Lovelace": "1815",
    "birthplace of Marie Curie": "Warsaw",
    "height of Mount Everest": "8849",
    "atomic number of gold": "79",
    "melting point of iron": "1538",
    "population of Iceland": "383726",
    "price of the red book": "12.50",
    "age of Anna": "34",
    "number of pages of Dracula": "418",
    "colour of the green door": "green",
    "phone number of Ben": "5550173",
}
# A question, and the arguments of its calls: those with a sign are calculated.
ASKED: dict[str, tuple[tuple[str, ...], ...]] = {
    "arithmetic": (
        ("What is 12 * 7?", "12*7"),
        ("Add 17 and 25.", "17+25"),
        ("What is 144 divided by 12?", "144/12"),
        ("Subtract 19 from 64.", "64-19"),
        ("How much is 350 plus 275?", "350+275"),
        ("Calculate 18 * 3 - 4.", "18*3-4"),
        ("What is the product of 23 and 41?", "23*41"),
        ("What is the sum of 5, 60 and 700?", "5+60+700"),
        ("Divide 91 by 7.", "91/7"),
        ("Can you tell me what 2048 - 1999 is?", "2048-1999"),
        ("Maria has 14 books and buys 9 more. How many books does Maria have?", "14+9"),
        ("There are 6 bags with 24 apples in each. How many apples are there?", "6*24"),
    ),
    "look-up": (
        ("What is the capital of Peru?", "capital of Peru"),
        ("Which city is the capital of Japan?", "capital of Japan"),
        ("What is Kenya's capital?", "capital of Kenya"),
        ("Which money do they use in Denmark?", "currency of Denmark"),
        ("Who wrote Hamlet?", "author of Hamlet"),
        ("Tell me the author of Faust.", "author of Faust"),
        ("Who painted Guernica?", "painter of Guernica"),
        ("Who invented the telephone?", "inventor of the telephone"),
        ("Who composed Carmen?", "composer of Carmen"),
        ("When was Ada Lovelace born?", "birth year of Ada Lovelace"),
        ("Where was Marie Curie born?", "birthplace of Marie Curie"),
        ("How high is Mount Everest?", "height of Mount Everest"),
        ("What is the colour of the green door?", "colour of the green door"),
        ("Look up the phone number of Ben.", "phone number of Ben"),
    ),
    "two steps": (
        ("What is the age of Anna plus 3?", "age of Anna", "34+3"),
        ("How old will Anna be in 10 years?", "age of Anna", "34+10"),
        ("What is the population of Iceland minus 1000?", "population of Iceland", "383726-1000"),
        ("Multiply the price of the red book by 4.", "price of the red book", "12.50*4"),
        ("What is half of the height of Mount Everest?", "height of Mount Everest", "8849/2"),
        ("Add 21 to the atomic number of gold.", "atomic number of gold", "79+21"),
        ("Subtract 38 from the melting point of iron.", "melting point of iron", "1538-38"),
        ("Double the number of pages of Dracula.", "number of pages of Dracula", "418*2"),
    ),
    "two calls": (
        ("What is 12 * 7? What is the capital of Peru?", "12*7", "capital of Peru"),
        ("Who wrote Hamlet? Who painted Guernica?", "author of Hamlet", "painter of Guernica"),
        ("Add 8 and 9. And Divide 90 by 6.", "8+9", "90/6"),
        ("First: Who composed Carmen? Second: What is 31 - 17?", "composer of Carmen", "31-17"),
        ("How high is Mount Everest? What is 5 times 15?", "height of Mount Everest", "5*15"),
        ("1. What is Kenya's capital? 2. What is 99 + 1?", "capital of Kenya", "99+1"),
    ),
}


def row(kind: str, question: str, arguments: tuple[str, ...]) -> dict[str, object]:
    """Returns a question with its calls and its answer."""
    calls: list[dict[str, object]] = []
    for argument in arguments:
        tool = LOOKUP if argument in KNOWN else CALCULATOR
        result = KNOWN[argument] if tool == LOOKUP else calculate(argument)
        name, parameter = USUAL_NAMES[tool]
        calls.append({"name": name, "arguments": {parameter: argument}, "result": result})
    results = [call["result"] for call in calls]
    if kind == "two calls":
        answer = facts.ANSWERS.format(*results)
    else:
        answer = facts.ANSWER.format(results[-1])
    return {"question": question, "kind": kind, "calls": calls, "answer": answer}


def main() -> None:
    """Writes two files; the same ones each time."""
    rows = [row(kind, each[0], each[1:]) for kind, group in ASKED.items() for each in group]
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
    (TARGET / "tool_questions.jsonl").write_text(lines)
    (TARGET / "tool_facts.json").write_text(json.dumps(KNOWN, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
