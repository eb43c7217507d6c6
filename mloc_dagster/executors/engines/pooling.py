"""From the states of a text's tokens to one vector: what the model's own files say about it.

All engines read the same files and take the same defaults, so that they agree. Of
sentence-transformers, which reads them too, no more than this would be used: it loads and batches
by itself, and not on vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.engines.protocol import EngineRequest
from mloc_dagster.schema import Pooling

PoolingType = Literal["CLS", "LAST", "MEAN"]

_UNLIMITED = 1_000_000
"""Tokenizers without a limit name an astronomic one."""

_MODES: Mapping[str, PoolingType] = {
    "cls": "CLS",
    "mean": "MEAN",
    "lasttoken": "LAST",
    "pooling_mode_cls_token": "CLS",
    "pooling_mode_mean_tokens": "MEAN",
    "pooling_mode_lasttoken": "LAST",
}


@dataclass(frozen=True, slots=True)
class PoolingPlan:
    """How a model makes vectors when the template does not say.

    Attributes:
        pooling_type: Which tokens' states make the vector.
        limit: Most tokens that it reads; None without a limit.
    """

    pooling_type: PoolingType
    limit: int | None


def pooling_plan(
    place: str, config: Any, tokenizer: Any, revision: str | None, most: int | None = None
) -> PoolingPlan:
    """Reads the files that sentence-transformers leaves beside a model.

    Without them a decoder's vector is its last token's state, for only that one has seen the whole
    text; an encoder's is the mean.

    Args:
        place: A folder, or the hub's id.
        config: The model's configuration.
        tokenizer: Its tokenizer.
        revision: The hub's revision.
        most: Tokens that the template allows at most.

    Raises:
        TerminalError: If the model has modules that mloc does not compute.
    """
    pooling_type = _written(place, revision) or ("LAST" if _is_decoder(config) else "MEAN")
    sentence = _json(place, "sentence_bert_config.json", revision) or {}
    limit = most_tokens(config, tokenizer, sentence.get("max_seq_length"), most)
    return PoolingPlan(pooling_type, limit)


def most_tokens(config: Any, tokenizer: Any, *limits: int | None) -> int | None:
    """Returns how many tokens a model reads at most, by its files and other limits; None of any."""
    every = (
        getattr(config, "max_position_embeddings", None),
        getattr(tokenizer, "model_max_length", None),
        *limits,
    )
    known = (each for each in every if isinstance(each, int) and 0 < each < _UNLIMITED)
    return min(known, default=None)


def fitted_tokens(
    request: EngineRequest, limit: int | None, tokenizer: Any, name: str
) -> list[int]:
    """Returns what the model reads of a request: all of it, or what fits where that is wanted.

    Raises:
        ValueError: If the text is empty, or too long and may not be cut.
    """
    if not request.tokens:
        raise ValueError("the text is empty: it has no token to make a vector of")
    if limit is None or len(request.tokens) <= limit:
        return request.tokens
    if request.pooling is None or not request.pooling.truncate:
        raise ValueError(
            f"the text has {len(request.tokens)} tokens, and {name} reads at most {limit}; "
            "pooling.truncate cuts it"
        )
    # By the tokenizer and not by slicing: it keeps the tokens that end a text.
    return tokenizer(request.rendered.text, truncation=True, max_length=limit)["input_ids"]


def scaled(vector: Any, pooling: Pooling) -> list[float]:
    """Returns a text's vector as the template wants it: cut first, then scaled.

    Args:
        vector: A tensor, [width].
        pooling: What is wanted.
    """
    import torch

    wanted = vector.float()[: pooling.dimensions]
    if pooling.normalize:
        wanted = torch.nn.functional.normalize(wanted, dim=-1)
    return wanted.tolist()


def _is_decoder(config: Any) -> bool:
    names = getattr(config, "architectures", None) or ()
    return any("ForCausalLM" in name for name in names) and not config.is_encoder_decoder


def _written(place: str, revision: str | None) -> PoolingType | None:
    modules = _json(place, "modules.json", revision)
    if not isinstance(modules, list):
        return None
    kinds = {str(each.get("type", "")).rpartition(".")[2]: each for each in modules}
    foreign = kinds.keys() - {"Transformer", "Pooling", "Normalize"}
    if foreign:
        raise TerminalError(
            f"the model {place!r} makes its vectors with modules that mloc does not compute: "
            f"{', '.join(sorted(foreign))}"
        )
    if "Pooling" not in kinds:
        return None
    found = _json(place, f"{kinds['Pooling'].get('path', '1_Pooling')}/config.json", revision) or {}
    return _mode(place, found)


def _mode(place: str, found: Mapping[str, Any]) -> PoolingType:
    asked = [name for name, value in found.items() if name.startswith("pooling_mode_") and value]
    if isinstance(found.get("pooling_mode"), str):
        asked = [found["pooling_mode"]]
    if len(asked) != 1 or asked[0] not in _MODES:
        raise TerminalError(
            f"the model {place!r} pools by {', '.join(asked) or 'nothing'}: mloc knows "
            "CLS, LAST and MEAN"
        )
    return _MODES[asked[0]]


def _json(place: str, name: str, revision: str | None) -> Any:
    from transformers.utils.hub import cached_file

    folder = Path(place)
    if folder.is_dir():
        path = folder / name
        return json.loads(path.read_text()) if path.is_file() else None
    found = cached_file(place, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else json.loads(Path(found).read_text())
