"""What the rest of mloc needs to know of a method of training; its spec carries it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mloc_dagster.schema.training_columns import Columns, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMethod:
    """A method of training.

    Attributes:
        layout: Reads rows of some columns; raises `DataError` if one that it needs is not there.
        config: TRL's config, whose fields `training` takes; None if the trainer is not TRL's.
        options: What `training` takes where the trainer is not TRL's.
        samples: Whether the model answers prompts itself, and the answers are scored.
        groups: TRL's default of `num_generations`, where answers to a prompt are compared.
        classifies: Whether the result is a classifier, and writes no text.
        in_pairs: Whether a row is two sequences.
        labelled: Whether answers are labelled as good or bad.
        reference_beta: TRL's default of `beta`, where the model is compared with what it was.
        single_process: Whether it cannot train in several processes.
    """

    layout: Callable[[Columns], Layout]
    config: str | None = None
    options: frozenset[str] = frozenset()
    samples: bool = False
    groups: int | None = None
    classifies: bool = False
    in_pairs: bool = False
    labelled: bool = False
    reference_beta: float | None = None
    single_process: bool = False
