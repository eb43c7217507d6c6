"""A field that has no effect in a task says so; every other one is read by something."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

import mloc_dagster
from mloc_dagster.compile.compiled import CompiledTemplate
from mloc_dagster.compile.compiler import compile_document
from mloc_dagster.compile.effects import idle_fields as rules
from mloc_dagster.compile.loader import parse_documents
from mloc_dagster.compile.typed import fields_of
from mloc_dagster.errors import TemplateError
from mloc_dagster.schema import (
    OURS,
    Block,
    InferenceSpec,
    RowSpec,
    SftSpec,
    alternatives,
    find_task_type,
    lora_argument_names,
    refused_argument,
    task_types,
    trainer_argument_names,
)

PACKAGE = Path(mloc_dagster.__file__).parent


# Every field of every task type

Field = tuple[str, ...]


def fields(block: type[Block], before: Field = ()) -> Iterator[tuple[type[Block], Field]]:
    """Yields every field that is no block itself: the block that has it, and its whole place."""
    for key, annotation in fields_of(block).items():
        inner = list(blocks_in(annotation))
        for each in inner:
            yield from fields(each, (*before, key))
        opened = any(
            each.model_config.get("extra") == "allow" for each in inner if not each.model_fields
        )
        if (opened or not inner) and not is_tag(block, key):
            yield block, (*before, key)


def blocks_in(annotation: Any) -> Iterator[type[Block]]:
    for member in alternatives(annotation):
        if isinstance(member, type) and issubclass(member, Block):
            yield member
        elif get_origin(member) is tuple:
            yield from blocks_in(get_args(member)[0])


def is_tag(block: type[Block], key: str) -> bool:
    """Tells whether a field only chooses the block that it stands in."""
    if key == "taskType":
        return True
    known = block.model_fields.get(key)
    annotation = known.annotation if known is not None else None
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


LAYOUTS = ("schema/training/columns", "schema/training/method")
"""Where the columns of training rows are chosen, by the field's name."""
OF_TRAININGS = (
    *("executors/training", "data/training", *LAYOUTS),
    *("executors/task_start.py:plan_training", "ops/checks.py:judge_training"),
)
OF_ROWS = (
    *("executors/inference", "executors/echo", "executors/engines/vllm", "executors/batch"),
    *("executors/engines/choice", "executors/engines/protocol", "executors/engines/pooling"),
    *(f"executors/engines/transformers/{name}" for name in ("engine", "generation", "responses")),
    *(f"executors/engines/transformers/{name}" for name in ("pooling", "sampling")),
    *("executors/reuse", "executors/input_planning", "executors/image", "executors/estimate"),
    *("executors/row_", "executors/prompts", "data/openai", "data/rows", "dispatch/batching"),
    *("results/export", "results/openai_batch", "ops/checks.py:judge_rows"),
    "schema/engines",
)
"""Modules and functions that serve one kind of task only; all others serve both."""


@cache
def reads(*, training: bool) -> frozenset[tuple[str, str]]:
    """Returns what code reads that runs for a kind of tasks: pairs of a block and a field of it.

    A block goes by its key, or by the class that a variable of the module is annotated with. What
    the schema does with its own fields counts only where it is a property or a function that
    others call: validators run for every task. The compiler only judges.
    """
    found: set[tuple[str, str]] = set()
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        of_others = OF_ROWS if training else OF_TRAININGS
        if name.startswith(("compile/", *of_others)):
            continue
        tree = ast.parse(path.read_text())
        tree.body = [
            each
            for each in tree.body
            if not f"{name}:{getattr(each, 'name', '')}".startswith(of_others)
        ]
        skipped = validators(tree) if name.startswith("schema/") else set[ast.AST]()
        variables = blocks_of_variables(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node not in skipped:
                owner = last_name(node.value)
                found.update((each, node.attr) for each in {owner, *variables.get(owner, ())})
            elif isinstance(node, ast.ClassDef) and name.startswith("schema/"):
                own = {each for each in ast.walk(node) if each not in skipped}
                found.update(
                    (node.name, each.attr)
                    for each in own
                    if isinstance(each, ast.Attribute) and last_name(each.value) == "self"
                )
            elif isinstance(node, ast.Constant) and name.startswith(("data/", *LAYOUTS)):
                found.add(("data", str(node.value)))  # columns are chosen by the field's name
    return frozenset(found)


def last_name(node: ast.expr) -> str:
    """Returns what an expression is called at its end: `spec.model.vllm` is `vllm`."""
    if isinstance(node, ast.Attribute):
        return node.attr.lstrip("_")
    if isinstance(node, ast.Call):
        return last_name(node.func)
    return node.id if isinstance(node, ast.Name) else ""


def blocks_of_variables(tree: ast.AST) -> dict[str, set[str]]:
    """Returns the classes and keys that a module's variables and functions stand for."""
    found: dict[str, set[str]] = {}
    imports = [
        each for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for each in node.names
    ]
    called = {each.asname: each.name for each in imports if each.asname is not None}

    def words(annotation: ast.expr) -> set[str]:
        return {called.get(each, each) for each in re.findall(r"\w+", ast.unparse(annotation))}

    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            target = node.arg if isinstance(node, ast.arg) else last_name(node.target)
            found.setdefault(target.lstrip("_"), set()).update(words(node.annotation))
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            found.setdefault(node.name.lstrip("_"), set()).update(words(node.returns))
        elif isinstance(node, ast.Assign | ast.For | ast.comprehension | ast.NamedExpr):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            value = node.value if isinstance(node, ast.Assign | ast.NamedExpr) else node.iter
            pairs = (
                zip(target.elts, value.elts, strict=False)
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                else [(target, value)]
            )
            for one, other in pairs:
                known = last_name(other)
                found.setdefault(last_name(one), set()).update({known, *found.get(known, ())})
    return found


def validators(tree: ast.AST) -> set[ast.AST]:
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            decorators = " ".join(ast.unparse(each) for each in node.decorator_list)
            if "validator" in decorators:
                found.update(ast.walk(node))
    return found


OTHERWISE = {
    "model.vllm": "handed to vLLM whole, as arguments",
    "model.transformers.trust_remote_code": "asked of every engine's block by its name",
    "data.preferences": "a comparison is handed on whole, as a row",
    "evaluation.data.preferences": "a comparison is handed on whole, as a row",
    "data.items": "a chat message is handed on whole, as a row",
    "checkpoint.load.type": "refused where it contradicts the source that is given",
    "evaluation.answer_column": "made the reference where the block is read",
    "configName": "read where the document is laid over its preset, before it is typed",
    "task": "made the only row where the spec is read",
    "inference.tools": "handed on whole, to chat templates and parsers of calls",
    "pooling.instruction": "read where system prompts are: executors/inference",
}
"""Fields that have an effect which the search below does not see."""

RENAMED = {"json": "json_schema", "timeoutSec": "timeout_s"}


def is_read(task_type: str, block: type[Block], field: Field) -> bool:
    name = RENAMED.get(field[-1], field[-1])
    spec = find_task_type(task_type).spec
    if field[0] == "training" and name in trainer_argument_names(spec.method) | OURS:
        return True
    if issubclass(spec, RowSpec) and field == (spec.block_name, "error_budget"):
        return True
    if any(".".join(field[:end]) in OTHERWISE for end in range(1, len(field) + 1)):
        return True
    if field[0] == "lora" and name in lora_argument_names():
        return True
    owners = {field[-2] if len(field) > 1 else "spec", *(each.__name__ for each in family(block))}
    return any(
        (owner, name) in reads(training=find_task_type(task_type).trains) for owner in owners
    )


def family(block: type[Block]) -> list[type[Block]]:
    return [each for each in block.__mro__ if issubclass(each, Block) and each is not Block]


def never_read(task_type: str, field: Field) -> bool:
    """Tells whether the table, or the trainer's own, says that a field has no effect at all."""
    spec = find_task_type(task_type).spec
    if field[0] == "training" and refused_argument(spec.method, field[1]) is not None:
        return True
    return any(
        rule.when is None and issubclass(spec, rule.specs) and rule.path == field[: len(rule.path)]
        for rule in rules()
    )


BUILT = sorted(name for name, each in task_types().items() if each.executor is not None)


@pytest.mark.parametrize("task_type", BUILT)
def test_every_field_is_read_or_listed_with_its_reason(task_type: str) -> None:
    assert [
        ".".join(field)
        for block, field in fields(find_task_type(task_type).spec)
        if not never_read(task_type, field) and not is_read(task_type, block, field)
    ] == []


def test_a_field_that_nothing_reads_is_found() -> None:
    class Extended(InferenceSpec):
        never_heard_of: int = 0

    (found,) = [each for each in fields(Extended) if each[1] == ("never_heard_of",)]
    assert not is_read("inference", *found)
    assert not is_read("sft", *next(each for each in fields(SftSpec) if each[1][0] == "checks"))


def test_the_table_names_only_fields_that_there_are() -> None:
    for rule in rules():
        path = rule.path[:-1] if rule.path[-1] == "*" else rule.path
        assert any(
            path == field[: len(path)]
            for each in task_types().values()
            if issubclass(each.spec, rule.specs)
            for _, field in fields(each.spec)
        ), rule


# What the table says, field by field

INFERENCE = """
taskType: inference
model: {source: {type: builtin, identifier: tiny-chat}}
data: {type: list, items: [a]}
"""
DATASET = INFERENCE.replace("type: list, items: [a]", "type: dataset, url: acme/x")
AGENT = """
taskType: agent
task: a
model: {source: {type: builtin, identifier: tiny-chat}}
"""
ECHO = "{taskType: echo, data: {type: list, items: [a]}}"
SFT = """
taskType: sft
model: {source: {type: builtin, identifier: tiny-chat}}
data: {dataset_name: acme/x}
evaluation: {data: {dataset_name: acme/x}}
"""
INLINE = SFT.replace("dataset_name: acme/x", "rows: [{prompt: a, completion: b}]")
LORA = SFT.replace("sft", "lora_sft")
DPO = SFT.replace("sft", "dpo")
KTO = SFT.replace("sft", "kto")
PPO = SFT.replace("sft", "ppo") + "\nreward_model: {identifier: acme/r}\n"


def changed(spec: str, **values: Any) -> dict[str, Any]:
    """Returns a spec with values put at places such as `model__vllm`."""
    found: dict[str, Any] = yaml.safe_load(spec)
    for place, value in values.items():
        *above, last = place.split("__")
        block = found
        for key in above:
            block = block.setdefault(key, {})
        block[last] = value
    return found


def compiled(spec: dict[str, Any], kind: str = "TrainingTask") -> CompiledTemplate:
    document = {"apiVersion": "mloc/v1", "kind": kind, "metadata": {"name": "t"}, "spec": spec}
    return compile_document(parse_documents(yaml.safe_dump(document), "t.yaml")[0])


def idle_fields(spec: dict[str, Any]) -> list[str]:
    """Returns the fields that compiling warns about."""
    found = [str(each) for each in compiled(spec).warnings]
    assert all(re.match(r"t\.yaml:\d+:\d+: spec\.", each) for each in found), found
    return sorted(each.split("warning: ")[1].split(" has no effect")[0] for each in found)


GREEDY = {"inference__temperature": 0}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # field: a spec; values with which the field has no effect; values with which it has one
    "model.engine": (SFT, {"model__engine": "vllm"}, {}),
    "model.vllm": (SFT, {"model__vllm": {"dtype": "half"}}, {}),
    "model.scripted": (SFT, {"model__scripted": {"turns": []}}, {}),
    "model.scripted.*": (
        INFERENCE,
        {"model__engine": "transformers", "model__scripted__max_concurrency": 4},
        {"model__engine": "scripted", "model__scripted__max_concurrency": 4},
    ),
    "model.openai": (SFT, {"model__openai": {"timeout": 5}}, {}),
    "model.openai.*": (
        INFERENCE,
        {"model__engine": "transformers", "model__openai__max_concurrency": 4},
        {
            "model__source": {
                "type": "openai",
                "identifier": "m",
                "base_url": "https://api.example.org/v1",
            },
            "model__openai__max_concurrency": 4,
        },
    ),
    "model.transformers.max_batch_size": (SFT, {"model__transformers__max_batch_size": 2}, {}),
    "model.transformers.max_batch_tokens": (SFT, {"model__transformers__max_batch_tokens": 2}, {}),
    "model.transformers.response_template": (
        SFT,
        {"model__transformers__response_template": "qwen3"},
        {},
    ),
    "model.vllm.*": (
        INFERENCE,
        {"model__engine": "transformers", "model__vllm__max_num_seqs": 4},
        {"model__vllm__max_num_seqs": 4},
    ),
    "model.transformers.*": (
        INFERENCE,
        {"model__engine": "vllm", "model__transformers__max_batch_size": 4},
        {"model__transformers__max_batch_size": 4},
    ),
    "model.source.trust_remote_code": (
        INFERENCE,
        {"model__source__trust_remote_code": True},
        {"model__source": {"identifier": "acme/x", "trust_remote_code": True}},
    ),
    "resources.hardware.gpu.type": (
        ECHO,
        {"resources__hardware__gpu": {"type": "h100"}},
        {"resources__hardware__gpu": {"type": "h100", "count": 1}},
    ),
    "resources.hardware.gpu.memory": (
        ECHO,
        {"resources__hardware__gpu": {"memory": "8Gi"}},
        {"resources__hardware__gpu": {"memory": "8Gi", "count": 1}},
    ),
    "resources.hardware.gpu": (
        ECHO,
        {"enforce_cpu": True, "resources__hardware__gpu": {"count": 1}},
        {"enforce_cpu": True, "resources__hardware__gpu": {"count": 0}},
    ),
    "resources.cost_per_token": (
        SFT,
        {"resources__cost_per_token": {"input": 1, "output": 1}},
        {"resources__cost_per_hour": 1},
    ),
    "parallel.enabled": (SFT, {"parallel__enabled": True}, {"parallel__enabled": False}),
    "parallel.strategy": (SFT, {"parallel__strategy": "rows"}, {}),
    "parallel.max_shards": (
        ECHO,
        {"parallel": {"enabled": False, "max_shards": 2}},
        {"parallel": {"max_shards": 2}},
    ),
    "retries.delay_s": (ECHO, {"retries": {"max": 0, "delay_s": 1}}, {"retries__delay_s": 1}),
    "retries.max_delay_s": (
        ECHO,
        {"retries": {"max": 0, "max_delay_s": 1}},
        {"retries__max_delay_s": 1},
    ),
    "data.seed": (DATASET, {"data__seed": 1}, {"data__seed": 1, "data__shuffle": True}),
    "evaluation.data.seed": (
        SFT,
        {"evaluation__data__seed": 1},
        {"evaluation__data__seed": 1, "evaluation__data__shuffle": True},
    ),
    "data.buffer_size": (
        DATASET,
        {"data__buffer_size": 9},
        {"data__buffer_size": 9, "data__shuffle": True},
    ),
    "data.split": (INLINE, {"data__split": "test"}, {}),
    "data.revision": (INLINE, {"data__revision": "main"}, {}),
    "data.config_name": (INLINE, {"data__config_name": "main"}, {}),
    "evaluation.data.split": (INLINE, {"evaluation__data__split": "test"}, {}),
    "evaluation.data.revision": (INLINE, {"evaluation__data__revision": "main"}, {}),
    "evaluation.data.config_name": (INLINE, {"evaluation__data__config_name": "main"}, {}),
    "data.separator": (
        SFT,
        {"data__separator": "-", "data__format": "chat"},
        {"data__separator": "-"},
    ),
    "evaluation.data.separator": (
        SFT,
        {"evaluation__data__separator": "-", "evaluation__data__format": "chat"},
        {"evaluation__data__separator": "-"},
    ),
    "data.chosen_column": (
        SFT,
        {"data__chosen_column": "x"},
        {"evaluation__data__chosen_column": "x"},
    ),
    "data.rejected_column": (PPO, {"data__rejected_column": "x"}, {}),
    "data.label_column": (DPO, {"data__label_column": "x"}, {}),
    "data.response_column": (DPO, {"data__response_column": "x"}, {}),
    "data.text_column": (KTO, {"data__text_column": "x"}, {}),
    "data.messages_column": (PPO, {"data__messages_column": "x"}, {}),
    "data.tools_column": (PPO, {"data__tools_column": "x"}, {}),
    "output.destination.path": (
        ECHO,
        {"output__destination": {"type": "local", "path": "./"}},
        {"output__destination": {"type": "local", "path": "./latest"}},
    ),
    "inference.top_p": (INFERENCE, {"inference__top_p": 0.5, **GREEDY}, {"inference__top_p": 0.5}),
    "inference.top_k": (INFERENCE, {"inference__top_k": 5, **GREEDY}, {"inference__top_k": 5}),
    "inference.min_p": (INFERENCE, {"inference__min_p": 0.5, **GREEDY}, {"inference__min_p": 0.5}),
    "inference.seed": (INFERENCE, {"inference__seed": 5, **GREEDY}, {"inference__seed": 5}),
    "inference.temperature": (
        INFERENCE,
        {"inference": {"temperature": 0.5, "do_sample": False}},
        {"inference": {"temperature": 0.5}},
    ),
    "reuse": (INFERENCE, {"reuse": True}, {"reuse": True, **GREEDY}),
    "echo.seed": (ECHO, {"echo__seed": 1}, {"echo": {"seed": 1, "fail_rate": 0.5}}),
    "checks": (SFT, {"checks__max_empty_fraction": 0.1}, {}),
    "output.formats": (SFT, {"output__formats": ["csv"]}, {}),
    "lora.task_type": (LORA, {"lora__task_type": "SEQ_CLS"}, {"lora__task_type": "CAUSAL_LM"}),
    "training.num_train_epochs": (
        SFT,
        {"training": {"num_train_epochs": 2, "max_steps": 5}},
        {"training": {"num_train_epochs": 2}},
    ),
    "training.save_steps": (
        SFT,
        {"training": {"save_steps": 2, "save_strategy": "epoch"}},
        {"training": {"save_steps": 2}},
    ),
    "training.save_total_limit": (
        SFT,
        {"training": {"save_total_limit": 2, "save_strategy": "no"}},
        {"training": {"save_total_limit": 2, "save_strategy": "epoch"}},
    ),
    "evaluation.pattern": (
        SFT,
        {"evaluation__pattern": "x"},
        {"evaluation__pattern": "x", "evaluation__metrics": ["regex"]},
    ),
    "evaluation.max_new_tokens": (
        SFT,
        {"evaluation__max_new_tokens": 8},
        {"evaluation__max_new_tokens": 8, "evaluation__metrics": ["exact_match"]},
    ),
    "reward_model.label": (
        PPO,
        {"reward_model__label": "x", "reward_model__type": "sentiment"},
        {"reward_model__label": "x"},
    ),
    "checkpoint.load.file": (
        SFT,
        {"checkpoint__load": {"path": "x", "file": "y"}},
        {"checkpoint__load": {"task_id": "x", "file": "y"}},
    ),
}


@pytest.mark.parametrize("field", CASES)
def test_a_field_without_effect_is_a_warning_at_its_line(field: str) -> None:
    spec, idle, useful = CASES[field]
    (found,) = idle_fields(changed(spec, **idle))
    assert re.fullmatch(re.escape(field).replace(r"\*", r"\w+"), found)
    assert idle_fields(changed(spec, **useful)) == []


def test_options_beside_an_inline_text_have_no_effect() -> None:
    template = {"columns": [{"label": "a", "expr": "one.result.items[0].output"}]}
    options = {"options": {"intro": ["x"]}}
    spec = changed(ECHO)

    def warned(more: dict[str, Any]) -> list[str]:
        data = {"type": "graph_template", "template": {**template, **options, **more}}
        nodes = [{"name": "one", "spec": spec}]
        nodes.append({"name": "two", "dependsOn": ["one"], "spec": {**spec, "data": data}})
        return idle_fields({"graph": {"nodes": nodes}})

    assert warned({"text": "{a}"}) == ["data.template.options"]
    assert warned({"name": "two_column_briefing"}) == []


def test_a_judge_reads_rows_as_they_were_asked_whatever_text_its_stage_gives() -> None:
    ask = {**changed(INFERENCE), "data": {"type": "list", "items": ["a"]}}
    judge = {"taskType": "judge", "model": ask["model"]}

    def warned(**text: str) -> list[str]:
        data = {"type": "upstream", "node": "ask", **text}
        return idle_fields(
            {
                "graph": {
                    "nodes": [
                        {"name": "ask", "spec": ask},
                        {"name": "marks", "dependsOn": ["ask"], "spec": {**judge, "data": data}},
                    ]
                }
            }
        )

    assert warned(text="Is it so? {output}") == ["data.text"]
    assert warned() == warned(text="{prompt}") == []


def test_an_agent_takes_no_answers_of_earlier_tasks() -> None:
    (found,) = compiled(changed(AGENT, reuse=True)).warnings
    assert "what its tools say" in str(found)


def test_every_rule_has_its_case() -> None:
    of_nodes = {"data.template.options", "data.text"}
    assert {rule.field for rule in rules()} == {*CASES, *of_nodes}


def test_a_value_that_one_of_several_tasks_reads_is_no_warning() -> None:
    base = yaml.safe_load(SFT)
    stages = [
        {"name": "tune", "spec": {"output": {"artifacts": ["final_model"]}}},
        {
            "name": "ask",
            "spec": {"taskType": "inference", "data": {"type": "list", "items": ["a"]}},
        },
    ]
    shared = {"checks": {"max_empty_fraction": 0.2}, "output": {"artifacts": ["responses.parquet"]}}
    assert idle_fields({**base, **shared, "stages": stages}) == []
    assert idle_fields({**base, **shared, "stages": stages[:1]}) == ["checks"]


def test_an_option_that_both_engines_have_holds_on_either() -> None:
    both = {"dtype": "half", "max_model_len": 64}
    spec = changed(INFERENCE, model__engine="transformers", model__vllm=both)
    assert idle_fields(spec) == []
    assert (
        idle_fields(changed(INFERENCE, model__engine="vllm", model__transformers__dtype="float16"))
        == []
    )
    own = changed(INFERENCE, model__engine="transformers", model__vllm=both)
    own["model"]["transformers"] = {"dtype": "float32"}
    assert idle_fields(own) == ["model.vllm.dtype"]


def test_an_unknown_precision_is_refused_whichever_engine_runs() -> None:
    for engine in ("vllm", "transformers", None):
        spec = changed(INFERENCE, model__engine=engine, model__vllm__dtype="banana")
        with pytest.raises(
            TemplateError, match=r"spec\.model\.vllm\.dtype: unknown precision 'banana'"
        ):
            compiled(spec)


def test_an_artifact_that_nothing_makes_is_a_warning() -> None:
    def warned(spec: str, *names: str, **values: Any) -> list[str]:
        found = compiled(changed(spec, output__artifacts=list(names), **values)).warnings
        return [str(each).split(" makes ")[-1].split(";")[0] for each in found]

    rows = ("responses.json", "responses.parquet", "logs", "shards/", "manifest.json")
    assert warned(ECHO, *rows, "banana.json", "artifacts") == ["'banana.json'", "'artifacts'"]
    assert warned(ECHO, "responses.csv") == ["'responses.csv'"]
    old = ("artifacts", "artifacts/checkpoints", "trained_model/", "final_model", "archives")
    assert warned(SFT, *old, "training.json", "final_lora") == ["'final_lora'"]
    assert warned(LORA, "artifacts/lora_adapter", "final_lora") == []
    assert warned(SFT, "final_model", "checkpoints", training__save_model=False) == [
        "'final_model'"
    ]


@pytest.mark.parametrize("path", [".dagster", "./.dagster/x", ".row-cache/", "./.hidden"])
def test_results_do_not_go_where_mloc_keeps_its_own(path: str) -> None:
    spec = changed(ECHO, output__destination={"type": "local", "path": path})
    with pytest.raises(TemplateError, match=r"destination\.path: .* is where mloc keeps its own"):
        compiled(spec)


def test_a_kind_that_the_task_type_contradicts_is_a_warning() -> None:
    (found,) = compiled(changed(INFERENCE), kind="EchoTask").warnings
    assert str(found).startswith("t.yaml:2:7: kind: warning: kind EchoTask has no effect")
    assert "taskType says 'inference'" in str(found)
    assert not compiled(changed(INFERENCE), kind="InferenceTask").warnings


def test_weights_to_start_from_come_from_one_place_and_its_type_agrees() -> None:
    def refused(**load: str) -> str:
        with pytest.raises(TemplateError) as caught:
            compiled(changed(SFT, checkpoint__load=load))
        return str(caught.value)

    assert "give one of path, url and task_id; got path and url" in refused(path="a", url="b")
    assert "got none of them" in refused(type="local")
    assert "type 'http' takes 'url', but 'path' is given" in refused(type="http", path="a")
    for load in ({"path": "a"}, {"type": "task", "task_id": "t"}, {"url": "b"}):
        assert compiled(changed(SFT, checkpoint__load=load))


def test_the_trainers_own_evaluation_is_refused_by_name() -> None:
    for name in ("per_device_eval_batch_size", "eval_accumulation_steps", "prediction_loss_only"):
        with pytest.raises(TemplateError, match="measuring is described in the block `evaluation`"):
            compiled(changed(SFT, **{f"training__{name}": 1}))


def test_replicas_have_no_effect() -> None:
    (found,) = compiled(changed(ECHO, resources__replicas=2)).warnings
    assert "'replicas' has no effect" in str(found)
    assert "parallel.max_shards" in str(found)


@pytest.mark.usefixtures("unbuilt")
def test_a_task_type_that_is_not_built_yet_validates_with_a_warning_and_runs_nowhere() -> None:
    spec = (
        "{taskType: rag, data: {type: list, items: [a]}, qdrant: {url: u, collection: c},"
        " embedding: {model: m}}"
    )
    template = compiled(changed(spec))
    (found,) = template.warnings
    assert "is not built yet" in str(found)
    assert str(found).startswith("t.yaml:")
    with pytest.raises(TemplateError, match=r"spec\.taskType: task type '\w+' is not built yet"):
        template.check_built()
