"""Templates of `rag`: the tasks that they stand for, and where their mistakes are told."""

from __future__ import annotations

import pytest

from mloc_dagster.compile import CompiledTemplate, compile_text
from mloc_dagster.errors import TemplateError

HEAD = """\
apiVersion: mloc/v1
kind: RetrievalTask
metadata: {name: farm}
spec:
  query: When do owls hunt?
"""
WHOLE = """\
  corpus: {source: {url: "docs/*.md"}, error_budget: 0.2}
  index: {name: farm}
  embedding: {model: acme/embed, query_instruction: "query: "}
  search: {mode: hybrid}
  rerank: {model: acme/rerank, resources: {hardware: {cpu: "2"}}}
  generate: {model: {source: {type: builtin, identifier: tiny-chat}}, citations: optional}
  output: {artifacts: [responses.json]}
"""


def compiled(body: str, head: str = HEAD) -> CompiledTemplate:
    templates, findings = compile_text(head + body, "rag.yaml")
    if not templates:
        raise TemplateError(findings)
    return templates[0]


def test_each_block_is_a_task_and_the_last_has_the_templates_name() -> None:
    tasks = {each.task.name: each.task for each in compiled(WHOLE).tasks}
    assert {name: (each.spec.task_type, each.depends_on) for name, each in tasks.items()} == {
        "farm-chunks": ("chunk", ()),
        "farm-index": ("index", ("farm-chunks",)),
        "farm-found": ("retrieve", ("farm-index",)),
        "farm-reranked": ("rerank", ("farm-found",)),
        "farm": ("answer", ("farm-reranked",)),
    }
    mapping = {each.task.name: each.mapping for each in compiled(WHOLE).tasks}
    assert mapping["farm-chunks"]["chunk"] == {
        "error_budget": 0.2,
        "tokenizer": {"identifier": "acme/embed"},
    }
    assert mapping["farm-found"]["pooling"] == {"instruction": "query: "}
    assert "pooling" not in mapping["farm-index"]
    assert mapping["farm-reranked"]["resources"] == {"hardware": {"cpu": "2"}}
    assert [name for name, each in mapping.items() if "output" in each] == ["farm"]


def test_blocks_that_are_left_out_have_no_task() -> None:
    (task,) = compiled("  index: {name: farm}\n  embedding: {model: acme/embed}\n").tasks
    assert (task.task.name, task.task.spec.task_type) == ("farm", "retrieve")


JUDGED = (
    WHOLE
    + """\
  evaluation:
    metrics: [faithfulness]
    gate: faithfulness >= 0.5
    judge: {model: acme/judge, resources: {hardware: {cpu: "4"}}}
"""
)


def test_a_judge_is_the_last_task_and_has_the_gate() -> None:
    tasks = {each.task.name: each for each in compiled(JUDGED).tasks}
    assert list(tasks)[-2:] == ["farm-answers", "farm"]
    judge = tasks["farm"]
    assert (judge.task.spec.task_type, judge.task.depends_on) == ("judge", ("farm-answers",))
    assert judge.mapping["evaluation"] == {
        "metrics": ["faithfulness"],
        "gate": "faithfulness >= 0.5",
    }
    assert judge.mapping["model"] == {"source": {"identifier": "acme/judge"}}
    assert judge.mapping["resources"] == {"hardware": {"cpu": "4"}}
    assert "supported" in judge.mapping["judge"]["instructions"]  # what a resume asks as well
    assert [name for name, each in tasks.items() if "evaluation" in each.mapping] == ["farm"]
    assert [name for name, each in tasks.items() if "output" in each.mapping] == ["farm"]


def test_a_stage_with_a_judge_leaves_the_evaluation_of_other_stages_alone() -> None:
    head = "apiVersion: mloc/v1\nkind: EchoTask\nmetadata: {name: chain}\nspec:\n"
    body = """\
  evaluation: {metrics: [{type: number}]}
  stages:
    - name: ask
      spec: {taskType: echo, data: {type: list, items: [a]}}
    - name: qa
      spec:
        taskType: rag
        index: {name: farm}
        embedding: {model: a/b}
        generate: {model: c/d}
        evaluation: {metrics: [faithfulness], judge: {model: e/f}}
"""
    mapping = {each.task.name: each.mapping for each in compiled(body, head).tasks}
    assert list(mapping) == ["ask", "qa-found", "qa-answers", "qa"]
    assert mapping["ask"]["evaluation"] == {"metrics": [{"type": "number"}]}
    assert mapping["qa"]["evaluation"] == {"metrics": ["faithfulness"]}


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (
            "  generate:",
            "  # generate:",
            "16:5: spec.evaluation.judge: evaluation.judge works",
        ),
        ("[faithfulness]", "[mrr]", "judge: none of the metrics needs one; add faithfulness"),
        (
            "    judge:",
            "    # judge:",
            "14:15: spec.evaluation.metrics[0]: 'faithfulness' needs",
        ),
        ("judge: {", "judge: {prompt: judge/faith, ", "did you mean 'judge/faithfulness'?"),
        ("judge: {", "judge: {prompt: ../../data/x, ", "evaluation.judge.prompt: expected letters"),
        ("judge: {", "judge: {promt: x, ", "did you mean 'prompt'?"),
        ("judge: {", "judge: {inference: {n: 2}, ", "a judge says one verdict for each row"),
        ("[faithfulness]", "[{type: faithfulness, pass_at: [1]}]", "has no option 'pass_at'"),
    ],
)
def test_what_is_wrong_with_a_judge_is_said_where_it_stands(
    right: str, wrong: str, said: str
) -> None:
    given = JUDGED.replace(right, wrong)
    if "mrr" in wrong:
        given = given.replace("    gate: faithfulness >= 0.5\n", "    relevant_column: page\n")
    with pytest.raises(TemplateError) as raised:
        compiled(given)
    assert said in str(raised.value)


def test_a_stage_stands_for_several_and_later_ones_read_the_last() -> None:
    head = "apiVersion: mloc/v1\nkind: EchoTask\nmetadata: {name: chain}\nspec:\n  stages:\n"
    body = """\
    - name: ask
      spec: {taskType: echo, data: {type: list, items: [a]}}
    - name: qa
      spec: {taskType: rag, index: {name: farm}, embedding: {model: a/b}, rerank: {model: c/d}}
    - name: after
      spec: {taskType: echo}
"""
    tasks = [each.task for each in compiled(body, head).tasks]
    assert [each.name for each in tasks] == ["ask", "qa-found", "qa", "after"]
    assert [each.depends_on for each in tasks[1:]] == [("ask",), ("qa-found", "ask"), ("qa",)]


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("mode: hybrid", "mode: hybrd", "rag.yaml:9:18: spec.search.mode"),
        ("search: {", "search: {topk: 3, ", "unknown key 'topk'; did you mean 'top_k'?"),
        ("index: {", "index: {engine: pgvectr, ", "did you mean 'pgvector'?"),
        ("index: {", "index: {engine: qdrant, ", "Qdrant needs url"),
        ("citations: optional", "citation: optional", "did you mean 'citations'?"),
        ("  index: {name: farm}\n", "", "give index"),
        ("tiny-chat", "tiny-chot", "rag.yaml:11:"),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(right: str, wrong: str, said: str) -> None:
    with pytest.raises(TemplateError) as raised:
        compiled(WHOLE.replace(right, wrong))
    assert said in str(raised.value)
