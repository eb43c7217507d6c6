"""Old spellings: the one table of what templates may call by another name, or carry in vain.

Paths are relative to a spec (the template's own, a stage's or a node's).
"""

from __future__ import annotations

from dataclasses import dataclass

KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spelling:
    """A key that is read as another one, or that means nothing here.

    Attributes:
        old: The key as templates have it.
        new: The key that it stands for; None when it has no effect.
        why: Why it has no effect.
        silent: Whether it is as good as the new one, and not worth a warning.
    """

    old: KeyPath
    new: KeyPath | None
    why: str = ""
    silent: bool = False


def _renames(block: str, **names: str) -> list[Spelling]:
    return [Spelling((block, old), (block, new)) for old, new in names.items()]


def _ignored(block: KeyPath, why: str, *names: str) -> list[Spelling]:
    return [Spelling((*block, name), None, why) for name in names]


SPELLINGS: tuple[Spelling, ...] = (
    Spelling(("sloSeconds",), ("slo", "seconds"), silent=True),
    Spelling(("deadlineSeconds",), ("slo", "seconds"), silent=True),
    Spelling(("inference", "max_new_tokens"), ("inference", "max_tokens"), silent=True),
    *_renames(
        "training",
        batch_size="per_device_train_batch_size",
        max_seq_length="max_length",
        save_freq="save_steps",
        ppo_epochs="num_ppo_epochs",
        steps="max_steps",
        epochs="num_train_epochs",
    ),
    *_renames("lora", alpha="lora_alpha", dropout="lora_dropout"),
    Spelling(("model", "config", "fp16"), ("training", "fp16")),
    Spelling(("model", "config", "bf16"), ("training", "bf16")),
    *_ignored(("model", "config"), "the engine places the model", "device_map_auto"),
    *_ignored(
        ("resources",), "parallel.max_shards says how many workers a task has at most", "replicas"
    ),
    *_ignored(("checkpoint",), "MLOC_ALLOW_PICKLE decides where the worker starts", "allow_pickle"),
    *_ignored(("data",), "a YAML comment does the same", "notes"),
    *_ignored(
        ("training",),
        "resources.hardware.gpu says which GPUs",
        "allow_multi_gpu",
        "visible_devices",
    ),
    *_ignored(("training",), "the trainer has no such option", "optimize_cuda_cache"),
    *_ignored(("training",), "target_kl ends a batch early", "early_stopping"),
    *_ignored(
        ("training",), "metrics go to the results folder", "log_with", "tracker_project_name"
    ),
)
"""Later entries win nothing: each old key stands here once."""

SLO_ANNOTATION: KeyPath = ("metadata", "annotations", "sloSeconds")
"""The one place outside of the spec from where a value is taken: `slo.seconds`."""
