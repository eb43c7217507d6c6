"""Rows of a task are of one state of its model, unless somebody wants it otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.errors import InputError
from mloc_dagster.planning import Shard
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.shard_files import ANSWERING_NAME, ShardWriter, keep_to_model
from mloc_dagster.results.store import Folder, open_store


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_store(str(tmp_path)).task("t")


def compute_a_row(folder: Folder) -> None:
    with ShardWriter(
        folder,
        Shard(task_id="t", index=0, total=1, start=0, stop=2),
        1,
        flush_rows=9,
        flush_interval_s=60,
    ) as out:
        out.write(OutputRow(0, "p", "a"))


def test_another_state_is_refused_with_the_choice(folder: Folder) -> None:
    keep_to_model(folder, "sha256:one", accept_changed=False)
    compute_a_row(folder)
    keep_to_model(folder, "sha256:one", accept_changed=False)
    with pytest.raises(
        InputError, match="of sha256:one, and what is there now is sha256:two"
    ) as no:
        keep_to_model(folder, "sha256:two", accept_changed=False)
    assert "mloc run --resume t --fresh" in str(no.value)
    assert "--accept-changed-model" in str(no.value)


def test_a_state_that_was_accepted_is_the_one_from_then_on(folder: Folder) -> None:
    keep_to_model(folder, "sha256:one", accept_changed=False)
    compute_a_row(folder)
    keep_to_model(folder, "sha256:two", accept_changed=True)
    keep_to_model(folder, "sha256:two", accept_changed=False)
    with pytest.raises(InputError):
        keep_to_model(folder, "sha256:one", accept_changed=False)
    assert b'"earlier":["sha256:one"]' in folder.read_bytes(ANSWERING_NAME)


def test_a_task_without_rows_may_begin_with_any_state(folder: Folder) -> None:
    keep_to_model(folder, "sha256:one", accept_changed=False)
    keep_to_model(folder, "sha256:two", accept_changed=False)
    assert b"sha256:two" in folder.read_bytes(ANSWERING_NAME)


def test_a_damaged_note_is_named(folder: Folder) -> None:
    folder.write_bytes(ANSWERING_NAME, b'{"revi')
    with pytest.raises(InputError, match=r"model\.json is damaged"):
        keep_to_model(folder, "sha256:one", accept_changed=False)
