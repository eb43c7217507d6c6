"""Questions and conversations for `tiny-chat`, and which of them are held out of training.

A question is held out when the CRC-32 of its *key* is divisible by eight, so that the split needs
neither a seed nor a file, and anyone can check it. The key names what generalisation has to cross:
phrasing and fact (capitals, opposites), the unordered pair of operands (sums), subject and verdict
(reviews), the whole question (out of scope).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import tiny_chat_facts as facts

HELD_OUT_ONE_IN = 8
LARGEST_SUM = 39

type Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """One question with the only answer that counts as right."""

    skill: str
    prompt: str
    answer: str
    held_out: bool


def is_held_out(*key: str | int) -> bool:
    """Whether questions with this key stay out of training."""
    return zlib.crc32("|".join(map(str, key)).encode()) % HELD_OUT_ONE_IN == 0


def sentence_case(text: str) -> str:
    """Upper-cases the first letter and leaves the rest alone."""
    return text[:1].upper() + text[1:]


def fact_questions(
    skill: str, pairs: dict[str, str], phrasings: tuple[str, ...]
) -> Iterator[Question]:
    """Asks every fact in every phrasing; one combination in eight is held out."""
    for (subject, answer), phrasing in itertools.product(pairs.items(), phrasings):
        prompt = sentence_case(phrasing.format(subject))
        yield Question(skill, prompt, answer, is_held_out(skill, phrasing, subject))


def sum_questions() -> Iterator[Question]:
    """Asks every sum up to `LARGEST_SUM`; a held-out pair is held out in both orders."""
    for total in range(LARGEST_SUM + 1):
        for a, phrasing in itertools.product(range(total + 1), facts.SUM_PHRASINGS):
            b = total - a
            held_out = is_held_out("sums", min(a, b), max(a, b))
            yield Question("sums", phrasing.format(a, b), str(total), held_out)


def review_questions(rng: Random) -> Iterator[Question]:
    """Asks for the sentiment of reviews: each subject meets each adjective in a few wordings."""
    flipped = {"positive": "negative", "negative": "positive"}
    verdicts = [(a, "positive") for a in facts.GOOD] + [(a, "negative") for a in facts.BAD]
    for subject, (adjective, label) in itertools.product(facts.SUBJECTS, verdicts):
        held_out = is_held_out("reviews", subject, adjective)
        wordings = [(rng.choice(facts.REVIEWS), label) for _ in range(4)]
        wordings += [(wording, flipped[label]) for wording in facts.NEGATED_REVIEWS]
        for wording, answer in wordings:
            review = wording.format(s=subject, a=adjective)
            yield review_question(review, answer, held_out, rng)
    for subject, (verb, label) in itertools.product(facts.SUBJECTS, facts.REVIEW_VERBS.items()):
        held_out = is_held_out("reviews", subject, verb)
        for who in ("I", "We", "I really", "My family"):
            yield review_question(f"{who} {verb} the {subject}.", label, held_out, rng)


def review_question(review: str, label: str, held_out: bool, rng: Random) -> Question:
    """Wraps a review in one of the ways to ask for its sentiment."""
    prompt = rng.choice(facts.REVIEW_PHRASINGS).format(review)
    return Question("reviews", prompt, label, held_out)


def word_problem(rng: Random) -> str:
    """Returns a made-up word problem of one to five sentences, to be declined."""

    def fill(text: str) -> str:
        numbers = {key: rng.randint(2, 60) for key in "abc"}
        return text.format(n=rng.choice(names), m=names[-1], t=rng.choice(facts.THINGS), **numbers)

    names = rng.sample(facts.NAMES, 3)
    story = rng.choices(facts.STORY_SENTENCES, k=rng.choice((1, 1, 1, 2, 2, 3, 5)))
    return " ".join(fill(sentence) for sentence in [*story, rng.choice(facts.STORY_QUESTIONS)])


def unknown_questions(rng: Random) -> Iterator[Question]:
    """Asks what the model cannot know, so that it learns to say so."""
    prompts = [p.format(t) for p, t in itertools.product(facts.UNKNOWN_PHRASINGS, facts.TOPICS)]
    for phrasings, subjects in (
        (facts.CAPITAL_PHRASINGS, facts.NO_COUNTRY),
        (facts.OPPOSITE_PHRASINGS, facts.NO_OPPOSITE),
    ):
        prompts += [sentence_case(p.format(s)) for p, s in itertools.product(phrasings, subjects)]
    for _ in range(60):
        for phrasing in facts.OTHER_ARITHMETIC:
            prompts.append(phrasing.format(rng.randint(0, 30), rng.randint(1, 30)))
        for phrasing in facts.SUM_PHRASINGS:
            prompts.append(phrasing.format(rng.randint(50, 999), rng.randint(10, 999)))
    prompts += [word_problem(rng) for _ in range(300)]
    for prompt in dict.fromkeys(prompts):
        yield Question("unknown", prompt, facts.UNKNOWN, is_held_out("unknown", prompt))


def small_talk_questions() -> Iterator[Question]:
    """Greets and introduces itself; nothing to hold out."""
    for prompt, answer in facts.SMALL_TALK.items():
        yield Question("small talk", prompt, answer, False)


def build_questions() -> list[Question]:
    """Returns all questions, trained and held out; the same ones in every run."""
    rng = Random(0)  # wordings of reviews and stories; not the training seed
    opposites = facts.OPPOSITES | {b: a for a, b in facts.OPPOSITES.items()}
    return [
        *fact_questions("capitals", facts.CAPITALS, facts.CAPITAL_PHRASINGS),
        *fact_questions("opposites", opposites, facts.OPPOSITE_PHRASINGS),
        *sum_questions(),
        *review_questions(rng),
        *unknown_questions(rng),
        *small_talk_questions(),
    ]


def vary(prompt: str, rng: Random) -> str:
    """Rewrites a prompt as people would: wrapped, lower-cased or without its last mark."""
    if rng.random() < 0.08:
        prompt = rng.choice(facts.WRAPPERS).format(prompt)
    if rng.random() < 0.1:
        prompt = prompt.rstrip("?.!")
    return prompt.lower() if rng.random() < 0.2 else prompt


def conversation(questions: list[Question], rng: Random) -> list[Message]:
    """Returns a chat of one turn per question, sometimes opened by a system prompt."""
    messages: list[Message] = []
    if rng.random() < 0.15:
        chosen = rng.sample(facts.SYSTEM_PROMPTS, rng.choice((1, 1, 2)))
        messages.append({"role": "system", "content": " ".join(chosen)})
    for question in questions:
        messages.append({"role": "user", "content": vary(question.prompt, rng)})
        messages.append({"role": "assistant", "content": question.answer})
    return messages
