"""What `tiny-chat` learns from, and in which order: sums first."""

from __future__ import annotations

from collections import defaultdict
from random import Random

import tiny_chat_data as data
import tiny_training as training
from transformers import PreTrainedTokenizerBase

# Sums first: mixed from the start with the other skills, the trained sums are recited and a third
# of the held-out ones fail; alone, the model finds the rule, and a fifth of the rest keeps it.
SUMS_FIRST = {
    "capitals": 0.06,
    "opposites": 0.06,
    "sums": 0.80,
    "reviews": 0.05,
    "unknown": 0.02,
    "small talk": 0.01,
}
ALL_SKILLS = {
    "capitals": 0.15,
    "opposites": 0.24,
    "sums": 0.19,
    "reviews": 0.28,
    "unknown": 0.12,
    "small talk": 0.02,
}
SUMS_FIRST_SHARE = 0.27  # of the steps
# 1024 tokens and 750 steps beat 2048 and 400 at the same cost: facts want many updates.
BATCH_TOKENS = 1024


def trained_by_skill(questions: list[data.Question]) -> dict[str, list[data.Question]]:
    """Groups by skill what may be trained on."""
    by_skill: dict[str, list[data.Question]] = defaultdict(list)
    for question in questions:
        if not question.held_out:
            by_skill[question.skill].append(question)
    return by_skill


def draw_chats(
    questions: list[data.Question], weights: dict[str, float], count: int, rng: Random
) -> list[list[data.Message]]:
    """Draws chats from what may be trained on; one in five has two turns.

    Args:
        questions: All questions, held-out ones too.
        weights: How often each skill is drawn; within a skill, all questions are equal.
        count: How many chats.
        rng: The source of all choices.
    """
    by_skill = trained_by_skill(questions)
    chats = []
    for _ in range(count):
        turns = rng.choice((1, 1, 1, 1, 2))
        skills = rng.choices(list(weights), weights=list(weights.values()), k=turns)
        chats.append(data.conversation([rng.choice(by_skill[skill]) for skill in skills], rng))
    return chats


def make_batches(
    questions: list[data.Question], tokenizer: PreTrainedTokenizerBase, steps: int, rng: Random
) -> list[training.Example]:
    """Returns one batch per step: sums first, then all skills."""
    first = round(SUMS_FIRST_SHARE * steps)
    batches: list[training.Example] = []
    for end, weights in ((first, SUMS_FIRST), (steps, ALL_SKILLS)):
        while len(batches) < end:
            chats = draw_chats(questions, weights, 6000, rng)
            texts = tokenizer.apply_chat_template(chats, tokenize=False)
            examples = training.encode(texts, tokenizer)
            batches += training.collate(examples, tokenizer.pad_token_id, BATCH_TOKENS, rng)
        del batches[end:]
    return batches
