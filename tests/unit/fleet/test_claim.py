"""A claim that somebody else may have taken while its process was paused."""

from __future__ import annotations

import pytest

from mloc_dagster.fleet.claims import Claim, StopReason, TicketState

LEASE_S = 10.0


class Fleet:
    """Says whether a claim is held, and how often it was asked."""

    def __init__(self) -> None:
        self.holds = True
        self.asked = 0

    def hear(self, claim: Claim, message: str, state: TicketState) -> bool:
        assert (message, state) == ("", TicketState.RUNNING)
        self.asked += 1
        return self.holds


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def claim(fleet: Fleet) -> Claim:
    return Claim("t", "run", "runs", "", 1, fleet.hear)


def test_a_claim_that_was_just_renewed_is_held_without_asking(fleet: Fleet, claim: Claim) -> None:
    assert claim.is_held(LEASE_S)
    assert fleet.asked == 0


def test_after_a_pause_of_a_lease_the_fleet_is_asked_once(fleet: Fleet, claim: Claim) -> None:
    claim.held_at -= LEASE_S
    assert claim.is_held(LEASE_S)
    assert claim.is_held(LEASE_S)
    assert fleet.asked == 1


def test_a_claim_that_was_taken_meanwhile_is_lost(fleet: Fleet, claim: Claim) -> None:
    fleet.holds = False
    claim.held_at -= LEASE_S
    assert not claim.is_held(LEASE_S)
    assert claim.reason is StopReason.LOST
    assert not claim.is_held(LEASE_S)
    assert fleet.asked == 1
