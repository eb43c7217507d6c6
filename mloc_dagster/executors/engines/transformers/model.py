"""A model that transformers loads: weights, fewer bits, adapters, and eyes."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mloc_dagster.errors import (
    InputError,
    MissingExtraError,
    TerminalError,
    nearest_hint,
)
from mloc_dagster.executors.adapters import adapter_folder, merge_adapters, require_peft
from mloc_dagster.executors.engines.protocol import EngineRequest
from mloc_dagster.executors.engines.transformers.engine_type import TRANSFORMERS
from mloc_dagster.executors.model_cache import release_memory, weights_bytes
from mloc_dagster.executors.model_source import (
    clear_load_errors,
    folder_revision,
    hub_commit,
    model_place,
    trusts_remote_code,
)
from mloc_dagster.schema import Adapter, Model, TransformersOptions, adapter_name, shared_options

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
"""What PyTorch says where memory is scarce."""

DEVICE_LOST = ("CUDA error", "device-side assert")
"""What PyTorch says of a GPU that this process cannot use any more."""


@dataclass(slots=True)
class LoadedModel:
    """A model in memory, with what generation has to know about it.

    Attributes:
        name: The identifier, as the template names it.
        revision: The hub's commit, or `sha256:…` over the model's files.
        engine: `transformers` with its version.
        model: The causal language model; None once unloaded.
        adapters: What rows may ask it to answer with.
        tokenizer: Its tokenizer.
        eos_token_ids: Tokens that end an answer.
        pad_token_id: Fills the left of shorter prompts.
        max_positions: Most tokens of prompt and answer together; None without a limit.
        processor: What turns images into tensors; None where the model reads text only.
    """

    name: str
    revision: str
    engine: str
    model: Any
    adapters: RowAdapters
    tokenizer: Any
    eos_token_ids: frozenset[int]
    pad_token_id: int
    max_positions: int | None
    processor: Any = None

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts are sent as chat messages."""
        return bool(self.tokenizer.chat_template)

    @property
    def size_bytes(self) -> int:
        """Bytes of its weights and buffers."""
        return weights_bytes(self.model)

    def free(self) -> None:
        """Lets go of the weights and returns their memory to the device."""
        self.model = self.adapters.model = self.tokenizer = None
        release_memory()


def load_model(block: Model, enforce_cpu: bool) -> LoadedModel:
    """Loads the model, tokenizer and adapters of a template's `model` block.

    Builtin and local models are read without touching the network.

    Raises:
        MissingExtraError: If torch or transformers is not installed.
        TerminalError: If there is no such model, or it may not be loaded.
        TransientError: If the hub cannot be reached.
    """
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        raise MissingExtraError("inference with transformers", "hf")
    import transformers
    from transformers import AutoTokenizer

    source, options = block.source, options_of(block)
    place = model_place(source)
    common: dict[str, Any] = {
        "trust_remote_code": trusts_remote_code(block.source, asked=options.trust_remote_code),
        "local_files_only": source.type != "huggingface",
    }
    commit = hub_commit(source)
    if commit:
        common["revision"] = commit
    how = {
        "dtype": options.dtype,
        "attn_implementation": options.attn_implementation,
        "low_cpu_mem_usage": options.low_cpu_mem_usage,
        "device_map": "cpu" if enforce_cpu else options.device_map,
        **quantised_loading(options, enforce_cpu=enforce_cpu),
    }
    transformers.utils.logging.disable_progress_bar()  # a worker's terminal is not its own
    with clear_load_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(place, **common)
        loader, processor = model_class(place, common)
        take_chat_template(tokenizer, processor)
        model: Any = loader.from_pretrained(
            place, **common, **{name: value for name, value in how.items() if value is not None}
        )
    if how["device_map"] is None:
        model.to(_default_device())
    adapters = RowAdapters(model, block.adapters)
    model = adapters.model.eval()
    eos_token_ids = _take_eos_token_ids(model, tokenizer)
    return LoadedModel(
        name=source.identifier,
        revision=commit or folder_revision(place),
        engine=f"transformers {transformers.__version__}",
        model=model,
        adapters=adapters,
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids,
        pad_token_id=_pad_token_id(tokenizer, eos_token_ids),
        max_positions=max_positions(block, model.config),
        processor=processor,
    )


def options_of(block: Model) -> TransformersOptions:
    """Returns how a model is loaded: its block, and the `dtype` of another engine's without one."""
    options = block.options(TRANSFORMERS.name, TransformersOptions)
    shared = shared_options(block, TRANSFORMERS)
    return options.model_copy(update={"dtype": shared["dtype"]}) if "dtype" in shared else options


def max_model_len(block: Model) -> int | None:
    """Returns how many tokens of prompt and answer the template allows; None without a limit."""
    most = shared_options(block, TRANSFORMERS).get("max_model_len")
    return most if isinstance(most, int) else None


def max_positions(block: Model, config: Any) -> int | None:
    """Returns how many tokens a prompt and its answer may have: the model's limit, or a lower one.

    Args:
        block: The template's `model`, an engine's `max_model_len` in which may limit it.
        config: The model's own, of transformers.
    """
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min((most for most in (own, max_model_len(block)) if most is not None), default=None)


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _take_eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Returns what ends an answer, and clears the defaults that the weights came with.

    `generate` fills every field left unset from `model.generation_config`; here the template
    alone says how to sample.
    """
    from transformers import GenerationConfig

    given = model.generation_config.eos_token_id if model.generation_config else None
    ids = set(given) if isinstance(given, list | tuple) else {given}
    ids.add(tokenizer.eos_token_id)
    model.generation_config = GenerationConfig()
    return frozenset(token for token in ids if token is not None)


def _pad_token_id(tokenizer: Any, eos_token_ids: frozenset[int]) -> int:
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return min(eos_token_ids, default=0)


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


Pixels = Mapping[str, Any]
"""What a processor makes of a row's images, by the name that the model has for it."""


def model_class(place: str, common: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the class that loads a model, and its processor; None where it reads text only.

    Args:
        place: The hub's id, or a folder.
        common: What every `from_pretrained` is to know.
    """
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    config = AutoConfig.from_pretrained(place, **common)
    sees = getattr(config, "vision_config", None) is not None
    if not sees or type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForCausalLM, None
    return AutoModelForImageTextToText, AutoProcessor.from_pretrained(place, **common)


def take_chat_template(tokenizer: Any, processor: Any) -> None:
    """Gives a tokenizer that has no chat template the one that lies with the model's processor."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = getattr(processor, "chat_template", None)


def with_pixels(processor: Any, request: EngineRequest) -> tuple[EngineRequest, Pixels]:
    """Returns a request with the tokens that its images take, and the images as tensors.

    Raises:
        ValueError: If the processor refuses the row.
    """
    rendered = request.rendered
    if not rendered.images:
        return request, {}
    try:
        made = processor(
            text=[rendered.text],
            images=list(rendered.images),
            return_tensors="pt",
            add_special_tokens=rendered.special,
        )
    except Exception as error:  # each processor raises what it likes
        raise ValueError(f"the model's processor refuses this row: {error}") from error
    tokens = made.pop("input_ids")[0].tolist()
    made.pop("attention_mask", None)
    return replace(request, tokens=tokens), dict(made)


def batch_pixels(rows: Sequence[Pixels], device: Any) -> dict[str, Any]:
    """Joins the images of a batch's rows, in the rows' order."""
    import torch

    names = {name: None for row in rows for name in row}
    return {
        name: torch.cat([row[name] for row in rows if name in row]).to(device) for name in names
    }
