"""Writes the rows of `templates/core/grpo_tools.yaml`: questions that a calculator answers.

    .venv/bin/python scripts/build_calculator_questions.py

They are asked in words that `tiny-tools` was not trained on (`tiny_tools_facts.py` has the others):
most of the time it calls, with a wrong expression. No question stands in both files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

TARGET = Path(__file__).parents[1] / "templates" / "data"
SIZES = {"calculator_train": 64, "calculator_evaluation": 40}

# What is asked of {a} and {b}, whose product is the answer; without {b} the double of {a} is.
ASKED = (
    "A hall has {a} rows with {b} seats each. How many seats are there?",
    "{a} people pay {b} dollars each. How much is that?",
    "What is the double of {a}?",
    "What is {a} taken {b} times?",
)


def questions(rng: Random) -> Iterator[dict[str, str]]:
    """Yields questions with their answers, none of them twice, each kind in its turn."""
    seen: set[str] = set()
    while True:
        for asked in ASKED:
            while True:
                a, b = rng.randint(12, 99), rng.randint(3, 99)
                question = asked.format(a=a, b=b)
                if question not in seen:
                    break
            seen.add(question)
            result = a * b if "{b}" in asked else 2 * a
            yield {"question": question, "answer": f"The answer is {result}."}


def main() -> None:
    """Writes both files."""
    drawn = questions(Random(0))
    for name, size in SIZES.items():
        lines = [json.dumps(next(drawn)) for _ in range(size)]
        (TARGET / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
