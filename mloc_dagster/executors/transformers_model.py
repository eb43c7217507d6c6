"""Loading a model for the transformers engine: from the hub, a folder, or what ships with mloc."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mloc_dagster.errors import MissingExtraError, MlocError, TerminalError, TransientError
from mloc_dagster.executors.memory import release_memory, weights_bytes
from mloc_dagster.executors.model_files import folder_revision
from mloc_dagster.executors.operator_leave import trusts_remote_code
from mloc_dagster.executors.quantization import quantised_loading
from mloc_dagster.executors.row_adapters import RowAdapters
from mloc_dagster.executors.training.weight_files import refuse_pickles
from mloc_dagster.executors.transformers_vision import model_class, take_chat_template
from mloc_dagster.models import builtin_model_path
from mloc_dagster.net.reach import current_reach
from mloc_dagster.schema.engines import max_model_len, transformers_options
from mloc_dagster.schema.model import Model, ModelSource

# What huggingface_hub and httpx raise when the answer may be another one tomorrow.
TRANSIENT_CAUSES = frozenset(
    {"ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "Timeout", "ReadError"}
)
TERMINAL_CAUSES = frozenset(
    {"RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError", "HFValidationError"}
)


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

    source, options = block.source, transformers_options(block)
    place = model_place(source)
    common: dict[str, Any] = {
        "trust_remote_code": trusts_remote_code(
            block.source, asked=block.transformers.trust_remote_code
        ),
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


def max_positions(block: Model, config: Any) -> int | None:
    """Returns how many tokens a prompt and its answer may have: the model's limit, or a lower one.

    Args:
        block: The template's `model`, which may limit it (`vllm.max_model_len`).
        config: The model's own, of transformers.
    """
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min((most for most in (own, max_model_len(block)) if most is not None), default=None)


def model_place(source: ModelSource) -> str:
    """Returns where the weights are: a folder, or the hub's id.

    What lies at an address, such as the results of a training on a store elsewhere, is fetched.

    Raises:
        TerminalError: If the template names a folder without a model, or with pickled weights.
        InputError: If there are no weights at the address.
        TransientError: If they cannot be fetched now.
    """
    if source.type == "builtin":
        return str(builtin_model_path(source.identifier))
    if source.type == "local" or Path(source.identifier).exists():  # which the libraries prefer
        current_reach().check_place(source.identifier)
    if source.type == "local" and "://" in source.identifier:
        from mloc_dagster.executors.training.weights import fetched_model

        return str(fetched_model(source.identifier))
    if source.type == "local":
        folder = Path(source.identifier).expanduser()
        if not (folder / "config.json").is_file():
            missing = "has no config.json" if folder.is_dir() else "does not exist"
            raise TerminalError(f"the model folder {source.identifier!r} {missing}")
        refuse_pickles(folder)
        return str(folder)
    return source.identifier


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def clear_load_errors(source: ModelSource) -> Iterator[None]:
    """Tells what a retry may cure from what it will not; transformers wraps all in `OSError`.

    Raises:
        TerminalError: If there is no such model, or it cannot be loaded.
        TransientError: If the hub cannot be reached.
    """
    try:
        yield
    except MlocError:
        raise
    except (OSError, ValueError, ImportError) as error:
        causes = {type(cause).__name__ for cause in _chain(error)}
        what = f"{source.type} model {source.identifier!r}"
        if source.revision:
            what += f" at revision {source.revision!r}"
        if causes & TRANSIENT_CAUSES and not causes & TERMINAL_CAUSES:
            raise TransientError(f"the hub could not be reached for the {what}: {error}") from error
        if "trust_remote_code" in str(error):
            raise TerminalError(
                f"the {what} needs code that comes with its weights: set trust_remote_code: true "
                "in model.source, and MLOC_TRUST_REMOTE_CODE=true where the worker starts"
            ) from error
        raise TerminalError(f"the {what} cannot be loaded: {error}") from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


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


def hub_commit(source: ModelSource) -> str:
    """Returns the commit that a hub model's revision means now; empty for models elsewhere.

    Whoever loads a model asks once, and then for this commit: all its files are of one state, and
    an engine that is started again gets the same weights, though a branch has moved on. Where the
    hub does not say, it is the revision as the template has it: loading tells then what is wrong.
    """
    if source.type != "huggingface":
        return ""
    from transformers.utils.hub import resolve_revision

    found = resolve_revision(source.identifier, source.revision)
    return getattr(found, "resolved", found) or ""
