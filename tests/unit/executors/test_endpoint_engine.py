"""The engine for endpoints, over real HTTP: what is sent, what comes back, what is tried again."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("aiolimiter")

from mloc_dagster.errors import InputError, TaskCancelled, TerminalError, TransientError
from mloc_dagster.executors.engines.choice import choose_engine, loader_of
from mloc_dagster.executors.engines.openai import endpoint as endpoint_module
from mloc_dagster.executors.engines.openai.traffic import Places
from mloc_dagster.executors.engines.protocol import Completion, EngineRequest, Replies
from mloc_dagster.executors.inference import InferenceExecutor
from mloc_dagster.executors.prompts import RowOptions
from mloc_dagster.executors.reuse_identity import NoReuseError, model_identity
from mloc_dagster.executors.row_requests import rendered_rows
from mloc_dagster.net import OutOfReachError, Reach
from mloc_dagster.results import FunctionCall, InputRow, Message, ServerFault, ToolCall
from mloc_dagster.schema import EmbeddingSpec, InferenceSpec, ModelSpec
from mloc_dagster.settings import settings
from tests.endpoint_server import Failure, FakeEndpoint, endpoint

KEY = "sk-very-secret-key-1234567890"


@pytest.fixture
def fake() -> Iterator[FakeEndpoint]:
    with endpoint() as found:
        yield found


def spec_of(
    fake: FakeEndpoint,
    block: dict[str, Any] | None = None,
    *,
    embeds: bool = False,
    source: dict[str, Any] | None = None,
    **options: Any,
) -> ModelSpec:
    kind = EmbeddingSpec if embeds else InferenceSpec
    given = {"type": "openai", "identifier": "parrot", "base_url": fake.url, **(source or {})}
    return kind.model_validate(
        {
            "taskType": "embedding" if embeds else "inference",
            "model": {"source": given, "openai": {"max_retries": 0, **options}},
            "data": {"type": "list", "items": ["unused"]},
            ("pooling" if embeds else "inference"): block or {},
        }
    )


@dataclass
class Asked:
    """What became of the rows."""

    done: dict[int, Completion] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    pieces: dict[int, list[str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def replies(self, cancelled: Callable[[], bool] = lambda: False) -> Replies:
        return Replies(
            done=lambda request, completion: self.done.update({request.row.index: completion}),
            failed=lambda request, reason: self.failed.update({request.row.index: reason}),
            cancelled=cancelled,
            log=self.lines.append,
            text=lambda request, _, piece: self.pieces.setdefault(request.row.index, []).append(
                piece
            ),
        )

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def texts(self) -> list[str]:
        return [self.done[index].answers[0].text for index in sorted(self.done)]


def rows_of(*prompts: Any) -> list[InputRow]:
    return [
        each if isinstance(each, InputRow) else InputRow(index, each)
        for index, each in enumerate(prompts)
    ]


def requests_of(engine: Any, spec: ModelSpec, rows: Iterable[InputRow], seed: int = 0) -> Any:
    refused: list[str] = []
    windows = rendered_rows(
        rows, RowOptions(spec.row_block), seed, engine, lambda _, why: refused.append(why)
    )
    found = [request for window in windows for request in window]
    assert refused == []
    return found


def ask(
    spec: ModelSpec, *prompts: Any, asked: Asked | None = None, cancelled: Any = lambda: False
) -> Asked:
    asked = asked or Asked()
    engine = loader_of(choose_engine(spec).engine).load(spec)
    try:
        engine.run(iter(requests_of(engine, spec, rows_of(*prompts))), asked.replies(cancelled))
    finally:
        engine.close()
    return asked


def test_a_row_is_a_chat_and_its_answer_a_completion(fake: FakeEndpoint) -> None:
    block = {"temperature": 0, "system_prompt": "Be brief.", "max_tokens": 9, "stop": ["x"]}
    asked = ask(spec_of(fake, block), "hello")
    assert asked.texts == ["hello"]
    assert fake.paths == ["/v1/chat/completions"]
    assert fake.bodies == [
        {
            "model": "parrot",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "hello"},
            ],
            "temperature": 0.0,
            "max_tokens": 9,
            "n": 1,
            "stop": ["x"],
        }
    ]
    done = asked.done[0]
    assert (done.prompt_tokens, done.cached_tokens) == (11, 4)
    (given,) = done.answers
    assert (given.tokens, given.reasoning_tokens, given.finish_reason) == (7, 2, "stop")
    assert done.latency_s >= done.engine_s > 0
    assert "fp_1" in asked.log
    assert "authorization" not in fake.headers[0], "no key of the environment is sent"


def test_sampling_takes_the_apis_names(fake: FakeEndpoint) -> None:
    block = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "n": 2,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.2,
        "logprobs": 2,
        "structured_outputs": {"json": {"type": "object"}},
    }
    asked = ask(spec_of(fake, block, extra_body={"reasoning_effort": "low"}), "hello")
    (body,) = fake.bodies
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    wanted = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "n": 2, "reasoning_effort": "low"}
    assert wanted.items() <= body.items()
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    one, other = asked.done[0].answers
    assert one.tokens + other.tokens == 7
    assert one.logprobs is not None
    assert one.logprobs[0].top == [("a", -0.5), ("b", -2.0)]


def test_greedy_answers_are_asked_for_once(fake: FakeEndpoint) -> None:
    asked = ask(spec_of(fake, {"temperature": 0, "n": 3}), "hello")
    assert fake.bodies[0]["n"] == 1
    assert [each.text for each in asked.done[0].answers] == ["hello"] * 3
    assert sum(each.tokens for each in asked.done[0].answers) == 7, "nobody pays three times"


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def test_tools_and_thoughts_come_back_as_fields(fake: FakeEndpoint) -> None:
    call = {"id": "c9", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    fake.message = lambda body: {
        "content": None,
        "reasoning_content": "let me see",
        "tool_calls": [call],
    }
    known = ToolCall("c1", FunctionCall("add", '{"a": 2}'))
    chat = [
        Message("user", "add"),
        Message("assistant", "", tool_calls=[known]),
        Message("tool", "3", tool_call_id="c1"),
    ]
    block = {
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "parallel_tool_calls": False,
    }
    asked = ask(spec_of(fake, block), chat)
    (body,) = fake.bodies
    assert body["tools"] == [TOOL]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert body["parallel_tool_calls"] is False
    assert body["messages"][1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
        ],
    }
    assert body["messages"][2] == {"role": "tool", "content": "3", "tool_call_id": "c1"}
    (given,) = asked.done[0].answers
    assert given.finish_reason == "tool_calls"
    assert given.tool_calls == (ToolCall("c9", FunctionCall("add", '{"a":1}')),)
    assert given.reasoning == "let me see"


def test_verbatim_text_goes_to_completions(fake: FakeEndpoint) -> None:
    row = InputRow(0, "Once upon", verbatim=True)
    asked = ask(spec_of(fake, {"system_prompt": "ignored"}), row)
    assert fake.paths == ["/v1/completions"]
    assert fake.bodies[0]["prompt"] == "Once upon"
    assert asked.done[0].answers[0].finish_reason == "length"


def test_rows_become_vectors_of_length_one(fake: FakeEndpoint) -> None:
    asked = ask(spec_of(fake, {"instruction": "query: ", "dimensions": 2}, embeds=True), "hello")
    assert fake.bodies == [
        {
            "model": "parrot",
            "input": "query: hello",
            "encoding_format": "float",
            "dimensions": 2,
        }
    ]
    assert asked.done[0].embedding == pytest.approx([0.6, 0.8])
    assert asked.done[0].prompt_tokens == 5
    with pytest.raises(InputError, match="leave pooling_type out"):
        ask(spec_of(fake, {"pooling_type": "CLS"}, embeds=True), "hello")


def test_images_go_along_as_data(fake: FakeEndpoint) -> None:
    image = pytest.importorskip("PIL.Image")
    parts = [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "https://example.org/x.png", "detail": "low"}},
    ]
    spec = spec_of(fake)
    engine = loader_of(choose_engine(spec).engine).load(spec)
    (request,) = requests_of(engine, spec, [InputRow(0, [Message("user", parts)])])
    from dataclasses import replace

    shown = replace(request, rendered=replace(request.rendered, images=(image.new("RGB", (2, 3)),)))
    asked = Asked()
    engine.run(iter([shown]), asked.replies())
    engine.close()
    sent = fake.bodies[0]["messages"][0]["content"][1]["image_url"]
    assert sent["detail"] == "low"
    head, _, data = sent["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_vllm_servers_take_vllms_options(fake: FakeEndpoint) -> None:
    fake.models = [{"id": "parrot", "owned_by": "vllm", "max_model_len": 64, "root": "org/parrot"}]
    form = {"regex": "[ab]+"}
    block = {"top_k": 5, "min_tokens": 2, "structured_outputs": form, "max_tokens": 500}
    ask(spec_of(fake, block), "hello")
    (body,) = fake.bodies
    wanted = {"top_k": 5, "min_tokens": 2, "structured_outputs": form, "min_p": 0.0}
    assert wanted.items() <= body.items()
    assert body["max_tokens"] == 64, "no more than the model reads"
    assert "seed" not in body, "nobody has asked for one"


@pytest.mark.parametrize(
    "block",
    [
        {"top_k": 5},
        {"min_p": 0.1},
        {"ignore_eos": True},
        {"structured_outputs": {"choice": ["a"]}},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_what_the_api_cannot_say_is_refused(fake: FakeEndpoint, block: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"OpenAI's API has no {next(iter(block))}"):
        ask(spec_of(fake, block), "hello")
    row = InputRow(0, "hello", options=block)
    asked = ask(spec_of(fake), row, "fine")
    assert next(iter(block)) in asked.failed[0]
    assert asked.texts == ["hello"] or asked.texts == ["fine"]


def test_no_more_requests_are_in_flight_than_allowed(fake: FakeEndpoint) -> None:
    fake.slow_s = 0.06
    drawn: list[int] = []
    spec = spec_of(fake, max_concurrency=4)
    engine = loader_of(choose_engine(spec).engine).load(spec)
    requests = requests_of(engine, spec, rows_of(*map(str, range(40))))
    asked = Asked()

    def drawing() -> Iterator[EngineRequest]:
        for request in requests:
            drawn.append(len(asked.done))
            yield request

    engine.run(drawing(), asked.replies())
    engine.close()
    assert sorted(asked.done) == list(range(40))
    assert fake.most_open == 4
    assert all(place - ended <= 4 for place, ended in enumerate(drawn)), "drawn as there is room"


def test_threads_share_the_places(fake: FakeEndpoint) -> None:
    fake.slow_s = 0.06
    spec = spec_of(fake, max_concurrency=3)
    engine = loader_of(choose_engine(spec).engine).load(spec)
    several = [Asked(), Asked(), Asked()]
    threads = [
        threading.Thread(
            target=engine.run,
            args=(
                iter(requests_of(engine, spec, rows_of(*map(str, range(6))))),
                each.replies(),
            ),
        )
        for each in several
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert [len(each.done) for each in several] == [6, 6, 6]
    assert fake.most_open <= 3


def test_a_busy_endpoint_is_asked_again_when_it_says(fake: FakeEndpoint) -> None:
    fake.failures.extend([Failure(429, {"Retry-After": "0.2"}), Failure(503), Failure(500)])
    asked = ask(spec_of(fake, max_retries=5), "hello")
    assert asked.texts == ["hello"]
    assert len(fake.bodies) == 4
    assert "3 attempts more than requests" in asked.log


def test_all_wait_when_an_endpoint_asks_to(fake: FakeEndpoint) -> None:
    fake.failures.extend([Failure(429, {"Retry-After": "0.3"}, message="slow down")] * 2)
    began = time.monotonic()
    asked = ask(spec_of(fake, max_concurrency=1), "a", "b")
    assert asked.texts == ["a", "b"]
    assert time.monotonic() - began >= 0.6
    assert "the endpoint asks to wait 0.3 s: slow down" in asked.log


def test_an_endpoint_that_never_has_room_is_given_up(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "PATIENCE_S", 0.3)
    fake.judge = lambda body: Failure(429, {"Retry-After": "0.1"}, message="full")
    with pytest.raises(TransientError, match="has taken no request"):
        ask(spec_of(fake), "a")


def test_without_credit_it_ends_at_once(fake: FakeEndpoint) -> None:
    fake.judge = lambda body: Failure(429, code="insufficient_quota", message="pay first")
    with pytest.raises(TerminalError, match="no credit is left: pay first"):
        ask(spec_of(fake), "a")


def test_a_request_that_is_wrong_fails_its_row_alone(fake: FakeEndpoint) -> None:
    def judge(body: Any) -> Failure | None:
        bad = body["messages"][0]["content"] == "b"
        return Failure(400, message="too long") if bad else None

    fake.judge = judge
    asked = ask(spec_of(fake), "a", "b", "c")
    assert asked.texts == ["a", "c"]
    assert "400 on /chat: too long" in asked.failed[1]
    assert not isinstance(asked.failed[1], ServerFault)


def test_a_row_that_breaks_the_endpoint_fails_alone(fake: FakeEndpoint) -> None:
    def judge(body: Any) -> Failure | None:
        return Failure(500) if body["messages"][0]["content"] == "b" else None

    fake.judge = judge
    asked = ask(spec_of(fake), "a", "b", "c", "d")
    assert asked.texts == ["a", "c", "d"]
    assert isinstance(asked.failed[1], ServerFault)


def test_an_endpoint_that_only_fails_is_given_up(fake: FakeEndpoint) -> None:
    fake.judge = lambda body: Failure(500)
    with pytest.raises(TransientError, match="does not answer"):
        ask(spec_of(fake, max_concurrency=1), *map(str, range(9)))


def test_an_endpoint_that_goes_away_is_a_matter_of_another_attempt(fake: FakeEndpoint) -> None:
    spec = spec_of(fake)
    with endpoint() as other:
        spec = spec_of(other)
        engine = loader_of(choose_engine(spec).engine).load(spec)
    with pytest.raises(TransientError, match="does not answer"):
        engine.run(iter(requests_of(engine, spec, rows_of("a"))), Asked().replies())
    engine.close()
    with pytest.raises(TransientError, match="does not answer"):
        loader_of(choose_engine(spec).engine).load(spec)


def test_a_connection_that_hangs_is_left(fake: FakeEndpoint) -> None:
    fake.failures.append(Failure(hang=30))
    asked = ask(spec_of(fake, timeout=0.5, max_retries=1), "a")
    assert asked.texts == ["a"]


@pytest.mark.parametrize("status", [403, 404])
def test_what_is_refused_at_first_is_refused_for_all(fake: FakeEndpoint, status: int) -> None:
    fake.judge = lambda body: Failure(status, message="no such model")
    source = {"identifier": "parot"}
    with pytest.raises(TerminalError, match=r"no such model") as error:
        ask(spec_of(fake, source=source), "a")
    if status == 404:
        assert "did you mean 'parrot'?" in str(error.value)


def test_a_redirect_is_not_followed(fake: FakeEndpoint) -> None:
    fake.judge = lambda body: Failure(307, {"Location": "http://127.0.0.1:9/v1"})
    with pytest.raises(TerminalError, match="none is followed"):
        ask(spec_of(fake), "a")


def test_a_text_that_is_no_answer_fails_its_row(fake: FakeEndpoint) -> None:
    fake.failures.append(Failure(200, message="<html>hello</html>", plain=True))
    asked = ask(spec_of(fake), "a", "b")
    assert asked.texts == ["b"]
    assert isinstance(asked.failed[0], ServerFault)


def test_refusals_and_filters_are_errors_of_the_row(fake: FakeEndpoint) -> None:
    answers = {"a": {"content": None, "refusal": "I will not"}, "c": {"content": "c"}}
    filtered = {"content": "so", "finish_reason": "content_filter"}
    fake.message = lambda body: dict(answers.get(body["messages"][0]["content"], filtered))
    asked = ask(spec_of(fake), "a", "b", "c")
    assert asked.failed[0] == "the model refuses: I will not"
    assert "content filter" in asked.failed[1]
    assert asked.texts == ["c"]


def test_without_usage_tokens_are_estimated_and_it_says_so(fake: FakeEndpoint) -> None:
    fake.usage = None
    asked = ask(spec_of(fake), "a word or two")
    assert asked.done[0].answers[0].tokens == 4
    assert "tells no usage" in asked.log


def test_a_cancelled_task_leaves_the_endpoint(fake: FakeEndpoint) -> None:
    fake.slow_s = 60
    began = time.monotonic()
    with pytest.raises(TaskCancelled):
        ask(spec_of(fake), "a", "b", cancelled=lambda: len(fake.bodies) == 2)
    assert time.monotonic() - began < 30


def test_rates_hold_requests_back(fake: FakeEndpoint) -> None:
    spec = spec_of(fake, requests_per_minute=120)
    asked = Asked()
    began = time.monotonic()
    # 120 may go at once, the next one half a second later.
    ask(spec, *map(str, range(122)), asked=asked)
    assert len(asked.done) == 122
    assert time.monotonic() - began >= 0.5


def test_tokens_hold_requests_back(fake: FakeEndpoint) -> None:
    began = time.monotonic()
    asked = ask(spec_of(fake, {"max_tokens": 99}, tokens_per_minute=6000), *["abcd"] * 61)
    assert len(asked.done) == 61
    assert time.monotonic() - began >= 0.5


def test_calls_get_a_place_before_rows() -> None:
    order: list[str] = []

    async def have(places: Places, name: str, *, urgent: bool) -> None:
        async with places.taken(urgent=urgent):
            order.append(name)
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        places = Places(1)
        async with places.taken(urgent=False):
            tasks = [
                asyncio.ensure_future(have(places, "row", urgent=False)),
                asyncio.ensure_future(have(places, "left", urgent=True)),
                asyncio.ensure_future(have(places, "call", urgent=True)),
            ]
            await asyncio.sleep(0)
            tasks[1].cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        await have(places, "after", urgent=False)

    asyncio.run(all_of_them())
    assert order == ["call", "row", "after"]


def test_a_call_is_streamed(fake: FakeEndpoint) -> None:
    from dataclasses import replace

    spec = spec_of(fake)
    engine = loader_of(choose_engine(spec).engine).load(spec)
    (request,) = requests_of(engine, spec, [InputRow(0, "hello, world")])
    asked = Asked()
    engine.call([replace(request, urgent=True, stream=True)], asked.replies())
    engine.close()
    assert asked.pieces[0] == ["hell", "o, w", "orld"]
    assert asked.texts == ["hello, world"]
    assert asked.done[0].answers[0].tokens == 7
    assert fake.bodies[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("text", ["${PARROT_KEY}", "${ENV:PARROT_KEY}", KEY])
def test_keys_are_filled_in_when_asked_and_never_told(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("PARROT_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody-elses")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-somebody-elses")
    fake.key = KEY
    spec = spec_of(fake, source={"api_key": text})
    asked = ask(spec, "a")
    assert asked.texts == ["a"]
    assert fake.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "openai-organization" not in fake.headers[0]
    key = InferenceExecutor().model_key(spec)
    assert KEY not in asked.log + str(key) + repr(spec) + spec.model_dump_json()
    fake.key = "another"
    with pytest.raises(TerminalError, match="401") as error:
        ask(spec, "a")
    assert KEY not in str(error.value)


def test_a_refused_row_quotes_no_key(fake: FakeEndpoint) -> None:
    fake.judge = lambda body: Failure(400, message=f"your key is {KEY}, and plain-{KEY[3:9]}")
    asked = ask(spec_of(fake, source={"api_key": KEY}), "a")
    assert KEY not in asked.failed[0]
    assert "your key is ***" in asked.failed[0]


def test_a_variable_that_is_not_set_is_named(fake: FakeEndpoint) -> None:
    with pytest.raises(InputError, match="PARROT_KEY is not set"):
        ask(spec_of(fake, source={"api_key": "${PARROT_KEY}"}), "a")


def test_tasks_with_other_keys_have_other_engines(fake: FakeEndpoint) -> None:
    keys = {
        InferenceExecutor().model_key(spec_of(fake, source={"api_key": each}))
        for each in ("sk-one-11111111", "sk-two-22222222", "${ONE}")
    }
    assert len(keys) == 3


def test_over_the_api_only_listed_endpoints_are_asked(
    fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach = Reach("api")
    with pytest.raises(OutOfReachError, match="MLOC_API_ENDPOINTS"), reach.applied():
        ask(spec_of(fake), "a")
    monkeypatch.setenv("MLOC_API_ENDPOINTS", f"{fake.url}/=PARROT_KEY, https://api.openai.com/v1")
    monkeypatch.setenv("PARROT_KEY", KEY)
    settings.cache_clear()
    try:
        with reach.applied():
            assert ask(spec_of(fake), "a").texts == ["a"]
            assert fake.headers[-1]["authorization"] == f"Bearer {KEY}"
            with pytest.raises(OutOfReachError, match="MLOC_API_VARIABLES"):
                ask(spec_of(fake, source={"api_key": "${PARROT_KEY}"}), "a")
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_answers_are_reused_only_under_a_name_for_the_models_state(fake: FakeEndpoint) -> None:
    spec = spec_of(fake)
    loader = loader_of(choose_engine(spec).engine)
    engine = loader.load(spec)
    with pytest.raises(NoReuseError, match=r"name the model's state in model\.source\.revision"):
        model_identity(spec, engine)
    engine.close()
    named = spec_of(fake, source={"revision": "2026-01"})
    engine = loader.load(named)
    assert engine.revision == "2026-01"
    engine.close()


def test_choices_name_the_endpoint(fake: FakeEndpoint) -> None:
    choice = choose_engine(spec_of(fake))
    assert (choice.engine.name, choice.reason) == ("openai", "model.source is an endpoint")
