"""What a task is going to take, worked out from summaries that the real writer wrote."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat

import pytest

from mloc_dagster.compile import compile_mapping
from mloc_dagster.errors import DataError
from mloc_dagster.executors.estimate import Estimate, Figure, add_up, estimate_rows
from mloc_dagster.executors.input_planning import kind_of, usual_output_tokens
from mloc_dagster.executors.task_start import start_task, task_record
from mloc_dagster.planning import Chunk, Plan, cut_shards
from mloc_dagster.results import (
    History,
    OutputRow,
    ResultStore,
    ShardWriter,
    aggregate_rows,
    open_store,
    read_history,
    write_record,
)
from mloc_dagster.schema import InferenceSpec
from mloc_dagster.settings import settings

_STARTED = datetime(2026, 1, 1, tzinfo=UTC)
_ENGINE = "transformers 5.19.0"


@pytest.fixture
def store() -> ResultStore:
    return open_store(f"memory://{uuid.uuid4().hex}")


def compiled(**changes: object):
    spec = {
        "taskType": "inference",
        "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
        "data": {"type": "list", "items": ["one two", "three four five", "six"]},
        "inference": {"max_tokens": 10},
        **changes,
    }
    return compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "InferenceTask",
            "metadata": {"name": "asked"},
            "spec": spec,
        }
    )


def spec_of(**changes: object) -> InferenceSpec:
    spec = compiled(**changes).tasks[0].task.spec
    assert isinstance(spec, InferenceSpec)
    return spec


def remember(
    store: ResultStore,
    *,
    wall_s: float = 10.0,
    model: str = "tiny-chat",
    engine: str = _ENGINE,
    workers: int = 1,
    rows: int = 4,
    attempts: tuple[tuple[float, float], ...] = (),
    **row: object,
) -> None:
    """Writes an earlier task: `rows` alike rows, of 6 + 4 tokens and 1 second each by default.

    Each of `attempts`, seconds from start to end, is another worker's.
    """
    task_id = uuid.uuid4().hex
    template = compiled()
    folder = store.task(task_id)
    write_record(folder, task_record(task_id, template, template.tasks[0], task_id, "run", {}))
    plan = Plan(
        task_id=task_id,
        source="a list",
        rows=rows,
        data_version="d" * 64,
        seed=1,
        chunks=(Chunk(name="input/0.jsonl", start=0, rows=rows),),
        shards=tuple(cut_shards(task_id, rows, 1)),
    )
    figures = {"prompt_tokens": 6, "completion_tokens": 4, "engine_s": 1.0, **row}
    for number, (began_s, stopped_s) in enumerate(attempts or ((0.0, wall_s),)):
        with ShardWriter(
            folder,
            plan.shards[0],
            1,
            flush_rows=99,
            flush_interval_s=60,
            began=_STARTED + timedelta(seconds=began_s) if attempts else None,
            clock=chain([began_s], repeat(stopped_s)).__next__,
        ) as writer:
            for index in range(number, rows, max(len(attempts), 1)):
                worker = f"host:{number if attempts else index % workers}"
                writer.write(OutputRow(index, "p", "o", engine=engine, worker=worker, **figures))
    aggregate_rows(
        folder,
        plan,
        model=model,
        worker_id="w",
        started_at=_STARTED,
        error_budget=1.0,
        now=_STARTED + timedelta(seconds=wall_s),
    )


def estimated(store: ResultStore, **changes: object) -> Estimate:
    spec = spec_of(**changes)
    return estimate_rows(spec, read_history(store, kind_of(spec)))


def test_without_history_answers_are_bounded_and_no_time_is_known(store: ResultStore) -> None:
    found = estimated(store, inference={"max_tokens": 10, "n": 2})
    assert (found.rows.value, found.rows.source) == (3, "list of 3")
    assert found.prompt_tokens.source == "counted by the tokenizer of tiny-chat"
    assert found.output_tokens == Figure(
        60, "no earlier task like it: at most max_tokens a row", at_most=True
    )
    assert found.seconds == Figure(None, "no earlier task like it: no time known")
    assert found.cost.value is None


def test_a_system_prompt_is_read_with_each_row(store: ResultStore) -> None:
    plain = estimated(store).prompt_tokens.value
    asked = estimated(store, inference={"system_prompt": "one two"}).prompt_tokens.value
    alone = estimated(store, data={"type": "list", "items": ["one two"]}).prompt_tokens.value
    assert plain is not None
    assert alone is not None
    assert asked == plain + 3 * alone


def test_time_and_cost_are_those_of_earlier_tasks_a_token(store: ResultStore) -> None:
    remember(store, wall_s=10.0)  # 0.1 engine seconds a token, 6 s in which it did nothing
    found = estimated(store, resources={"cost_per_hour": 3600})
    prompts = found.prompt_tokens.value
    assert prompts is not None
    assert found.output_tokens.value == 12
    assert found.engine_seconds.value == pytest.approx((prompts + 12) * 0.1)
    assert found.seconds.value == pytest.approx(6.0 + (prompts + 12) * 0.1)
    assert found.cost.value == pytest.approx((prompts + 12) * 0.1)
    assert found.output_tokens.source == f"from 1 earlier task of tiny-chat on {_ENGINE}"
    assert found.seconds.source.endswith(f"on {_ENGINE}, with 1 worker")


def test_tokens_at_their_prices_need_no_earlier_task(store: ResultStore) -> None:
    prices = {"cost_per_token": {"input": 0.5, "output": 2, "cached": 0.1}}
    found = estimated(store, resources=prices)
    prompts, written = found.prompt_tokens.value, found.output_tokens.value
    assert prompts is not None
    assert written is not None
    source = "tokens at their prices, none of them from a prefix cache"
    assert found.cost == Figure(0.5 * prompts + 2 * written, source, at_most=True)


def test_answers_are_never_longer_than_allowed(store: ResultStore) -> None:
    remember(store, completion_tokens=400)
    assert estimated(store).output_tokens.value == 30
    assert estimated(store, inference={"max_tokens": 10, "n": 3}).output_tokens.value == 90


def test_of_several_tasks_the_median_counts(store: ResultStore) -> None:
    for tokens in (2, 4, 9):
        remember(store, completion_tokens=tokens)
    found = estimated(store)
    assert found.output_tokens.value == 12
    assert found.output_tokens.source.startswith("from 3 earlier tasks of tiny-chat")


def test_workers_share_the_engine_time(store: ResultStore) -> None:
    remember(store, wall_s=2.0, workers=2)
    found = estimated(store)
    assert found.engine_seconds.value is not None
    assert found.seconds.value == pytest.approx(found.engine_seconds.value / 2)
    assert found.seconds.source.endswith("with 2 workers")
    alone = estimated(store, parallel={"enabled": False})
    assert alone.seconds.source.endswith("with 1 worker")


def test_a_worker_that_was_killed_and_its_successor_are_one_at_a_time(store: ResultStore) -> None:
    remember(store, attempts=((0, 3), (3600, 3603)))  # 4 engine seconds in 6, and a pause
    found = estimated(store)
    assert found.engine_seconds.value is not None
    assert found.seconds.value == pytest.approx(found.engine_seconds.value + 2)
    assert found.seconds.source.endswith("with 1 worker")


def test_two_workers_beside_each_other_are_two(store: ResultStore) -> None:
    remember(store, attempts=((0, 3), (0.01, 3)))
    assert estimated(store).seconds.source.endswith("with 2 workers")


def test_planning_takes_the_length_of_earlier_answers(store: ResultStore) -> None:
    assert usual_output_tokens(spec_of(), store) is None
    remember(store, completion_tokens=6)
    assert usual_output_tokens(spec_of(), store) == 6
    assert usual_output_tokens(spec_of(inference={"n": 2}), store) == 3
    assert usual_output_tokens(spec_of(model={**_TINY, "engine": "vllm"}), store) is None


def test_a_plan_expects_what_earlier_tasks_wrote_and_keeps_it(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_RESULTS_URL", store.url)
    settings.cache_clear()

    def planned(task_id: str) -> int:
        document = compiled().document
        _, plan = start_task(document, "asked", workflow_id=task_id, run_id="r", upstream={})
        assert plan.expected is not None
        return plan.expected.output_tokens

    assert planned("first") == 30, "3 rows of max_tokens 10"
    remember(store)
    assert planned("second") == 12
    assert planned("first") == 30, "a plan that is there stays"


def test_reused_rows_make_no_engine_faster(store: ResultStore) -> None:
    remember(store, rows=4)
    before = estimated(store).engine_seconds.value
    remember(store, rows=4, reused="cache", engine_s=0.0, saved_s=1.0)
    assert estimated(store).engine_seconds.value == before


def test_only_tasks_that_are_alike_count(store: ResultStore) -> None:
    remember(store, model="another")
    remember(store, error="broken")
    store.task("alien").write_bytes("summary.json", b'{"of": "another version"}')
    assert read_history(store, kind_of(spec_of())) == History()
    remember(store, engine="vllm 0.32.0")
    remember(store, engine=_ENGINE)
    assert read_history(store, kind_of(spec_of())).engine == _ENGINE
    named = spec_of(model={**_TINY, "engine": "vllm"})
    assert read_history(store, kind_of(named)).engine == "vllm 0.32.0"


def test_no_more_than_so_many_summaries_are_read(store: ResultStore) -> None:
    for _ in range(5):
        remember(store)
    kind = kind_of(spec_of())
    assert len(read_history(store, kind, enough=2).summaries) == 2
    assert len(read_history(store, kind, looked_at=3).summaries) == 3


def test_an_empty_input_is_refused(store: ResultStore, tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(DataError):
        estimated(store, data={"type": "dataset", "url": str(tmp_path / "rows.jsonl")})


def test_a_sum_says_what_is_missing_in_it() -> None:
    assert add_up([Figure(1, "a"), Figure(2, "b", at_most=True)]) == Figure(3, "all tasks", True)
    assert add_up([Figure(1, "a"), Figure(None, "b")]) == Figure(1, "1 of 2 tasks")
    assert add_up([Figure(None, "b")]).value is None


_TINY = {"source": {"type": "builtin", "identifier": "tiny-chat"}}
