from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from mloc_dagster.data.openai_batch import RequestBlock, Requests, batch_rows, scan_batch
from mloc_dagster.data.rows import open_rows
from mloc_dagster.data.spool import read_input, spool_input
from mloc_dagster.errors import DataError
from mloc_dagster.executors import RowOptions
from mloc_dagster.results import (
    FunctionCall,
    InputRow,
    Message,
    SourceRow,
    ToolCall,
    open_store,
)
from mloc_dagster.schema import (
    HALF_A_CHARACTER,
    EngineType,
    Inference,
    OpenaiBatchData,
    TransformersOptions,
)

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
ASKED = {"role": "user", "content": "2 + 3?"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
FIVE = {"role": "tool", "content": "5", "tool_call_id": "c1"}


def request(custom_id: str = "a", url: str = CHAT, **body: object) -> dict[str, object]:
    if url == CHAT:
        body = {"messages": [{"role": "user", "content": "Hi"}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write(path: Path, *requests: object) -> str:
    lines = (each if isinstance(each, str) else json.dumps(each) for each in requests)
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def read(path: Path, *requests: object, block: RequestBlock | None = None) -> list[SourceRow]:
    return list(batch_rows(write(path / "batch.jsonl", *requests), block or RequestBlock())[1])


def one(path: Path, url: str = CHAT, **body: object) -> SourceRow:
    kind = "embedding" if url == EMBEDDINGS else "inference"
    (row,) = read(path, request("a", url, **body), block=RequestBlock(kind))
    return row


def test_a_chat_request_is_a_row_with_options_of_its_own(tmp_path: Path) -> None:
    row = one(
        tmp_path,
        model="gpt-4o-mini",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "Ann"},
        ],
        max_completion_tokens=7,
        stop="\n",
        seed=3,
        n=2,
        logprobs=True,
        top_logprobs=2,
        user="u-1",
        stream=False,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}},
    )
    assert row.error is None
    assert (row.custom_id, row.adapter, row.verbatim) == ("a", None, False)
    assert row.prompt == [
        Message("system", "Be brief."),
        Message("user", [{"type": "text", "text": "Hi"}], "Ann"),
    ]
    assert row.options == {
        "temperature": 1.0,
        "max_tokens": 7,
        "stop": "\n",
        "seed": 3,
        "n": 2,
        "logprobs": 2,
        "structured_outputs": {"json": {"a": 1}},
    }


def test_what_the_body_leaves_out_is_the_templates_or_the_apis(tmp_path: Path) -> None:
    silent = one(tmp_path)
    assert silent.options == {"temperature": 1.0, "max_tokens": 4096}
    assert one(tmp_path, COMPLETIONS, prompt="x").options == {"temperature": 1.0, "max_tokens": 16}
    block = RequestBlock(given=frozenset({"temperature", "max_tokens"}))
    (row,) = read(tmp_path, request(top_p=None), block=block)
    assert row.options is None


def test_completions_are_read_verbatim_and_a_list_of_prompts_is_several_rows(
    tmp_path: Path,
) -> None:
    rows = read(tmp_path, request("a", COMPLETIONS, prompt=["x", "y"], logprobs=1))
    assert [(row.prompt, row.custom_id, row.verbatim) for row in rows] == [
        ("x", "a", True),
        ("y", "a", True),
    ]
    assert rows[0].options == {"temperature": 1.0, "max_tokens": 16, "logprobs": 1}


def test_embeddings(tmp_path: Path) -> None:
    row = one(tmp_path, EMBEDDINGS, input="text", dimensions=8, encoding_format="float")
    assert (row.prompt, row.options, row.error) == ("text", {"dimensions": 8}, None)


@pytest.mark.parametrize(
    ("url", "body", "said"),
    [
        (CHAT, {"stream": True}, "'stream' is not supported: a batch's answers are never streamed"),
        (CHAT, {"tools": {}}, "'tools' must be a list of tools"),
        (CHAT, {"tools": [{"type": "custom"}]}, "tools[0].type: tools of type 'custom' are not"),
        (CHAT, {"tools": [{"type": "function"}]}, "tools[0].function: Field required"),
        (CHAT, {"tools": [ADD, {**ADD, "function": {"name": "a b"}}]}, "tools[1].function.name: "),
        (CHAT, {"tools": [{**ADD, "x": 1}]}, "tools[0].x: Extra inputs are not permitted"),
        (CHAT, {"tools": [ADD] * 129}, "'tools' has 129 tools; at most 128 are allowed"),
        (CHAT, {"tool_choice": "requird"}, "not 'requird'; did you mean 'required'?"),
        (CHAT, {"tool_choice": {"type": "allowed_tools"}}, "of type 'allowed_tools' is not"),
        (CHAT, {"tool_choice": {"type": "function"}}, "tool_choice.function: Field required"),
        (CHAT, {"parallel_tool_calls": "no"}, "must be true or false, not 'no'"),
        (CHAT, {"functions": [{"name": "f"}]}, "'functions' is not supported: it is deprecated"),
        (CHAT, {"function_call": {"name": "f"}}, "'function_call' is not supported: it is depr"),
        (CHAT, {"reasoning_effort": "hihg"}, "not 'hihg'; did you mean 'high'?"),
        (CHAT, {"chat_template_kwargs": []}, "'chat_template_kwargs' must be an object"),
        (COMPLETIONS, {"prompt": "x", "tools": [ADD]}, "'tools' is not supported"),
        (CHAT, {"temprature": 0}, "'temprature' is not supported; did you mean 'temperature'?"),
        (CHAT, {"messages": []}, "'messages' must be a list with at least one message"),
        (CHAT, {"messages": [{"role": "usr", "content": "x"}]}, "unknown role 'usr'; did you mean"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content must be text or a list"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0]: parts of type 'input_audio' are not supported",
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x", "name": "a b"}]},
            "name: 'a b' is no",
        ),
        (CHAT, {"logprobs": "true"}, "'logprobs' must be true or false, not 'true'"),
        (CHAT, {"top_logprobs": 2}, "'top_logprobs' needs logprobs: true"),
        (CHAT, {"response_format": {"type": "xml"}}, "of type 'xml' is not supported"),
        (COMPLETIONS, {"prompt": [1, 2]}, "'prompt' is token ids"),
        (COMPLETIONS, {"prompt": "x", "suffix": "y"}, "'suffix' is not supported"),
        (EMBEDDINGS, {"input": "x", "encoding_format": "hex"}, "written as float or base64"),
        (EMBEDDINGS, {"input": "x", "truncate_prompt_tokens": 5}, "is supported as -1"),
    ],
)
def test_what_cannot_be_done_ends_that_request_alone(
    tmp_path: Path, url: str, body: dict[str, Any], said: str
) -> None:
    row = one(tmp_path, url, **body)
    assert row.error is not None
    assert said in row.error
    assert row.custom_id == "a"


def test_a_chat_with_tools_is_read_as_the_api_has_it(tmp_path: Path) -> None:
    thought = {**CALLED, "reasoning_content": "I add"}
    row = one(
        tmp_path,
        messages=[ASKED, thought, {**FIVE, "content": [{"type": "text", "text": "5"}]}],
        tools=[ADD],
        tool_choice={"type": "function", "function": {"name": "add"}},
        parallel_tool_calls=False,
        reasoning_effort="low",
        chat_template_kwargs={"enable_thinking": False},
    )
    assert row.error is None
    call = ToolCall("c1", FunctionCall("add", '{"a": 2}'))
    assert row.prompt == [
        Message("user", "2 + 3?"),
        Message("assistant", "", tool_calls=[call], reasoning="I add"),
        Message("tool", [{"type": "text", "text": "5"}], tool_call_id="c1"),
    ]
    block = RowOptions(Inference()).of(InputRow(0, row.prompt, options=row.options))
    assert isinstance(block, Inference)
    assert [each.function.name for each in block.tools] == ["add"]
    assert (block.calls_tools, block.parallel_tool_calls) == (True, False)
    assert block.chat_template_kwargs == {"reasoning_effort": "low", "enable_thinking": False}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{**ASKED, "tool_calls": [CALL]}], "messages[0].tool_calls: only the assistant calls"),
        ([{**CALLED, "tool_calls": {}}], "messages[0].tool_calls must be a list of calls"),
        ([{**CALLED, "tool_calls": [1]}], "messages[0].tool_calls[0] is no object"),
        (
            [{**CALLED, "tool_calls": [{**CALL, "type": "custom"}]}],
            "tool_calls[0].type: calls of type 'custom' are not supported",
        ),
        ([{**CALLED, "tool_calls": [{"id": "c"}]}], "tool_calls[0].function must be an object"),
        (
            [{**CALLED, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}],
            "tool_calls[0].function.arguments must be JSON text, not {}",
        ),
        (
            [{**CALLED, "tool_calls": [{"function": CALL["function"]}]}],
            "messages[0].tool_calls[0].id is missing; it must be text",
        ),
        ([{"role": "assistant", "content": None}], "list of parts, or null beside tool_calls"),
        ([ASKED, CALLED, {**FIVE, "tool_call_id": None}], "messages[2].tool_call_id must be the"),
        ([ASKED, {"role": "tool", "content": "5"}], "messages[1].tool_call_id is missing"),
        ([ASKED, FIVE], "messages[1].tool_call_id: 'c1' is the id of no call"),
        ([ASKED, CALLED, FIVE, FIVE], "messages[3].tool_call_id: 'c1' is the id of no call"),
        ([ASKED, CALLED], "none answers 'c1'"),
        ([ASKED, CALLED, ASKED], "messages[1].tool_calls must be followed by a message with the"),
        (
            [ASKED, CALLED, {**FIVE, "content": [{"type": "image_url", "image_url": "x"}]}],
            "messages[2].content: what a tool answers is text",
        ),
        ([{"role": "function", "name": "f", "content": "5"}], "'function' is deprecated"),
        ([{**CALLED, "function_call": {"name": "f"}}], "function_call is deprecated and not"),
        ([{**CALLED, "reasoning": 5}], "messages[0].reasoning must be text"),
    ],
)
def test_calls_that_are_none_end_that_request_alone(
    tmp_path: Path, messages: list[dict[str, Any]], said: str
) -> None:
    row = one(tmp_path, messages=messages)
    assert row.error is not None
    assert said in row.error


def test_tools_of_the_template_hold_where_a_body_has_none(tmp_path: Path) -> None:
    block = Inference.model_validate({"tools": [ADD], "chat_template_kwargs": {"a": 1, "b": 1}})
    options = RowOptions(block)
    body = {"tool_choice": "required", "chat_template_kwargs": {"b": 2}}
    silent = options.of(InputRow(0, "x", options=one(tmp_path, **body).options))
    assert isinstance(silent, Inference)
    assert (silent.tools, silent.tool_choice) == (block.tools, "required")
    assert silent.chat_template_kwargs == {"a": 1, "b": 2}
    without = options.of(InputRow(0, "x", options=one(tmp_path, tools=[]).options))
    assert isinstance(without, Inference)
    assert not without.calls_tools


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"tool_choice": "required"}, "'tool_choice': 'required' needs tools"),
        ({"tools": [ADD, ADD]}, "'add' is the name of two functions"),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "ad"}}},
            "'ad' is none of the tools",
        ),
    ],
)
def test_tools_that_contradict_each_other_are_the_rows_error(
    tmp_path: Path, body: dict[str, Any], said: str
) -> None:
    options = one(tmp_path, **body).options
    with pytest.raises(ValueError, match=said):
        RowOptions(Inference()).of(InputRow(0, "x", options=options))


def test_a_row_with_tools_on_an_engine_that_calls_none_is_its_own_error(tmp_path: Path) -> None:
    engine = EngineType(name="plain", label="plain", options=TransformersOptions, loader="a:B")
    options = one(tmp_path, tools=[ADD]).options
    with pytest.raises(ValueError, match="plain calls no tools"):
        RowOptions(Inference(), engine).of(InputRow(0, "x", options=options))


def test_a_bad_value_is_found_where_options_meet_the_block(tmp_path: Path) -> None:
    options = one(tmp_path, temperature=5).options
    with pytest.raises(ValueError, match=r"'temperature': .*less than or equal to 2, not 5"):
        RowOptions(Inference()).of(InputRow(0, "x", options=options))


def test_who_says_a_message_is_kept(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "hello", "name": "ada"}
    assert one(tmp_path, messages=[turn]).prompt == [Message("user", "hello", "ada")]


def test_a_line_that_is_not_posted_ends_that_request_alone(tmp_path: Path) -> None:
    silent = request("b")
    del silent["method"]
    first, *others = read(tmp_path, request("a"), silent, {**request("c"), "method": "GET"})
    assert first.error is None
    assert [(row.custom_id, row.error) for row in others] == [
        ("b", "method is missing; it must be POST"),
        ("c", "method must be POST, not 'GET'"),
    ]


def test_the_model_of_a_request_may_name_an_adapter(tmp_path: Path) -> None:
    block = RequestBlock(adapters=frozenset({"polite"}))
    rows = read(tmp_path, request("a", model="polite"), request("b", model="gpt-4o"), block=block)
    assert [row.adapter for row in rows] == ["polite", None]


def test_half_of_a_surrogate_pair_spoils_its_request_only(tmp_path: Path) -> None:
    """A word that JSON can escape and UTF-8 cannot hold, in a prompt, a key and an option."""
    half = "\ud83d"
    requests = [
        request("a"),
        request("b", messages=[{"role": "user", "content": f"Hi {half}"}]),
        request("c", **{half: 1}),
        request("d", stop=half),
        request("e"),
    ]
    path = write(tmp_path / "batch.jsonl", *requests)
    folder = open_store(str(tmp_path / "results")).task("t")
    data = Requests(type="openai_batch", url=path, block=RequestBlock())
    plan = spool_input("t", data, folder, 1, 1, {})
    errors = {row.custom_id: row.error for row in read_input(folder, plan, 0, 5)}
    assert [each for each in "abcde" if errors[each] is not None] == ["b", "c", "d"]
    assert (errors["b"], errors["d"]) == (HALF_A_CHARACTER, HALF_A_CHARACTER)


def test_half_of_a_surrogate_pair_is_no_custom_id(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"batch\.jsonl:2: custom_id is not valid Unicode"):
        read(tmp_path, request("a"), request("\ud83d"))


def test_what_is_no_number_in_json_is_none_here(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"batch\.jsonl:1: not a JSON object in one line"):
        read(tmp_path, request("a", temperature=float("nan")))


def test_defects_of_the_file_are_told_all_at_once(tmp_path: Path) -> None:
    url = write(
        tmp_path / "batch.jsonl",
        request("a"),
        "{broken",
        "",
        request("a"),
        {"method": "POST", "url": CHAT, "body": {}},
        {"custom_id": 5, "url": CHAT, "body": {}},
        {"custom_id": "c", "url": "/v1/chat/completion", "body": {}},
        {"custom_id": "d", "url": CHAT},
        "[]",
    )
    with pytest.raises(DataError) as raised:
        batch_rows(url, RequestBlock())
    lines = str(raised.value).splitlines()
    assert [line.removeprefix(f"{url}:").partition(":")[0] for line in lines] == list("2456789")
    assert "not a JSON object in one line" in lines[0]
    assert "custom_id 'a' was used in line 1" in lines[1]
    assert "custom_id is missing" in lines[2]
    assert "custom_id is missing: 5; it must be text" in lines[3]
    assert "did you mean '/v1/chat/completions'?" in lines[4]
    assert "body is missing" in lines[5]


def test_only_the_first_defects_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="… and 10 more"):
        read(tmp_path, *["{"] * 30)


def test_text_and_vectors_do_not_mix(tmp_path: Path) -> None:
    vector = request("v", EMBEDDINGS, input="x")
    with pytest.raises(DataError, match="1 requests for text and 1 for /v1/embeddings"):
        read(tmp_path, request("a"), vector)
    with pytest.raises(DataError, match="need taskType embedding, not inference"):
        read(tmp_path, vector)
    with pytest.raises(DataError, match="need taskType inference, not embedding"):
        read(tmp_path, request("a"), block=RequestBlock("embedding"))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        scan_batch(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="the file is empty"):
        scan_batch(write(tmp_path / "empty.jsonl", ""))


def test_a_request_for_vectors_as_bytes_says_so_in_its_row(tmp_path: Path) -> None:
    row = one(tmp_path, EMBEDDINGS, input="text", encoding_format="base64")
    assert (row.error, row.options, row.encoding) == (None, None, "base64")
    assert one(tmp_path, EMBEDDINGS, input="text", encoding_format="float").encoding == ""
    assert one(tmp_path, encoding_format="base64").encoding == "", "a chat has no vectors"


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)],
)
def test_a_damaged_file_is_told_in_one_message(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"batch.jsonl.{suffix}"
    whole = compress(b"".join(json.dumps(request(str(n))).encode() + b"\n" for n in range(999)))
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(64) + whole[middle + 64 :]
    for data in (damaged, whole[:middle], b"no archive"):
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"batch\.jsonl\.{suffix}: damaged"):
            scan_batch(str(path))


def test_a_template_reads_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "batch.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(request()).encode()))
    source, rows, _ = open_rows(OpenaiBatchData(type="openai_batch", url=str(path)), {})
    assert source == f"{path}, 1 requests"
    assert [row.custom_id for row in rows] == ["a"]


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from(
    ["messages", "prompt", "input", "stop", "n", "logprobs", "top_logprobs", "response_format",
     "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "stream",
     "model", "temperature", "max_completion_tokens", "structured_outputs"]
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    url=st.sampled_from([CHAT, COMPLETIONS]),
    bodies=st.lists(st.dictionaries(_NAMES, _JSON) | _JSON, min_size=1, max_size=5),
)
def test_whatever_a_body_is_each_request_becomes_rows(
    tmp_path_factory: pytest.TempPathFactory, url: str, bodies: list[object]
) -> None:
    requests = [
        {"custom_id": str(place), "url": url, "body": body} for place, body in enumerate(bodies)
    ]
    rows = read(tmp_path_factory.mktemp("batch"), *requests)
    ids = list(dict.fromkeys(row.custom_id for row in rows))
    assert ids == [each["custom_id"] for each in requests]
    for index, row in enumerate(rows):
        if row.error is None:  # then its options are valid, or that is the row's error
            with suppress(ValueError):
                RowOptions(Inference()).of(InputRow(index, row.prompt, options=row.options))


def test_a_pipe_is_no_batch_and_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "batch.jsonl")
    with pytest.raises(DataError, match="is a pipe or a device; name a regular file"):
        scan_batch(str(tmp_path / "batch.jsonl"))
