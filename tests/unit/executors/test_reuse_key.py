"""The key of reuse: any single changed ingredient changes it, and nothing else does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.executors.engines.protocol import EngineRequest, Rendered
from mloc_dagster.executors.row_reuse import RequestKeys
from mloc_dagster.results import InputRow
from mloc_dagster.schema import Inference, Pooling, canonical_json, digest_of

SCALARS = st.none() | st.text(max_size=4) | st.binary(max_size=4) | st.integers(-20, 20)
INGREDIENTS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)


@given(st.lists(INGREDIENTS, max_size=4), st.lists(INGREDIENTS, max_size=4))
def test_different_ingredients_never_run_together(one: list[Any], other: list[Any]) -> None:
    assert (digest_of(*one) == digest_of(*other)) == (one == other)


@given(st.lists(st.text(max_size=3), min_size=2, max_size=4), st.integers(0, 3))
def test_text_that_moves_over_a_border_counts(texts: list[str], place: int) -> None:
    place %= len(texts) - 1
    moved = [*texts]
    moved[place], moved[place + 1] = texts[place] + texts[place + 1], ""
    assert (digest_of(*texts) == digest_of(*moved)) == (texts == moved)
    assert digest_of(tuple(texts)) != digest_of(*texts)


@given(JSON, JSON)
def test_texts_are_equal_where_values_and_the_order_of_their_keys_are(one: Any, other: Any) -> None:
    assert (canonical_json(one) == canonical_json(other)) == (repr(one) == repr(other))


BLOCK: dict[str, Any] = {"temperature": 0.5, "seed": 3, "max_tokens": 20}


def request(
    *, block: dict[str, Any] | None = None, index: int = 0, **changes: Any
) -> EngineRequest:
    return dataclasses.replace(
        EngineRequest(
            row=InputRow(index, "prompt"),
            rendered=Rendered("the text", (), ("image one", "image two")),
            tokens=[1, 2, 3],
            sampling=Inference.model_validate({**BLOCK, **(block or {})}),
            seed=3,
            adapter="lora",
        ),
        **changes,
    )


def key(changed: EngineRequest, identity: bytes = b"model") -> bytes | None:
    return RequestKeys(identity).of(changed)


CHANGED_FIELDS: dict[str, Any] = {
    "system_prompt": "be brief",
    "temperature": 0.6,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.1,
    "max_tokens": 21,
    "min_tokens": 1,
    "stop": ["\n"],
    "stop_token_ids": [7],
    "ignore_eos": True,
    "n": 2,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "do_sample": True,
    "skip_special_tokens": False,
    "logprobs": 1,
    "structured_outputs": {"choice": ["a", "b"]},
    "tools": [{"function": {"name": "add"}}],
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "chat_template_kwargs": {"enable_thinking": False},
}


def test_the_list_of_sampling_fields_is_complete() -> None:
    """A field that is new in the schema has to be decided on here."""
    assert set(CHANGED_FIELDS) | {"seed", "error_budget"} == set(Inference.model_fields)


def test_the_list_of_a_requests_fields_is_complete() -> None:
    """A field that is new has to be an ingredient, or to be left out on purpose."""
    assert {field.name for field in dataclasses.fields(EngineRequest)} == {
        *("row", "rendered", "tokens", "sampling", "pooling", "seed", "adapter", "stream"),
        *("urgent", "second"),
    }  # fmt: skip
    # `stream` and `urgent` say how an answer is wanted, and change none.
    # The tokens have what `special` decides on, and image_ids what the pictures are.
    assert {field.name for field in dataclasses.fields(Rendered)} == {
        "text", "images", "image_ids", "special", "pair"
    }  # fmt: skip


@pytest.mark.parametrize("name", CHANGED_FIELDS)
def test_each_field_of_sampling_counts(name: str) -> None:
    assert key(request(block={name: CHANGED_FIELDS[name]})) != key(request())


@pytest.mark.parametrize(
    "changes",
    [
        {"rendered": Rendered("the Text", (), ("image one", "image two"))},
        {"rendered": Rendered("the text", (), ("image two", "image one"))},
        {"rendered": Rendered("the text", (), ("image oneimage two",))},
        {"rendered": Rendered("the text")},
        {"tokens": [1, 2, 4]},
        {"tokens": [1, 2]},
        {"tokens": [1, 2, 3, 0]},
        {"seed": 4},
        {"rendered": Rendered("the text", (), ("image one", "image two"), pair="")},
        {"second": 1},
        {"adapter": "other"},
        {"adapter": ""},
        {"adapter": None},
    ],
)
def test_each_ingredient_of_a_request_counts(changes: dict[str, Any]) -> None:
    assert key(request(**changes)) not in (None, key(request()))


def test_a_pair_counts_with_both_of_its_texts() -> None:
    def of(text: str, pair: str | None) -> bytes | None:
        return key(request(sampling=None, rendered=Rendered(text, pair=pair)))

    keys = [of("a", "b"), of("b", "a"), of("ab", ""), of("a", "bc")]
    assert None not in keys
    assert len({*keys}) == len(keys)
    assert of("a", None) is None  # nothing says how that is answered


def test_what_answers_counts() -> None:
    assert key(request(), b"model") != key(request(), b"other")


def test_what_changes_no_answer_does_not_count() -> None:
    assert key(request(index=9)) == key(request())
    assert key(request(block={"error_budget": 0.5})) == key(request())
    assert key(request(block={"temperature": 0, "seed": 1}, seed=1)) == key(
        request(block={"temperature": 0, "seed": 2}, seed=2)
    )


def test_the_order_of_a_schemas_properties_counts() -> None:
    def of(*names: str) -> bytes | None:
        schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
        return key(request(block={"structured_outputs": {"json": schema}}))

    assert of("reason", "answer") == of("reason", "answer")
    assert of("reason", "answer") != of("answer", "reason")


def test_what_is_drawn_at_random_has_no_key() -> None:
    assert key(request(block={"seed": None})) is None


def test_vectors_have_keys_of_their_own() -> None:
    def embedding(**fields: Any) -> bytes | None:
        block = Pooling.model_validate(fields)
        return key(request(sampling=None, pooling=block))

    changed: dict[str, Any] = {
        "pooling_type": "CLS",
        "normalize": False,
        "dimensions": 3,
        "instruction": "query: ",
        "truncate": True,
    }
    assert set(changed) | {"error_budget"} == set(Pooling.model_fields)
    keys = {embedding(), *(embedding(**{name: changed[name]}) for name in changed)}
    assert len(keys) == len(changed) + 1
    assert embedding(error_budget=0.5) == embedding()
    assert key(request()) not in keys


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("json", {"type": "object"}),
        ("json_object", True),
        ("regex", "a"),
        ("choice", ["a"]),
        ("grammar", "a"),
    ],
)
def test_each_form_of_an_answer_counts(name: str, value: Any) -> None:
    forms = {"json": {"type": "string"}, "regex": "b", "choice": ["a", "b"], "grammar": "b"}
    form = key(request(block={"structured_outputs": {name: value}}))
    others = [key(request(block={"structured_outputs": {each: forms[each]}})) for each in forms]
    assert form not in [None, key(request()), *others]


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


# Two values each, so that two random requests are often equal, and often differ in little.
SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "temperature": one_of(0.0, 0.5),
        "seed": one_of(None, 1, 2),
        "error_budget": one_of(0.1, 0.2),
        **{
            name: one_of(value, Inference.model_fields[name].default)
            for name, value in CHANGED_FIELDS.items()
            if name != "temperature"
        },
    },
)
REQUESTS = st.builds(
    lambda block, index, prompt, rendered, tokens, seed, adapter: EngineRequest(
        InputRow(index, prompt),
        rendered,
        tokens,
        sampling=Inference.model_validate(block),
        seed=seed,
        adapter=adapter,
    ),
    SAMPLING,
    st.integers(0, 3),
    st.text(max_size=1),
    st.builds(
        Rendered, one_of("a", "b"), images=st.just(()), image_ids=one_of((), ("x",), ("x", "y"))
    ),
    one_of([1], [1, 2]),
    one_of(3, 4),
    one_of(None, "", "lora"),
)


def ingredients(of: EngineRequest) -> object:
    """Everything that may change an answer; None when an equal request may have another one."""
    sampling = of.sampling
    assert sampling is not None
    if not sampling.greedy and sampling.seed is None:
        return None
    fields = sampling.model_dump(mode="json")
    del fields["seed"], fields["error_budget"]
    return (
        of.rendered.text,
        of.rendered.image_ids,
        of.tokens,
        sorted(fields.items()),
        None if sampling.greedy else of.seed,
        of.adapter,
    )


@given(REQUESTS, REQUESTS, st.sampled_from(["none", "all", *CHANGED_FIELDS]))
def test_keys_are_equal_where_all_that_may_change_an_answer_is(
    one: EngineRequest, other: EngineRequest, shared: str
) -> None:
    # Requests that differ in everything are easy to tell apart: most pairs share most of it.
    if shared == "all":
        other = dataclasses.replace(one, row=other.row)
    elif shared != "none":
        assert one.sampling is not None
        assert other.sampling is not None
        value = getattr(other.sampling, shared)
        sampling = one.sampling.model_copy(update={shared: value})
        other = dataclasses.replace(one, row=other.row, sampling=sampling)
    keys = RequestKeys(b"model")
    assert (keys.of(one) is None) == (ingredients(one) is None)
    if ingredients(one) is not None and ingredients(other) is not None:
        assert (keys.of(one) == keys.of(other)) == (ingredients(one) == ingredients(other))
