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
from mloc_dagster.results import InputRow, Message, SourceRow, open_store
from mloc_dagster.schema import HALF_A_CHARACTER, Inference, OpenaiBatchData

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


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
        (CHAT, {"tools": [{"type": "function"}]}, "'tools' is not supported: tools are not called"),
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
     "tools", "stream", "model", "temperature", "max_completion_tokens", "structured_outputs"]
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
