"""`/v1/models`: what a request may give as its model."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from mloc_dagster.api.openai.errors import errors
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState, State, reply
from mloc_dagster.ledger import TaskFilter
from mloc_dagster.models import BUILTIN_MODELS
from mloc_dagster.schema import TrainingSpec, task_types
from mloc_dagster.wire import TaskState

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_LATEST = 100
"""Trainings that are listed; older ones are asked by their id all the same."""


class ModelObject(BaseModel):
    """A model."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """What a request gives as its model."""
    object: Literal["model"] = "model"
    created: int
    """When, in seconds since 1970; 0 of what ships or lies elsewhere."""
    owned_by: str
    """`mloc` of what ships, a training's owner or template, else the hub's organisation."""


class ModelList(BaseModel):
    """Models."""

    model_config = ConfigDict(frozen=True)

    object: Literal["list"] = "list"
    data: tuple[ModelObject, ...]


@router.get("/models", response_model=ModelList, responses=errors(), summary="List models")
def list_models(api: State) -> Response:
    """Lists what ships, what workers have loaded, and the latest trainings that are done.

    Any model of the hub, and any task's id, may be asked besides.
    """
    found = {name: ModelObject(id=name, created=0, owned_by="mloc") for name in BUILTIN_MODELS}
    for each in (*_warm(api), *_trained(api)):
        found.setdefault(each.id, each)
    return reply(ModelList(data=tuple(found.values())))


@router.get(
    "/models/{model:path}",
    response_model=ModelObject,
    responses=errors(404),
    summary="Show a model",
)
def show_model(api: State, model: Annotated[str, Path(max_length=500)]) -> Response:
    """Says whether a name may be given as a model."""
    known = next((each for each in (*_warm(api), *_trained(api)) if each.id == model), None)
    if known is None:
        try:
            api.calls.model(model)
        except Refusal as refusal:
            if refusal.status != 400:  # such as one that gives vectors
                raise
        owner = model.partition("/")[0] if "/" in model else "mloc"
        known = ModelObject(id=model, created=0, owned_by=owner)
    return reply(known)


def _warm(api: ApiState) -> list[ModelObject]:
    """Returns the models of the hub that workers have loaded; others have no name of their own."""
    engine = api.fleet.engine_if_any()
    workers = () if engine is None else engine.workers()
    names = {
        key.partition(":")[2].rpartition("@")[0] for each in workers for key in each.warm_models
    }
    return [
        ModelObject(id=name, created=0, owned_by=name.partition("/")[0])
        for name in sorted(names)
        if name.count("/") == 1
    ]


def _trained(api: ApiState) -> list[ModelObject]:
    methods = [name for name, each in task_types().items() if issubclass(each.spec, TrainingSpec)]
    entries = [
        entry
        for method in methods
        for entry in api.ledger.list(
            TaskFilter(states=(TaskState.DONE,), task_type=method), limit=_LATEST
        )[0]
    ]
    entries.sort(key=lambda entry: entry.place, reverse=True)
    return [
        ModelObject(
            id=each.task_id,
            created=int((each.ended_at or each.submitted_at).timestamp()),
            owned_by=each.owner or each.template,
        )
        for each in entries[:_LATEST]
    ]
