"""Weights that are spread over processes: who gathers them, how, and where it is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from transformers import AutoModelForCausalLM

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.training import spread
from mloc_dagster.executors.training.loading import load_policy
from mloc_dagster.executors.training.spread import is_spread, reporter_of
from mloc_dagster.executors.training.weight_files import save_final
from mloc_dagster.schema import TrainingSpec
from tests.unit.training.test_loading import logits, make_spec, quiet

ZERO3 = {"zero_optimization": {"stage": 3}}


def trainer_of(model: Any, *, rank: int = 0, fsdp: bool = False, stage: int | None = None) -> Any:
    """What a transformers trainer tells of how it trains."""
    plugin = SimpleNamespace(zero_stage=stage)
    return SimpleNamespace(
        model=model,
        is_fsdp_enabled=fsdp,
        is_deepspeed_enabled=stage is not None,
        args=SimpleNamespace(process_index=rank),
        accelerator=SimpleNamespace(
            state=SimpleNamespace(deepspeed_plugin=plugin), unwrap_model=lambda it: it
        ),
    )


@pytest.fixture
def partitioned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Empties a model's weights as ZeRO-3 does; DeepSpeed's context puts each back for a while."""
    whole: dict[Any, Any] = {}

    @contextmanager
    def gathered(weights: Sequence[Any]) -> Iterator[None]:
        for each in weights:
            each.data = whole[each]
        yield
        for each in weights:
            each.data = torch.empty(0)

    deepspeed = SimpleNamespace(zero=SimpleNamespace(GatheredParameters=gathered))
    monkeypatch.setattr(spread, "import_module", {"deepspeed": deepspeed}.__getitem__)

    def empty(model: Any) -> Any:
        for weight in model.parameters():
            whole[weight] = weight.data
            weight.data = torch.empty(0)
        return model

    return empty


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "has_gpu", lambda spec: not spec.enforce_cpu)


@pytest.mark.usefixtures("gpu")
def test_weights_are_spread_where_the_options_are_not_left_aside() -> None:
    def asks(**blocks: Any) -> TrainingSpec:
        return make_spec(training={"fsdp": True}, **blocks)

    assert is_spread(asks())
    assert is_spread(make_spec(training={"deepspeed": ZERO3}))
    assert not is_spread(asks(enforce_cpu=True)), "on a CPU they are left aside"
    assert not is_spread(make_spec())
    with pytest.raises(TerminalError, match=r"training\.fsdp_config: version 1"):
        is_spread(make_spec(training={"fsdp": True, "fsdp_config": {"version": 1}}))


def test_zero3_is_gathered_weight_by_weight(tmp_path: Path, partitioned: Any) -> None:
    model, tokenizer = load_policy(make_spec(), None, quiet)
    expected = logits(model)
    trainer = trainer_of(partitioned(model), stage=3)
    weights = spread.whole_weights(trainer)
    assert all(weight.numel() == 0 for weight in model.parameters()), "they were given back"
    assert save_final(model, tokenizer, tmp_path, weights) == "final_model"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final_model")
    assert torch.equal(logits(loaded), expected)


def test_only_the_first_process_keeps_what_is_gathered(partitioned: Any) -> None:
    model, _ = load_policy(make_spec(), None, quiet)
    assert spread.whole_weights(trainer_of(partitioned(model), rank=1, stage=3)) == {}


def test_of_an_adapter_the_base_is_not_gathered(partitioned: Any) -> None:
    model, _ = load_policy(make_spec("lora_sft"), None, quiet)
    weights = spread.whole_weights(trainer_of(partitioned(model), stage=3))
    assert weights
    assert all("lora_" in name for name in weights)


@pytest.mark.parametrize("how", [{"fsdp": True}, {"stage": 3}])
def test_spreading_behind_the_templates_back_is_refused(how: dict[str, Any]) -> None:
    run: Any = SimpleNamespace(spec=make_spec())
    with pytest.raises(TerminalError, match=r"say it in the template, with training\.fsdp"):
        reporter_of(trainer_of(None, **how), run)
    reporter_of(trainer_of(None, stage=2), run)  # has whole weights in each process
