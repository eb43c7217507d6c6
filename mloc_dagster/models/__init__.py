"""Models that ship inside the package: `model.source{type: builtin, identifier: …}`.

Knows names and folders only; executors load the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mloc_dagster.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A model that ships with mloc.

    Attributes:
        name: What templates call it; also the name of its folder.
        description: One line on what it can do.
        parameters: How many weights it has, tied ones counted once.
    """

    name: str
    description: str
    parameters: int


_MODELS = (
    BuiltinModel(
        name="tiny-chat",
        description="Llama-style demo chat model: capitals, opposites, sentiment, small sums.",
        parameters=480_128,
    ),
    BuiltinModel(
        name="tiny-tools",
        description="Calls tools for arithmetic and look-ups, and says what they answered.",
        parameters=590_976,
    ),
    BuiltinModel(
        name="tiny-embed",
        description="Vectors of texts: finds passages by words and by what else says the same.",
        parameters=1_642_240,
    ),
    BuiltinModel(
        name="tiny-rerank",
        description="Scores a passage for a question: puts those that hold the answer first.",
        parameters=2_038_273,
    ),
    BuiltinModel(
        name="tiny-answer",
        description="Answers by passages: copies what fits, and cites where it stands.",
        parameters=3_926_720,
    ),
)
BUILTIN_MODELS: Mapping[str, BuiltinModel] = MappingProxyType(
    {model.name: model for model in _MODELS}
)


def builtin_model_path(name: str) -> Path:
    """Returns the folder of a shipped model, in the layout that `from_pretrained` reads.

    Raises:
        UnknownNameError: No such model ships; the message names the nearest one.
    """
    if name not in BUILTIN_MODELS:
        raise UnknownNameError("builtin model", name, BUILTIN_MODELS)
    return Path(__file__).parent / name
