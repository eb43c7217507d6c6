"""The transformers engine as templates see it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache

from pydantic import JsonValue

from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema import (
    AUTO_TEMPLATE,
    NO_TEMPLATE,
    Demand,
    EngineType,
    Refusal,
    TransformersOptions,
    library_source,
)


def _shares(options: TransformersOptions) -> Mapping[str, JsonValue]:
    return {"dtype": options.dtype} if "dtype" in options.model_fields_set else {}


@cache
def template_names() -> frozenset[str]:
    """Returns the response templates of TRL; empty when TRL is not installed."""
    source = library_source("trl", "chat_template_utils.py")
    return frozenset(re.findall(r"^([a-z]\w*)_template = \{", source, re.MULTILINE))


def _refuses(options: TransformersOptions, demand: Demand) -> Iterator[Refusal]:
    named, place = options.response_template, ("response_template",)
    if isinstance(named, str) and named not in (AUTO_TEMPLATE, NO_TEMPLATE):
        known = template_names()  # without TRL nothing is checked: the workers may have it
        if known and named not in known:
            hint = nearest_hint(named, (*known, AUTO_TEMPLATE, NO_TEMPLATE))
            yield Refusal(place, f"TRL has no response template {named!r}{hint}")
    if not demand.certain:
        return
    if demand.calls_tools and named == NO_TEMPLATE:
        yield Refusal(place, "inference.tools need a response template, to find calls in answers")
    if demand.forces_calls and not isinstance(named, str):
        reason = (
            "inference.tool_choice has to hold answers to the form of calls, which xgrammar does "
            "not know for a template of one's own: name one of TRL's, or take tool_choice: auto"
        )
        yield Refusal(place, reason)


TRANSFORMERS = EngineType(
    name="transformers",
    label="transformers",
    options=TransformersOptions,
    loader="mloc_dagster.executors.engines.transformers.engine:TransformersLoader",
    abilities=frozenset(
        {"generate", "embed", "score", "images", "adapters", "guided", "logprobs", "tools"}
    ),
    xgrammar_only=True,
    order=100,  # it runs where no other engine does
    runs_anywhere=True,
    claims=("load_in_4bit", "load_in_8bit"),
    shares=_shares,
    refuses=_refuses,
    takes=frozenset({"dtype", "max_model_len"}),
    batching=frozenset({"max_batch_size", "max_batch_tokens"}),
    placing=frozenset({"low_cpu_mem_usage", "device_map"}),
)
