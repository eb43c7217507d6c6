"""What an engine cannot do is refused, at its place, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_dagster.compile.compiled import CompiledTemplate
from mloc_dagster.compile.compiler import compile_document
from mloc_dagster.compile.loader import parse_documents
from mloc_dagster.errors import TemplateError
from mloc_dagster.schema import StructuredOutputs, find_engine, form_problems

HEAD = "apiVersion: mloc/v1\nkind: InferenceTask\nmetadata: {name: t}\nspec:\n"
ROWS = "  data: {type: list, items: [a]}\n"


def compiled(inference: str = "{}", model: str = "", more: str = "") -> CompiledTemplate:
    text = f"{HEAD}{ROWS}  model: {{source: {{identifier: x}}{model}}}\n"
    text += f"  inference: {inference}\n{more}"
    return compile_document(parse_documents(text, "t.yaml")[0])


def errors(inference: str = "{}", model: str = "", more: str = "") -> list[str]:
    with pytest.raises(TemplateError) as caught:
        compiled(inference, model, more)
    return [str(finding) for finding in caught.value.diagnostics]


def form(**fields: Any) -> StructuredOutputs:
    return StructuredOutputs.model_validate(fields)


def problems(engine: str | None, **fields: Any) -> list[str]:
    known = None if engine is None else find_engine(engine)
    return [str(problem) for problem in form_problems(form(**fields), known)]


def test_errors_stand_where_the_template_is_wrong() -> None:
    text = "{max_tokens: 3, min_tokens: 5, stop: [a, ''], structured_outputs: {regex: '('}}"
    assert errors(text) == [
        "t.yaml:7:42: spec.inference.min_tokens: min_tokens 5 is more than max_tokens 3",
        "t.yaml:7:42: spec.inference.min_tokens: min_tokens cannot be kept with "
        "structured_outputs: their form ends an answer",
        "t.yaml:7:55: spec.inference.stop[1]: an empty stop string would end every answer at once",
        "t.yaml:7:88: spec.inference.structured_outputs.regex: '(' is no regular expression: "
        "missing ), unterminated subpattern at position 0",
    ]


def test_a_schema_is_refused_at_the_very_key() -> None:
    text = """
    structured_outputs:
      json:
        type: object
        properties: {age: {type: integr}, name: {$ref: '#/$defs/nome'}}
        $defs: {name: {type: string}}
"""
    unknown_type, unknown_place = errors(text)
    path = "spec.inference.structured_outputs.json.properties"
    assert f"{path}.age.type: unknown type 'integr'; did you mean 'integer'?" in unknown_type
    assert unknown_type.startswith("t.yaml:11:")
    assert f"{path}.name[\"$ref\"]: '#/$defs/nome' is nowhere in this schema" in unknown_place


def test_a_stop_string_beside_a_form_is_a_warning() -> None:
    (warning,) = compiled("{stop: x, structured_outputs: {json_object: true}}").warnings
    assert "spec.inference.stop: warning: an answer that a stop string ends" in str(warning)
    assert not compiled("{structured_outputs: {json_object: true}}").warnings


@pytest.mark.parametrize(
    ("fields", "everywhere", "reason"),
    [
        ({"regex": "[z-a]"}, True, "bad character range"),
        ({"regex": ""}, True, "empty"),
        ({"regex": "a{3,2}"}, True, "min repeat greater than max repeat"),
        ({"regex": r"a(?=b)"}, True, r"'(?=b' in 'a(?=b)' is a look-ahead"),
        ({"regex": r"(?<!a)b"}, True, "is a look-behind, which guided answers cannot have"),
        ({"regex": r"(a)\1"}, True, "a reference to a group"),
        ({"regex": r"a\bword"}, True, "a word boundary"),
        ({"regex": r"(?i)a"}, False, "a special group"),
        ({"json": {"type": "string", "pattern": "a(?!b)"}}, True, "is a look-ahead"),
        ({"regex": r"1\Z"}, False, "an anchor"),
        ({"grammar": "  "}, True, "the grammar is empty"),
        ({"grammar": 'foo ::= "a"'}, True, "there is no rule 'root ::= …', where answers begin"),
        ({"grammar": "root ::= nmae\nname ::= [a]"}, True, "no rule 'nmae'; did you mean 'name'?"),
        ({"grammar": 'root ::= "a'}, True, "line 1: a string without its closing quote"),
        ({"grammar": '# c\nroot ::= ("a" | "b"'}, True, "line 2: a '(' is not closed"),
        ({"grammar": 'start: "a"'}, False, "line 1: ':', which no grammar has there"),
        ({"choice": ["a", "b", "a"]}, True, "'a' stands there twice"),
        ({"json": {"type": "object", "properties": 5}}, True, "expected a mapping of names"),
        ({"json": {"enum": []}}, True, "at least one value"),
        ({"json": {"required": "a"}}, True, "expected a list of property names"),
        ({"json": {"items": 5}}, True, "expected a schema: a mapping, true or false; got 5"),
        ({"json": {"anyOf": {}}}, True, "expected a list of schemas"),
        ({"json": {"minimum": 3, "maximum": 1}}, True, "minimum 3 is more than maximum 1"),
        ({"json": {"not": {"type": "null"}}}, True, "no engine can enforce 'not'"),
        ({"json": {"$ref": "https://example.org/s"}}, True, "is nowhere in this schema"),
        ({"json": {"properties": {"a": {"pattern": "("}}}}, True, "no regular expression"),
        ({"json": {"type": "integer", "multipleOf": 3}}, False, "cannot enforce 'multipleOf'"),
        ({"json": {"items": {}, "uniqueItems": True}}, False, "cannot enforce 'uniqueItems'"),
        ({"json": {"format": "date_time"}}, False, "did you mean 'date-time'?"),
        ({"json": {"pattern": "a", "maxLength": 2}}, False, "'maxLength' beside 'pattern'"),
        ({"json": {"allOf": [{}, {}]}}, False, "'allOf' with several schemas"),
        (
            {"json": {"properties": {}, "patternProperties": {}}},
            False,
            "'patternProperties' beside other names",
        ),
    ],
)
def test_forms_that_would_not_hold_are_named(
    fields: dict[str, Any], everywhere: bool, reason: str
) -> None:
    (found,) = problems("transformers", **fields)
    assert reason in found
    assert bool(problems(None, **fields)) is everywhere
    assert bool(problems("vllm", **fields)) is everywhere


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": r"[\]\b](?:a|b)+?\d{2,}\.\/é\x41[^\]]*"},
        {"regex": r"(?<year>\d{4})|\\b|[(?=]"},
        {"regex": "^abc$"},
        {"choice": ["yes", "no", ""]},
        {"grammar": 'root ::= "(" num{1,3} ")"? # "\nnum ::= [0-9()]+ | (root | "\\"")\n'},
        {"json": {}},
        {"json": {"type": ["string", "null"], "minLength": 1}},
        {
            "json": {
                "$defs": {"a/b": {"type": "null"}},
                "type": "object",
                "properties": {"type": {"$ref": "#/$defs/a~1b"}, "not": {"const": 1}},
                "required": ["type"],
                "additionalProperties": False,
            }
        },
        {"json": {"prefixItems": [{"type": "integer"}], "items": False}},
    ],
)
def test_forms_that_hold_are_welcome(fields: dict[str, Any]) -> None:
    assert problems("transformers", **fields) == []


def test_options_that_the_engine_does_not_read_are_a_warning() -> None:
    def warnings(model: str, more: str = "") -> str:
        return "\n".join(map(str, compiled(model=model, more=more).warnings))

    idle = "spec.model.vllm.max_num_seqs: warning: model.vllm.max_num_seqs has no effect: this task"
    assert f"{idle} runs on transformers" in warnings(
        ", engine: transformers, vllm: {max_num_seqs: 4}"
    )
    assert idle in warnings(", vllm: {max_num_seqs: 4}", "  enforce_cpu: true\n")
    assert "model.transformers.max_batch_size has no effect: this task runs on vLLM" in warnings(
        ", engine: vllm, transformers: {max_batch_size: 4}", "  enforce_cpu: true\n"
    )
    assert not warnings(", vllm: {max_num_seqs: 4}, transformers: {dtype: float32}")


def test_fewer_bits_are_not_ignored_by_an_engine_that_does_not_know_them() -> None:
    (finding,) = errors(model=", engine: vllm, transformers: {load_in_4bit: true}")
    assert "load_in_4bit is for transformers: vLLM has model.vllm.quantization" in finding
    (warned,) = compiled(
        model=", vllm: {max_num_seqs: 4}, transformers: {load_in_8bit: true}"
    ).warnings
    assert "model.vllm.max_num_seqs has no effect" in str(warned)


def test_adapters_that_cannot_be_told_apart_are_refused() -> None:
    for engine in ("vllm", "transformers"):
        two = f", engine: {engine}, adapters: [{{path: a/x}}, {{path: b/x}}]"
        assert not compiled(model=two).warnings
    per_row = ", adapters: [{path: a/x, apply: request}, {path: b/x, apply: request}]"
    assert "adapters 0 and 1 are both called 'x'" in errors(model=per_row)[0]
    assert "give either path or url" in errors(model=", adapters: [{name: x}]")[0]


def test_more_log_probabilities_than_vllm_is_allowed_are_refused() -> None:
    model = ", engine: vllm, vllm: {max_logprobs: 5}"
    (error,) = errors("{logprobs: 6}", model)
    assert "spec.model.vllm.max_logprobs: inference.logprobs asks for 6" in error
    assert compiled("{logprobs: 5}", model)
    assert compiled("{logprobs: 20}", ", engine: vllm, vllm: {max_logprobs: -1}")


def test_a_stage_is_checked_with_what_it_inherits() -> None:
    more = "  stages:\n  - {name: a, spec: {model: {engine: vllm}}}\n  - {name: b}\n"
    (error,) = errors("{logprobs: 6}", ", vllm: {max_logprobs: 5}", more)
    assert error.startswith("t.yaml:6:")
    assert "max_logprobs: inference.logprobs asks for 6" in error


ON_GPUS = "  resources: {hardware: {gpu: {count: %d}}}\n"


def vllm(arguments: str, engine: str = "vllm") -> str:
    return f", engine: {engine}, vllm: {{{arguments}}}"


def test_data_parallelism_within_one_engine_is_refused_at_its_line() -> None:
    for engine in (vllm("data_parallel_size: 2"), ", vllm: {data_parallel_size: 2}"):
        (error,) = errors(model=engine)
        assert error.startswith("t.yaml:6:")
        assert "spec.model.vllm.data_parallel_size: one engine is one copy" in error
        assert "start several workers instead" in error
    assert compiled(model=vllm("data_parallel_size: 1"))
    assert compiled(model=vllm("data_parallel_size: 2", "transformers"))  # a warning: no effect


@pytest.mark.parametrize(
    ("arguments", "gpus", "place"),
    [
        ("tensor_parallel_size: 4", 2, "tensor_parallel_size"),
        ("tensor_parallel_size: 2, pipeline_parallel_size: 2", 3, "tensor_parallel_size"),
        ("pipeline_parallel_size: 2", 1, "pipeline_parallel_size"),
    ],
)
def test_more_gpus_than_the_task_asks_for_are_refused(
    arguments: str, gpus: int, place: str
) -> None:
    (error,) = errors(model=vllm(arguments), more=ON_GPUS % gpus)
    assert f"spec.model.vllm.{place}: the model wants" in error
    assert f"resources.hardware.gpu.count asks for {gpus}" in error


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        ("tensor_parallel_size: 4", ON_GPUS % 4),
        ("tensor_parallel_size: 2, pipeline_parallel_size: 2", ON_GPUS % 4),
        ("pipeline_parallel_size: 2", ON_GPUS % 3),
        ("tensor_parallel_size: 1", ON_GPUS % 2),
        ("tensor_parallel_size: 4", ""),  # whoever names no number takes what the worker has
        ("tensor_parallel_size: 4", "  enforce_cpu: true\n" + ON_GPUS % 1),
    ],
)
def test_gpus_that_a_worker_may_have_are_welcome(arguments: str, more: str) -> None:
    assert compiled(model=vllm(arguments), more=more)


@pytest.mark.parametrize("engine", ["", ", engine: vllm", ", engine: transformers"])
def test_an_embedding_has_no_adapters(engine: str) -> None:
    text = HEAD.replace("InferenceTask", "EmbeddingTask") + ROWS.replace(
        "data", "taskType: embedding\n  data"
    )
    text += f"  model: {{source: {{identifier: x}}{engine}, adapters: [{{path: a/x}}]}}\n"
    with pytest.raises(TemplateError) as caught:
        compile_document(parse_documents(text, "t.yaml")[0])
    (finding,) = caught.value.diagnostics
    assert str(finding).startswith("t.yaml:7:")
    assert "spec.model.adapters: a task of type 'embedding' has none" in str(finding)
