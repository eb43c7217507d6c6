"""Dagster's pools without their waits: a step that may go on learns so within a second."""

from __future__ import annotations

from dagster import DagsterInstance
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext


def ask_again(active: ActiveExecution, instance: DagsterInstance, run_id: str) -> None:
    """Lets those waiting steps ask for a slot at once that a pool keeps one for.

    By themselves they ask at intervals that grow to fifteen seconds, and the slot that is kept for
    one of them stays empty until then.
    """
    slots = active._instance_concurrency_context  # noqa: SLF001
    if slots is None or not slots.has_pending_claims():
        return
    pools = {active.get_step_by_key(each).pool for each in slots.pending_claim_steps()}
    for pool in pools - {None}:
        for step in instance.event_log_storage.get_concurrency_info(str(pool)).pending_steps:
            if step.run_id == run_id and step.assigned_timestamp is not None:
                slots._pending_timeouts[step.step_key] = 0.0  # noqa: SLF001


def free_ended(slots: InstanceConcurrencyContext, active: ActiveExecution) -> None:
    """Frees what steps of this run hold that have ended.

    A run worker may die after it wrote how a step ended and before it freed the step's slot, which
    nobody else would ever free.
    """
    run_id, storage = slots._run_id, slots._instance.event_log_storage  # noqa: SLF001
    known = active._success | active._failed | set(active.retry_state.snapshot_attempts())  # noqa: SLF001
    ended = known - active._in_flight  # noqa: SLF001
    pools = {active.get_step_by_key(each).pool for each in ended}
    for pool in pools - {None}:
        for slot in storage.get_concurrency_info(str(pool)).claimed_slots:
            if slot.run_id == run_id and slot.step_key in ended:
                storage.free_concurrency_slot_for_step(run_id, slot.step_key)
