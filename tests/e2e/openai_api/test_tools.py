"""Calls of tools from a batch file or an API call to the answer, with recorded answers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
import pytest
from openai.types.chat import ChatCompletion

from tests.e2e.plugin_package import PLUGIN, install_plugin, python_path
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LOOKUP: dict[str, Any] = {
    "type": "function",
    "function": {"name": "lookup", "parameters": {"type": "object"}},
}
CALLS = [
    {"id": "call_1", "function": {"name": "lookup", "arguments": '{"key": "a"}'}},
    {"id": "call_2", "function": {"name": "lookup", "arguments": '{"key": "b"}'}},
]
WANTED = [(each["id"], each["function"]["name"], each["function"]["arguments"]) for each in CALLS]  # type: ignore[index]
RECORDED = [
    {"prompt": "What is a?", "output": "", "tool_calls": CALLS, "reasoning": "I look it up"},
    {"prompt": "How are you?", "output": "Fine."},
]

STAGES = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: calling}
spec:
  stages:
    - name: ask
      spec:
        taskType: inference
        data: {type: list, items: ["What is a?"]}
        model:
          source: {type: builtin, identifier: tiny-chat}
          engine: recorded
          recorded: {answers: answers.jsonl}
        inference: {tools: [{function: {name: lookup}}]}
    - name: say
      spec:
        taskType: echo
        data:
          type: graph_template
          template:
            columns:
              - {label: calls, expr: "ask.result.items[*].tool_calls"}
              - {label: thought, expr: "ask.result.items[*].reasoning"}
              - {label: first, expr: "ask.result.items[0].tool_calls[0].function.name"}
            text: "{first} {calls} because {thought}"
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    installed = install_plugin(tmp_path_factory.mktemp("site-packages"))
    with (
        tempfile.TemporaryDirectory(prefix="mloc-") as folder,
        Stack(
            Path(folder) / "home",
            workers=1,
            run_workers=1,
            api=True,
            environment={"PYTHONPATH": python_path(installed)},
        ) as stack,
    ):
        yield stack


@pytest.fixture(scope="module")
def task_id(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task whose model answers as was recorded."""
    folder = tmp_path_factory.mktemp("recorded")
    template = (PLUGIN / "templates" / "recorded.yaml").read_text()
    (folder / "recorded.yaml").write_text(
        template.replace('"Which way?", "How far?"', "How are you?")
    )
    write_lines(folder / "answers.jsonl", *RECORDED)
    done = stack.mloc("submit", str(folder / "recorded.yaml"), "--wait", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)["tasks"][0]["task_id"]


def write_lines(path: Path, *rows: object) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def said(answer: ChatCompletion, place: int = 0) -> list[tuple[str, str, str]]:
    calls = answer.choices[place].message.tool_calls or []
    return [(each.id, each.function.name, each.function.arguments) for each in calls]  # type: ignore[union-attr]


def asks(text: str = "What is a?") -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_batch_file_with_tools_is_answered(stack: Stack, tmp_path: Path) -> None:
    def request(name: str, **body: Any) -> dict[str, Any]:
        url = "/v1/chat/completions"
        return {"custom_id": name, "method": "POST", "url": url, "body": body}

    answered = [
        *asks(),
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", **CALLS[0]}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "7"},
    ]
    write_lines(tmp_path / "answers.jsonl", *RECORDED)
    write_lines(
        tmp_path / "batch.jsonl",
        request("calls", messages=asks(), tools=[LOOKUP], tool_choice="auto"),
        request("again", messages=asks(), tools=[LOOKUP], tool_choice="auto"),
        request("one", messages=asks(), tools=[LOOKUP], parallel_tool_calls=False),
        request("two", messages=asks(), tools=[LOOKUP], n=2),
        request("says", messages=asks("How are you?"), tools=[LOOKUP]),
        request("goes on", messages=answered, tools=[LOOKUP]),
        request("bad", messages=asks(), tools=[{"type": "web_search"}]),
        request("lost", messages=answered[2:], tools=[LOOKUP]),
        request("none", messages=asks(), tool_choice="required"),
    )
    done = stack.mloc(
        *("batch", str(tmp_path / "batch.jsonl"), "-m", "tiny-chat", "--engine", "recorded"),
        *("--set", f"spec.model.recorded.answers={tmp_path / 'answers.jsonl'}"),
        *("-o", str(tmp_path / "output.jsonl"), "--json"),
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "output.jsonl").read_text().splitlines()]
    answers = {
        each["custom_id"]: ChatCompletion.model_validate(each["response"]["body"], strict=True)
        for each in lines
    }
    assert list(answers) == ["calls", "again", "one", "two", "says", "goes on"]
    for name in ("calls", "again"):
        assert said(answers[name]) == WANTED
        (choice,) = answers[name].choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert choice.message.model_extra == {"reasoning": "I look it up"}
        usage = answers[name].usage
        assert usage is not None
        assert usage.completion_tokens_details is not None
        assert usage.completion_tokens_details.reasoning_tokens == len("I look it up")
    assert said(answers["one"]) == WANTED[:1]
    assert [said(answers["two"], place) for place in (0, 1)] == [WANTED, WANTED]
    plain = answers["says"].choices[0]
    assert (plain.finish_reason, plain.message.content, plain.message.tool_calls) == (
        *("stop", "Fine."),
        None,
    )
    errors = {
        each["custom_id"]: each["response"]["body"]["error"]["message"]
        for each in map(json.loads, (tmp_path / "output.errors.jsonl").read_text().splitlines())
    }
    assert list(errors) == ["bad", "lost", "none"]
    assert "tools[0].type: tools of type 'web_search' are not supported" in errors["bad"]
    assert "messages[0].tool_call_id: 'call_1' is the id of no call" in errors["lost"]
    assert "'required' needs tools" in errors["none"]


def test_an_api_call_with_tools_is_answered(client: openai.OpenAI, task_id: str) -> None:
    answer = client.chat.completions.create(model=task_id, messages=asks(), tools=[LOOKUP])  # type: ignore[list-item]
    assert said(answer) == WANTED
    assert answer.choices[0].finish_reason == "tool_calls"
    with pytest.raises(openai.BadRequestError, match="tool_call_id is missing"):
        client.chat.completions.create(model=task_id, messages=[{"role": "tool", "content": "7"}])  # type: ignore[list-item]


def test_an_answer_with_calls_is_streamed(client: openai.OpenAI, task_id: str) -> None:
    thoughts, why = "", []
    with client.chat.completions.stream(
        model=task_id,
        messages=asks(),
        tools=[LOOKUP],
        stream_options={"include_usage": True},  # type: ignore[list-item]
    ) as stream:
        for event in stream:
            if event.type == "chunk" and event.chunk.choices:
                (choice,) = event.chunk.choices
                thoughts += getattr(choice.delta, "reasoning", "")
                why.append(choice.finish_reason)
        answer = stream.get_final_completion()
    assert said(answer) == WANTED
    assert thoughts == "I look it up"
    assert why[-1] == answer.choices[0].finish_reason == "tool_calls"
    assert not any(why[:-1])
    assert answer.usage is not None


def test_a_later_stage_reads_calls_and_thoughts(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "stages.yaml").write_text(STAGES)
    write_lines(tmp_path / "answers.jsonl", *RECORDED)
    done = stack.mloc("submit", str(tmp_path / "stages.yaml"), "--wait", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    first, last = [each["task_id"] for each in json.loads(done.stdout)["tasks"]]
    document = json.loads((stack.layout.home / "results" / last / "responses.json").read_text())
    (item,) = document["result"]["items"]
    calls, _, thought = item["output"].removeprefix("lookup ").partition(" because ")
    assert json.loads(calls) == [{**each, "type": "function"} for each in CALLS]
    assert thought == "I look it up"

    table = pq.read_table(stack.layout.home / "results" / first / "responses.parquet")
    assert table["tool_calls"].to_pylist() == [[{**each, "type": "function"} for each in CALLS]]
    assert table["reasoning"].to_pylist() == ["I look it up"]
    assert table["reasoning_tokens"].to_pylist() == [len("I look it up")]
    told = stack.mloc("result", first).stdout
    assert 'lookup({"key": "a"})' in told, told


def test_a_reference_to_what_calls_have_not_is_refused(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "stages.yaml").write_text(
        STAGES.replace("tool_calls[0].function", "tool_calls[0].funtion")
    )
    write_lines(tmp_path / "answers.jsonl", *RECORDED)
    done = stack.mloc("validate", str(tmp_path / "stages.yaml"))
    assert done.returncode == 2
    assert "did you mean 'function'?" in done.stdout + done.stderr
