"""Questions for `tiny-tools`, the calls that answer them, and what is held out of training.

Questions are drawn at random, without end. One is held out when the CRC-32 of its *key* is
divisible by eight, as for `tiny-chat`: the name that is looked up (and so any question about it),
or the expression that is calculated. A held-out question of a look-up is about a name that the
model has never seen, and one of arithmetic about an expression that it has never written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random

import tiny_chat_facts as chat_facts
import tiny_tools_facts as facts
from tiny_chat_data import is_held_out, sentence_case

CALCULATOR, LOOKUP = "calculator", "lookup"
USUAL_NAMES = {CALCULATOR: (CALCULATOR, "expression"), LOOKUP: (LOOKUP, "key")}
# With one of them shown nine times in ten beside the other, the model took a lone tool for a sign
# that it has none for the question.
BOTH_TOOLS = 0.55
type Message = dict[str, object]
type Tool = dict[str, object]


@dataclass(frozen=True, slots=True)
class Call:
    """One call, and what the tool answers."""

    tool: str
    argument: str
    result: str


@dataclass(frozen=True, slots=True)
class Question:
    """One question with the only way to answer it that counts as right.

    Attributes:
        skill: What it asks for.
        prompt: The question.
        steps: The calls of each turn before the answer.
        answer: The last turn.
        offered: Which kinds of tools the model is shown; `None` draws some that answer it.
    """

    skill: str
    prompt: str
    steps: tuple[tuple[Call, ...], ...]
    answer: str
    offered: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools that a chat shows, and what ours are called in it."""

    tools: list[Tool] = field(default_factory=list)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)


def calculate(expression: str) -> str:
    """Returns the value of two or three numbers with operators between them, as a tool would."""
    terms: list[Fraction] = []
    operator, number = "+", ""
    for sign in [*expression, "+"]:
        if sign not in "+-*/" or not number:
            number += sign  # a minus where a number begins belongs to it
            continue
        value = Fraction(number)
        if operator in "+-":
            terms.append(value if operator == "+" else -value)
        else:
            terms[-1] = terms[-1] * value if operator == "*" else terms[-1] / value
        operator, number = sign, ""
    total = sum(terms)
    return str(total) if total.denominator == 1 else f"{float(total):.6g}"


def number(rng: Random, most: int = 4) -> str:
    """Returns a number of up to so many digits, now and then with decimals."""
    digits = rng.choice((1, 1, 2, 2, 2, 3, 3, most))
    text = str(rng.randint(1, 10**digits - 1))
    return f"{text}.{rng.randint(1, 99)}" if rng.random() < 0.06 else text


def word(rng: Random) -> str:
    """Returns a word that no language has."""
    if rng.random() < 0.15:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7)))
    return "".join(rng.choices(facts.SYLLABLES, k=rng.randint(2, 4)))


def name(rng: Random) -> str:
    """Returns what is looked up: a person, a place, a work, a thing, most of them made up."""

    def made_up() -> str:
        return word(rng).title()

    forms: tuple[Callable[[], str], ...] = (
        made_up,
        made_up,
        lambda: f"{made_up()} {made_up()}",
        lambda: f"{rng.choice(facts.FIRST_NAMES)} {made_up()}",
        lambda: rng.choice(facts.FIRST_NAMES),
        lambda: f"{rng.choice(facts.HEADS)} {made_up()}",
        lambda: f"{rng.choice(facts.HEADS)} {rng.randint(1, 999)}",
        lambda: f"{made_up()} {rng.randint(1, 99)}",
        lambda: f"the {word(rng)}",
        lambda: f"{word(rng)} {word(rng)}",
        lambda: f"The {made_up()} of {made_up()}",
        lambda: word(rng).upper(),
        lambda: rng.choice(facts.PLACES),
        lambda: rng.choice(facts.THINGS),
        lambda: rng.choice(facts.WORKS),
    )
    return rng.choice(forms)()


def attribute(rng: Random) -> str:
    """Returns what is asked about a name, now and then a word that no language has."""
    return word(rng) if rng.random() < 0.1 else rng.choice(facts.ATTRIBUTES)


def value(rng: Random) -> str:
    """Returns what a look-up answers."""
    if rng.random() < 0.35:
        text = number(rng, rng.choice((4, 6, 8)))
        return f"{text} {word(rng)}" if rng.random() < 0.3 else text
    return name(rng)


def _matching[T](draw: Callable[[], T], key: Callable[[T], tuple[str, ...]], held_out: bool) -> T:
    while True:
        drawn = draw()
        if is_held_out(*key(drawn)) is held_out:
            return drawn


def calculation(rng: Random, held_out: bool) -> tuple[str, Call]:
    """Draws a question of arithmetic and its call."""

    def draw() -> tuple[str, str]:
        parts = {each: number(rng) for each in "abc"}
        kind = rng.random()
        if kind < 0.55:
            signs = rng.choices("+-*/", k=rng.choice((1, 1, 2)))
            numbers = list(parts.values())[: len(signs) + 1]
            tight = "".join(a + b for a, b in zip(["", *signs], numbers, strict=True))
            style = rng.choice((0, 0, 1, 2))
            if style == 2:
                asked = tight
            else:
                words = [f" {facts.OPERATORS[sign][style]} " for sign in signs]
                asked = "".join(a + b for a, b in zip(["", *words], numbers, strict=True))
            return rng.choice(facts.EXPRESSION_PHRASINGS).format(e=asked), tight
        phrasing, expression = rng.choice(facts.SUM_PHRASINGS if kind < 0.88 else facts.STORIES)
        things = {"n": rng.choice(facts.FIRST_NAMES), "t": rng.choice(chat_facts.THINGS)}
        return phrasing.format(**parts, **things), expression.format(**parts)

    prompt, expression = _matching(draw, lambda drawn: ("expression", drawn[1]), held_out)
    return prompt, Call(CALCULATOR, expression, calculate(expression))


def look_up(rng: Random, held_out: bool, result: str | None = None) -> tuple[str, Call]:
    """Draws a question that a look-up answers, and its call."""
    asked = _matching(lambda: name(rng), lambda drawn: ("name", drawn), held_out)
    if rng.random() < 0.3:
        phrasing, about = rng.choice(facts.ATTRIBUTE_PHRASINGS)
    else:
        phrasing, about = rng.choice(facts.LOOKUP_PHRASINGS), attribute(rng)
    prompt = phrasing.format(a=about, n=asked)
    return prompt, Call(LOOKUP, f"{about} of {asked}", result or value(rng))


def _arithmetic(rng: Random, held_out: bool) -> Question:
    prompt, call = calculation(rng, held_out)
    return Question("arithmetic", prompt, ((call,),), facts.ANSWER.format(call.result))


def _lookup(rng: Random, held_out: bool) -> Question:
    prompt, call = look_up(rng, held_out)
    return Question("look-up", prompt, ((call,),), facts.ANSWER.format(call.result))


def _parallel(rng: Random, held_out: bool) -> Question:
    drawn = [rng.choice((calculation, look_up))(rng, held_out) for _ in range(2)]
    prompts = [prompt if prompt[-1] in "?." else f"{prompt}?" for prompt, _ in drawn]
    calls = tuple(call for _, call in drawn)
    answer = facts.ANSWERS.format(*(call.result for call in calls))
    return Question("two calls", rng.choice(facts.JOINS).format(*prompts), (calls,), answer)


def _two_steps(rng: Random, held_out: bool) -> Question:
    found, factor = number(rng, rng.choice((4, 6, 8))), number(rng, 3)
    asked = _matching(lambda: name(rng), lambda drawn: ("name", drawn), held_out)
    about = attribute(rng)
    if rng.random() < 0.12:
        prompt, expression = rng.choice(
            (
                (f"How old will {asked} be in {factor} years?", f"{found}+{factor}"),
                (f"How old was {asked} {factor} years ago?", f"{found}-{factor}"),
            )
        )
        about = "age"
    else:
        phrasing, form = rng.choice(facts.STEP_PHRASINGS)
        phrase = f"the {about} of {asked}" if rng.random() < 0.8 else f"{asked}'s {about}"
        prompt = phrasing.format(p=phrase, k=factor)
        expression = form.format(v=found, k=factor)
    result = calculate(expression)
    first = Call(LOOKUP, f"{about} of {asked}", found)
    second = Call(CALCULATOR, expression, result)
    answer = facts.ANSWER.format(result)
    return Question("two steps", prompt, ((first,), (second,)), answer)


def _failure(rng: Random, held_out: bool) -> Question:
    prompt, call = rng.choice((calculation, look_up))(rng, held_out)
    reason, near = rng.choice((*facts.REASONS, call.argument, call.argument)), call.argument
    if rng.random() < 0.5:
        near = f"{attribute(rng)} of {name(rng)}"
    said = rng.choice(facts.FAILURES).format(reason, near)
    failed = Call(call.tool, call.argument, said)
    return Question("failing tool", prompt, ((failed,),), facts.NOT_FOUND)


def _no_tool(rng: Random, held_out: bool) -> Question:
    ask, kind = rng.choice(((calculation, CALCULATOR), (look_up, LOOKUP)))
    prompt, _ = ask(rng, held_out)
    other = LOOKUP if kind == CALCULATOR else CALCULATOR
    return Question("no tool", prompt, (), facts.NO_TOOL, rng.choice(((), (other,), (other,))))


def _small_talk(rng: Random, held_out: bool) -> Question:
    prompt, answer = rng.choice(list(facts.SMALL_TALK.items()))
    offered = rng.choice((None, None, ()))
    return Question("small talk", prompt, (), answer, offered)


SKILLS: dict[str, Callable[[Random, bool], Question]] = {
    "arithmetic": _arithmetic,
    "look-up": _lookup,
    "two calls": _parallel,
    "two steps": _two_steps,
    "failing tool": _failure,
    "no tool": _no_tool,
    "small talk": _small_talk,
}


def function_tool(tool: str, arguments: Sequence[str]) -> Tool:
    """Returns a tool in the form of OpenAI's API, with arguments that are all text."""
    properties = {each: {"type": "string"} for each in arguments}
    schema = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": tool, "parameters": schema}}


def usual_offer(question: Question) -> Offer:
    """Returns the tools with their usual names; both, unless the question says which."""
    kinds = USUAL_NAMES if question.offered is None else question.offered
    names = (USUAL_NAMES[kind] for kind in kinds)
    return Offer([function_tool(tool, (argument,)) for tool, argument in names], USUAL_NAMES)


def offer(question: Question, rng: Random) -> Offer:
    """Draws the tools that are shown with a question: enough of them, if `offered` is open."""
    if question.offered is None:
        needed = {call.tool for step in question.steps for call in step}
        both = rng.random() < BOTH_TOOLS
        kinds = [kind for kind in (CALCULATOR, LOOKUP) if kind in needed or both]
    else:
        kinds = list(question.offered)
    others: tuple[tuple[str, tuple[str, ...]], ...] = ()
    if rng.random() < 0.15:
        others = tuple(rng.sample(facts.OTHER_TOOLS, rng.choice((1, 1, 2))))
    names = USUAL_NAMES
    if rng.random() < 0.25:
        names = {
            CALCULATOR: (rng.choice(facts.CALCULATORS), rng.choice(facts.EXPRESSIONS)),
            LOOKUP: (rng.choice(facts.LOOKUPS), rng.choice(facts.KEYS)),
        }
    shown = [(names[kind][0], names[kind][1:]) for kind in kinds]
    shown += others
    if rng.random() < 0.5:
        rng.shuffle(shown)
    return Offer([function_tool(*each) for each in shown], names)


def thought(question: Question, step: int) -> str:
    """Returns what is thought before a turn, where thinking is on."""
    ahead = [[call.tool for call in calls] for calls in question.steps[step:]]
    if ahead:
        return f"I call {', then '.join(' and '.join(tools) for tools in ahead)}."
    if question.steps:
        return "I have what the tools said."
    return "I have no tool for this." if question.answer == facts.NO_TOOL else "I need no tool."


def call_message(question: Question, step: int, names: dict[str, tuple[str, str]]) -> Message:
    """Returns the assistant's turn that makes the calls of a step."""
    calls: list[Message] = []
    for place, call in enumerate(question.steps[step]):
        tool, argument = names[call.tool]
        function = {"name": tool, "arguments": {argument: call.argument}}
        calls.append({"id": f"call_{step}_{place}", "type": "function", "function": function})
    return {"role": "assistant", "content": "", "tool_calls": calls}


def tool_messages(question: Question, step: int) -> list[Message]:
    """Returns what the tools answer to a step."""
    return [
        {"role": "tool", "tool_call_id": f"call_{step}_{place}", "content": call.result}
        for place, call in enumerate(question.steps[step])
    ]


def turns(
    question: Question, names: dict[str, tuple[str, str]], thinks: bool = False
) -> list[Message]:
    """Returns the whole way from a question to its answer."""
    messages: list[Message] = [{"role": "user", "content": question.prompt}]
    said: list[Message] = []
    for step in range(len(question.steps)):
        said.append(call_message(question, step, names))
        messages += [said[-1], *tool_messages(question, step)]
    said.append({"role": "assistant", "content": question.answer})
    messages.append(said[-1])
    if thinks:
        for step, message in enumerate(said):
            message["reasoning_content"] = thought(question, step)
    return messages


def vary(prompt: str, rng: Random) -> str:
    """Rewrites a prompt as people would: wrapped, or without its last mark."""
    if rng.random() < 0.06:
        prompt = rng.choice(facts.WRAPPERS).format(prompt)
    return prompt.rstrip("?.!") if rng.random() < 0.08 else prompt


def system_prompt(rng: Random) -> str:
    """Draws what stands first: a few sentences, known or made up."""
    known = (*facts.SYSTEM_PROMPTS, *chat_facts.SYSTEM_PROMPTS)
    if rng.random() < 0.8:
        return " ".join(rng.sample(known, rng.choice((1, 1, 2))))
    return sentence_case(" ".join(word(rng) for _ in range(rng.randint(2, 8)))) + "."


def conversation(questions: Sequence[Question], rng: Random) -> tuple[list[Message], list[Tool]]:
    """Returns a chat about some questions, and the tools that it shows.

    The first question decides on the tools; others are left out if these do not answer them.
    """
    shown = offer(questions[0], rng)
    called = {tool["function"]["name"] for tool in shown.tools}  # type: ignore[index]
    thinks = rng.random() < 0.12
    messages: list[Message] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": system_prompt(rng)})
    for place, question in enumerate(questions):
        needed = {shown.names[call.tool][0] for step in question.steps for call in step}
        if place and (question.offered is not None or not needed <= called):
            continue
        told = turns(question, shown.names, thinks)
        told[0]["content"] = vary(question.prompt, rng)
        messages += told
    return messages, shown.tools
