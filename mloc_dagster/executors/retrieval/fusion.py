"""Two orders of chunks as one: reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009)."""

from __future__ import annotations

from collections.abc import Sequence

Scored = Sequence[tuple[str, float]]
"""Ids with their scores, in any order: the higher, the better."""


def ranked(scored: Scored) -> list[tuple[str, float]]:
    """Returns ids with their scores, the best first; equal ones in the order of their ids."""
    return sorted(scored, key=lambda each: (-each[1], each[0]))


def fused(orders: Sequence[Scored], rrf_k: int) -> list[tuple[str, float]]:
    """Returns the ids of all orders, each with the sum of 1 / (rrf_k + its rank) over them.

    Args:
        orders: What each way has found.
        rrf_k: What is added to each rank; ranks count from 1.
    """
    sums: dict[str, float] = {}
    for order in orders:
        for rank, (name, _) in enumerate(ranked(order), start=1):
            sums[name] = sums.get(name, 0.0) + 1 / (rrf_k + rank)
    return ranked([(name, round(each, 12)) for name, each in sums.items()])
