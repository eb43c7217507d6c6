"""LoRA adapters that rows choose, beside those merged into the weights of a transformers model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from mloc_dagster.errors import InputError, nearest_hint
from mloc_dagster.executors.adapters import adapter_folder, merge_adapters, require_peft
from mloc_dagster.schema.engines import adapter_name
from mloc_dagster.schema.model import Adapter


class RowAdapters:
    """A model with its adapters, one of which is active at a time.

    Those with `apply: merge` are merged, in order. A single adapter answers every row, however it
    is applied; of several, those with `apply: request` answer the rows that name them.

    Args:
        model: The model as it was loaded.
        adapters: The template's.

    Attributes:
        model: The model to generate with.

    Raises:
        InputError: If an adapter cannot be found, is not an adapter, or shares its name.
        MissingExtraError: If peft is not installed.
        TransientError: If an adapter cannot be downloaded now.
    """

    def __init__(self, model: Any, adapters: Sequence[Adapter]) -> None:
        named = [each for each in adapters if each.apply == "request"]
        self.model = merge_adapters(model, [each for each in adapters if each.apply == "merge"])
        self._names: dict[str, str] = {}
        self._only = adapter_name(adapters[0]) if len(adapters) == 1 else None
        for number, adapter in enumerate(named):
            self._load(adapter, f"row_{number}")  # peft allows no dot in a name
        self._active: str | None = None
        if self._names:
            self.model.disable_adapters()

    def _load(self, adapter: Adapter, inner: str) -> None:
        name = adapter_name(adapter)
        if name in self._names:
            raise InputError(f"model.adapters: two adapters are called {name!r}: give each a name")
        require_peft()
        with adapter_folder(adapter) as folder, warnings.catch_warnings():
            # That there are several is on purpose here.
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            self.model.load_adapter(str(folder), adapter_name=inner)
        self._names[name] = inner

    def check(self, name: str | None) -> None:
        """Raises if rows cannot name an adapter like this.

        Raises:
            ValueError: If there is no such adapter; the reason becomes the row's error.
        """
        if name is not None and name != self._only and name not in self._names:
            known = {*self._names, self._only} - {None}
            raise ValueError(f"no adapter is called {name!r}{nearest_hint(name, map(str, known))}")

    def activate(self, name: str | None) -> None:
        """Makes the model answer with an adapter; None is the single adapter, or the bare model."""
        inner = self._names.get(name or self._only or "")
        if inner == self._active:
            return
        if inner is None:
            self.model.disable_adapters()
        else:
            self.model.enable_adapters()
            self.model.set_adapter(inner)
        self._active = inner
