from __future__ import annotations

import pytest

from mloc_dagster.compile.compiled import CompiledTemplate
from mloc_dagster.compile.compiler import compile_document, compile_mapping
from mloc_dagster.compile.loader import parse_documents
from mloc_dagster.compile.overrides import apply_sets, merge_overrides
from mloc_dagster.errors import TemplateError, UnknownNameError
from mloc_dagster.schema import InferenceSpec

SINGLE = """
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: t}
spec:
  model: {source: {type: huggingface, identifier: big, revision: main}}
  data: {type: list, items: [a, b]}
  inference: {max_new_tokens: 9}
"""
STAGES = """
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: t}
spec:
  inference: {max_tokens: 9}
  stages:
  - name: draft
    spec:
      model: {source: {type: huggingface, identifier: one}}
      data: {type: list, items: [a]}
      inference: {temperature: 0.4}
  - name: refine
    spec: {model: {source: {identifier: two}}, inference: {max_new_tokens: 3}}
"""


def with_sets(text: str, *sets: str) -> CompiledTemplate:
    return compile_document(apply_sets(parse_documents(text, "t.yaml")[0], sets))


def specs(template: CompiledTemplate) -> list[InferenceSpec]:
    found = [each.task.spec for each in template.tasks]
    assert all(isinstance(spec, InferenceSpec) for spec in found)
    return found  # type: ignore[return-value]


def test_a_set_changes_one_value() -> None:
    (spec,) = specs(with_sets(SINGLE, "spec.inference.temperature=0", 'spec.data.items[1]="5"'))
    assert spec.inference.temperature == 0
    assert spec.inference.max_tokens == 9
    assert spec.data.items == ("a", "5")  # type: ignore[union-attr]


def test_a_set_of_the_base_reaches_every_stage() -> None:
    sets = ("spec.model.source.type=builtin", "spec.model.source.identifier=tiny-chat")
    template = with_sets(STAGES, *sets, "spec.inference.temperature=0")
    for spec in specs(template):
        assert (spec.model.source.type, spec.model.source.identifier) == ("builtin", "tiny-chat")
        assert spec.inference.temperature == 0


def test_a_set_replaces_other_spellings_of_the_same_key() -> None:
    template = with_sets(STAGES, "spec.inference.max_tokens=5")
    assert [spec.inference.max_tokens for spec in specs(template)] == [5, 5]
    template = with_sets(SINGLE, "spec.inference.max_new_tokens=6")
    assert specs(template)[0].inference.max_tokens == 6
    template = with_sets(SINGLE, "spec.sloSeconds=6", "spec.slo.seconds=7")
    assert template.tasks[0].task.spec.slo is not None
    assert template.tasks[0].task.spec.slo.seconds == 7


def test_one_stage_is_reached_by_name_or_index() -> None:
    template = with_sets(
        STAGES,
        "spec.stages[refine].spec.inference.max_tokens=4",
        "spec.stages[0].spec.inference.top_k=2",
    )
    draft, refine = specs(template)
    assert (draft.inference.max_tokens, draft.inference.top_k) == (9, 2)
    assert (refine.inference.max_tokens, refine.inference.top_k) == (4, 0)


def test_a_set_value_is_yaml_and_may_be_a_block() -> None:
    (spec,) = specs(with_sets(SINGLE, "spec.data={type: list, items: [x=y]}"))
    assert spec.data.items == ("x=y",)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("spec.x", "expected path=value"),
        ("spce.model=1", "did you mean 'spec'?"),
        ("spec=1", "name a key below 'spec'"),
        ("spec..x=1", "cannot read the path"),
        ("spec.stages[drft].spec.x=1", "'spec.stages' has no item 'drft'; did you mean 'draft'?"),
        ("spec.stages[7].spec.x=1", "has 2 items, [7] is past the end"),
        ("spec.inference[0]=1", "'spec.inference' is not a list"),
        ("spec.inference.max_tokens.x=1", "is a single value; it has no key 'x'"),
        ("spec.inference.top_k=[", "not valid YAML"),
        ("spec.inference.top_k=1\nx: 2", "more than one value"),
    ],
)
def test_a_set_that_leads_nowhere_is_an_error(assignment: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        with_sets(STAGES, assignment)
    assert message in str(caught.value)


def test_what_a_set_breaks_is_reported_as_the_sets_fault() -> None:
    with pytest.raises(TemplateError) as caught:
        with_sets(SINGLE, "spec.inference.temprature=1")
    assert str(caught.value) == (
        "--set spec.inference.temprature: spec.inference.temprature: unknown key 'temprature'; "
        "did you mean 'temperature'?"
    )


def test_overrides_change_one_node_only() -> None:
    mapping = parse_documents(STAGES, "t.yaml")[0].mapping
    changed = merge_overrides(mapping, "refine", {"inference": {"max_tokens": 8}})
    draft, refine = specs(compile_mapping(changed))
    assert (draft.inference.max_tokens, refine.inference.max_tokens) == (9, 8)
    assert refine.model.source.identifier == "two"


def test_overrides_of_a_single_task_change_its_spec() -> None:
    mapping = parse_documents(SINGLE, "t.yaml")[0].mapping
    source = {"type": "builtin", "identifier": "tiny-chat"}
    for node in (None, "t"):
        changed = merge_overrides(mapping, node, {"model": {"source": source}})
        (spec,) = specs(compile_mapping(changed))
        assert spec.model.source.model_dump(exclude_defaults=True) == source
    assert merge_overrides(mapping, None, {}) == mapping


def test_overrides_of_an_unknown_node_name_the_nearest() -> None:
    mapping = parse_documents(STAGES, "t.yaml")[0].mapping
    with pytest.raises(UnknownNameError, match="did you mean 'draft'"):
        merge_overrides(mapping, "drift", {"inference": {}})
