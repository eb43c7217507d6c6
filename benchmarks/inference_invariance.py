"""How often an answer depends on what is computed beside it, at temperature 0, on each engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference_model import build_model
from inference_options import Options
from inference_warm import ENGINE
from inference_workloads import Workloads, questions_in

from mloc_dagster.executors import Engine, EngineRequest, InferenceExecutor, Replies
from mloc_dagster.results import InputRow
from mloc_dagster.schema import Inference, InferenceSpec

ROWS = 300
SIZES = (1, 8, 64)
"""Rows that are computed at once at most; the first is what the others are compared with."""


def measure_invariance(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns, for engine and type of number, how many answers differ from those computed alone."""
    figures: dict[str, Any] = {}
    for engine in ("vllm", "transformers"):
        for dtype in ("float32", "bfloat16"):
            model = folder / dtype
            if not model.exists():
                build_model(model, hidden=options.hidden, layers=options.layers, dtype=dtype)
            prompts = questions_in(Workloads(options.prompts, folder, options.rows).questions())
            texts = {
                size: _answers(_spec(model, engine, dtype, size), prompts[:ROWS], options)
                for size in SIZES
            }
            alone = texts[SIZES[0]]
            figures[f"{engine} {dtype}"] = {
                "rows": len(alone),
                "differ": {
                    str(size): sum(alone[row] != texts[size][row] for row in alone)
                    for size in SIZES[1:]
                },
            }
    return figures


def _spec(model: Path, engine: str, dtype: str, size: int) -> InferenceSpec:
    block: dict[str, Any] = {
        "source": {"type": "local", "identifier": str(model)},
        "engine": engine,
    }
    if engine == "vllm":
        block["vllm"] = {**ENGINE, "dtype": dtype, "max_num_seqs": size}
    else:
        block["transformers"] = {"dtype": dtype, "max_batch_size": size}
    data = {"type": "list", "items": ["unused"]}
    return InferenceSpec.model_validate({"taskType": "inference", "model": block, "data": data})


def _answers(spec: InferenceSpec, prompts: list[str], options: Options) -> dict[int, str]:
    executor = InferenceExecutor()
    engine = executor.load(spec)
    how = Inference(temperature=0, max_tokens=options.new_tokens, ignore_eos=True)
    texts: dict[int, str] = {}

    def done(request: EngineRequest, completion: Any) -> None:
        texts[request.row.index] = completion.answers[0].text

    def failed(request: EngineRequest, reason: str) -> None:
        raise SystemExit(f"row {request.row.index} failed: {reason}")

    try:
        engine.run(
            iter(_requests(engine, prompts, how)),
            Replies(done, failed, lambda: False, lambda _: None),
        )
    finally:
        executor.unload(engine)
    return texts


def _requests(engine: Engine, prompts: list[str], how: Inference) -> list[EngineRequest]:
    rows = [InputRow(index, prompt) for index, prompt in enumerate(prompts)]
    rendered = [engine.render(row, Inference()) for row in rows]
    tokens = engine.tokenize([each.text for each in rendered])
    return [
        EngineRequest(row, text, ids, sampling=how)
        for row, text, ids in zip(rows, rendered, tokens, strict=True)
    ]
