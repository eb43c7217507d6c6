"""Search by words: an index of BM25 for each version, kept as files on the results store.

A token is a word in lower case; of writing without spaces, such as Chinese, each pair of neighbours
is one. No language has to be named.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mloc_dagster.errors import DataError, MissingExtraError
from mloc_dagster.index.files import index_folder
from mloc_dagster.results import Folder, Passage
from mloc_dagster.schema import Index

_SPACELESS = (
    "\u3040-\u30ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese
    "\u0e00-\u0e7f"  # Thai
)
_RUNS = re.compile(rf"[{_SPACELESS}]+|(?:(?![{_SPACELESS}])\w)+")
_SPACELESS_RUN = re.compile(rf"[{_SPACELESS}]+")

_KEPT = 4
"""Versions that a process keeps in memory."""

_ABOUT = "keywords.json"


class _About(msgspec.Struct, frozen=True):
    """What the files of a version are.

    Attributes:
        digest: Of its ids, in order: another one is another index.
        files: Their names.
    """

    digest: str
    files: list[str]


class _Searcher(msgspec.Struct):
    digest: str
    ids: list[str]
    places: dict[str, int]
    bm25: Any


_LOADED: OrderedDict[str, _Searcher] = OrderedDict()


def tokens(text: str) -> list[str]:
    """Returns the tokens of a text, in order."""
    found: list[str] = []
    for run in _RUNS.findall(text.lower()):
        if len(run) > 1 and _SPACELESS_RUN.fullmatch(run):
            found += [run[place : place + 2] for place in range(len(run) - 1)]
        else:
            found.append(run)
    return found


def write_keywords(index: Index, version: int, passages: Iterable[Passage]) -> None:
    """Makes a version searchable by words; done again, it writes the same.

    Texts are read one by one; in memory there are their tokens, as numbers.

    Args:
        index: The index.
        version: The version.
        passages: All its chunks, as `OpenIndex.texts` gives them.

    Raises:
        MissingExtraError: If bm25s is not installed.
    """
    bm25s = _bm25s()
    ids: list[str] = []
    vocabulary: dict[str, int] = {}
    corpus: list[Any] = []
    digest = hashlib.sha256()
    for passage in passages:
        ids.append(passage.id)
        digest.update(passage.id.encode() + b"\n")
        corpus.append(_numbers(passage.text, vocabulary))
    folder = _folder(index, version)
    names: list[str] = []
    if vocabulary:
        bm25 = bm25s.BM25()
        bm25.index((corpus, vocabulary), show_progress=False)
        with tempfile.TemporaryDirectory(prefix="mloc-") as kept:
            bm25.save(kept, show_progress=False)
            for path in sorted(Path(kept).iterdir()):
                folder.write_bytes(path.name, path.read_bytes())
                names.append(path.name)
    folder.write_bytes("ids.json", msgspec.json.encode(ids))
    # Last of all: without it there are no keywords.
    folder.write_bytes(_ABOUT, msgspec.json.encode(_About(digest.hexdigest(), names)))


def search_keywords(
    index: Index,
    version: int,
    texts: Sequence[str],
    k: int,
    allowed: Collection[str] | None = None,
) -> list[list[tuple[str, float]]]:
    """Returns for each text the chunks of a version whose words fit best, with their scores.

    Args:
        index: The index.
        version: The version.
        texts: What is searched.
        k: How many for each at most; those that share no word with the text are left out.
        allowed: Ids of the chunks that may be found; None for all.

    Raises:
        DataError: If the version has no keywords.
        MissingExtraError: If bm25s is not installed.
    """
    import numpy as np

    searcher = _searcher(index, version)
    if searcher.bm25 is None:
        return [[] for _ in texts]
    mask = None
    if allowed is not None:
        mask = np.zeros(len(searcher.ids), dtype=bool)
        mask[[searcher.places[each] for each in allowed if each in searcher.places]] = True
    return [_best(searcher, tokens(text), k, mask) for text in texts]


def delete_keywords(index: Index, versions: Collection[int] | None = None) -> None:
    """Removes the files of versions.

    Args:
        index: The index.
        versions: Which; None for all of them.
    """
    parent = index_folder(index, "keywords")
    for each in keyword_versions(index) if versions is None else versions:
        parent.delete(str(each))


def keyword_versions(index: Index) -> list[int]:
    """Returns the versions that have keywords."""
    found = index_folder(index, "keywords").list()
    return sorted(int(each) for each in found if each.isdigit())


def _best(searcher: _Searcher, words: Sequence[str], k: int, mask: Any) -> list[tuple[str, float]]:
    import numpy as np

    vocabulary = searcher.bm25.vocab_dict
    # A word that is asked for twice counts twice, as in a text.
    known = [vocabulary[each] for each in words if each in vocabulary]
    if not known:
        return []
    scores = searcher.bm25.get_scores_from_ids(known)
    if mask is not None:
        scores = np.where(mask, scores, 0)
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        least = np.partition(scores[found], len(found) - k)[len(found) - k]
        found = found[scores[found] >= least]
    # Places are in order of id, so that equal scores are as well.
    order = found[np.lexsort((found, -scores[found]))][:k]
    return [(searcher.ids[place], float(scores[place])) for place in order]


def _searcher(index: Index, version: int) -> _Searcher:
    bm25s = _bm25s()
    folder = _folder(index, version)
    try:
        about = msgspec.json.decode(folder.read_bytes(_ABOUT), type=_About)
    except FileNotFoundError as error:
        raise DataError(
            f"version {version} of the index {index.name!r} has no keywords; an `index` task that"
            " publishes a version writes them"
        ) from error
    known = _LOADED.pop(folder.url, None)
    if known is None or known.digest != about.digest:
        known = _load(bm25s, folder, about)
    _LOADED[folder.url] = known
    while len(_LOADED) > _KEPT:
        _LOADED.popitem(last=False)
    return known


def _load(bm25s: Any, folder: Folder, about: _About) -> _Searcher:
    ids = msgspec.json.decode(folder.read_bytes("ids.json"), type=list[str])
    bm25 = None
    if about.files:
        with tempfile.TemporaryDirectory(prefix="mloc-") as kept:
            for name in about.files:
                Path(kept, name).write_bytes(folder.read_bytes(name))
            bm25 = bm25s.BM25.load(kept)
    return _Searcher(about.digest, ids, {id: place for place, id in enumerate(ids)}, bm25)


def _numbers(text: str, vocabulary: dict[str, int]) -> Any:
    import numpy as np

    found = (vocabulary.setdefault(each, len(vocabulary)) for each in tokens(text))
    return np.fromiter(found, dtype=np.int32)


def _folder(index: Index, version: int) -> Folder:
    parent = index_folder(index, "keywords")
    return parent.store.folder(f"{parent.name}/{version}")


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError("searching by words", "rag") from error
    return bm25s
