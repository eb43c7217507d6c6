"""Scores of what was found for rows, beside what should have been: recall, rank, precision.

Those over an order are computed by ir-measures, as trec_eval defines them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from mloc_dagster.results.citations import cited_numbers
from mloc_dagster.results.rows import OutputRow, Passage
from mloc_dagster.schema import passage_metric

_MEASURES = {"recall": "R", "precision": "P", "ndcg": "nDCG", "mrr": "RR", "map": "AP"}


def ids_of(value: object) -> frozenset[str]:
    """Returns the ids in a column's value: a list of them, one, or none."""
    several = cast("list[object]", value) if isinstance(value, list) else [value]
    return frozenset(str(each) for each in several if each is not None and str(each).strip())


def is_relevant(passage: Passage, relevant: Collection[str]) -> bool:
    """Tells whether these ids name a passage or its document."""
    return passage.id in relevant or passage.document in relevant


def ranked_ids(passages: Sequence[Passage], relevant: Collection[str]) -> list[str]:
    """Returns the ids of what was found, the best first, as the relevant ones name it.

    These are documents' ids where none of them is that of a passage: each document then stands
    where its first passage does.
    """
    ids = [each.id for each in passages]
    if not relevant or any(each in relevant for each in ids):
        return list(dict.fromkeys(ids))
    return list(dict.fromkeys(each.document or each.id for each in passages))


def passage_scores(
    metrics: Collection[str], rows: Sequence[tuple[Sequence[Passage], frozenset[str]]]
) -> list[Mapping[str, float | None]]:
    """Returns the scores of rows by metric; None where nothing is relevant.

    Args:
        metrics: Names such as `recall@5`.
        rows: What was found for each, and the ids of what should have been.
    """
    import ir_measures  # pyright: ignore[reportMissingTypeStubs]

    names = {_measure(ir_measures, each): each for each in metrics}
    wanted = [str(place) for place, (_, relevant) in enumerate(rows) if relevant]
    found: dict[str, dict[str, float | None]] = {each: {} for each in wanted}
    qrels = {each: dict.fromkeys(rows[int(each)][1], 1) for each in wanted}
    runs = {each: _run(*rows[int(each)]) for each in wanted}
    if wanted:
        calculated: Any = ir_measures.iter_calc(list(names), qrels, runs)  # pyright: ignore[reportUnknownMemberType]
        for each in calculated:
            found[each.query_id][names[each.measure]] = float(each.value)
    nothing: Mapping[str, float | None] = dict.fromkeys(metrics)
    return [found.get(str(place), nothing) for place in range(len(rows))]


def _measure(library: Any, metric: str) -> Any:
    known = passage_metric(metric)
    if known is None:
        raise ValueError(f"{metric!r} measures nothing that was found")
    name, places = known
    measure = getattr(library, _MEASURES[name])
    return measure if places is None else measure @ places


def _run(passages: Sequence[Passage], relevant: frozenset[str]) -> dict[str, float]:
    # Places, and not scores: of equal scores trec_eval would make an order of its own.
    ids = ranked_ids(passages, relevant)
    return {each: float(len(ids) - place) for place, each in enumerate(ids)}


def citation_precision(row: OutputRow, relevant: frozenset[str]) -> float | None:
    """Returns the share of an answer's citations whose passage is relevant; None without any.

    One of a passage that there was not is none that is relevant.
    """
    numbers = cited_numbers(row.output)
    if row.citations is None or not numbers or not relevant:
        return None
    passages = {n for n, each in enumerate(row.retrieved or (), 1) if is_relevant(each, relevant)}
    return sum(n in passages for n in numbers) / len(numbers)
