from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.compile.compiled import CompiledTemplate
from mloc_dagster.compile.compiler import (
    compile_document,
    compile_file,
    compile_files,
    compile_mapping,
)
from mloc_dagster.compile.loader import parse_documents
from mloc_dagster.errors import TemplateError
from mloc_dagster.executors import EchoSpec
from mloc_dagster.schema import InferenceSpec, ListData, LoraSftSpec, PpoSpec, SftSpec, UpstreamData
from mloc_dagster.settings import settings

FIXTURES = sorted((Path(__file__).parents[2] / "templates").glob("*.yaml"))
HEAD = "apiVersion: mloc/v1\nkind: InferenceTask\nmetadata: {name: t}\n"
MODEL = "  model: {source: {identifier: x}}\n"
ROWS = "  data: {type: list, items: [a]}\n"


def compiled(spec: str, head: str = HEAD) -> CompiledTemplate:
    return compile_document(parse_documents(head + "spec:\n" + spec, "t.yaml")[0])


def errors(spec: str, head: str = HEAD) -> list[str]:
    with pytest.raises(TemplateError) as caught:
        compiled(spec, head)
    return [str(finding) for finding in caught.value.diagnostics]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_every_construct_compiles(path: Path) -> None:
    assert compile_file(path)


@pytest.mark.parametrize(
    "identifier", ["builtin:tiny-chat", "./models/mine", "a/b/c", "owner/--name", "owner/name."]
)
def test_what_can_be_no_hub_id_is_refused_with_the_types_there_are(identifier: str) -> None:
    (error,) = errors(f"  model: {{source: {{identifier: '{identifier}'}}}}\n" + ROWS)
    assert error.startswith("t.yaml:5:")
    assert f"'{identifier}' is no hub id of the form owner/name" in error
    assert "type local" in error


@pytest.mark.parametrize(
    "identifier", ["gpt2", "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5_0.5B", "_a/b-c.d_1"]
)
def test_hub_ids_are_taken(identifier: str) -> None:
    template = compiled(f"  model: {{source: {{identifier: {identifier}}}}}\n" + ROWS)
    assert template.tasks


def test_stages_without_data_read_the_stage_before() -> None:
    (template,) = compile_file(_fixture("stages"))
    kinds = [getattr(each.task.spec, "data").type for each in template.tasks]  # noqa: B009
    assert kinds == ["dataset", "upstream", "upstream"]
    data = template.tasks[2].task.spec.data
    assert isinstance(data, UpstreamData)
    assert data.node == "story"
    assert [each.task.depends_on for each in template.tasks] == [(), ("plot-draft",), ("story",)]
    spec = template.tasks[0].task.spec
    assert isinstance(spec, InferenceSpec)
    assert (spec.inference.temperature, spec.inference.max_tokens) == (0.5, 90)


def test_a_stage_after_a_training_keeps_its_own_data_and_inherits_the_model() -> None:
    (template,) = compile_file(_fixture("lora_stages"))
    recite = template.tasks[2].task.spec
    assert isinstance(recite, InferenceSpec)
    assert recite.data.type == "dataset"
    assert recite.model.source.identifier == "acme/poet"
    assert recite.model.adapters[0].url == "${sonnet.result.final_lora_archive_url}"


def test_a_graph_runs_in_dependency_order_and_waits_for_all_that_it_reads() -> None:
    (template,) = compile_file(_fixture("graph"))
    order = [each.task.name for each in template.tasks]
    assert order == ["town", "sights", "food", "report", "lines"]
    lines = template.tasks[-1].task
    assert lines.depends_on == ("report", "town", "sights")
    assert isinstance(template.tasks[2].task.spec, EchoSpec)


def test_old_spellings_become_todays_and_warn_with_their_line() -> None:
    templates, findings = compile_files([_fixture("sft"), _fixture("preferences")])
    sft, _, ppo, _ = (each.tasks[0].task.spec for each in templates)
    assert isinstance(sft, SftSpec)
    assert sft.training.per_device_train_batch_size == 2
    assert sft.training.max_length == 256
    assert sft.training.learning_rate == 5e-7
    assert isinstance(ppo, PpoSpec)
    assert (ppo.training.max_steps, ppo.training.num_ppo_epochs, ppo.training.fp16) == (5, 2, True)
    warnings = "\n".join(map(str, findings))
    assert "sft.yaml:20:5: spec.training.allow_multi_gpu: warning: 'allow_multi_gpu' has no" in (
        warnings
    )
    assert "'batch_size' is called 'per_device_train_batch_size' today (line 23)" in warnings


def test_lora_spellings_reach_every_stage() -> None:
    (template,) = compile_file(_fixture("lora_stages"))
    spec = template.tasks[1].task.spec
    assert isinstance(spec, LoraSftSpec)
    assert (spec.lora.lora_alpha, spec.lora.lora_dropout) == (8, 0.1)


def test_two_spellings_that_disagree_are_an_error() -> None:
    text = MODEL + ROWS + "  inference: {max_tokens: 4, max_new_tokens: 5}\n"
    assert errors(text) == [
        "t.yaml:7:30: spec.inference.max_new_tokens: says 5 where 'inference.max_tokens' says 4 "
        "(line 7); keep one of them"
    ]
    assert not compiled(text.replace("5", "4")).warnings


@pytest.mark.parametrize(
    "spec", ["  sloSeconds: 9\n", "  slo: {seconds: 9}\n", "  deadlineSeconds: 9\n"]
)
def test_every_slo_spelling_is_welcome(spec: str) -> None:
    template = compiled(MODEL + ROWS + spec)
    assert template.tasks[0].task.spec.slo is not None
    assert template.tasks[0].task.spec.slo.seconds == 9
    assert not template.warnings


def test_the_slo_annotation_counts_too() -> None:
    first, _ = compile_file(_fixture("echo_documents"))
    assert first.tasks[0].task.spec.slo is not None
    assert first.tasks[0].task.spec.slo.seconds == 60


def test_all_errors_of_a_template_come_at_once_in_its_authors_words() -> None:
    text = """  model: {source: {type: hugingface, identifier: x}}
  data: {type: lst, items: [a]}
  inference: {temprature: 3, top_p: 7, max_tokens: x, seed: yes, min_p: 1.5, system_prompt: 5}
  output: {artifacts: [../x], destination: {type: local, path: ../y}}
  retries: 5
"""
    assert errors(text) == [
        "t.yaml:5:26: spec.model.source.type: unknown value 'hugingface'; did you mean "
        "'huggingface'?",
        "t.yaml:6:16: spec.data.type: unknown type 'lst'; did you mean 'list'?",
        "t.yaml:7:15: spec.inference.temprature: unknown key 'temprature'; did you mean "
        "'temperature'?",
        "t.yaml:7:37: spec.inference.top_p: expected at most 1.0, got 7",
        "t.yaml:7:52: spec.inference.max_tokens: expected a whole number, got 'x'",
        "t.yaml:7:61: spec.inference.seed: expected a whole number, got yes, which YAML reads as "
        "true",
        "t.yaml:7:73: spec.inference.min_p: expected at most 1.0, got 1.5",
        "t.yaml:7:93: spec.inference.system_prompt: expected text, got 5; write it in quotes: '5'",
        "t.yaml:8:23: spec.output.artifacts: '../x' leaves the task's folder",
        "t.yaml:8:64: spec.output.destination.path: '../y' leaves the results root",
        "t.yaml:9:12: spec.retries: expected a mapping, got 5",
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (MODEL + "  data: {items: [a]}\n", "spec.data.type: 'type' is required: one of 'list'"),
        (MODEL, "spec.data: 'data' is required"),
        ("  taskType: infernce\n", "unknown task type 'infernce'; did you mean 'inference'?"),
        (MODEL + ROWS + "  dependsOn: [a]\n", "'dependsOn' needs other tasks"),
        (MODEL + ROWS + "  modle: 1\n", "unknown key 'modle'; did you mean 'model'?"),
        (MODEL + "  data: {type: list, items: [a, 5]}\n", "items[1]: expected text or a list"),
        (MODEL + ROWS + "  schedule: {cron: '61 * * * *'}\n", "'61' is no minute"),
        (MODEL + ROWS + "  schedule: {cron: '1 * * * *', timezone: Europe/Berln}\n", "Berlin"),
        ("  stages: []\n  graph: {nodes: []}\n", "either stages or graph, not both"),
        ("  stages: []\n", "expected a list with at least one entry"),
        ("  graph: {}\n", "'nodes' is required"),
        ("  graph: {node: []}\n", "unknown key 'node'; did you mean 'nodes'?"),
    ],
)
def test_what_is_wrong_with_a_spec_is_said(spec: str, message: str) -> None:
    assert any(message in error for error in errors(spec))


def test_what_is_wrong_around_the_spec_is_said() -> None:
    head = "apiVersion: mloc/v2\nkind: InferenceTsk\nmetadata: {name: -x, nme: 1}\nspce: 1\n"
    found = "\n".join(errors(MODEL + ROWS, head))
    assert "apiVersion: unknown value 'mloc/v2'; did you mean 'mloc/v1'?" in found
    assert "kind: unknown value 'InferenceTsk'; did you mean 'InferenceTask'?" in found
    assert "metadata.name: expected letters, digits" in found
    assert "metadata.nme: unknown key 'nme'" in found
    assert "spce: unknown key 'spce'; did you mean 'spec'?" in found


def test_a_training_kind_needs_its_task_type() -> None:
    head = HEAD.replace("InferenceTask", "TrainingTask")
    assert "'taskType' is required: one of 'dpo', 'grpo', 'kto'" in errors(MODEL + ROWS, head)[0]


STAGES = MODEL + ROWS + "  stages:\n"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("  - {name: a}\n  - {name: b, dependsOn: [aa]}\n", "no node is called 'aa'; did you mean"),
        ("  - {name: a, dependsOn: [b]}\n  - {name: b}\n", "wait for each other: a → b → a"),
        ("  - {name: a, dependsOn: [a]}\n", "wait for each other: a → a"),
        ("  - {name: a}\n  - {name: a}\n", "the name 'a' is taken"),
        ("  - {name: a.b}\n  - {name: a-b}\n", "the name 'a-b' is too like 'a.b'"),
        ("  - {name: a b}\n", "stages[0].name: expected letters, digits"),
        ("  - {spec: {}}\n", "'name' is required"),
        ("  - {name: a, spce: {}}\n", "unknown key 'spce'; did you mean 'spec'?"),
        ("  - {name: a, spec: {schedule: {}}}\n", "'schedule' stands in the template's own spec"),
        ("  - {name: a, spec: {dependsOn: []}}\n", "'dependsOn' stands beside 'name'"),
        ("  - {name: a, spec: {tranining: {}}}\n", "unknown key 'tranining'"),
        ("  - {name: a}\n  training: {}\n", "no task of this template uses 'training'"),
    ],
)
def test_what_is_wrong_with_stages_is_said(stages: str, message: str) -> None:
    assert any(message in error for error in errors(STAGES + stages))


def test_an_error_that_came_in_through_the_base_is_reported_once_at_the_base() -> None:
    text = MODEL + ROWS + "  inference: {top_p: 9}\n  stages: [{name: a}, {name: b}]\n"
    assert errors(text) == ["t.yaml:7:22: spec.inference.top_p: expected at most 1.0, got 9"]


def test_a_nodes_type_replaces_the_block_but_a_gpus_does_not() -> None:
    text = """  model: {source: {type: huggingface, identifier: x, revision: main}}
  resources: {hardware: {gpu: {type: any, count: 2}}}
  graph:
    nodes:
    - name: a
      spec:
        model: {source: {type: builtin, identifier: tiny-chat}}
        resources: {hardware: {gpu: {type: nvidia-h100}}}
        data: {type: list, items: [x]}
"""
    spec = compiled(text).tasks[0].task.spec
    assert isinstance(spec, InferenceSpec)
    assert spec.model.source.revision is None
    assert spec.resources.hardware.gpu.count == 2


def test_graph_nodes_inherit_rows_instead_of_taking_another_nodes() -> None:
    text = MODEL + ROWS + "  graph: {nodes: [{name: a}, {name: b, dependsOn: [a]}]}\n"
    data = compiled(text).tasks[1].task.spec.data
    assert isinstance(data, ListData)


def test_the_hash_follows_the_content_and_not_its_spelling() -> None:
    first = compiled(MODEL + ROWS)
    same = compiled("  model:\n    source:\n      identifier: 'x'\n" + ROWS)
    other = compiled(MODEL + ROWS.replace("[a]", "[b]"))
    assert first.content_hash == same.content_hash != other.content_hash
    assert compile_mapping(first.document).content_hash == first.content_hash


def test_the_order_of_a_schemas_properties_is_content() -> None:
    def of(*names: str) -> CompiledTemplate:
        properties = ", ".join(f"{name}: {{type: string}}" for name in names)
        schema = f"{{type: object, properties: {{{properties}}}}}"
        form = f"  inference: {{structured_outputs: {{json: {schema}}}}}\n"
        return compiled(MODEL + ROWS + form)

    assert of("reason", "answer").content_hash != of("answer", "reason").content_hash


def test_errors_of_every_file_are_collected(tmp_path: Path) -> None:
    good, bad, gone = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "gone.yaml"
    good.write_text(HEAD + "spec:\n" + MODEL + ROWS)
    bad.write_text(good.read_text() + "---\n" + good.read_text() + "  x: 1\n---\nkind: Nope\n")
    templates, findings = compile_files([good, bad, gone])
    assert len(templates) == 2
    text = "\n".join(map(str, findings))
    for message in ("'t' is taken by the document in line 1", "unknown key 'x'", "no such file"):
        assert message in text
    with pytest.raises(TemplateError):
        compile_file(bad)


def test_a_secret_never_shows_in_a_message() -> None:
    text = ROWS + "  output: {destination: {type: http, url: 'http://x', headers: [s3cret]}}\n"
    found = "\n".join(errors(MODEL + text))
    assert "headers: expected a mapping" in found
    assert "s3cret" not in found


def _fixture(name: str) -> Path:
    return next(path for path in FIXTURES if path.stem == name)


def test_a_template_of_more_tasks_than_allowed_is_refused_before_it_is_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLOC_MAX_STAGES", "3")
    settings.cache_clear()
    names = [f"{{name: s{number}}}" for number in range(4)]
    head = HEAD.replace("Inference", "Echo") + "spec:\n" + ROWS
    for block in ("  stages: [{}]", "  graph: {{nodes: [{}]}}"):
        path = tmp_path / "t.yaml"
        path.write_text(head + block.format(", ".join(names)))
        templates, (finding,) = compile_files([path])
        assert not templates
        assert "4 tasks in one template; at most 3 (MLOC_MAX_STAGES)" in finding.message
        assert finding.line == 6
        path.write_text(head + block.format(", ".join(names[1:])))
        assert compile_files([path])[0]


def test_what_was_accepted_is_compiled_where_fewer_tasks_are_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = compiled(MODEL + ROWS + "  stages: [{name: a}, {name: b}]\n")
    monkeypatch.setenv("MLOC_MAX_STAGES", "1")
    settings.cache_clear()
    assert compile_mapping(template.document).content_hash == template.content_hash


@pytest.mark.parametrize("value", ["{}", "1", "{a: b}"])
def test_only_so_many_findings_are_looked_for(value: str) -> None:
    many = ", ".join([value] * 5_000)
    found = errors(MODEL + f"  data: {{type: list, items: [{many}]}}\n")
    assert 1_000 < len(found) < 1_100
    assert sum("the rest was not looked at" in each for each in found) == 1
    few = errors(MODEL + "  data: {type: list, items: [{}, {}]}\n")
    assert not any("looked at" in each for each in few)
