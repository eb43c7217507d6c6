"""How much memory a torch model holds, and giving it back."""

from __future__ import annotations

import ctypes
import gc
import sys
from itertools import chain
from typing import Any


def weights_bytes(model: Any) -> int:
    """Returns the bytes of a torch module's parameters and buffers; shared ones count once."""
    tensors = chain(model.parameters(), model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def release_memory() -> None:
    """Gives memory of objects that nobody holds any longer back to the GPU and to the machine."""
    gc.collect()  # models are full of cycles
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # Freed weights otherwise stay with the C library, and the process keeps its size.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)
