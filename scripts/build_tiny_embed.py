"""Train and write `tiny-embed`, the embedding model that ships with mloc.

    python scripts/build_tiny_embed.py [--output DIR] [--seed 0] [--steps 900]

Takes about six minutes of one CPU core, needs the extra `hf` and no network. Prints, and records in
the model card, how often it finds the right passage, beside BM25.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated

import tiny_retrieval_data as data
import tiny_retrieval_model as common
import torch
import typer
from tiny_model import write_card
from torch.nn.functional import cross_entropy, normalize
from transformers import BertModel, PreTrainedTokenizerBase
from transformers.utils import logging

OUTPUT = Path(__file__).parents[1] / "mloc_dagster" / "models" / "tiny-embed"
MODEL_CARD = Path(__file__).with_name("tiny_embed_card.md")
LAYERS = 1
TEMPERATURE = 0.05


def embed(model: BertModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns a vector of length 1 for each text: the mean of its tokens' states."""
    states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


def contrast(
    model: BertModel, tokenizer: PreTrainedTokenizerBase, batch: list[data.Example]
) -> torch.Tensor:
    """InfoNCE: each query against all passages of the batch, and each passage against queries."""
    passages = [each.passage for each in batch]
    passages += [other for each in batch for other in each.others]
    asked = embed(model, common.tokenise(tokenizer, [each.query for each in batch]))
    told = embed(model, common.tokenise(tokenizer, passages))
    scores = asked @ told.T / TEMPERATURE
    # A passage that is in the batch twice is right both times.
    places = {text: place for place, text in reversed(list(enumerate(passages)))}
    same = torch.tensor([places[text] for text in passages])
    own = torch.arange(len(batch))
    twin = (same[None, :] == same[own][:, None]) & (torch.arange(len(passages)) != own[:, None])
    scores = scores.masked_fill(twin, -1e4)
    return cross_entropy(scores, own) + 0.3 * cross_entropy(scores[:, : len(batch)].T, own)


def build(seed: int, steps: int, tokenizer: PreTrainedTokenizerBase) -> BertModel:
    """Trains the model; the same seed, steps and pages give the same weights."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    model = BertModel(common.config_of(tokenizer, layers=LAYERS), add_pooling_layer=False)
    common.place_words(model, common.token_weights(tokenizer))
    with torch.no_grad():
        model.encoder.layer[-1].output.LayerNorm.weight[0] = 0.0
    batches = data.draw_examples(Random(seed))
    started = time.monotonic()

    def report(step: int, loss: float) -> None:
        typer.echo(f"step {step:4d}  loss {loss:.4f}  {time.monotonic() - started:5.1f} s")

    def loss_of_step(_: int) -> torch.Tensor:
        return contrast(model, tokenizer, next(batches))

    common.learn(model, steps, loss_of_step, report, lr=5e-4, lr_embedding=2e-3)
    return model


def with_pooler(model: BertModel) -> BertModel:
    """Returns the model with the layer that transformers expects of it, which nothing uses."""
    whole = BertModel(model.config)
    whole.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        whole.pooler.dense.weight.zero_()
        whole.pooler.dense.bias.zero_()
    return whole


@torch.inference_mode()
def vectors(model: BertModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """Returns the vectors of texts."""
    parts = [texts[start : start + 64] for start in range(0, len(texts), 64)]
    return torch.cat(
        [
            embed(model, dict(tokenizer(part, padding=True, truncation=True, return_tensors="pt")))
            for part in parts
        ]
    )


@dataclass(frozen=True, slots=True)
class Score:
    """How often the right passage was among the first.

    Attributes:
        kind: What was asked.
        asked: How many queries.
        passages: Among how many passages.
        model: recall@1 and recall@5 of the model.
        words: The same of BM25.
    """

    kind: str
    asked: int
    passages: int
    model: tuple[float, float]
    words: tuple[float, float]


def evaluate(model: BertModel, tokenizer: PreTrainedTokenizerBase) -> list[Score]:
    """Scores what was held out."""
    scores = []
    drawn = {
        "paraphrases without a common word": data.held_out_paraphrases(common.EVALUATED, Random(7)),
        "questions about named things": [
            data.fact_example(rng, held_out=True)
            for rng in [Random(8)]
            for _ in range(common.EVALUATED)
        ],
    }
    for kind, examples in drawn.items():
        right = [{place} for place in range(len(examples))]
        passages = [each.passage for each in examples]
        passages += [other for each in examples for other in each.others]
        scores.append(compare(model, tokenizer, kind, [e.query for e in examples], passages, right))
    sections = data.read_sections()
    questions = data.load_questions()
    for kind, kept in (
        ("questions about mloc", questions),
        (
            "those of them whose pages were not trained on",
            [q for q in questions if set(q[1]) <= data.HELD_OUT_PAGES],
        ),
    ):
        right = [
            {place for place, each in enumerate(sections) if each.page in pages}
            for _, pages in kept
        ]
        texts = [each.text for each in sections]
        scores.append(compare(model, tokenizer, kind, [q for q, _ in kept], texts, right))
    return scores


def compare(
    model: BertModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    queries: list[str],
    passages: list[str],
    right: list[set[int]],
) -> Score:
    """Scores the model and BM25 on the same queries and passages."""
    near = vectors(model, tokenizer, queries) @ vectors(model, tokenizer, passages).T
    words = common.word_scores(queries, passages)
    one, other = (
        (common.recall(scores, right, 1), common.recall(scores, right, 5))
        for scores in (near, words)
    )
    return Score(kind, len(queries), len(passages), one, other)


def score_table(scores: list[Score]) -> str:
    """Returns the scores as a Markdown table."""
    lines = [
        "| what is asked | queries | passages | recall@1 | recall@5 | BM25 @1 | BM25 @5 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in scores:
        shares = " | ".join(f"{100 * share:.1f} %" for share in (*each.model, *each.words))
        lines.append(f"| {each.kind} | {each.asked} | {each.passages} | {shares} |")
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="Folder to write.")] = OUTPUT,
    seed: Annotated[int, typer.Option(help="Of initial weights and of examples.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 900,
) -> None:
    """Train tiny-embed, write it, and print what it finds."""
    logging.disable_progress_bar()
    torch.set_num_threads(common.THREADS)
    started = time.monotonic()
    tokenizer = common.train_tokenizer()
    tokenizer.save_pretrained(output)  # before it is used: padding would be saved with it
    model = with_pooler(build(seed, steps, tokenizer))
    common.save_halved(model, output)
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, (kind, path) in enumerate(kinds)
    ]
    common.write_json(output / "modules.json", modules)
    pooling = {"word_embedding_dimension": common.WIDTH, "pooling_mode_mean_tokens": True}
    common.write_json(output / "1_Pooling" / "config.json", pooling)
    limits = {"max_seq_length": common.POSITIONS, "do_lower_case": False}
    common.write_json(output / "sentence_bert_config.json", limits)
    # As it is loaded: its weights are rounded.
    table = score_table(evaluate(BertModel.from_pretrained(output), tokenizer))
    weights = write_card(
        output,
        MODEL_CARD,
        table=table,
        parameters=f"{model.num_parameters():,}",
        vocabulary=len(tokenizer),
        positions=common.POSITIONS,
        width=common.WIDTH,
        seed=seed,
        steps=steps,
    )
    typer.echo(f"\n{table}\n\n{model.num_parameters():,} parameters, {weights}")
    typer.echo(f"{time.monotonic() - started:.0f} s, written to {output}")


if __name__ == "__main__":
    typer.run(main)
