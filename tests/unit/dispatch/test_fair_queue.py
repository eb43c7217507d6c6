"""Whose work is next."""

from __future__ import annotations

from mloc_dagster.dispatch.launch import FairQueue


def taken(queue: FairQueue[str]) -> list[str]:
    found: list[str] = []
    while (item := queue.take()) is not None:
        found.append(item)
    return found


def test_one_owners_many_items_do_not_come_before_anothers_first() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(3):
        queue.add(f"large {number}", owner="many", cost=64)
    assert queue.take() == "large 0"
    queue.add("small", owner="few", cost=1)
    queue.add("small too", owner="few", cost=1)
    assert taken(queue) == ["small", "small too", "large 1", "large 2"]


def test_who_waited_for_nobody_has_no_debt() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("large", owner="one", cost=64)
    assert taken(queue) == ["large"]
    queue.add("first", owner="one", cost=1)
    queue.add("second", owner="two", cost=1)
    assert taken(queue) == ["first", "second"]
    assert queue.take() is None


def test_shares_are_equal_whatever_an_item_costs() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(2):
        queue.add(f"a{number}", owner="a", cost=3)
    for number in range(6):
        queue.add(f"b{number}", owner="b", cost=1)
    assert taken(queue) == ["a0", "b0", "b1", "b2", "a1", "b3", "b4", "b5"]
