"""Names in a task's folder that only mloc writes; what they say of a task is believed."""

from __future__ import annotations

_FIRST_PARTS = frozenset(
    {
        *("task", "plan", "input", "shards", "logs", "manifest"),
        *("responses", "summary", "batch_output", "batch_errors"),
        *("training", "evaluation-before", "checkpoints"),
        *("final_model", "final_lora", "trained_model", "archives"),
    }
)
"""First parts of paths, without endings: `final_model` is the folder and `final_model.zip`."""


def is_own_name(name: str) -> bool:
    """Tells whether a file of a task's folder is mloc's to write, whether it is there or not.

    Args:
        name: Relative to the folder, with forward slashes.
    """
    first = name.split("/")[0]
    return first.startswith(".") or first.split(".")[0].casefold() in _FIRST_PARTS
