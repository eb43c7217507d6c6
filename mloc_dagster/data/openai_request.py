"""One request of OpenAI's API as rows: what its body asks for, in the words of a template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from mloc_dagster.data.openai_endpoints import COMPLETIONS, EMBEDDINGS, RequestError
from mloc_dagster.data.openai_options import options_of
from mloc_dagster.data.openai_prompts import prompts_of
from mloc_dagster.results.rows import BASE64, SourceRow
from mloc_dagster.schema.data import OpenaiBatchData


@dataclass(frozen=True, slots=True)
class RequestBlock:
    """What a task says of the requests it answers.

    Attributes:
        task_type: `inference`, `embedding`, …
        given: Names of the fields that its block sets itself: these hold where a body is silent.
        adapters: Names that mean an adapter in a body's `model`.
    """

    task_type: str = "inference"
    given: frozenset[str] = frozenset()
    adapters: frozenset[str] = frozenset()


class Requests(OpenaiBatchData):
    """A batch file, together with what the task says of it."""

    block: RequestBlock
    """The task's part."""


def block_of(data: OpenaiBatchData) -> RequestBlock:
    """Returns what the task says of a batch file."""
    return data.block if isinstance(data, Requests) else RequestBlock()


def request_rows(url: str, custom_id: str, body: object, block: RequestBlock) -> list[SourceRow]:
    """Returns the rows that a request means: one, or one for each text of its list.

    A request that cannot be answered is one row with the reason in `error`.
    """
    try:
        given = _object(body)
        options = options_of(url, given, block.given)
        model = given.get("model")
        adapter = model if isinstance(model, str) and model in block.adapters else None
        encoding = BASE64 if url == EMBEDDINGS and given.get("encoding_format") == BASE64 else ""
        return [
            SourceRow(
                prompt,
                custom_id,
                options or None,
                adapter,
                verbatim=url == COMPLETIONS,
                encoding=encoding,
            )
            for prompt in prompts_of(url, given)
        ]
    except RequestError as error:
        return [SourceRow("", custom_id, error=str(error))]


def _object(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise RequestError(f"the body is no JSON object, but {type(body).__name__}")
    return cast("dict[str, Any]", body)
