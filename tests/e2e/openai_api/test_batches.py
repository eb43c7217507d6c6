"""The `openai` package, unchanged, uploads files and runs batches on a stack of mloc."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from tests.e2e.stack import Stack, until

pytest.importorskip("torch")

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CHAT = "/v1/chat/completions"


def chat(custom_id: str, text: str, **body: object) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {
            "model": "tiny-chat",
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": 12,
            **body,
        },
    }


REQUESTS = [
    chat("france", "What is the capital of France?"),
    chat("sum", "What is 3 + 4?"),
    chat("bad", "What is the opposite of hot?", temperature="0"),
    chat("hot", "What is the opposite of hot?"),
]


def lines_of(*requests: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in requests)


def upload(client: openai.OpenAI, *requests: dict[str, Any], name: str = "batch.jsonl") -> str:
    return client.files.create(file=(name, lines_of(*requests)), purpose="batch").id


def create(client: openai.OpenAI, file_id: str, **more: Any) -> Batch:
    given: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h", **more}
    return client.batches.create(input_file_id=file_id, **given)


def await_end(client: openai.OpenAI, batch_id: str) -> Batch:
    def ended() -> Batch | None:
        batch = client.batches.retrieve(batch_id)
        waits = batch.status in ("validating", "in_progress", "finalizing", "cancelling")
        return None if waits else batch

    found = until(ended, f"{batch_id} ends")
    assert found is not None
    return found


def read(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).iter_lines()]


def test_a_batch_runs_and_answers_as_mloc_batch_does(
    stack: Stack, client: openai.OpenAI, tmp_path: Path
) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(lines_of(*REQUESTS))
    file = client.files.create(file=path, purpose="batch")
    assert (file.filename, file.bytes, file.purpose) == (
        "input.jsonl",
        path.stat().st_size,
        "batch",
    )
    assert client.files.content(file.id).read() == path.read_bytes()

    batch = create(client, file.id, metadata={"night": "1"})
    assert batch.metadata == {"night": "1"}
    assert batch.request_counts is not None
    assert batch.request_counts.total == 4
    done = await_end(client, batch.id)
    assert done.status == "completed", done
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (3, 1)
    assert done.completed_at is not None
    assert done.in_progress_at is not None
    assert done.created_at <= done.in_progress_at <= done.completed_at
    assert done.usage is not None
    assert done.usage.output_tokens > 0

    answers = read(client, done.output_file_id)
    (failure,) = read(client, done.error_file_id)
    assert failure["custom_id"] == "bad"
    assert failure["response"]["status_code"] == 400
    made = stack.mloc("batch", str(path), "-m", "tiny-chat", "-o", str(tmp_path / "out.jsonl"))
    assert made.returncode == 0, made.stderr
    expected = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [each["custom_id"] for each in answers] == ["france", "sum", "hot"]
    for answer, other in zip(answers, expected, strict=True):
        for name in ("choices", "usage", "model"):
            assert answer["response"]["body"][name] == other["response"]["body"][name]

    listed = {each.id: each.purpose for each in client.files.list()}
    assert listed[file.id] == "batch"
    assert listed[done.output_file_id or ""] == "batch_output"
    assert listed[done.error_file_id or ""] == "batch_output"
    shown = stack.mloc("list", "--label", f"openai_batch={batch.id}", "--json")
    (task,) = json.loads(shown.stdout)
    assert task["status"] == "DONE"
    assert task["labels"]["night"] == "1"


def test_what_was_answered_survives_the_death_of_the_api(
    stack: Stack, client: openai.OpenAI
) -> None:
    key = {"Idempotency-Key": "once"}
    file_id = upload(client, *REQUESTS[:2])
    stack.kill("api")
    until(lambda: answers(client), "the API comes back")
    first = client.batches.create(
        input_file_id=file_id, endpoint=CHAT, completion_window="24h", extra_headers=key
    )
    stack.kill("api")
    until(lambda: answers(client), "the API comes back")
    again = client.batches.create(
        input_file_id=file_id, endpoint=CHAT, completion_window="24h", extra_headers=key
    )
    assert again.id == first.id
    with pytest.raises(openai.ConflictError, match="came before with another batch"):
        client.batches.create(
            input_file_id=upload(client, REQUESTS[0]), endpoint=CHAT, completion_window="24h",
            extra_headers=key,
        )  # fmt: skip
    assert await_end(client, first.id).status == "completed"


def answers(client: openai.OpenAI) -> bool:
    try:
        client.files.list(limit=1)
    except openai.APIConnectionError:
        return False
    return True


def test_compressed_files_and_requests_of_several_texts_are_answered(
    client: openai.OpenAI,
) -> None:
    texts = {
        "custom_id": "two", "method": "POST", "url": "/v1/completions",
        "body": {"model": "tiny-chat", "prompt": ["Once", "Twice"], "max_tokens": 2},
    }  # fmt: skip
    packed = gzip.compress(lines_of(texts))
    file = client.files.create(file=("texts.jsonl.gz", packed), purpose="batch")
    done = await_end(client, create(client, file.id, endpoint="/v1/completions").id)
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 0)
    assert done.error_file_id is None
    (answer,) = read(client, done.output_file_id)
    assert len(answer["response"]["body"]["choices"]) == 2


def test_a_batch_for_another_service_is_answered_by_a_model_that_is_named_beside_it(
    client: openai.OpenAI,
) -> None:
    requests = [chat("a", "What is 3 + 4?", model="gpt-4o-mini"), chat("b", "Hi", model="o3")]
    model = {"mloc": {"model": "tiny-chat"}}
    done = await_end(client, create(client, upload(client, *requests), extra_body=model).id)
    assert (done.status, done.model) == ("completed", "tiny-chat")
    bodies = [each["response"]["body"] for each in read(client, done.output_file_id)]
    assert {each["model"] for each in bodies} == {"tiny-chat"}


def test_a_batch_of_embeddings_has_a_vector_for_each_text(client: openai.OpenAI) -> None:
    request = {
        "custom_id": "v", "method": "POST", "url": "/v1/embeddings",
        "body": {"model": "tiny-chat", "input": ["hot", "cold"]},
    }  # fmt: skip
    batch = create(client, upload(client, request), endpoint="/v1/embeddings")
    (answer,) = read(client, await_end(client, batch.id).output_file_id)
    assert [len(each["embedding"]) > 8 for each in answer["response"]["body"]["data"]] == [True] * 2


@pytest.mark.parametrize(
    ("requests", "code", "line", "text"),
    [
        ([{"custom_id": "a"}], "invalid_request_line", 1, "url is no endpoint"),
        ([chat("a", "x"), chat("a", "y")], "invalid_request_line", 2, "was used in line 1"),
        ([chat("a", "x"), chat("b", "y", model="other")], "mismatched_model", 2, "in line 1"),
        ([chat("a", "x", model=None)], "missing_model", None, "body.model"),
        ([chat("a", "x", model="/etc")], "invalid_template", None, "is a path of the server"),
        (
            [{**chat("a", "x"), "url": "/v1/completions"}],
            "mismatched_endpoint", 1, "was created for /v1/chat/completions",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_fails_its_batch(
    client: openai.OpenAI, requests: list[dict[str, Any]], code: str, line: int | None, text: str
) -> None:
    batch = create(client, upload(client, *requests))
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.data is not None
    (error,) = batch.errors.data
    assert (error.code, error.line) == (code, line)
    assert text in (error.message or "")
    assert client.batches.retrieve(batch.id) == batch


def test_what_is_asked_wrongly_raises_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="there is no file 'file-x'") as bad:
        create(client, "file-x")
    assert bad.value.param == "input_file_id"
    file_id = upload(client, *REQUESTS)
    for field, value in (("endpoint", "/v1/responses"), ("completion_window", "soon")):
        with pytest.raises(openai.BadRequestError) as bad:
            create(client, file_id, **{field: value})
        assert bad.value.param == field
    with pytest.raises(openai.BadRequestError, match=r"spec\.data.*cannot be set"):
        create(client, file_id, extra_body={"mloc": {"set": {"spec.data.url": "x"}}})
    with pytest.raises(openai.BadRequestError, match="purpose must be 'batch'"):
        client.files.create(file=b"{}", purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="the file is empty"):
        client.files.create(file=("a.jsonl", b""), purpose="batch")
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-none")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")
    with pytest.raises(openai.NotFoundError, match="there is no '/v1/responses'"):
        client.responses.create(model="tiny-chat", input="Hi")


def test_files_and_batches_are_listed_in_pages_and_deleted(client: openai.OpenAI) -> None:
    ids = [upload(client, REQUESTS[0], name=f"{n}.jsonl") for n in range(5)]
    newest = [each.id for each, _ in zip(client.files.list(limit=2), range(5), strict=False)]
    assert newest == ids[::-1]
    page = client.files.list(limit=2, order="asc", after=ids[0], purpose="batch")
    assert [each.id for each in page.data] == ids[1:3]
    assert page.has_more
    for each in client.files.list(limit=2):  # the next page begins after one that is gone
        if each.id in ids:
            assert client.files.delete(each.id).deleted
    left = {each.id for each in client.files.list()}
    assert not left & set(ids)
    with pytest.raises(openai.NotFoundError):
        client.files.content(ids[0])
    with pytest.raises(openai.BadRequestError, match="there is no file"):
        create(client, ids[0])
    wrong = upload(client, {"custom_id": "a"})
    made = [create(client, wrong).id for _ in range(3)]
    listed = [each.id for each, _ in zip(client.batches.list(limit=2), range(3), strict=False)]
    assert listed == made[::-1]
    with pytest.raises(openai.BadRequestError, match="after: there is no"):
        client.batches.list(after="batch_none")


def test_a_cancelled_batch_keeps_what_was_answered(stack: Stack, client: openai.OpenAI) -> None:
    long = [
        chat(f"r{n}", f"Tell me about {n}", max_tokens=400, ignore_eos=True) for n in range(2000)
    ]
    file_id = upload(client, *long)
    shards = {"mloc": {"set": {"spec.parallel.max_shards": 1}}}
    batch = create(client, file_id, extra_body=shards, completion_window="1h")
    assert batch.expires_at is not None
    assert batch.expires_at - batch.created_at == 3600

    def some() -> bool:
        counts = client.batches.retrieve(batch.id).request_counts
        return counts is not None and counts.completed > 0

    until(some, "the first answers are there")
    uploads = stack.layout.home / "results" / ".uploads"
    client.files.delete(file_id)
    assert list(uploads.rglob(f"{file_id}*"))  # as long as they are needed
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = await_end(client, batch.id)
    assert done.status == "cancelled"
    assert done.cancelling_at is not None
    assert done.cancelled_at is not None
    assert done.request_counts is not None
    found = read(client, done.output_file_id)
    assert 0 < len(found) == done.request_counts.completed < len(long)
    assert {each["custom_id"] for each in found} <= {each["custom_id"] for each in long}
    assert client.batches.cancel(batch.id).status == "cancelled"
    client.batches.list()
    assert not list(uploads.rglob(f"{file_id}*"))


def test_an_ended_batch_cannot_be_cancelled(client: openai.OpenAI) -> None:
    batch = create(client, upload(client, {"custom_id": "a"}))
    with pytest.raises(openai.ConflictError, match="has ended already"):
        client.batches.cancel(batch.id)


def test_a_batch_outlives_its_results(stack: Stack, client: openai.OpenAI) -> None:
    done = await_end(client, create(client, upload(client, REQUESTS[0])).id)
    assert done.output_file_id is not None
    wanted = {"results_max_bytes": 0, "dry_run": False}
    httpx.post(f"http://127.0.0.1:{stack.api_port}/admin/cleanup", json=wanted).raise_for_status()
    assert client.batches.retrieve(done.id) == done
    with pytest.raises(openai.NotFoundError):
        client.files.content(done.output_file_id)
    assert done.output_file_id not in {each.id for each in client.files.list()}
