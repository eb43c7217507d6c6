"""How fast agents are: many trajectories over one warm engine, against the ideal of a batch.

    .venv/bin/python benchmarks/agent.py PART

Parts: turns, scripted, or all. Each appends an entry to benchmarks/results/agent.json; with
`--quick` it runs with tiny sizes and only prints.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_bare import BareChats
from agent_workload import agent_spec, give_calls, install_tool, run_rows
from inference_model import build_model
from parts import run_parts

from mloc_dagster.executors import AgentExecutor

ENGINE = {"enforce_eager": True, "dtype": "float32", "max_model_len": 4096, "block_size": 32}
TOOL_S = 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes of all parts.

    Attributes:
        rows: Trajectories.
        turns: Turns of each.
        new_tokens: Tokens of a turn.
        rounds: How often each thing is measured, in turns; medians are reported.
        alone: Trajectories of the run that has one at a time.
        hidden: Width of the model.
        layers: Its depth.
        many: Trajectories of the scripted runs whose memory is compared, ascending.
    """

    rows: int
    turns: int
    new_tokens: int
    rounds: int
    alone: int
    hidden: int
    layers: int
    many: tuple[int, ...]


def measure_turns(options: Options, folder: Path, _: Path) -> dict[str, Any]:
    """Returns rows a second against one `LLM.chat` a turn, and against one row at a time."""
    model = folder / "model"
    parameters = build_model(
        model, hidden=options.hidden, layers=options.layers, source="tiny-tools"
    )
    install_tool(folder)
    spec = _spec(model, options)
    engine: Any = AgentExecutor().load(spec)
    give_calls(engine, options.turns)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with BareChats(model, environment, ENGINE) as bare:
        bare.run(options.rows, options.turns, options.new_tokens)
        _timed(spec, engine, options.rows, folder / "warm-up")
        ideal, ours = [], []
        for number in range(options.rounds):
            ideal.append(bare.run(options.rows, options.turns, options.new_tokens))
            ours.append(_timed(spec, engine, options.rows, folder / f"round-{number}"))
    alone = _timed(_spec(model, options, concurrency=1), engine, options.alone, folder / "alone")
    slow = _spec(model, options, seconds=TOOL_S)
    path = _timed(slow, engine, 1, folder / "path")
    hidden = _timed(slow, engine, options.rows, folder / "hidden")
    ideal_s = statistics.median(each["seconds"] for each in ideal)
    ours_s = statistics.median(each["seconds"] for each in ours)
    return {
        "parameters": parameters,
        "ideal_s": [round(each["seconds"], 2) for each in ideal],
        "ours_s": [round(each["seconds"], 2) for each in ours],
        "ratio_to_ideal": round(ideal_s / ours_s, 3),
        "prompt_tokens": [ideal[0]["prompt_tokens"], ours[0]["prompt_tokens"]],
        "tokens": [ideal[0]["tokens"], ours[0]["tokens"]],
        "hit_rate_later_turns": [round(ideal[0]["hit_rate"], 3), round(ours[0]["hit_rate"], 3)],
        "hits_of_what_turns_before_computed": round(ours[0]["found_of_computed"], 3),
        "times_one_at_a_time": round(
            (alone["seconds"] / options.alone) / (ours_s / options.rows), 2
        ),
        "tool_s": TOOL_S,
        "one_row_with_slow_tool_s": round(path["seconds"], 2),
        "all_rows_with_slow_tool_s": round(hidden["seconds"], 2),
        "against_the_longer_of_engine_and_path": round(
            hidden["seconds"] / max(ours_s, path["seconds"]), 3
        ),
    }


def _spec(model: Path, options: Options, **agent: Any) -> Any:
    source = {"type": "local", "identifier": str(model)}
    given = {"concurrency": options.rows, "max_steps": options.turns, "on_limit": "fail", **agent}
    return agent_spec({"source": source, "vllm": ENGINE}, options.new_tokens, **given)


def _timed(spec: Any, engine: Any, rows: int, folder: Path) -> dict[str, Any]:
    engine.llm.reset_prefix_cache()  # as the other one does
    folder.mkdir()
    begun = time.perf_counter()
    done = run_rows(spec, engine, rows, folder)
    seconds = time.perf_counter() - begun
    turns = [
        json.loads(line)
        for part in sorted(folder.rglob("*.jsonl"))
        if "journal" in part.parts
        for line in part.read_text().splitlines()
    ]
    asked = {(each["index"], each["turn"]): each for each in turns if each["type"] == "model"}
    later = [each for (_, turn), each in asked.items() if turn > 0]
    before = [asked[index, turn - 1] for index, turn in asked if turn > 0]
    return {
        "seconds": seconds,
        "tokens": sum(each.completion_tokens for each in done),
        "prompt_tokens": sum(each.prompt_tokens for each in done),
        "hit_rate": sum(each.get("cached_tokens", 0) for each in later)
        / max(sum(each["prompt_tokens"] for each in later), 1),
        "found_of_computed": sum(each.get("cached_tokens", 0) for each in later)
        / max(sum(each["prompt_tokens"] + each["completion_tokens"] for each in before), 1),
    }


def measure_scripted(options: Options, folder: Path, _: Path) -> dict[str, Any]:
    """Returns CPU time a turn and memory of scripted trajectories, beside pydantic-ai alone."""
    figures: dict[str, Any] = {"cpu_ms_a_turn": {}, "peak_mib": {}}
    for kind, sizes in (("library", options.many[:1]), ("mloc", options.many)):
        for rows in sizes:
            place = folder / f"{kind}-{rows}"
            place.mkdir()
            script = Path(__file__).with_name("agent_scripted.py")
            command = [sys.executable, script, place, kind, str(rows), str(options.turns)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured = json.loads(out.splitlines()[-1])
            figures["cpu_ms_a_turn"][f"{kind} {rows}"] = round(measured["cpu_ms_a_turn"], 3)
            figures["peak_mib"][f"{kind} {rows}"] = round(measured["peak_mib"])
    return figures


def _parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Options]:
    parser.add_argument("--quick", action="store_true", help="tiny sizes, printed, not recorded")
    sizes = {"rows": 200, "turns": 6, "new-tokens": 32, "rounds": 3, "alone": 10}
    for name, default in {**sizes, "hidden": 384, "layers": 6}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--many", default="1000,10000")
    given = parser.parse_args()
    quick = given.quick
    return given, Options(
        rows=12 if quick else given.rows,
        turns=given.turns,
        new_tokens=4 if quick else given.new_tokens,
        rounds=1 if quick else given.rounds,
        alone=2 if quick else given.alone,
        hidden=given.hidden,
        layers=given.layers,
        many=(100, 200) if quick else tuple(int(each) for each in given.many.split(",")),
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    parts = {"turns": measure_turns, "scripted": measure_scripted}
    run_parts("agent", "Measures agents, in real processes.", parts, _parse)
