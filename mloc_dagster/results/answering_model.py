"""`shards/model.json`: which state of a model computed a task's rows.

A template names a model, and what lies under that name may change between two attempts: files are
trained again, a branch moves. Rows of two models in one result would say nothing about either.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from mloc_dagster.errors import InputError
from mloc_dagster.results.part_list import list_parts
from mloc_dagster.results.store import Folder

ANSWERING_NAME = "shards/model.json"


class AnsweringModel(BaseModel):
    """What computes a task's rows.

    Attributes:
        revision: The state that answers: the hub's commit, or `sha256:…` over files.
        earlier: States that computed some of the rows before, and were replaced on purpose.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: str
    earlier: tuple[str, ...] = ()


def keep_to_model(folder: Folder, revision: str, *, accept_changed: bool) -> None:
    """Notes which state of a model computes a task's rows from now on.

    Args:
        folder: The task's folder.
        revision: The state that is loaded; empty where the task executor cannot tell.
        accept_changed: Whether rows of several states may stand in one result.

    Raises:
        InputError: If rows of another state are there, and that is not accepted.
    """
    if not revision:
        return
    known = _read(folder)
    if known is not None and known.revision == revision:
        return
    earlier: tuple[str, ...] = ()
    if known is not None and list_parts(folder):
        if not accept_changed:
            raise InputError(
                f"the model has changed since task {folder.name} was begun: its rows so far are of "
                f"{known.revision}, and what is there now is {revision}. Start over "
                f"with --fresh (mloc run --resume {folder.name} --fresh; over the API, submit the "
                "template again), or keep the rows of both models in one result with "
                "--accept-changed-model"
            )
        earlier = tuple(dict.fromkeys((*known.earlier, known.revision)))
    write_answering_model(folder, AnsweringModel(revision=revision, earlier=earlier))


def write_answering_model(folder: Folder, model: AnsweringModel) -> None:
    """Writes the note."""
    folder.write_bytes(ANSWERING_NAME, model.model_dump_json().encode() + b"\n")


def _read(folder: Folder) -> AnsweringModel | None:
    """Returns the note; None without one."""
    try:
        return AnsweringModel.model_validate_json(folder.read_bytes(ANSWERING_NAME))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise InputError(
            f"{folder.url}/{ANSWERING_NAME} is damaged: it does not tell any more which model "
            f"computed the rows so far. Start over (mloc run --resume {folder.name} --fresh), or "
            "delete that file and resume the task"
        ) from None
