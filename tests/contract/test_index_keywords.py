"""Search by words."""

from __future__ import annotations

import pytest

from mloc_dagster.errors import DataError
from mloc_dagster.index import (
    delete_keywords,
    keyword_versions,
    search_keywords,
    tokens,
    write_keywords,
)
from mloc_dagster.results import Passage
from mloc_dagster.schema import Index

pytest.importorskip("bm25s")

_INDEX = Index(name="handbook")


def _passages(**texts: str) -> list[Passage]:
    return [Passage(id=id, text=text) for id, text in sorted(texts.items())]


def _ids(version: int, text: str, k: int = 5, allowed: list[str] | None = None) -> list[str]:
    (found,) = search_keywords(_INDEX, version, [text], k, allowed)
    return [id for id, _ in found]


def test_words_are_tokens_and_so_are_neighbours_in_chinese() -> None:
    assert tokens("The GPU's 80GB, 黑豹队 v2!") == ["the", "gpu", "s", "80gb", "黑豹", "豹队", "v2"]
    assert tokens("我 a中b") == ["我", "a", "中", "b"]
    assert tokens("— …") == []


def test_the_best_words_come_first_and_others_not_at_all() -> None:
    write_keywords(
        _INDEX, 1, _passages(a="cats and dogs", b="cats cats cats", c="黑豹队的防守", d="")
    )
    assert _ids(1, "cats") == ["b", "a"]
    assert _ids(1, "黑豹") == ["c"]
    assert _ids(1, "nothing like it") == []
    assert _ids(1, "") == []
    assert _ids(1, "cats", 1) == ["b"]
    assert _ids(1, "cats", 5, ["a", "c", "unknown"]) == ["a"]
    assert _ids(1, "cats", 5, []) == []


def test_equal_scores_stand_in_order_of_id() -> None:
    write_keywords(_INDEX, 1, _passages(**{f"c{n}": "same text" for n in range(9)}))
    assert _ids(1, "text", 3) == ["c0", "c1", "c2"]


def test_a_version_that_was_written_anew_is_read_anew() -> None:
    write_keywords(_INDEX, 1, _passages(a="old"))
    write_keywords(_INDEX, 2, _passages(a="old", b="older"))
    assert _ids(1, "old") == ["a"]
    write_keywords(_INDEX, 1, _passages(z="old"))
    assert _ids(1, "old") == ["z"]
    assert _ids(2, "older") == ["b"]


def test_a_version_without_words_finds_nothing() -> None:
    write_keywords(_INDEX, 1, _passages(a="…"))
    write_keywords(_INDEX, 2, [])
    assert (_ids(1, "a"), _ids(2, "a")) == ([], [])


def test_removed_versions_have_no_keywords() -> None:
    other = Index(name="handbook", engine="lancedb")
    for version in (1, 2, 3):
        write_keywords(_INDEX, version, _passages(a="x"))
    write_keywords(other, 1, _passages(a="x"))
    delete_keywords(_INDEX, [1])
    assert keyword_versions(_INDEX) == [2, 3]
    with pytest.raises(DataError, match="version 1 of the index 'handbook' has no keywords"):
        _ids(1, "x")
    delete_keywords(_INDEX)
    assert (keyword_versions(_INDEX), keyword_versions(other)) == ([], [1])
