"""What every engine owes to rows that may call tools: one suite over transformers and vLLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors import Completion, Engine, EngineRequest, Replies, loader_of
from mloc_dagster.models import builtin_model_path
from mloc_dagster.results import InputRow, ToolCallDelta
from mloc_dagster.schema import Inference, InferenceSpec, find_engine

pytest.importorskip("torch")

# vLLM 0.32 calls xgrammar in a way that xgrammar has left behind.
pytestmark = pytest.mark.filterwarnings("ignore:max_rollback_tokens is deprecated")

VLLM = pytest.param("vllm", marks=pytest.mark.slow)
CAPITAL = "What is the capital of France?"
NONSENSE = "the a of to"  # the model has no firm opinion about it

TEMPLATE = """
{%- if tools %}<|system|>Call by <tool_call>: {{ tools | length }}<|end|>{% endif -%}
{%- for message in messages -%}
<|{{ message.role }}|>{{ message.content }}<|end|>
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}
"""
"""Shows the format of calls that Hermes and Qwen have, and tools as the model bears them."""


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"function": {"name": name, "parameters": schema}}


TOOLS = [
    tool("weather", city={"enum": ["Paris", "Rome"]}),
    tool("clock", zone={"enum": ["CET", "UTC"]}, seconds={"type": "boolean"}),
]
REQUIRED = {
    "tools": TOOLS,
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "frequency_penalty": 2.0,  # a model this small would write spaces for ever
    "max_tokens": 200,
}


def spec_of(engine: str, place: Path, inference: dict[str, Any] | None = None) -> InferenceSpec:
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "enforce_cpu": True,
            "model": {"source": {"type": "local", "identifier": str(place)}, "engine": engine},
            "data": {"type": "list", "items": ["unused"]},
            "inference": inference or {},
        }
    )


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-chat's weights with a chat template that shows tools."""
    folder = tmp_path_factory.mktemp("calls") / "model"
    shutil.copytree(builtin_model_path("tiny-chat"), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def transformers_engine(place: Path) -> Iterator[Engine]:
    import torch

    torch.set_num_threads(1)
    engine = loader_of(find_engine("transformers")).load(spec_of("transformers", place))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def vllm_engine(place: Path) -> Iterator[Engine]:
    pytest.importorskip("vllm", exc_type=ImportError)
    engine = loader_of(find_engine("vllm")).load(spec_of("vllm", place))
    yield engine
    engine.close()


@pytest.fixture(params=["transformers", VLLM])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(f"{request.param}_engine")


@dataclass(slots=True)
class Heard:
    """What became of requests, and what was said of them meanwhile."""

    done: dict[int, Completion] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    text: dict[tuple[int, int], str] = field(default_factory=dict)
    calls: dict[tuple[int, int], list[ToolCallDelta]] = field(default_factory=dict)

    def replies(self) -> Replies:
        def text(request: EngineRequest, number: int, piece: str) -> None:
            key = request.row.index, number
            self.text[key] = self.text.get(key, "") + piece

        def call(request: EngineRequest, number: int, piece: ToolCallDelta) -> None:
            self.calls.setdefault((request.row.index, number), []).append(piece)

        return Replies(
            done=lambda request, completion: self.done.update({request.row.index: completion}),
            failed=lambda request, reason: self.failed.update({request.row.index: reason}),
            cancelled=lambda: False,
            log=self.lines.append,
            text=text,
            tool_call=call,
        )


def request_for(engine: Engine, prompt: str, index: int = 0, **fields: Any) -> EngineRequest:
    block = Inference.model_validate({"temperature": 0, "max_tokens": 48, **fields})
    row = InputRow(index, prompt)
    rendered = engine.render(row, block)
    (tokens,) = engine.tokenize([rendered.text], special=rendered.special)
    return EngineRequest(row, rendered, tokens, sampling=block, seed=block.seed or 0)


def send(engine: Engine, *requests: EngineRequest) -> Heard:
    heard = Heard()
    engine.run(iter(requests), heard.replies())
    return heard


def ask(engine: Engine, *blocks: dict[str, Any], prompt: str = NONSENSE) -> list[Completion]:
    heard = send(engine, *[request_for(engine, prompt, n, **each) for n, each in enumerate(blocks)])
    assert heard.failed == {}
    return [heard.done[number] for number in range(len(blocks))]


def arguments_fit(name: str, arguments: str) -> bool:
    given = json.loads(arguments)
    if name == "weather":
        return given.keys() == {"city"} and given["city"] in ("Paris", "Rome")
    return given.keys() == {"zone", "seconds"} and isinstance(given["seconds"], bool)


def test_a_required_call_fits_its_function(engine: Engine) -> None:
    (answer,) = ask(engine, REQUIRED)[0].answers

    (call,) = answer.tool_calls
    assert call.function.name in ("weather", "clock")
    assert arguments_fit(call.function.name, call.function.arguments)
    assert answer.text == ""
    assert answer.finish_reason == "tool_calls"
    assert call.id.startswith("call_")


@pytest.mark.parametrize("name", ["weather", "clock"])
def test_a_named_function_is_called_and_the_answer_stops(engine: Engine, name: str) -> None:
    choice = {"tool_choice": {"function": {"name": name}}}
    (answer,) = ask(engine, {**REQUIRED, **choice})[0].answers

    (call,) = answer.tool_calls
    assert call.function.name == name
    assert arguments_fit(name, call.function.arguments)
    assert answer.finish_reason == "stop"


def test_rows_with_and_without_tools_share_a_run(engine: Engine) -> None:
    plain, required, free, none = ask(
        engine,
        {},
        REQUIRED,
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "none"},
        prompt=CAPITAL,
    )

    assert plain.answers[0].text == none.answers[0].text == "Paris"
    assert plain.answers[0].finish_reason == "stop"
    assert len(required.answers[0].tool_calls) == 1
    assert free.answers[0].tool_calls == ()
    assert free.answers[0].text


def test_equal_rows_have_equal_calls_whatever_stands_beside_them(engine: Engine) -> None:
    drawn = {**REQUIRED, "temperature": 1.5, "n": 3, "seed": 5}
    first, second = ask(engine, drawn, drawn)

    assert first.answers == second.answers
    calls = [answer.tool_calls[0] for answer in first.answers]
    assert len({call.id for call in calls}) == 3
    (alone,) = ask(engine, drawn)
    assert alone.answers == first.answers
    other = ask(engine, drawn, prompt=CAPITAL)[0].answers[0].tool_calls[0]
    assert other.id not in {call.id for call in calls}


def test_a_stream_tells_calls_and_no_markup(engine: Engine) -> None:
    blocks = [REQUIRED, {}, {"tools": TOOLS}]
    requests = [
        replace(request_for(engine, CAPITAL, number, **each), stream=True, urgent=True)
        for number, each in enumerate(blocks)
    ]
    heard = Heard()

    engine.call(requests, heard.replies())  # pyright: ignore[reportAttributeAccessIssue]

    (call,) = heard.done[0].answers[0].tool_calls
    pieces = heard.calls[0, 0]
    assert (pieces[0].index, pieces[0].id, pieces[0].name) == (0, call.id, call.function.name)
    assert [each.id for each in pieces[1:]] == [None] * (len(pieces) - 1)
    assert "".join(each.arguments for each in pieces) == call.function.arguments
    assert heard.text.get((0, 0), "") == ""
    assert heard.text[1, 0] == heard.done[1].answers[0].text == "Paris"
    assert heard.text[2, 0] == heard.done[2].answers[0].text


def test_a_call_that_is_cut_off_says_so(engine: Engine) -> None:
    (answer,) = ask(engine, {**REQUIRED, "max_tokens": 3})[0].answers

    assert answer.finish_reason == "length"
    assert answer.tool_calls == ()


def test_the_log_says_how_answers_are_read(engine: Engine) -> None:
    heard = send(engine, request_for(engine, CAPITAL, **REQUIRED))

    assert heard.failed == {}
    assert any("the chat template has <tool_call>" in line for line in heard.lines), heard.lines


@pytest.mark.parametrize("name", ["transformers", VLLM])
def test_a_model_that_nobody_can_read_is_refused_with_the_option(
    name: str, place: Path, tmp_path: Path
) -> None:
    if name == "vllm":
        pytest.importorskip("vllm", exc_type=ImportError)
    shutil.copytree(place, tmp_path / "model")
    text = TEMPLATE.replace("<tool_call>", "<own_call>")
    (tmp_path / "model" / "chat_template.jinja").write_text(text)
    option = {"vllm": "tool_call_parser", "transformers": "response_template"}[name]

    with pytest.raises(TerminalError, match=rf"model\.{name}\.{option}"):
        loader_of(find_engine(name)).load(spec_of(name, tmp_path / "model", {"tools": TOOLS}))
