"""Train and write `tiny-tools`, the model that calls tools and ships with mloc.

    python scripts/build_tiny_tools.py [--output DIR] [--seed 0] [--steps 3000]

Takes about twelve minutes of one CPU core, needs the extra `hf` and no network. Prints, and
records in the model card, how many held-out questions of each skill the model answers exactly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Annotated

import tiny_tools_data as data
import tiny_training as training
import torch
import typer
from tiny_model import answer, untrained_model, write_card
from tiny_tools_copying import ROPE_THETA, place_copying
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

OUTPUT = Path(__file__).parents[1] / "mloc_dagster" / "models" / "tiny-tools"
MODEL_CARD = Path(__file__).with_name("tiny_tools_card.md")
CHAT_TEMPLATE = Path(__file__).with_name("tiny_tools_chat_template.jinja")
SPECIAL_TOKENS = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"]
# Tokens of their own, as vLLM's parsers of thoughts ask; not special ones, which decoding leaves
# out, so that the text of an answer is what every parser of tool calls reads.
MARKS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
VOCABULARY = 768
# A word is the same tokens wherever it stands, and a digit is one: what is to be copied then is
# a matter of repeating tokens. Punctuation goes with the space before the next one, as in `": "`.
PIECES = r"\p{L}+|\p{N}|\s|(?:[^\p{L}\p{N}\s]+ ?)+"
POSITIONS = 2048
EVALUATED_PER_SKILL = 200
# Two threads take half more of the CPU, and wait for each other where other work shares it.
THREADS = 1
BATCH_TOKENS = 2048
# Each round's share of the steps, and its learning rates of hidden matrices and of embeddings. With
# 0.01, the loss after 100 steps was 1.09 in place of 0.72: the circuit that the model starts with
# was lost. The later rounds are for the last errors.
ROUNDS = ((3 / 7, 0.004, 0.003), (1 / 7, 0.003, 0.002), (3 / 7, 0.003, 0.002))
MIX = {
    "arithmetic": 0.17,
    "look-up": 0.22,
    "two calls": 0.24,
    "two steps": 0.20,
    "failing tool": 0.04,
    "no tool": 0.09,
    "small talk": 0.04,
}
# How the parsers of transformers and vLLM (`hf`) read an answer; vLLM's keeps white space.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "thinking": {
            "open": ["<think>\n", "<think>"],
            "close": ["\n</think>\n\n", "</think>"],
            "content": "text",
        },
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>\s*", "content": "text"},
    },
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of held-out questions.

    Attributes:
        skill: What they ask for.
        shown: The tools that the model is shown, in their order; `None` shows the calculator, then
            the look-up, unless the question says otherwise.
        thinks: Whether the model is told to think.
    """

    skill: str
    shown: tuple[str, ...] | None = None
    thinks: bool = False

    def __str__(self) -> str:
        words = [self.skill]
        if self.shown is not None:
            words.append(f"{self.shown[0]} {'first' if self.shown[1:] else 'alone'}")
        return ", ".join([*words, "thinking"] if self.thinks else words)


KINDS = (
    *map(Kind, data.SKILLS),
    Kind("arithmetic", shown=(data.CALCULATOR,)),
    Kind("look-up", shown=(data.LOOKUP,)),
    Kind("two calls", shown=(data.LOOKUP, data.CALCULATOR)),
    Kind("two steps", shown=(data.LOOKUP, data.CALCULATOR)),
    Kind("look-up", thinks=True),
    Kind("two steps", thinks=True),
)


@dataclass(frozen=True, slots=True)
class Score:
    """How many held-out questions of one kind were answered, each turn exactly.

    Attributes:
        kind: The kind.
        asked: Questions.
        called: Those whose turns with calls are all exact.
        answered: Those whose answer is exact, given the right calls before.
        right: Both.
    """

    kind: Kind
    asked: int
    called: int
    answered: int
    right: int


def draw_chats(count: int, rng: Random) -> list[tuple[list[data.Message], list[data.Tool]]]:
    """Draws chats with their tools from what may be trained on; one in four has more turns."""
    chats = []
    for _ in range(count):
        skills = rng.choices(list(MIX), weights=list(MIX.values()), k=rng.choice((1, 1, 1, 2)))
        questions = [data.SKILLS[skill](rng, False) for skill in skills]
        chats.append(data.conversation(questions, rng))
    return chats


def render(
    chats: list[tuple[list[data.Message], list[data.Tool]]], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Returns chats as the chat template writes them."""
    return [
        str(tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False))
        for messages, tools in chats
    ]


def train_tokenizer() -> PreTrainedTokenizerBase:
    """Trains a byte-level BPE on chats that may be trained on."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    pad, *roles, end = SPECIAL_TOKENS
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=end,
        additional_special_tokens=roles,
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
        model_max_length=POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    # Not the training seed: the vocabulary stays the same.
    texts = render(draw_chats(8000, Random(0)), wrapped)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    for mark in (*SPECIAL_TOKENS, *MARKS):
        texts = [text.replace(mark, "\n") for text in texts]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=end,
        additional_special_tokens=roles,
        chat_template=wrapped.chat_template,
        model_max_length=POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        response_template=RESPONSE_TEMPLATE,
    )


def make_batches(
    tokenizer: PreTrainedTokenizerBase, steps: int, rng: Random
) -> list[training.Example]:
    """Returns one batch per step."""
    batches: list[training.Example] = []
    while len(batches) < steps:
        examples = training.encode(render(draw_chats(4000, rng), tokenizer), tokenizer)
        batches += training.collate(examples, tokenizer.pad_token_id, BATCH_TOKENS, rng)
    return batches[:steps]


def build(seed: int, steps: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Trains tokenizer and model; the same seed and steps give the same weights."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    tokenizer = train_tokenizer()
    model = untrained_model(
        tokenizer, layers=4, intermediate_size=192, new_tokens=128, rope_theta=ROPE_THETA
    )
    place_copying(model)
    batches = make_batches(tokenizer, steps, Random(seed))
    started = time.monotonic()

    def report(step: int, loss: float) -> None:
        typer.echo(f"step {step:4d}  loss {loss:.4f}  {time.monotonic() - started:5.1f} s")

    done = 0
    for share, hidden, embedding in ROUNDS:
        end = done + round(share * steps)
        training.train(model, batches[done:end], report, lr_hidden=hidden, lr_embedding=embedding)
        done = end
    return model, tokenizer


def asked_turns(
    question: data.Question, tokenizer: PreTrainedTokenizerBase, *, thinks: bool
) -> list[tuple[str, str]]:
    """Returns the prompt of each turn of a question, with the right text of that turn."""
    shown = data.usual_offer(question)
    messages = data.turns(question, shown.names, thinks)
    pairs = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, whole = (
            str(
                tokenizer.apply_chat_template(
                    chat,
                    tools=shown.tools or None,
                    tokenize=False,
                    add_generation_prompt=opens,
                    enable_thinking=thinks,
                )
            )
            for chat, opens in ((messages[:place], True), (messages[: place + 1], False))
        )
        pairs.append((prompt, whole.removeprefix(prompt).removesuffix("<|end|>")))
    return pairs


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, kind: Kind) -> Score:
    """Scores held-out questions of one kind, turn by turn, with the right turns before."""
    rng = Random(0)
    questions = [data.SKILLS[kind.skill](rng, True) for _ in range(EVALUATED_PER_SKILL)]
    if kind.shown is not None:
        questions = [replace(each, offered=kind.shown) for each in questions]
    turns = [asked_turns(question, tokenizer, thinks=kind.thinks) for question in questions]
    flat = [pair for pairs in turns for pair in pairs]
    # Equally long prompts together.
    order = sorted(range(len(flat)), key=lambda place: len(flat[place][0]))
    given = answer(model, tokenizer, [flat[place][0] for place in order])
    said = dict(zip(order, given, strict=True))
    exact = iter([said[place] == right for place, (_, right) in enumerate(flat)])
    called = answered = right = 0
    for pairs in turns:
        *calls, last = [next(exact) for _ in pairs]
        called += all(calls)
        answered += last
        right += last and all(calls)
    return Score(kind, len(questions), called, answered, right)


def score_table(scores: list[Score]) -> str:
    """Returns the scores as a Markdown table."""
    lines = ["| skill | asked | calls | answer | all turns |", "| --- | --- | --- | --- | --- |"]
    for each in scores:
        shares = (f"{100 * n / each.asked:.1f} %" for n in (each.called, each.answered, each.right))
        lines.append(f"| {' | '.join((str(each.kind), str(each.asked), *shares))} |")
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="Folder to write.")] = OUTPUT,
    seed: Annotated[int, typer.Option(help="Of initial weights and of chats.")] = 0,
    steps: Annotated[int, typer.Option(min=50, help="Training steps.")] = 3000,
) -> None:
    """Train tiny-tools, write it, and print what it answers."""
    logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    started = time.monotonic()
    model, tokenizer = build(seed, steps)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)  # before it is used: padding would be saved with it
    table = score_table([evaluate(model, tokenizer, kind) for kind in KINDS])
    weights = write_card(
        output,
        MODEL_CARD,
        table=table,
        parameters=f"{model.num_parameters():,}",
        vocabulary=len(tokenizer),
        positions=POSITIONS,
        seed=seed,
        steps=steps,
    )
    typer.echo(f"\n{table}\n\n{model.num_parameters():,} parameters, {weights}")
    typer.echo(f"{time.monotonic() - started:.0f} s, written to {output}")


if __name__ == "__main__":
    typer.run(main)
