"""Rows as vLLM requests, with sampling, images and LoRA adapters, and vLLM's outputs as rows."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mloc_dagster.errors import InputError, TerminalError, TransientError, nearest_hint
from mloc_dagster.executors.adapters import adapter_folder, merge_adapters
from mloc_dagster.executors.engines.protocol import Answer, Completion, EngineRequest, Rendered
from mloc_dagster.executors.engines.vllm.parsers import RequestParsing
from mloc_dagster.executors.engines.vllm.process import is_dead
from mloc_dagster.executors.engines.vllm.start import EnginePlan
from mloc_dagster.executors.model_source import clear_load_errors, content_digest, is_commit
from mloc_dagster.results import TokenLogprob
from mloc_dagster.schema import (
    Adapter,
    Inference,
    StructuredOutputs,
    adapter_name,
    canonical_json,
    digest_of,
)
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


FINISHED = ("stop", "length")


def sampling_params(
    inference: Inference,
    seed: int,
    room: int,
    *,
    stream: bool = False,
    parsing: RequestParsing | None = None,
) -> Any:
    """Returns vLLM's `SamplingParams` for one request.

    Args:
        inference: How to sample.
        seed: Seeds the request's own generator; unused when greedy.
        room: Tokens that fit behind the prompt.
        stream: Whether its answers are wanted as they grow, each time from their start.
        parsing: What reads its answers; None where they are text only.

    Raises:
        ValueError: If vLLM refuses a value.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    max_tokens = min(inference.max_tokens, room)
    return SamplingParams(
        n=inference.draws,  # vLLM refuses several greedy answers
        temperature=0.0 if inference.greedy else inference.temperature,
        top_p=inference.top_p,
        top_k=inference.top_k,
        min_p=inference.min_p,
        max_tokens=max_tokens,
        min_tokens=min(inference.min_tokens, max_tokens),
        stop=list(inference.stop),
        stop_token_ids=list(inference.stop_token_ids),
        ignore_eos=inference.ignore_eos,
        seed=None if inference.greedy else seed % 2**63,  # to vLLM, -1 is no seed at all
        repetition_penalty=inference.repetition_penalty,
        presence_penalty=inference.presence_penalty,
        frequency_penalty=inference.frequency_penalty,
        skip_special_tokens=(inference if parsing is None else parsing).skip_special_tokens,
        spaces_between_special_tokens=parsing is None or parsing.spaces_between_special_tokens,
        logprobs=inference.logprobs,
        structured_outputs=(parsing and parsing.structured)
        or _structured(inference.structured_outputs),
        output_kind=RequestOutputKind.CUMULATIVE if stream else RequestOutputKind.FINAL_ONLY,
        skip_clone=True,  # these are this request's alone
    )


def _structured(form: StructuredOutputs | None) -> Any:
    if form is None:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(
        json=None if form.json_schema is None else json.dumps(form.json_schema),
        json_object=form.json_object,
        regex=form.regex,
        choice=None if form.choice is None else list(form.choice),
        grammar=form.grammar,
    )


def completion_of(
    request: EngineRequest, output: Any, *, engine_s: float, latency_s: float
) -> Completion:
    """Returns a finished `RequestOutput` as a completion.

    Raises:
        ValueError: If vLLM gave the request up.
    """
    for each in output.outputs:
        if each.finish_reason not in FINISHED:
            raise ValueError(f"vLLM gave this row up ({each.finish_reason})")
    answers = tuple(
        Answer(
            text=each.text,
            finish_reason=each.finish_reason,
            tokens=len(each.token_ids),
            logprobs=_logprobs(request, each),
        )
        for each in output.outputs
    )
    sampling = request.sampling
    return Completion(
        answers=answers if sampling is None else answers * (sampling.n // sampling.draws),
        prompt_tokens=len(output.prompt_token_ids or ()),
        cached_tokens=output.num_cached_tokens or 0,
        engine_s=engine_s,
        latency_s=latency_s,
    )


def _logprobs(request: EngineRequest, output: Any) -> list[TokenLogprob] | None:
    wanted = request.sampling.logprobs if request.sampling is not None else None
    if wanted is None or output.logprobs is None:
        return None
    return [
        _token_logprob(token, at, wanted)
        for token, at in zip(output.token_ids, output.logprobs, strict=True)
    ]


def _token_logprob(token: int, candidates: Any, wanted: int) -> TokenLogprob:
    """Returns one token's entry.

    Args:
        token: The token that was taken.
        candidates: vLLM's `Logprob` by token id: the one taken and the `wanted` likeliest.
        wanted: How many of the likeliest to keep.
    """
    taken = candidates[token]
    likeliest = sorted(candidates.values(), key=lambda each: each.rank or 0)[:wanted]
    return TokenLogprob(
        token=taken.decoded_token or "",
        logprob=taken.logprob,
        top=[
            (each.decoded_token or "", each.logprob)
            for each in likeliest
            if math.isfinite(each.logprob)  # a form may leave fewer tokens than asked for
        ],
    )


def sees(llm: Any) -> bool:
    """Tells whether vLLM's engine `llm` runs a model that takes more than text."""
    return llm.model_config.is_multimodal_model


def processor_template(llm: Any) -> str | None:
    """Returns the chat template that only the model's processor has; None where there is none.

    It cannot be set on vLLM's tokenizer, which renders with copies of itself.
    """
    return template_beside(llm.get_tokenizer(), llm.model_config)


def template_beside(tokenizer: Any, model_config: Any) -> str | None:
    """Returns the same of a model that is not loaded yet."""
    if not model_config.is_multimodal_model or tokenizer.chat_template:
        return None
    from vllm.transformers_utils.processor import cached_processor_from_config

    return getattr(cached_processor_from_config(model_config), "chat_template", None)


def picture_prompt(llm: Any, rendered: Rendered) -> Any:
    """Returns what vLLM takes as the prompt of a row with pictures.

    Raises:
        ValueError: If the model takes none, or not these.
    """
    from vllm.renderers.inputs.preprocess import parse_model_prompt

    prompt = {
        "prompt": rendered.text,
        "multi_modal_data": {"image": list(rendered.images)},
        "multi_modal_uuids": {"image": list(rendered.image_ids)},
    }
    renderer = llm.renderer
    options = renderer.default_cmpl_tok_params.with_kwargs(add_special_tokens=rendered.special)
    return renderer.render_cmpl([parse_model_prompt(llm.model_config, prompt)], options)[0]


def refuse_merging(place: str, **common: Any) -> None:
    """Raises for a model that sees: merged, it has names for its weights that vLLM cannot read.

    Args:
        place: The hub's id, or a folder.
        common: What `from_pretrained` is to know.

    Raises:
        InputError: If the model has a vision tower.
    """
    from transformers import AutoConfig

    if getattr(AutoConfig.from_pretrained(place, **common), "vision_config", None) is not None:
        raise InputError(
            f"model.adapters: under vLLM no adapter can be merged into {place!r}, a model that "
            "sees: give it one adapter, or `apply: request`, or use `engine: transformers`"
        )
