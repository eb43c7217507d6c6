"""LoRA adapters under vLLM: served with each request, or merged into the weights before."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mloc_dagster.errors import TerminalError, TransientError, nearest_hint
from mloc_dagster.executors.adapters import adapter_folder, merge_adapters
from mloc_dagster.executors.engines.vllm.process import is_dead
from mloc_dagster.executors.engines.vllm.requests import refuse_merging
from mloc_dagster.executors.engines.vllm.start import EnginePlan
from mloc_dagster.executors.model_files import content_digest
from mloc_dagster.executors.model_source import clear_load_errors, is_commit
from mloc_dagster.schema.canonical import canonical_json, digest_of
from mloc_dagster.schema.engines import adapter_name
from mloc_dagster.schema.model import Adapter
from mloc_dagster.settings import settings

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `max_lora_rank`."""


@dataclass(frozen=True, slots=True)
class ServedAdapters:
    """Adapters that requests can name.

    Attributes:
        requests: vLLM's `LoRARequest` of each, by name.
        default: Which one answers rows that name none; None for the model itself.
        folders: Keeps unpacked archives until the engine is closed.
    """

    requests: Mapping[str, Any] = field(default_factory=dict)
    default: str | None = None
    folders: ExitStack = field(default_factory=ExitStack)

    def pick(self, name: str | None) -> Any:
        """Returns the `LoRARequest` for a row; None for the model itself.

        Raises:
            ValueError: If no adapter has this name.
        """
        chosen = self.default if name is None else name
        if chosen is None:
            return None
        if chosen not in self.requests:
            raise ValueError(
                f"no adapter is called {chosen!r}{nearest_hint(chosen, self.requests)}"
            )
        return self.requests[chosen]


def prepare_adapters(
    plan: EnginePlan, adapters: Sequence[Adapter]
) -> tuple[EnginePlan, ServedAdapters]:
    """Returns how the engine is started with a template's adapters, and what it then serves.

    A single adapter is served, and answers every row. Of several, those with `apply: request` are
    served to the rows that name them, over the weights with all others merged in.

    Raises:
        InputError: If an adapter cannot be found or is none.
        MissingExtraError: If several have to be merged and peft is not installed.
        TransientError: If one cannot be downloaded now.
    """
    if not adapters:
        return plan, ServedAdapters()
    served = [each for each in adapters if each.apply == "request"]
    merged = [each for each in adapters if each.apply == "merge"]
    if len(adapters) == 1:
        served, merged = list(adapters), []
    if merged:
        folder = str(_merged_folder(plan, merged))
        plan = replace(plan, place=folder, arguments={**plan.arguments, "model": folder})
    if not served:
        return plan, ServedAdapters()
    return _serve(plan, served, default=adapter_name(adapters[0]) if len(adapters) == 1 else None)


def _serve(
    plan: EnginePlan, adapters: Sequence[Adapter], default: str | None
) -> tuple[EnginePlan, ServedAdapters]:
    from vllm.lora.request import LoRARequest

    with ExitStack() as stack:
        requests: dict[str, Any] = {}
        rank = 1
        for number, adapter in enumerate(adapters, start=1):
            folder = stack.enter_context(adapter_folder(adapter))
            rank = max(rank, _rank_of(folder))
            name = adapter_name(adapter)
            requests[name] = LoRARequest(name, number, str(folder))
        plan = plan.with_arguments(
            enable_lora=True,
            max_loras=len(requests),
            max_lora_rank=next((each for each in RANKS if each >= rank), rank),
        )
        if plan.on_cpu:
            plan = _with_empty_slot(plan, len(requests))
        return plan, ServedAdapters(requests, default, stack.pop_all())


def _with_empty_slot(plan: EnginePlan, count: int) -> EnginePlan:
    """Returns a plan with one slot more than there are adapters, whatever the template says.

    vLLM 0.32 marks rows without an adapter by the slot -1, which its CPU kernels read as the last
    one: beside rows with adapters they would be answered by whichever lies there. An empty slot
    adds nothing to the weights.
    """
    slots = max(int(plan.arguments["max_loras"]), count + 1)
    return replace(plan, arguments={**plan.arguments, "max_loras": slots})


def _rank_of(folder: Path) -> int:
    config = json.loads((folder / "adapter_config.json").read_text())
    return max([config.get("r") or 1, *(config.get("rank_pattern") or {}).values()])


def load_adapters(llm: Any, served: ServedAdapters) -> None:
    """Loads all adapters now, where an error is the model's and not a row's.

    Raises:
        TerminalError: If vLLM cannot serve one.
        TransientError: If the engine's process ended meanwhile.
    """
    for name, request in served.requests.items():
        try:
            llm.add_lora(request)
        except Exception as error:  # an engine in its own process raises just that
            if is_dead(error):
                raise TransientError(f"vLLM died loading the adapter {name!r}: {error}") from error
            raise TerminalError(f"vLLM cannot serve the adapter {name!r}: {error}") from error


def _merged_folder(plan: EnginePlan, adapters: Sequence[Adapter]) -> Path:
    """Returns a folder of the model with adapters merged in; the same ones are merged once."""
    common: dict[str, Any] = {
        "trust_remote_code": plan.arguments["trust_remote_code"],
        "revision": plan.arguments.get("revision") or "main",
    }
    if not Path(plan.place).is_dir() and not is_commit(common["revision"]):
        # A branch would be merged once, and served for ever after.
        raise TransientError(f"the hub does not say which commit of {plan.place!r} is to be merged")
    with clear_load_errors(plan.source):
        refuse_merging(plan.place, **common)
    with ExitStack() as stack:
        folders = [stack.enter_context(adapter_folder(each)) for each in adapters]

        def digest() -> str:
            return _merge_digest(plan.place, common["revision"], adapters, folders)

        before = digest()
        target = settings().home.absolute() / "merged" / before
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{before}-", dir=target.parent))
        try:
            with clear_load_errors(plan.source):
                _merge(plan.place, common, folders, scratch)
            if digest() != before:
                raise TransientError("the model or an adapter changed while they were merged")
            _settle(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target


def _merge(place: str, common: Mapping[str, Any], folders: Sequence[Path], target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(place, dtype="auto", **common)
    # From the very folders whose content was digested: an archive is not fetched again.
    model = merge_adapters(model, [Adapter(path=str(folder)) for folder in folders])
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(place, **common).save_pretrained(target)


def _merge_digest(
    place: str, revision: str, adapters: Sequence[Adapter], folders: Sequence[Path]
) -> str:
    """Returns what a merged model is kept under: all that goes into it, to the byte."""
    base = Path(place)
    return digest_of(
        content_digest(base) if base.is_dir() else f"{place}@{revision}",
        [canonical_json(adapter.model_dump(mode="json")) for adapter in adapters],
        [content_digest(folder) for folder in folders],
    ).hex()[:32]


def _settle(scratch: Path, target: Path) -> None:
    """Gives a finished folder its name, unless another process has made the same one meanwhile."""
    try:
        scratch.rename(target)
    except OSError:
        if not target.is_dir():
            raise
