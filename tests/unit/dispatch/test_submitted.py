"""Templates that came over the API, as Dagster's processes and Dagster's UI find them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterRun
from dagster._core.code_pointer import CodePointer, ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.origin import JobPythonOrigin
from hypothesis import given, strategies as st

from mloc_dagster.assets import job_name
from mloc_dagster.compile import CompiledTemplate, compile_mapping
from mloc_dagster.dispatch.submitted_location import (
    FOLDER,
    _built,
    _fits,
    fitting,
    keep_document,
    kept_template,
    latest_templates,
    load,
    pointer_of,
)
from mloc_dagster.fleet import CONTENT_TAG, Jobs
from mloc_dagster.fleet.dagster.jobs import _KEPT_REPOSITORIES
from mloc_dagster.results import open_store
from mloc_dagster.settings import Settings


def template(name: str, item: str = "a", **spec: Any) -> CompiledTemplate:
    return compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "EchoTask",
            "metadata": {"name": name},
            "spec": {"data": {"type": "list", "items": [item]}, **spec},
        }
    )


def kept(compiled: CompiledTemplate) -> str:
    keep_document(compiled.content_hash, compiled.document)
    return compiled.content_hash


def run_of(pointer: CodePointer, job: str, **tags: str) -> DagsterRun:
    origin = ReconstructableRepository(pointer).get_python_origin()
    return DagsterRun(job_name=job, job_code_origin=JobPythonOrigin(job, origin), tags=tags)


def test_a_secret_lies_apart_from_its_template_and_is_found_with_it() -> None:
    headers = {"Authorization": "Bearer planted"}
    destination = {"type": "http", "url": "https://there/hook", "headers": headers}
    compiled = template("delivered", output={"destination": destination})
    content = kept(compiled)
    assert b"planted" not in open_store().folder(FOLDER).read_bytes(f"{content}.json")
    assert kept_template(content) == compiled


def test_a_template_is_found_by_its_content_alone() -> None:
    content = kept(template("from-afar"))
    repository = load(content)
    assert repository.has_job("from_afar")
    assert dg.AssetKey(["from-afar", "responses"]) in repository.asset_graph.get_all_asset_keys()
    pointer = pointer_of(content)
    assert ReconstructableRepository(pointer).get_definition().has_job("from_afar")
    job = Jobs().job_of(run_of(pointer, "from_afar")).get_definition()
    assert job.name == "from_afar"


def test_a_template_whose_document_is_gone_is_one_message() -> None:
    with pytest.raises(FileNotFoundError):
        load("0" * 64)


def test_a_worker_keeps_the_templates_that_it_used_last() -> None:
    jobs, first = Jobs(), kept(template("t0"))
    held = jobs.job_of(run_of(pointer_of(first), "t0")).get_definition()
    for number in range(1, _KEPT_REPOSITORIES + 2):
        content = kept(template(f"t{number}"))
        jobs.job_of(run_of(pointer_of(content), f"t{number}"))
        assert jobs.job_of(run_of(pointer_of(first), "t0")).get_definition() is held
    assert len(jobs._repositories) <= _KEPT_REPOSITORIES


def test_a_run_from_the_ui_has_the_template_that_it_was_launched_with() -> None:
    old, new = template("same", "as it was"), template("same", "as it is")
    content = kept(old)
    kept(new)
    location = ModuleCodePointer("mloc_dagster.dispatch.submitted_location", "defs", "/elsewhere")
    jobs = Jobs()
    of_ui = jobs.job_of(run_of(location, "same", **{CONTENT_TAG: content})).get_definition()
    assert of_ui is jobs.job_of(run_of(pointer_of(content), "same")).get_definition()


def test_the_newest_of_a_name_wins() -> None:
    old, new, other = template("a-b", "old"), template("a_b", "new"), template("c")
    hashes = [kept(new), kept(other), kept(old)]
    found = latest_templates(hashes)
    assert [each.content_hash for each in found] == hashes[:2]


def test_one_broken_template_takes_no_other_down(caplog: pytest.LogCaptureFixture) -> None:
    keep_document("1" * 64, {"apiVersion": "mloc/v1", "kind": "EchoTask"})
    good = template("good")
    assert [each.metadata.name for each in latest_templates(["0" * 64, "1" * 64, kept(good)])] == [
        "good"
    ]
    assert caplog.text.count("left out") == 2
    # The one task of `x` and the job of `x__task` want the same name in a repository.
    meeting = [template("x__task"), template("x"), *(template(f"t{n}") for n in range(5))]
    names = [each.metadata.name for each in fitting(meeting, _fits)]
    assert names == ["x__task", *(f"t{n}" for n in range(5))]
    assert "left out: the template x" in caplog.text


def test_runs_of_the_location_say_what_they_run() -> None:
    compiled = template("tagged", schedule={"cron": "0 * * * *"})
    repository = _built([compiled]).get_repository_def()
    assert repository.get_job("tagged").tags[CONTENT_TAG] == compiled.content_hash
    assert not repository.schedule_defs


@given(st.lists(st.booleans(), max_size=60))
def test_as_few_as_possible_are_left_out(good: list[bool]) -> None:
    fine, broken = template("fine"), template("broken")
    templates = [fine if each else broken for each in good]

    def fits(some: Sequence[CompiledTemplate]) -> bool:
        return broken not in some

    assert fitting(templates, fits) == [fine] * sum(good)


@pytest.mark.parametrize(
    "metadata",
    [
        {"name": "type"},
        {"name": "class"},
        {"owner": "a@"},
        {"owner": "a b@c d"},
        {"owner": "someone@example.com"},
        {"owner": "o" * 300},
        {"labels": {"l" * 200: "v" * 200}},
        {"labels": {"ü é/": "ü"}},
        {"description": "d" * 10_000},
    ],
    ids=str,
)
def test_whatever_compiles_can_be_built(metadata: dict[str, Any]) -> None:
    """Or it would be accepted, and dead by itself afterwards."""
    compiled = compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "EchoTask",
            "metadata": {"name": "odd", **metadata},
            "spec": {"data": {"type": "list", "items": ["a"]}},
        }
    )
    assert load(kept(compiled)).get_job(job_name(compiled)).name == job_name(compiled)


def test_the_largest_template_that_may_be_allowed_can_be_built() -> None:
    field = Settings.model_fields["max_stages"]
    (most,) = (each.le for each in field.metadata if hasattr(each, "le"))
    stages: list[dict[str, Any]] = [{"name": f"s{n}", "spec": {}} for n in range(most)]
    compiled = template("chained", stages=stages)
    assert len(compiled.tasks) == most
    assert load(kept(compiled)).has_job("chained")
