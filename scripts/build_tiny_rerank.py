"""Train and write `tiny-rerank`, the cross-encoder that ships with mloc.

    python scripts/build_tiny_rerank.py [--output DIR] [--seed 0] [--steps 800]

Takes about eight minutes of one CPU core, needs the extra `hf`, `tiny-embed` and no network.
Prints, and records in the model card, how often it puts the right passage first.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated

import tiny_retrieval_data as data
import tiny_retrieval_model as common
import torch
import typer
from tiny_model import write_card
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

MODELS = Path(__file__).parents[1] / "mloc_dagster" / "models"
OUTPUT = MODELS / "tiny-rerank"
EMBEDDER = MODELS / "tiny-embed"
MODEL_CARD = Path(__file__).with_name("tiny_rerank_card.md")
LAYERS = 2
QUESTIONS_AT_ONCE = 24
RERANKED = 10
# Places of a state: what tells little, which text a token is of, how much of it was not matched.
DULL, TEXT, UNMATCHED = range(3)


def place_matching(model: BertForSequenceClassification, words: torch.Tensor) -> None:
    """Has a model begin by looking for each token in the other text.

    In the first layer a token attends to those like it in the other text, and what it finds is
    taken away from it; what is left is added up. In the second the first token attends to the
    question's tokens, and so sees how much of it was not found.
    """
    bert = model.bert
    size = common.WIDTH // common.HEADS
    eye = torch.eye(common.WIDTH)
    eye[[DULL, TEXT, UNMATCHED]] = 0
    with torch.no_grad():
        bert.embeddings.word_embeddings.weight.copy_(words)
        bert.embeddings.word_embeddings.weight[:, [TEXT, UNMATCHED]] = 0
        scale = words.norm(dim=-1).mean() / 4
        bert.embeddings.token_type_embeddings.weight[:, TEXT] = torch.tensor([-1.0, 1.0]) * scale
        match, gather = bert.encoder.layer
        attention = match.attention.self
        attention.query.weight.copy_(1.6 * eye)
        attention.key.weight.copy_(1.6 * eye)
        for head in range(common.HEADS):
            # One place of each head tells the texts apart.
            slot = (head + 1) * size - 1
            attention.query.weight[slot] = 0
            attention.key.weight[slot] = 0
            attention.query.weight[slot, TEXT] = 1.2
            attention.key.weight[slot, TEXT] = -1.2
        attention.value.weight.copy_(eye)
        match.attention.output.dense.weight.copy_(-0.7 * eye)
        rows = match.intermediate.dense.weight
        half = len(rows) // 2
        rows.zero_()
        rows[:half] = 2 * eye[:half]
        rows[half:] = -2 * eye[:half]
        match.output.dense.weight[UNMATCHED] = 4 / half
        attention = gather.attention.self
        attention.query.weight.mul_(0.2)
        attention.key.weight.mul_(0.02)
        attention.query.bias[size - 1 :: size] = 3.0
        attention.key.weight[size - 1 :: size] = 0
        attention.key.weight[size - 1 :: size, TEXT] = -2.0
        attention.value.weight.copy_(torch.eye(common.WIDTH))
        gather.attention.output.dense.weight.copy_(0.5 * torch.eye(common.WIDTH))
        bert.pooler.dense.weight[0] = 0
        bert.pooler.dense.weight[0, UNMATCHED] = -3
        bert.pooler.dense.bias[0] = 1.5
        model.classifier.weight[0, 0] = 3


def draw_lists(rng: Random) -> Iterator[tuple[list[str], list[str], int]]:
    """Draws questions, each repeated for its candidates, of which the first one is right."""
    for batch in data.draw_examples(rng, negatives=2):
        part = batch[:QUESTIONS_AT_ONCE]
        asked, told = [], []
        for place, each in enumerate(part):
            another = part[(place + rng.randrange(1, len(part))) % len(part)]
            candidates = [each.passage, *each.others, another.passage]
            asked += [each.query] * len(candidates)
            told += candidates
        yield asked, told, len(told) // len(part)


def build(
    seed: int, steps: int, embedder: Path, tokenizer: PreTrainedTokenizerBase
) -> BertForSequenceClassification:
    """Trains the model; the same seed, steps, pages and embedder give the same weights."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    config = common.config_of(tokenizer, layers=LAYERS, num_labels=1)
    model = BertForSequenceClassification(config)
    common.place_words(model.bert, torch.ones(len(tokenizer)))
    words = BertModel.from_pretrained(embedder).embeddings.word_embeddings
    place_matching(model, words.weight)
    lists = draw_lists(Random(seed))
    started = time.monotonic()

    def report(step: int, loss: float) -> None:
        typer.echo(f"step {step:4d}  loss {loss:.4f}  {time.monotonic() - started:5.1f} s")

    def loss_of_step(_: int) -> torch.Tensor:
        asked, told, candidates = next(lists)
        scores = model(**common.tokenise(tokenizer, asked, told)).logits.view(-1, candidates)
        first = torch.zeros(len(scores), dtype=torch.long)
        wanted = torch.zeros_like(scores)
        wanted[:, 0] = 1
        # In the right order, and of a size that says by itself whether a passage is right.
        order = cross_entropy(scores, first)
        return order + 0.5 * binary_cross_entropy_with_logits(scores, wanted)

    common.learn(model, steps, loss_of_step, report, lr=6e-4, lr_embedding=6e-4)
    return model


@torch.inference_mode()
def score(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    asked: list[str],
    told: list[str],
) -> torch.Tensor:
    """Scores pairs."""
    found = []
    for start in range(0, len(asked), 64):
        inputs = tokenizer(
            asked[start : start + 64],
            told[start : start + 64],
            truncation="only_second",
            padding=True,
            return_tensors="pt",
        )
        found.append(model(**inputs).logits[:, 0])
    return torch.cat(found)


def above_hard(
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[data.Example],
) -> tuple[float, float]:
    """Returns how often the right passage is above the hard one: by the model, and by BM25."""
    asked = [each.query for each in examples]
    right = score(model, tokenizer, asked, [each.passage for each in examples])
    hard = score(model, tokenizer, asked, [each.others[0] for each in examples])
    words = common.word_scores(
        asked, [text for each in examples for text in (each.passage, each.others[0])]
    )
    own = torch.arange(len(examples))
    better = words[own, 2 * own] > words[own, 2 * own + 1]
    return (right > hard).float().mean().item(), better.float().mean().item()


def reranked(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, float, float, float]:
    """Returns of questions about mloc how many there are, and what the order of BM25 becomes.

    That is recall@1 of BM25, recall@1 of its first ten in the model's order, and recall@10.
    """
    sections = data.read_sections()
    texts = [each.text for each in sections]
    questions = data.load_questions()
    words = common.word_scores([asked for asked, _ in questions], texts)
    before = after = within = 0
    for (asked, pages), row in zip(questions, words, strict=True):
        found = row.topk(RERANKED).indices.tolist()
        order = score(model, tokenizer, [asked] * len(found), [texts[place] for place in found])
        before += sections[found[0]].page in pages
        after += sections[found[int(order.argmax())]].page in pages
        within += any(sections[place].page in pages for place in found)
    return len(questions), *(each / len(questions) for each in (before, after, within))


def evaluate(model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns what came of what was held out, as a Markdown table."""
    rng = Random(9)
    hard = {
        "scenes, told in other words": [
            data.scene_example(rng, held_out=True) for _ in range(common.EVALUATED)
        ],
        "questions about named things": [
            data.fact_example(rng, held_out=True) for _ in range(common.EVALUATED)
        ],
    }
    lines = ["| right passage above the hard one | pairs | tiny-rerank | BM25 |"]
    lines.append("| --- | --- | --- | --- |")
    for kind, examples in hard.items():
        ours, words = above_hard(model, tokenizer, examples)
        lines.append(f"| {kind} | {len(examples)} | {100 * ours:.1f} % | {100 * words:.1f} % |")
    asked, before, after, within = reranked(model, tokenizer)
    lines.append("")
    lines.append("| questions about mloc | recall@1 of BM25 | reranked | recall@10 |")
    lines.append("| --- | --- | --- | --- |")
    shares = " | ".join(f"{100 * share:.1f} %" for share in (before, after, within))
    lines.append(f"| {asked} | {shares} |")
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="Folder to write.")] = OUTPUT,
    seed: Annotated[int, typer.Option(help="Of initial weights and of examples.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 800,
    embedder: Annotated[Path, typer.Option(help="Where its words' vectors come from.")] = EMBEDDER,
) -> None:
    """Train tiny-rerank, write it, and print what it puts first."""
    logging.disable_progress_bar()
    torch.set_num_threads(common.THREADS)
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(embedder)
    model = build(seed, steps, embedder, tokenizer)
    common.save_halved(model, output)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedder / name, output / name)
    # As it is loaded: its weights are rounded.
    table = evaluate(BertForSequenceClassification.from_pretrained(output), tokenizer)
    weights = write_card(
        output,
        MODEL_CARD,
        table=table,
        parameters=f"{model.num_parameters():,}",
        vocabulary=len(tokenizer),
        positions=common.POSITIONS,
        seed=seed,
        steps=steps,
    )
    typer.echo(f"\n{table}\n\n{model.num_parameters():,} parameters, {weights}")
    typer.echo(f"{time.monotonic() - started:.0f} s, written to {output}")


if __name__ == "__main__":
    typer.run(main)
