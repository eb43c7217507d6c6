"""Vectors on transformers; `tests/e2e/test_embeddings.py` has both engines side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.engines.pooling import pooling_plan
from mloc_dagster.executors.engines.protocol import Completion, Engine, EngineRequest, Replies
from mloc_dagster.executors.engines.transformers.pooling import PoolingEngine, load_engine
from mloc_dagster.models import builtin_model_path
from mloc_dagster.results import InputRow
from mloc_dagster.schema import EmbeddingSpec, Pooling

TEXTS = ["Paris", "What is the capital of France?", "hot and cold", "one two three four five six"]


def spec(source: dict[str, str], **options: Any) -> EmbeddingSpec:
    return EmbeddingSpec.model_validate(
        {
            "taskType": "embedding",
            "model": {"source": source, "transformers": options},
            "data": {"type": "list", "items": ["x"]},
            "enforce_cpu": True,
        }
    )


def vectors(
    engine: Engine, texts: list[str], pooling: Pooling | None = None
) -> dict[int, Completion | str]:
    pooling = pooling or Pooling()
    found: dict[int, Completion | str] = {}
    rows = [InputRow(index, text) for index, text in enumerate(texts)]
    rendered = [engine.render(row, pooling) for row in rows]
    tokens = engine.tokenize([each.text for each in rendered])
    requests = (
        EngineRequest(row, text, ids, pooling=pooling)
        for row, text, ids in zip(rows, rendered, tokens, strict=True)
    )
    replies = Replies(
        lambda request, completion: found.update({request.row.index: completion}),
        lambda request, reason: found.update({request.row.index: reason}),
        lambda: False,
        lambda _: None,
    )
    engine.run(requests, replies)
    return found


def embedding(found: Completion | str) -> list[float]:
    assert isinstance(found, Completion), found
    assert found.embedding is not None
    return found.embedding


@pytest.fixture(scope="module")
def decoder() -> Iterator[PoolingEngine]:
    engine = load_engine(
        spec({"type": "builtin", "identifier": "tiny-chat"}, max_batch_size=3, max_batch_tokens=64)
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights, and tiny-chat's tokens."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = AutoTokenizer.from_pretrained(builtin_model_path("tiny-chat"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=12,
        )
    ).save_pretrained(folder)
    return folder


def test_a_vector_does_not_depend_on_its_batch(decoder: PoolingEngine) -> None:
    together = vectors(decoder, TEXTS)
    for index, text in enumerate(TEXTS):
        alone = embedding(vectors(decoder, [text])[0])
        assert embedding(together[index]) == pytest.approx(alone, abs=1e-5)
        assert math.hypot(*alone) == pytest.approx(1, abs=1e-5)
    assert embedding(together[0]) != pytest.approx(embedding(together[1]), abs=1e-2)


def test_the_counts(decoder: PoolingEngine) -> None:
    found = vectors(decoder, TEXTS[:2])
    lengths = [len(ids) for ids in decoder.tokenize(TEXTS[:2])]
    assert [found[index].prompt_tokens for index in (0, 1)] == lengths
    assert [found[index].padding_tokens for index in (0, 1)] == [lengths[1] - lengths[0], 0]


def test_short_texts_are_not_padded_to_the_length_of_many_long_ones() -> None:
    engine = load_engine(spec({"type": "builtin", "identifier": "tiny-chat"}))
    try:
        found = vectors(engine, [" ".join(["Paris"] * 150)] * 8 + ["hot and cold"] * 8)
        few = vectors(engine, ["What is the capital of France?", "hot and cold"])
    finally:
        engine.close()
    counts = [each for each in found.values() if isinstance(each, Completion)]
    assert sum(each.prompt_tokens for each in counts) > 1024
    assert {each.padding_tokens for each in counts} == {0}
    assert few[1].padding_tokens > 0  # both together are a small batch


def test_a_decoders_vector_is_its_last_tokens_and_can_be_another(decoder: PoolingEngine) -> None:
    model, ids = decoder._model, decoder.tokenize(TEXTS[1:2])[0]
    with torch.inference_mode():
        states = model(torch.tensor([ids])).last_hidden_state[0]
    as_is = Pooling(normalize=False)
    by_default = embedding(vectors(decoder, TEXTS[1:2], as_is)[0])
    assert by_default == pytest.approx(states[-1].tolist(), abs=1e-4)
    mean = Pooling(normalize=False, pooling_type="MEAN", dimensions=4)
    found = embedding(vectors(decoder, TEXTS[1:2], mean)[0])
    assert found == pytest.approx(states.mean(0)[:4].tolist(), abs=1e-4)


@pytest.mark.parametrize("pooling_type", [None, "MEAN", "CLS"])
def test_an_empty_text_fails_alone(decoder: PoolingEngine, pooling_type: Any) -> None:
    found = vectors(decoder, ["", "Paris"], Pooling(pooling_type=pooling_type))
    assert found[0] == "the text is empty: it has no token to make a vector of"
    assert all(math.isfinite(value) for value in embedding(found[1]))


def test_the_instruction_stands_before_the_text(decoder: PoolingEngine) -> None:
    asked = embedding(vectors(decoder, ["Paris"], Pooling(instruction="query: "))[0])
    assert asked == pytest.approx(embedding(vectors(decoder, ["query: Paris"])[0]), abs=1e-5)


def test_too_long_and_too_wide_fail_alone(encoder: Path) -> None:
    engine = load_engine(spec({"type": "local", "identifier": str(encoder)}))
    found = vectors(engine, ["Paris " * 30, "Paris"])
    assert str(found[0]).startswith("the text has ")
    assert "reads at most 12; pooling.truncate cuts it" in str(found[0])
    assert len(embedding(found[1])) == 16
    cut = vectors(engine, ["Paris " * 30], Pooling(truncate=True))[0]
    assert isinstance(cut, Completion)
    assert cut.prompt_tokens == 12
    assert "99 dimensions" in str(vectors(engine, ["x"], Pooling(dimensions=99))[0])


def test_the_models_own_files_say_how_to_pool(encoder: Path, tmp_path: Path) -> None:
    config = BertConfig.from_pretrained(encoder)
    assert pooling_plan(str(encoder), config, None, None).pooling_type == "MEAN"

    def plan(pooling: dict[str, Any], *more: str) -> Any:
        kinds = ["Transformer", "Pooling", *more]
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in kinds]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "Pooling").mkdir(exist_ok=True)
        (tmp_path / "Pooling" / "config.json").write_text(json.dumps(pooling))
        return pooling_plan(str(tmp_path), config, None, None)

    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    cls = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    assert (plan(cls).pooling_type, plan(cls).limit) == ("CLS", 8)
    assert plan({"pooling_mode": "lasttoken"}, "Normalize").pooling_type == "LAST"
    with pytest.raises(TerminalError, match="pools by pooling_mode_max_tokens"):
        plan({"pooling_mode_max_tokens": True})
    with pytest.raises(TerminalError, match="modules that mloc does not compute: Dense"):
        plan(cls, "Dense")
