"""What tiny-embed and tiny-rerank have in common: tokens, weights to begin with, files, scores."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import tiny_retrieval_data as data
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import (
    BertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast as FastTokenizer,
)

PAD, CLS, SEP = SPECIAL_TOKENS = ["[PAD]", "[CLS]", "[SEP]"]
VOCABULARY = 4096
POSITIONS = 512
WIDTH = 256
HEADS = 8  # of 32, a size that vLLM's kernels take
# Two threads take half more of the CPU, and wait for each other where other work shares it.
THREADS = 1
# How long a text in training is at most, in tokens: attention costs more than words do.
TRAINED_TOKENS = 128
EVALUATED = 200


def train_tokenizer() -> PreTrainedTokenizerBase:
    """Trains a byte-level BPE on mloc's pages and on the grammar.

    Letters in lower case, without what stands between words: `max_num_seqs` is three words, and a
    table has no bars. A Chinese character stands alone.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\p{L}\p{M}\p{N}]+"), "removed"),
            pre_tokenizers.Split(Regex(r"\p{Han}|\p{N}{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    # Not the training seed: the vocabulary stays the same.
    batches = islice(data.draw_examples(Random(0)), 150)
    texts = [text for batch in batches for each in batch for text in (each.query, each.passage)]
    texts += [section.text for section in data.trained_sections()] * 5
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:1 {SEP}:1", special_tokens=ids
    )
    return FastTokenizer(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        cls_token=CLS,
        sep_token=SEP,
        model_max_length=POSITIONS,
        # Without it the halves of a pair look alike to the model.
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def config_of(tokenizer: PreTrainedTokenizerBase, *, layers: int, **options: object) -> BertConfig:
    """Returns the architecture: a BERT of one width."""
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=WIDTH,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def token_weights(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Returns how much each token tells, from 0 to 1: the fewer texts have it, the more."""
    texts = [section.text for section in data.trained_sections()]
    batches = islice(data.draw_examples(Random(1)), 30)
    texts += [text for batch in batches for each in batch for text in (each.query, each.passage)]
    counts: Counter[int] = Counter()
    for ids in tokenizer(texts, truncation=True, max_length=POSITIONS)["input_ids"]:
        counts.update(set(ids))
    weights = torch.tensor(
        [math.log(len(texts) / (1 + counts[token])) for token in range(len(tokenizer))]
    )
    weights = (weights / weights.max()).clamp(min=0.02)
    weights[[tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]] = 0.02
    return weights


def place_words(bert: torch.nn.Module, weights: torch.Tensor) -> None:
    """Has a model begin as a bag of words, each counted by how much it tells.

    The first place of a state holds what a token does not tell. The last norm leaves it out.
    Positions count for nothing, so that long texts are read as short ones are.
    """
    embeddings = bert.embeddings
    with torch.no_grad():
        words = torch.nn.functional.normalize(torch.randn(len(weights), WIDTH - 1), dim=-1)
        rest = (1 - weights**2).sqrt()
        embeddings.word_embeddings.weight[:, 0] = rest
        embeddings.word_embeddings.weight[:, 1:] = words * weights[:, None]
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.zero_()
        for layer in bert.encoder.layer:
            # Each block starts as the identity.
            layer.attention.output.dense.weight.zero_()
            layer.output.dense.weight.zero_()
    embeddings.position_embeddings.weight.requires_grad_(requires_grad=False)


def tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """Returns a batch of texts, or of pairs of which the second ones are cut if need be."""
    return dict(
        tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=True if pairs is None else "only_second",
            max_length=TRAINED_TOKENS,
            padding=True,
            return_tensors="pt",
        )
    )


def learn(
    model: torch.nn.Module,
    steps: int,
    loss_of_step: Callable[[int], torch.Tensor],
    report: Callable[[int, float], None],
    *,
    lr: float,
    lr_embedding: float,
) -> None:
    """Trains in place with AdamW: warm-up, then a straight line to zero."""
    named = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    groups = [
        {"params": [each for name, each in named if "embeddings." in name], "lr": lr_embedding},
        {"params": [each for name, each in named if "embeddings." not in name], "lr": lr},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    rates = [group["lr"] for group in groups]
    model.train()
    mean = 0.0
    for step in range(steps):
        scale = min(1.0, (step + 1) / 50, (steps - step) / (0.8 * steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        loss = loss_of_step(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
        if step % 50 == 0 or step == steps - 1:
            report(step, mean)
    model.eval()


def save_halved(model: PreTrainedModel, output: Path) -> None:
    """Writes weights in float16 of a model that is computed in float32: half the bytes."""
    model.save_pretrained(output)
    path = output / "model.safetensors"
    halved = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(halved, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors' are their owner's alone


def write_json(path: Path, content: object) -> None:
    """Writes one of the small files beside a model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def word_scores(queries: Sequence[str], passages: Sequence[str]) -> torch.Tensor:
    """Scores each passage for each query by BM25 over words, the measure to beat."""
    docs = [Counter(re.findall(r"\w+", text.lower())) for text in passages]
    spread: Counter[str] = Counter(word for doc in docs for word in doc)
    mean = sum(map(Counter.total, docs)) / len(docs)
    scores = torch.zeros(len(queries), len(docs))
    for row, query in enumerate(queries):
        for word in set(re.findall(r"\w+", query.lower())):
            weight = math.log(1 + (len(docs) - spread[word] + 0.5) / (spread[word] + 0.5))
            for column, doc in enumerate(docs):
                if count := doc[word]:
                    room = count + 1.2 * (0.25 + 0.75 * doc.total() / mean)
                    scores[row, column] += weight * count * 2.2 / room
    return scores


def recall(scores: torch.Tensor, right: Sequence[set[int]], k: int) -> float:
    """Returns the share of queries that have a right passage among the first k."""
    found = scores.topk(k, dim=1).indices.tolist()
    return sum(bool(set(row) & each) for row, each in zip(found, right, strict=True)) / len(right)
