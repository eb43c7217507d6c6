"""Where a training runs and with which numbers: device, precision, random seed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.engines.transformers.model import bitsandbytes_config
from mloc_dagster.schema import TrainingSpec

Precision = Literal["no", "bf16", "fp16"]
"""What `accelerate` calls mixed precision: `no` computes in the precision of the weights."""

_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def pick_device(spec: TrainingSpec, log: Callable[[str], None]) -> str:
    """Returns `cpu`, or the GPU of this process, such as `cuda:0`.

    Raises:
        TerminalError: If the spec requires a GPU and there is none, or it forbids them as well.
    """
    import torch

    if spec.enforce_cpu:
        if spec.require_gpu:
            raise TerminalError("enforce_cpu and require_gpu cannot both be true: remove one")
        device = "cpu"
    elif torch.cuda.is_available():
        # Of several processes on a machine, torchrun numbers each.
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    elif spec.require_gpu:
        raise TerminalError(
            "the task has require_gpu: true, and torch finds no CUDA device on this worker: run it "
            "on a worker with a GPU (resources.hardware.gpu), or remove require_gpu"
        )
    else:
        device = "cpu"
    if device == "cpu":
        for asked in _for_gpus(spec):
            log(f"training on a CPU in float32: {asked} is for GPUs and is left aside")
    return device


def _for_gpus(spec: TrainingSpec) -> list[str]:
    """Returns the options of the spec that a CPU cannot do."""
    asked = [f"training.{name}" for name in ("bf16", "fp16") if getattr(spec.training, name)]
    option = spec.model.transformers.quantised
    return asked + ([f"model.transformers.{option}"] if option else [])


def mixed_precision(spec: TrainingSpec, device: str) -> Precision:
    """Returns the precision to compute in, where it is another than that of the weights.

    Raises:
        TerminalError: If `training.bf16` and `training.fp16` are both set.
    """
    if spec.training.bf16 and spec.training.fp16:
        raise TerminalError("training.bf16 and training.fp16 cannot both be true: remove one")
    if device == "cpu":
        return "no"
    return "bf16" if spec.training.bf16 else "fp16" if spec.training.fp16 else "no"


def weights_dtype(spec: TrainingSpec, device: str, own: str) -> str:
    """Returns the precision that weights are loaded in, by torch's name.

    Trained weights are float32, if `model.transformers.dtype` says nothing else: the steps of
    training are too small for bfloat16, whose neighbouring numbers are 0.4 to 0.8 % apart, and get
    lost in it. Weights that are frozen under a LoRA adapter take the precision that is computed
    in, or stay in their own.

    Args:
        spec: The task's spec.
        device: Where the model goes.
        own: The precision of the weights' files.

    Raises:
        TerminalError: If weights would be trained in float16, whose gradients cannot be scaled.
    """
    if device == "cpu":
        return "float32"
    asked, frozen = spec.model.transformers.dtype, spec.lora is not None
    if asked == "float16" and not frozen:
        raise TerminalError(
            "model.transformers.dtype float16 is no precision to train all weights in: leave it "
            "out and set training.fp16: true, or train a LoRA adapter"
        )
    if asked != "auto":
        return asked
    if not frozen:
        return "float32"
    return _DTYPES.get(mixed_precision(spec, device), own)


def quantization_config(spec: TrainingSpec, device: str, dtype: str) -> Any:
    """Returns how transformers quantises the weights; None if it does not.

    On a CPU it does not: that the option is left aside is logged by `pick_device`.

    Args:
        spec: The task's spec.
        device: Where the model goes.
        dtype: The precision to compute in, by torch's name.

    Raises:
        MissingExtraError: If bitsandbytes is not installed.
    """
    return None if device == "cpu" else bitsandbytes_config(spec.model.transformers, dtype)


def check_gpu(spec: TrainingSpec, device: str) -> None:
    """Raises if the GPU cannot compute as the spec asks.

    Raises:
        TerminalError: If `training.bf16` is set for a GPU that is too old for it.
    """
    import torch

    wants_bf16 = mixed_precision(spec, device) == "bf16"
    if wants_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TerminalError(
            f"training.bf16: the GPU {torch.cuda.get_device_name()} has no bfloat16; "
            "set training.fp16 instead"
        )


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch on all devices: new weights, dropout, the order of rows."""
    from transformers import set_seed

    set_seed(seed)
