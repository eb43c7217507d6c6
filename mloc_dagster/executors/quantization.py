"""Weights of 4 and 8 bits, by bitsandbytes, as transformers loads them onto a GPU."""

from __future__ import annotations

import importlib.util
from typing import Any

from mloc_dagster.errors import MissingExtraError, TerminalError
from mloc_dagster.schema.model import TransformersOptions


def bitsandbytes_config(options: TransformersOptions, dtype: str | None = None) -> Any:
    """Returns how transformers quantises weights; None if the options do not ask for it.

    Args:
        options: The template's.
        dtype: What 4-bit weights are computed in, by torch's name, where the options do not say;
            None leaves it to the library.

    Raises:
        MissingExtraError: If bitsandbytes is not installed.
    """
    if options.quantised is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"model.transformers.{options.quantised}", "quantization")
    from transformers import BitsAndBytesConfig

    if options.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=options.bnb_4bit_compute_dtype or dtype,
        bnb_4bit_use_double_quant=options.bnb_4bit_use_double_quant,
    )


def quantised_loading(options: TransformersOptions, *, enforce_cpu: bool) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` that quantise a model for inference.

    Empty if the options do not ask for it. A model with fewer bits gives other answers, so it is
    never swapped for a whole one.

    Raises:
        MissingExtraError: If bitsandbytes is not installed.
        TerminalError: If the model would be on a CPU.
    """
    if options.quantised is None:
        return {}
    import torch

    placed = "cpu" if enforce_cpu else options.device_map
    if placed == "cpu" or not torch.cuda.is_available():
        why = "the task keeps off GPUs" if placed == "cpu" else "this worker has none"
        raise TerminalError(
            f"model.transformers.{options.quantised} needs a GPU, and {why}: remove the option, or "
            "run the task on a worker with a GPU (resources.hardware.gpu)"
        )
    # bitsandbytes' weights cannot be moved once they are loaded.
    return {
        "quantization_config": bitsandbytes_config(options, _computed_in(options)),
        "device_map": placed or "cuda",
    }


def _computed_in(options: TransformersOptions) -> str:
    """Returns the precision of 4-bit products: that which is asked for, else the GPU's best."""
    import torch

    if options.dtype != "auto":
        return options.dtype
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
