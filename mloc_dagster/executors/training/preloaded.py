"""What every training imports: the fork server reads this module once, for all of them.

It is the one module that works when it is imported, and nothing else imports it. A package that is
missing is met again by the training, which tells.
"""

from __future__ import annotations

import importlib
import os

NAMES = (
    "mloc_dagster.executors.training.child",
    "mloc_dagster.executors.training.session",
    "torch",
    "datasets",
    "peft",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.reward_trainer",
)
"""GRPO's trainer is not among them: where vLLM is installed, TRL imports it too."""


def _import_quietly() -> None:
    """Keeps what libraries print off the terminal of whoever runs the worker."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        for name in NAMES:
            importlib.import_module(name)
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


_import_quietly()
