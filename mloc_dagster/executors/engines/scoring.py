"""Cross-encoders: models that read two texts together and say how well these go together.

All engines read the same files and take the same rules, so that they agree. The rules are those of
sentence-transformers' `CrossEncoder`, but for texts that are too long: it cuts whichever text is
longer, and here the first one is never cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.engines.protocol import PairTokens

Activation = Callable[[float], float]
"""Makes a score of what a model's head says."""

_HEAD = "ForSequenceClassification"
_TYPES = "token_type_ids"


def _sigmoid(logit: float) -> float:
    # Neither form overflows on its side of 0.
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


_ACTIVATIONS: Mapping[str, Activation] = {
    "Identity": lambda logit: logit,
    "Sigmoid": _sigmoid,
    "Tanh": math.tanh,
}


def activation_of(config: Any, name: str) -> Activation:
    """Returns what makes a score of a model's logit, as sentence-transformers would.

    That is what the model's `config.json` names (`sentence_transformers.activation_fn`, earlier
    `sbert_ce_default_activation_function`), and the sigmoid where it names nothing.

    Args:
        config: The model's configuration, of transformers.
        name: The model, for messages.

    Raises:
        TerminalError: If the model cannot score a pair.
    """
    heads = [str(each) for each in getattr(config, "architectures", None) or ()]
    if not any(each.endswith(_HEAD) for each in heads):
        raise TerminalError(
            f"the model {name!r} ({', '.join(heads) or 'of no architecture'}) has no head that "
            f"scores two texts: expected a cross-encoder ({_HEAD} with one label)"
        )
    if config.num_labels != 1:
        labels = ", ".join(str(config.id2label[each]) for each in sorted(config.id2label))
        raise TerminalError(
            f"the model {name!r} chooses among {config.num_labels} labels ({labels}): expected a "
            "cross-encoder with one label, which is the score"
        )
    ours = getattr(config, "sentence_transformers", None) or {}
    earlier = getattr(config, "sbert_ce_default_activation_function", None)
    named = str(ours.get("activation_fn") or earlier or "Sigmoid")
    activation = _ACTIVATIONS.get(named.rpartition(".")[2])
    if activation is None:
        raise TerminalError(
            f"the model {name!r} makes its scores by {named}: mloc knows {', '.join(_ACTIVATIONS)}"
        )
    return activation


def tokenize_pairs(
    tokenizer: Any, text: str, others: Sequence[str], limit: int | None, name: str
) -> list[PairTokens]:
    """Returns what a model reads of a text together with each of the others.

    Args:
        tokenizer: The model's.
        text: Is never cut.
        others: Are cut at their end where the model could not read all.
        limit: Tokens that it reads at most; None without a limit.
        name: The model, for messages.

    Raises:
        ValueError: If the text leaves no room for another.
    """
    if not others:
        return []
    found = _encoded(tokenizer, text, others)
    too_long = [
        place for place, each in enumerate(found) if limit is not None and len(each.tokens) > limit
    ]
    if not too_long or limit is None:
        return found
    own = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if own + tokenizer.num_special_tokens_to_add(pair=True) >= limit:
        raise ValueError(
            f"the text has {own} tokens, which leaves no room for another one: {name} reads at "
            f"most {limit} of both"
        )
    long_ones = [others[place] for place in too_long]
    cut = _encoded(tokenizer, text, long_ones, truncation="only_second", max_length=limit)
    for place, each in zip(too_long, cut, strict=True):
        found[place] = each
    return found


def _encoded(tokenizer: Any, text: str, others: Sequence[str], **how: Any) -> list[PairTokens]:
    typed = _TYPES in tokenizer.model_input_names
    made = tokenizer(
        [text] * len(others),
        list(others),
        return_attention_mask=False,
        return_token_type_ids=typed,
        verbose=False,
        **how,
    )
    if not typed:
        return [PairTokens(ids) for ids in made["input_ids"]]
    pairs = zip(made["input_ids"], made[_TYPES], strict=True)
    return [PairTokens(ids, kinds.index(1) if 1 in kinds else 0) for ids, kinds in pairs]
