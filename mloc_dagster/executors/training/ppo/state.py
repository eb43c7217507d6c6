"""Checkpoints of a PPO training: written whole or not at all, and gone on from.

A folder `checkpoint-<step>` holds the policy and its tokenizer as `save_pretrained` writes them
(with LoRA the adapter only), `value_head.safetensors`, `optimizer.pt` (optimiser, scheduler and
random numbers, loaded with `weights_only`), and `trainer_state.json`.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.training.ppo.policy import Policy
from mloc_dagster.results import TEMPORARY_PREFIX

_HEAD, _OPTIMIZER, _STATE = "value_head.safetensors", "optimizer.pt", "trainer_state.json"


@dataclass(slots=True)
class Progress:
    """How far a training is.

    Attributes:
        global_step: Updates done.
        episode: Rollouts that it learned from, which is also the place in the order of prompts.
        kl_coef: What a nat costs by now.
        rows: Prompts in the data, which the order depends on.
        seed: What all randomness depends on.
        log_history: What was logged.
    """

    global_step: int
    episode: int
    kl_coef: float
    rows: int
    seed: int
    log_history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trained:
    """The things that change while training, apart from figures."""

    policy: Policy
    tokenizer: Any
    optimizer: Any
    scheduler: Any


def save_checkpoint(folder: Path, trained: Trained, progress: Progress) -> Path:
    """Writes a checkpoint under a name that nobody looks for, and renames it when it is whole.

    Args:
        folder: Where checkpoints are.
        trained: What to keep.
        progress: How far it is.

    Returns:
        The checkpoint's folder.
    """
    import torch
    from safetensors.torch import save_file

    place = folder / f"checkpoint-{progress.global_step}"
    draft = folder / f"{TEMPORARY_PREFIX}{place.name}"
    for leftover in (draft, place):  # of an attempt that died here
        shutil.rmtree(leftover, ignore_errors=True)
    draft.mkdir(parents=True)
    trained.policy.model.save_pretrained(draft)
    trained.tokenizer.save_pretrained(draft)
    save_file(trained.policy.value_head.state_dict(), draft / _HEAD)
    torch.save(
        {
            "optimizer": trained.optimizer.state_dict(),
            "scheduler": trained.scheduler.state_dict(),
            "random": _random_state(),
        },
        draft / _OPTIMIZER,
    )
    (draft / _STATE).write_text(json.dumps(asdict(progress)), encoding="utf-8")
    return draft.rename(place)


def load_checkpoint(place: Path, trained: Trained, rows: int, seed: int) -> Progress:
    """Goes on from a checkpoint: fills in everything that `save_checkpoint` kept.

    Args:
        place: The checkpoint's folder.
        trained: What to fill in; the model's reference has to be taken before.
        rows: Prompts in the data now.
        seed: The seed now.

    Raises:
        TerminalError: If it is of a training with other data or another seed.
    """
    import torch
    from safetensors.torch import load_file

    progress = Progress(**json.loads((place / _STATE).read_text(encoding="utf-8")))
    if (progress.rows, progress.seed) != (rows, seed):
        raise TerminalError(
            f"{place.name} is of a training on {progress.rows} rows with seed {progress.seed}; "
            f"this one has {rows} rows and seed {seed}"
        )
    _load_model(place, trained.policy.model)
    trained.policy.value_head.load_state_dict(load_file(place / _HEAD))
    kept = torch.load(place / _OPTIMIZER, map_location="cpu", weights_only=True)
    trained.optimizer.load_state_dict(kept["optimizer"])
    trained.scheduler.load_state_dict(kept["scheduler"])
    _restore_random_state(kept["random"])
    return progress


def _load_model(place: Path, model: Any) -> None:
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        weights = load_peft_weights(str(place), device="cpu")
        set_peft_model_state_dict(model, weights)
        return
    # Through from_pretrained, as files name some models' weights differently from the model.
    saved = type(model).from_pretrained(place, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


def _random_state() -> dict[str, Any]:
    """Returns the states of all global generators: reward functions and dropout may draw."""
    import numpy as np
    import torch

    version, words, gauss = random.getstate()
    drawn: dict[str, Any] = np.random.get_state(legacy=False)
    words_of_numpy = torch.from_numpy(drawn["state"]["key"].astype("int64"))
    return {
        "python": [version, list(words), gauss],
        "numpy": {**drawn, "state": {**drawn["state"], "key": words_of_numpy}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    import numpy as np
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    drawn = state["numpy"]
    words_of_numpy = drawn["state"]["key"].numpy().astype("uint32")
    np.random.set_state({**drawn, "state": {**drawn["state"], "key": words_of_numpy}})
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
