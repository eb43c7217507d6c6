"""Where a model's weights lie, in which state, and what went wrong when they cannot be had."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mloc_dagster.errors import MlocError, TerminalError, TransientError
from mloc_dagster.executors.training.weight_files import refuse_pickles
from mloc_dagster.models import builtin_model_path
from mloc_dagster.net.reach import current_reach
from mloc_dagster.schema.model import ModelSource

_COMMIT = re.compile(r"[0-9a-f]{40}")

# What huggingface_hub and httpx raise when the answer may be another one tomorrow.
_TRANSIENT_CAUSES = frozenset(
    {"ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "Timeout", "ReadError"}
)
_TERMINAL_CAUSES = frozenset(
    {"RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError", "HFValidationError"}
)


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


def is_commit(revision: str) -> bool:
    """Tells whether a hub's revision is a commit: a branch or a tag may move."""
    return _COMMIT.fullmatch(revision) is not None


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
        if causes & _TRANSIENT_CAUSES and not causes & _TERMINAL_CAUSES:
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
