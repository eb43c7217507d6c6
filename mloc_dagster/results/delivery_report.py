"""What a delivery says of itself."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class DeliveredItem(BaseModel):
    """One file that arrived.

    Attributes:
        name: The file, below the task's folder.
        target: Where it went; environment references and passwords are not filled in.
        size: Bytes.
        attempts: Tries that it took.
        idempotency_key: By which the receiver knows it again; None for a copy on the store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    target: str
    size: int
    attempts: int = 1
    idempotency_key: str | None = None


class DeliveryReport(BaseModel):
    """What arrived.

    Attributes:
        items: In the order of sending; empty when the destination is the task's own folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: tuple[DeliveredItem, ...] = ()
