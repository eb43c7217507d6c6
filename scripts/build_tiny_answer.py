"""Build and write `tiny-answer`, the model that answers by passages and ships with mloc.

    python scripts/build_tiny_answer.py [--output DIR]

Takes seconds, needs the extra `hf` and no network: its weights are placed, not trained
(`tiny_answer_circuit.py`). Prints, and records in the model card, how well it answers.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated

import tiny_answer_circuit as circuit
import tiny_retrieval_data as data
import torch
import typer
from tiny_model import write_card
from tiny_retrieval_model import save_halved
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModel,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "mloc_dagster" / "models"
PROMPTS = ROOT / "templates" / "prompts" / "answer"
MODEL_CARD = Path(__file__).with_name("tiny_answer_card.md")
OUTPUT = MODELS / "tiny-answer"
EMBEDDER = MODELS / "tiny-embed"
CHAT_TEMPLATE = MODELS / "tiny-chat" / "chat_template.jinja"
PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = [PAD, SYSTEM, USER, ASSISTANT, END]
QUESTION = "\n\nQuestion:"
REFUSAL = "No"
MARKS = [f"\n\n[{n}]" for n in range(1, circuit.MOST_PASSAGES + 1)]
CITATIONS = [f" [{n}]" for n in range(1, circuit.MOST_PASSAGES + 1)]
ABSTENTION = "No answer found."
EVALUATED, SHOWN = 30, 5
THREADS = 1
VOCABULARY = 3072
POSITIONS = 4096
NEW_TOKENS = 256
# A line that goes on in the next one is one sentence with it: the first break is one where the
# next line begins with a small letter, the second one where the line before is a long one.
WRAPS = (r"(?<=[^\n]{40}[^\n.!?:|])\n(?=[\p{Ll}(`])", r"(?<=[^\n]{80}[^\n.!?:|])\n(?=[^\s|#*-])")
# What stands between sentences, rows and items is a token of its own: white space after the end of
# a sentence, line breaks, and what opens a line.
BOUNDARY = r"(?<=[.!?:]) (?=[\p{Lu}\p{N}`\"'(\[*])|\n\n\| |\n+|(?<=\n)(?:[-*>]|#{1,6}|\|) "
PIECES = BOUNDARY + r"| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+| +(?= )| |[^\S\n]+"
# Neither a heading nor the first row of a table is an answer.
ENDING = re.compile(r"(?<=\w{3})(ing|ied|ies|ed|es|s|y|e)$")
HEADING = re.compile(r"#+ |\n\n\| ")


def train_tokenizer() -> PreTrainedTokenizerBase:
    """Trains a byte-level BPE on mloc's pages and on the grammar of the models of retrieval."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(each), " ") for each in WRAPS]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    batches = islice(data.draw_examples(Random(0)), 100)
    texts = [text for batch in batches for each in batch for text in (each.query, each.passage)]
    pages = [each for each in data.DOCS.rglob("*.md") if each.name not in data.HELD_OUT_PAGES]
    prompts = list(PROMPTS.glob("*.md"))
    texts += [each.read_text(encoding="utf-8") for each in sorted(pages) * 5 + sorted(prompts) * 20]
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(MARKS) - len(CITATIONS) - 1,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(
        [
            AddedToken(each, special=False, normalized=False)
            for each in (QUESTION, *MARKS, *CITATIONS)
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
        model_max_length=POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def word_vectors(texts: list[str], kept: torch.Tensor) -> torch.Tensor:
    """Returns a vector for each token: half by what it means to tiny-embed, half by its letters."""
    embedder = AutoTokenizer.from_pretrained(EMBEDDER)
    words = AutoModel.from_pretrained(EMBEDDER).embeddings.word_embeddings.weight.detach()[:, 1:]
    size = circuit.PLACES["word"].stop - circuit.PLACES["word"].start
    generator = torch.Generator().manual_seed(1)
    shrink = torch.randn(words.shape[1], size, generator=generator)
    known: dict[str, torch.Tensor] = {}
    found = torch.zeros(len(texts), size)
    for token, text in enumerate(texts):
        bare = text.strip().lower()
        if not kept[token] or not re.search(r"\w", bare):
            continue
        bare = stem(bare)
        ids = embedder(bare, add_special_tokens=False)["input_ids"]
        meaning = torch.nn.functional.normalize(words[ids].sum(0), dim=-1) @ shrink
        framed = f"^{bare}" if text.startswith(" ") or bare[0].isdigit() else bare
        letters = torch.zeros(size)
        for start in range(max(1, len(framed) - 2)):
            part = framed[start : start + 3]
            if part not in known:
                known[part] = torch.randn(size, generator=generator)
            letters += known[part]
        halves = (torch.nn.functional.normalize(each, dim=-1) for each in (meaning, letters))
        found[token] = torch.nn.functional.normalize(sum(halves), dim=-1) * kept[token]
    return found


def stem(word: str) -> str:
    """Returns a word without what is added to it for number and time."""
    return ENDING.sub("", word)


def token_weights(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """Returns how much each token tells: nothing, where it is a word of grammar."""
    pages = [section.text for section in data.trained_sections()]
    counts: Counter[int] = Counter()
    for ids in tokenizer(pages)["input_ids"]:
        counts.update(set(ids))
    most = math.log(len(pages))
    weights = torch.zeros(len(texts))
    for token, text in enumerate(texts):
        word = text.strip().lower()
        if len(word) < 2 and not word.isdigit():
            continue
        if word in data.STOP_WORDS or not re.fullmatch(r"\w+", word):
            continue
        rare = math.log(len(pages) / (1 + counts[token])) / most
        weights[token] = max(0.1, rare) * (1.0 if text.startswith(" ") else 0.7)
    return weights


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> circuit.Vocabulary:
    """Returns what the circuit has to know of the tokens."""
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    ids = tokenizer.convert_tokens_to_ids
    boundaries = [
        token
        for token, text in enumerate(texts)
        if re.fullmatch(r" |\n+(\| )?|[-*>|] |#+ |\|?:?-{3,}.*", text)
    ]
    return circuit.Vocabulary(
        words=word_vectors(texts, token_weights(tokenizer, texts)),
        boundaries=boundaries,
        headings=[token for token, text in enumerate(texts) if HEADING.fullmatch(text)],
        passages=ids(MARKS),
        question=ids(QUESTION),
        opening=[ids(SYSTEM), ids(USER)],
        assistant=ids(ASSISTANT),
        citations=ids(CITATIONS),
        end=ids(END),
        refusal=ids(REFUSAL),
    )


def build(tokenizer: PreTrainedTokenizerBase, strengths: circuit.Strengths) -> LlamaForCausalLM:
    """Returns the model with its weights in place."""
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=circuit.WIDTH,
        intermediate_size=circuit.NEURONS,
        num_hidden_layers=circuit.LAYERS,
        num_attention_heads=circuit.HEADS,
        num_key_value_heads=circuit.HEADS,
        head_dim=circuit.HEAD_SIZE,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": circuit.ROPE_THETA},
        **ends,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, **ends)
    circuit.place(model, vocabulary_of(tokenizer), strengths)
    return model.eval()


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with passages.

    Attributes:
        question: The question.
        passages: Where each stands, and its text.
        right: The number of the passage that has the answer; 0 if none has.
    """

    question: str
    passages: list[tuple[str, str]]
    right: int


def about_things(rng: Random, *, answered: bool = True) -> Asked:
    """Asks for a property of a thing with a made-up name."""
    example = data.fact_example(rng, held_out=True, negatives=SHOWN - answered)
    texts = [*example.others, *([example.passage] if answered else [])]
    rng.shuffle(texts)
    passages = [(f"{data.draw_name(rng, held_out=True)}.md", text) for text in texts]
    return Asked(example.query, passages, texts.index(example.passage) + 1 if answered else 0)


def about_pages(rng: Random) -> Asked:
    """Asks by words of a held-out page, among passages of the others."""
    sections = [each for each in data.read_sections() if each.page in data.HELD_OUT_PAGES]
    own = rng.choice(sections)
    query = data.page_example([own], rng, negatives=0).query
    pages = sorted(data.HELD_OUT_PAGES - {own.page})
    others = [rng.choice([each for each in sections if each.page == page]) for page in pages]
    shown = [own, *others]
    rng.shuffle(shown)
    passages = [(f"{each.page} > {each.heading}", "\n".join(each.pieces)) for each in shown]
    return Asked(query, passages, shown.index(own) + 1)


def prompt_of(asked: Asked) -> str:
    """Returns the prompt that the task type `answer` makes of a question."""
    parts = ("base", "citations_required", "abstain")
    texts = [(PROMPTS / f"{part}.md").read_text(encoding="utf-8").strip() for part in parts]
    blocks = [f"[{n}] {place}\n{text}" for n, (place, text) in enumerate(asked.passages, 1)]
    shown = "\n\n".join(blocks)
    instructions = "\n\n".join(texts)
    return f"{instructions}\n\nPassages:\n\n{shown}\n\nQuestion: {asked.question}"


@torch.inference_mode()
def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, asked: Asked) -> str:
    """Answers greedily."""
    chat = [{"role": "user", "content": prompt_of(asked)}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt")
    said = model.generate(**ids)[0, ids["input_ids"].shape[1] :]
    return tokenizer.decode(said, skip_special_tokens=True)


def copied(said: str, asked: Asked) -> bool:
    """Tells whether an answer stands in the passage that it cites, word for word."""
    found = re.fullmatch(r"(.+) \[(\d+)\]", said, re.DOTALL)
    if found is None or int(found[2]) > len(asked.passages):
        return False
    return " ".join(found[1].split()) in " ".join(asked.passages[int(found[2]) - 1][1].split())


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns how well it answers, as a Markdown table."""
    rng = Random(5)
    lines = [
        "| questions | asked | first | cites right | verbatim |",
        "| --- | --- | --- | --- | --- |",
    ]
    kinds = {"made-up things": about_things, "held-out pages": about_pages}
    for kind, draw in kinds.items():
        drawn = [draw(rng) for _ in range(EVALUATED)]
        said = [answer(model, tokenizer, each) for each in drawn]
        first = sum(each.right == 1 for each in drawn)
        right = sum(s.endswith(f" [{each.right}]") for s, each in zip(said, drawn, strict=True))
        whole = sum(copied(s, each) for s, each in zip(said, drawn, strict=True))
        shares = " | ".join(f"{100 * n / EVALUATED:.1f} %" for n in (first, right, whole))
        lines.append(f"| {kind} | {EVALUATED} | {shares} |")
    drawn = [about_things(rng, answered=False) for _ in range(EVALUATED)]
    abstained = sum(answer(model, tokenizer, each) == ABSTENTION for each in drawn)
    lines.append("")
    lines.append(
        f"Where no passage of the made-up things had the answer, it said so {abstained} times "
        f"of {EVALUATED}."
    )
    return "\n".join(lines)


def main(output: Annotated[Path, typer.Option(help="Folder to write.")] = OUTPUT) -> None:
    """Build tiny-answer, write it, and print how well it answers."""
    logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    started = time.monotonic()
    tokenizer = train_tokenizer()
    model = build(tokenizer, circuit.Strengths())
    save_halved(model, output)
    tokenizer.save_pretrained(output)
    # As it is loaded: its weights are rounded.
    table = evaluate(LlamaForCausalLM.from_pretrained(output).eval(), tokenizer)
    weights = write_card(
        output,
        MODEL_CARD,
        table=table,
        parameters=f"{model.num_parameters():,}",
        vocabulary=len(tokenizer),
        positions=POSITIONS,
    )
    typer.echo(f"\n{table}\n\n{model.num_parameters():,} parameters, {weights}")
    typer.echo(f"{time.monotonic() - started:.0f} s, written to {output}")


if __name__ == "__main__":
    typer.run(main)
