"""What every engine owes to whoever sends it requests: one suite over all of them.

Endpoints are asked over vLLM's own OpenAI server. What a test looks at inside an engine that
computes here, tokens and adapters, it asks of these engines only (`local`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors import (
    Completion,
    Engine,
    EngineRequest,
    Rendered,
    Replies,
    loader_of,
)
from mloc_dagster.models import builtin_model_path
from mloc_dagster.results import InputRow, Message, Prompt
from mloc_dagster.schema import Inference, InferenceSpec, find_engine
from tests.vllm_server import vllm_server

pytest.importorskip("torch")

# vLLM 0.32 calls xgrammar in a way that xgrammar has left behind.
pytestmark = pytest.mark.filterwarnings("ignore:max_rollback_tokens is deprecated")

QUESTIONS = Path(__file__).parents[2] / "templates" / "data" / "questions.jsonl"
CAPITAL = "What is the capital of France?"
NONSENSE = "the a of to"  # the model has no firm opinion about it: many tokens are likely
POSITIONS = 1024
ADAPTERS = ("loud", "odd.one")
VLLM = pytest.param("vllm", marks=pytest.mark.slow)
ENDPOINT = pytest.param("openai", marks=pytest.mark.slow)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Two random LoRA adapters of tiny-chat, as a template names them."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    root = tmp_path_factory.mktemp("adapters")
    for name in ADAPTERS:
        base = AutoModelForCausalLM.from_pretrained(builtin_model_path("tiny-chat"))
        lora = peft.LoraConfig(
            r=4,
            lora_alpha=64,
            target_modules=["q_proj", "v_proj", "o_proj"],
            init_lora_weights=False,
        )
        peft.get_peft_model(base, lora).save_pretrained(root / name)
    return [{"path": str(root / name), "apply": "request"} for name in ADAPTERS]


def start(engine: str, adapters: list[dict[str, str]]) -> Engine:
    spec = InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "enforce_cpu": True,
            "model": {
                "source": {"type": "builtin", "identifier": "tiny-chat"},
                "engine": engine,
                "adapters": adapters,
                "vllm": {"max_num_seqs": 64} if engine == "vllm" else {},
            },
            "data": {"type": "list", "items": ["unused"]},
        }
    )
    return loader_of(find_engine(engine)).load(spec)


@pytest.fixture(scope="session")
def transformers_engine(adapters: list[dict[str, str]]) -> Iterator[Engine]:
    import torch

    torch.set_num_threads(1)
    engine = start("transformers", adapters)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def vllm_engine(adapters: list[dict[str, str]]) -> Iterator[Engine]:
    pytest.importorskip("vllm", exc_type=ImportError)
    engine = start("vllm", adapters)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def openai_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    pytest.importorskip("openai")
    pytest.importorskip("vllm", exc_type=ImportError)
    with vllm_server(tmp_path_factory.mktemp("vllm-server") / "log") as base_url:
        source = {"type": "openai", "identifier": "tiny-chat", "base_url": base_url}
        spec = InferenceSpec.model_validate(
            {
                "taskType": "inference",
                "model": {"source": source},
                "data": {"type": "list", "items": ["unused"]},
            }
        )
        engine = loader_of(find_engine("openai")).load(spec)
        yield engine
        engine.close()


@pytest.fixture(params=["transformers", VLLM, ENDPOINT])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(f"{request.param}_engine")


@pytest.fixture(params=["transformers", VLLM])
def local(request: pytest.FixtureRequest) -> Engine:
    """An engine that computes here."""
    return request.getfixturevalue(f"{request.param}_engine")


@dataclass(slots=True)
class Outcome:
    """What became of a request: its completion, or why it failed."""

    completion: Completion | None = None
    error: str | None = None
    replies: int = 0

    @property
    def done(self) -> Completion:
        assert self.completion is not None, self.error
        return self.completion

    @property
    def texts(self) -> list[str]:
        return [answer.text for answer in self.done.answers]

    @property
    def text(self) -> str:
        return self.texts[0]


def request_for(
    engine: Engine, prompt: Prompt, index: int = 0, adapter: str | None = None, **fields: Any
) -> EngineRequest:
    sampling = Inference.model_validate({"temperature": 0, "max_tokens": 24, **fields})
    row = InputRow(index, prompt, adapter=adapter)
    rendered = engine.render(row, sampling)
    (tokens,) = engine.tokenize([rendered.text], special=rendered.special)
    seed = 0 if sampling.seed is None else sampling.seed
    return EngineRequest(row, rendered, tokens, sampling=sampling, seed=seed, adapter=adapter)


def send(
    engine: Engine,
    requests: Iterable[EngineRequest],
    cancelled: Callable[[], bool] = lambda: False,
    on_reply: Callable[[], None] = lambda: None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}

    def reply(request: EngineRequest, completion: Completion | None, error: str | None) -> None:
        outcome = outcomes.setdefault(request.row.index, Outcome())
        outcome.completion, outcome.error = completion, error
        outcome.replies += 1
        on_reply()

    engine.run(
        iter(requests),
        Replies(
            done=lambda request, completion: reply(request, completion, None),
            failed=lambda request, reason: reply(request, None, reason),
            cancelled=cancelled,
            log=log,
        ),
    )
    return outcomes


def ask(engine: Engine, *prompts: Prompt, **fields: Any) -> list[Outcome]:
    requests = [
        request_for(engine, prompt, place, **fields) for place, prompt in enumerate(prompts)
    ]
    outcomes = send(engine, requests)
    return [outcomes[place] for place in range(len(prompts))]


def answer(engine: Engine, prompt: Prompt = CAPITAL, **fields: Any) -> Outcome:
    return ask(engine, prompt, **fields)[0]


def questions() -> list[dict[str, str]]:
    return [json.loads(line) for line in QUESTIONS.read_text().splitlines()]


def test_an_engine_says_what_it_is(local: Engine) -> None:
    assert re.fullmatch(r"(vllm|transformers) \d+\.\d+\.\d+\S*", local.label)
    assert local.name == "tiny-chat"
    assert local.revision.startswith("sha256:")
    assert local.device == "cpu"
    assert local.size_bytes > 1_900_000


def test_greedy_answers_are_right(engine: Engine) -> None:
    asked = questions()
    outcomes = ask(engine, *[each["question"] for each in asked])
    right = [outcome.text == each["answer"] for outcome, each in zip(outcomes, asked, strict=True)]
    assert sum(right) >= 0.95 * len(asked)
    assert outcomes[0].text == "Paris"
    assert outcomes[0].done.answers[0].finish_reason == "stop"
    assert (outcomes[0].done.prompt_tokens, outcomes[0].done.answers[0].tokens) == (10, 4)
    assert all(outcome.done.latency_s >= outcome.done.engine_s > 0 for outcome in outcomes)


def test_tokens_are_counted_as_the_model_reads_them(local: Engine) -> None:
    done = answer(local).done
    assert done.answers[0].tokens == len(local.tokenize(["Paris"])[0]) + 1
    assert done.prompt_tokens == len(request_for(local, CAPITAL).tokens)
    assert answer(local, NONSENSE).done.prompt_tokens == len(request_for(local, NONSENSE).tokens)


def test_prompts_go_through_the_chat_template(local: Engine) -> None:
    def text(prompt: Prompt, system: str | None) -> str:
        return local.render(InputRow(0, prompt), Inference(system_prompt=system)).text

    plain = "<|user|>hi<|end|><|assistant|>"
    assert text("hi", None) == text([Message("user", "hi")], None) == plain
    assert text("hi", "Be kind.") == f"<|system|>Be kind.<|end|>{plain}"
    own = [Message("system", "Be curt."), Message("user", "hi")]
    assert text(own, "Be kind.") == f"<|system|>Be curt.<|end|>{plain}"
    assert local.tokenize([plain, plain])[0] == local.tokenize([plain])[0]
    assert local.tokenize([]) == []
    with pytest.raises(ValueError, match="role must be system, user or assistant"):
        text([Message("tool", "x")], None)


def test_a_row_has_as_many_answers_as_asked_for(engine: Engine) -> None:
    outcome = answer(engine, NONSENSE, n=4, temperature=1.5, seed=3, max_tokens=12)
    assert len(outcome.texts) == 4
    assert len(set(outcome.texts)) > 1
    assert answer(engine, n=3).texts == ["Paris"] * 3


def test_a_stop_string_ends_an_answer_before_it(engine: Engine) -> None:
    whole = answer(engine, "Tell me about dragons.").text
    assert whole == "I do not know."
    first = answer(engine, "Tell me about dragons.", stop=["not", "never there"])
    assert first.text == "I do "
    assert first.done.answers[0].finish_reason == "stop"
    later = answer(engine, "Tell me about dragons.", stop="I", min_tokens=1, max_tokens=3)
    assert later.text.startswith("I")


def test_an_answer_ends_at_its_most_tokens(engine: Engine) -> None:
    short = answer(engine, max_tokens=1).done.answers[0]
    assert (short.finish_reason, short.tokens) == ("length", 1)
    longer = answer(engine, max_tokens=9, ignore_eos=True).done.answers[0]
    assert (longer.finish_reason, longer.tokens) == ("length", 9)
    assert longer.text.startswith("Paris")
    assert answer(engine, min_tokens=8).done.answers[0].tokens >= 8


def test_stop_token_ids_end_an_answer(local: Engine) -> None:
    (paris,) = local.tokenize(["Paris"])
    ended = answer(local, stop_token_ids=[paris[-1]]).done.answers[0]
    assert (ended.finish_reason, ended.tokens) == ("stop", len(paris))


def test_a_seed_decides_whatever_the_row(engine: Engine) -> None:
    def drawn(index: int, seed: int) -> str:
        one = request_for(engine, NONSENSE, index, temperature=1.5, seed=seed, max_tokens=16)
        return send(engine, [one])[index].text

    assert drawn(0, 7) == drawn(5, 7)
    assert len({drawn(0, seed) for seed in range(6)}) > 1
    for seed in (-1, -5, 2**64 - 1):
        assert drawn(0, seed) == drawn(1, seed)


def test_rows_of_a_batch_have_each_their_seed(engine: Engine) -> None:
    rows = [
        request_for(engine, NONSENSE, place, temperature=1.5, seed=place % 4, max_tokens=16)
        for place in range(12)
    ]
    outcomes = send(engine, rows)
    texts = [outcomes[place].text for place in range(12)]
    assert texts[:4] == texts[4:8] == texts[8:]
    assert len(set(texts)) > 1


def test_seeded_answers_to_long_prompts_do_not_depend_on_the_others(engine: Engine) -> None:
    long = f"{NONSENSE} " * 120
    how = {"temperature": 1.5, "max_tokens": 8}
    seeded = [request_for(engine, f"{n} {long}", n, seed=n, **how) for n in range(24)]
    greedy = [request_for(engine, f"{n} {long}", n) for n in range(24, 30)]
    assert sum(len(each.tokens) for each in seeded) > 8192, "more than an engine reads at once"
    lines: list[str] = []
    together = send(engine, [*greedy, *seeded], log=lines.append)
    assert [each.error for each in together.values()] == [None] * 30
    assert not [line for line in lines if "broke down" in line]
    for one in seeded[::8]:
        assert send(engine, [one])[one.row.index].text == together[one.row.index].text


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_a_limit_to_the_likeliest_token_is_greedy(engine: Engine, limit: dict[str, Any]) -> None:
    free = answer(engine, NONSENSE, max_tokens=12).text
    assert answer(engine, NONSENSE, temperature=2, seed=1, max_tokens=12, **limit).text == free


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 3.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}]
)
def test_penalties_are_felt(engine: Engine, penalty: dict[str, float]) -> None:
    def letters(**fields: Any) -> int:
        form = {"regex": "[a-h]{16}"}
        texts = answer(engine, structured_outputs=form, temperature=1, n=8, seed=2, **fields).texts
        return sum(len(set(text)) for text in texts)

    assert letters(**penalty) > letters()


def test_options_may_differ_from_row_to_row(engine: Engine) -> None:
    rows = [
        request_for(engine, CAPITAL, 0),
        request_for(engine, CAPITAL, 1, max_tokens=1),
        request_for(engine, CAPITAL, 2, structured_outputs={"choice": ["Rome", "Oslo"]}),
        request_for(engine, CAPITAL, 3, logprobs=2),
        request_for(engine, CAPITAL, 4, n=2, temperature=0.1, seed=1),
        request_for(engine, CAPITAL, 5, stop="is"),
    ]
    outcomes = send(engine, rows)
    assert [len(outcomes[place].texts) for place in range(6)] == [1, 1, 1, 1, 2, 1]
    assert outcomes[0].text == outcomes[3].text == outcomes[4].text == "Paris"
    assert outcomes[1].done.answers[0].tokens == 1
    assert outcomes[2].text in ("Rome", "Oslo")
    assert outcomes[5].text == "Par"
    noted = [outcomes[place].done.answers[0].logprobs is not None for place in range(6)]
    assert noted == [False, False, False, True, False, False]


def test_log_probabilities_are_the_models(engine: Engine) -> None:
    (given,) = answer(engine, logprobs=3).done.answers
    assert given.logprobs is not None
    assert len(given.logprobs) == given.tokens
    assert "".join(each.token for each in given.logprobs) == "Paris<|end|>"
    for each in given.logprobs:
        assert len(each.top) == 3
        assert each.top[0] == (each.token, pytest.approx(each.logprob))
        values = [value for _, value in each.top]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-6
    hot = answer(engine, logprobs=0, temperature=2, top_k=1, repetition_penalty=2, seed=1)
    (bare,) = hot.done.answers
    assert bare.logprobs is not None
    assert bare.logprobs[0].top == []
    assert bare.logprobs[0].logprob == pytest.approx(given.logprobs[0].logprob, abs=1e-3)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "rain"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


def is_person(text: str) -> bool:
    person = json.loads(text)
    return (
        person.keys() == {"name", "age", "likes"}
        and len(person["name"]) <= 8
        and 0 <= person["age"] <= 120
        and set(person["likes"]) <= {"tea", "rain"}
    )


FORMS: list[tuple[dict[str, Any], Callable[[str], object]]] = [
    ({"json": PERSON}, is_person),
    ({"json_object": True}, lambda text: isinstance(json.loads(text), dict)),
    ({"regex": r"\d{2}-[a-f]+\."}, lambda text: re.fullmatch(r"\d{2}-[a-f]+\.", text)),
    ({"choice": ["Rome", "Oslo", 'the "Hague"']}, ["Rome", "Oslo", 'the "Hague"'].__contains__),
    ({"grammar": 'root ::= "<" [xy]+ ">"'}, lambda text: re.fullmatch("<[xy]+>", text)),
]


@pytest.mark.parametrize(("form", "fits"), FORMS, ids=[next(iter(form)) for form, _ in FORMS])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_answers_have_the_form_that_was_asked_for(
    engine: Engine, form: dict[str, Any], fits: Callable[[str], object], temperature: float
) -> None:
    outcomes = ask(
        engine,
        *[CAPITAL, NONSENSE, "Tell me about dragons."],
        structured_outputs=form,
        temperature=temperature,
        frequency_penalty=2.0,  # a model this small would write spaces for ever
        seed=5,
        max_tokens=200,
    )
    ended = [each for each in outcomes if each.done.answers[0].finish_reason == "stop"]
    # Drawn at random, a string of this model hardly ever ends; what it wrote is an object's start.
    assert ended or all(each.text.startswith("{") for each in outcomes)
    assert all(fits(each.text) for each in ended), [each.text for each in outcomes]


def test_a_form_that_is_cut_off_says_so(engine: Engine) -> None:
    form = {"regex": "[a-c]{20}"}
    (cut,) = answer(engine, structured_outputs=form, max_tokens=4).done.answers
    assert (cut.finish_reason, cut.tokens) == ("length", 4)
    assert re.fullmatch("[a-c]{1,20}", cut.text)


def test_under_a_form_probabilities_are_finite(engine: Engine) -> None:
    form = {"choice": ["yes", "no"]}
    (given,) = answer(engine, structured_outputs=form, logprobs=5).done.answers
    assert given.text in ("yes", "no")
    assert given.logprobs is not None
    values = [value for each in given.logprobs for _, value in each.top]
    assert all(math.isfinite(value) for value in values)


def test_a_form_that_cannot_be_fails_alone(engine: Engine) -> None:
    outcomes = send(
        engine,
        [
            request_for(engine, CAPITAL, 0),
            request_for(engine, CAPITAL, 1, structured_outputs={"grammar": "root ::= nowhere"}),
        ],
    )
    assert outcomes[0].text == "Paris"
    assert "grammar" in (outcomes[1].error or "")


def test_a_prompt_that_is_too_long_fails_alone(local: Engine) -> None:
    most = request_for(local, "a " * (POSITIONS * 2))
    fits = replace(most, tokens=most.tokens[: POSITIONS - 1], row=InputRow(2, "fits"))
    outcomes = send(
        local, [replace(most, row=InputRow(0, "long")), request_for(local, CAPITAL, 1), fits]
    )
    assert f"{len(most.tokens)} tokens" in (outcomes[0].error or "")
    assert str(POSITIONS) in (outcomes[0].error or "")
    assert outcomes[1].text == "Paris"
    assert outcomes[2].done.answers[0].tokens == 1  # as many as there is room for
    assert outcomes[2].done.answers[0].finish_reason in ("length", "stop")


def test_odd_prompts_are_answered(engine: Engine) -> None:
    odd = ["", " ", "\n\n", "Wie heißt die Hauptstadt? 東京 🎉", "a\u0301\u200d\ufeff", "<|end|>"]
    outcomes = ask(engine, *odd, CAPITAL)
    assert [outcome.error for outcome in outcomes] == [None] * 7
    assert outcomes[-1].text == "Paris"


def test_every_request_gets_one_reply(local: Engine) -> None:
    long = replace(request_for(local, CAPITAL, 300), tokens=[7] * (POSITIONS + 1))
    short = [request_for(local, f"What is {n % 30} + 1?", n, max_tokens=3) for n in range(300)]
    outcomes = send(local, [*short[:150], long, *short[150:]])
    assert sorted(outcomes) == list(range(301))
    assert {each.replies for each in outcomes.values()} == {1}
    assert [index for index, each in outcomes.items() if each.error is not None] == [300]


def test_requests_are_drawn_as_there_is_room_and_a_cancelled_engine_goes_on(
    engine: Engine,
) -> None:
    drawn = 0
    drawn_at_first_reply: list[int] = []
    template = request_for(engine, CAPITAL, max_tokens=200, ignore_eos=True)

    def requests() -> Iterator[EngineRequest]:
        nonlocal drawn
        for index in range(2000):
            drawn = index + 1
            # The first ends at once: whoever waited for all 2,000 has read them by then.
            sampling = template.sampling if index else Inference(temperature=0, max_tokens=1)
            yield replace(template, row=InputRow(index, CAPITAL), sampling=sampling)

    with pytest.raises(TaskCancelled):
        send(
            engine,
            requests(),
            cancelled=lambda: bool(drawn_at_first_reply),
            on_reply=lambda: drawn_at_first_reply.append(drawn),
        )
    assert drawn_at_first_reply[0] < 2000
    assert drawn < 2000
    assert answer(engine).text == "Paris"


def test_a_task_that_was_cancelled_before_computes_nothing(engine: Engine) -> None:
    requests = [request_for(engine, CAPITAL, index, max_tokens=500) for index in range(100)]
    with pytest.raises(TaskCancelled):
        send(engine, requests, cancelled=lambda: True)


def test_rows_choose_their_adapter(local: Engine) -> None:
    asked = "Tell me about dragons."
    chosen = [None, *ADAPTERS, None, "loudest"]
    rows = [request_for(local, asked, place, name) for place, name in enumerate(chosen)]
    outcomes = send(local, rows)
    texts = [outcomes[place].text for place in range(4)]
    assert texts[0] == texts[3] == "I do not know."
    assert len(set(texts)) == 3
    assert "no adapter is called 'loudest'; did you mean 'loud'?" in (outcomes[4].error or "")


@pytest.mark.slow
def test_engines_agree(transformers_engine: Engine, vllm_engine: Engine) -> None:
    def all_of(engine: Engine) -> list[Outcome]:
        prompts = [each["question"] for each in questions()[:60]]
        rows = [
            request_for(engine, prompt, place, (None, *ADAPTERS)[place % 3], logprobs=2)
            for place, prompt in enumerate([*prompts, NONSENSE, "東京 🎉", ""])
        ]
        outcomes = send(engine, rows)
        return [outcomes[place] for place in range(len(rows))]

    for ours, theirs in zip(all_of(transformers_engine), all_of(vllm_engine), strict=True):
        (one,), (other,) = ours.done.answers, theirs.done.answers
        assert ours.done.prompt_tokens == theirs.done.prompt_tokens
        assert (one.text, one.finish_reason, one.tokens) == (
            other.text,
            other.finish_reason,
            other.tokens,
        )
        assert [each.logprob for each in one.logprobs or []] == pytest.approx(
            [each.logprob for each in other.logprobs or []], abs=1e-2
        )
        for mine, their in zip(one.logprobs or [], other.logprobs or [], strict=True):
            assert [value for _, value in mine.top] == pytest.approx(
                [value for _, value in their.top], abs=1e-2
            )


@pytest.mark.slow
def test_an_endpoint_says_what_it_is(openai_engine: Engine) -> None:
    assert re.fullmatch(r"openai 3\.\d+\.\d+", openai_engine.label)
    assert (openai_engine.name, openai_engine.device, openai_engine.size_bytes) == (
        "tiny-chat",
        "remote",
        0,
    )
    assert openai_engine.revision == str(builtin_model_path("tiny-chat"))  # as the server says


@pytest.mark.slow
def test_an_endpoint_refuses_rows_one_by_one(openai_engine: Engine) -> None:
    long = request_for(openai_engine, "a " * (POSITIONS * 2), 0)
    loud = request_for(openai_engine, CAPITAL, 1, ADAPTERS[0])
    outcomes = send(openai_engine, [long, loud, request_for(openai_engine, CAPITAL, 2)])
    assert str(POSITIONS) in (outcomes[0].error or "")
    assert "takes no adapters: 'loud'" in (outcomes[1].error or "")
    assert outcomes[2].text == "Paris"


@pytest.mark.slow
def test_an_endpoint_completes_text_as_it_is(openai_engine: Engine) -> None:
    text = "<|user|>What is the capital of France?<|end|><|assistant|>"
    sampling = Inference(temperature=0, max_tokens=8, logprobs=1)
    row = InputRow(0, text, verbatim=True)
    request = EngineRequest(row, Rendered(text), [0] * 15, sampling=sampling)
    (given,) = send(openai_engine, [request])[0].done.answers
    assert (given.text, given.finish_reason) == ("Paris", "stop")
    assert given.logprobs is not None
    assert len(given.logprobs) == given.tokens == 4
