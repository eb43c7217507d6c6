"""A template's tasks as assets of anybody's Dagster project."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import JsonValue

from mloc_dagster.assets.placement import Placement, prefix_of
from mloc_dagster.assets.template_job import task_assets
from mloc_dagster.compile import (
    CompiledTemplate,
    Document,
    Position,
    apply_sets,
    compile_document,
    load_documents,
    tree_of,
    with_rows,
    without_partitions,
)
from mloc_dagster.library import library_file
from mloc_dagster.ops import ROWS, known_source

Template = str | Path | Mapping[str, Any]
"""A file, a template of the library by its name, or a template as a mapping."""


def mloc_assets(
    template: Template,
    *,
    set: Mapping[str, Any] | None = None,
    deps: Iterable[dg.AssetKey | str | Sequence[str]] = (),
    rows_from: dg.AssetKey | str | Sequence[str] | None = None,
    key_prefix: str | Sequence[str] | None = None,
    group_name: str | None = None,
    partitions_def: dg.PartitionsDefinition | None = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    automation_condition: dg.AutomationCondition | None = None,
    freshness_policy: dg.FreshnessPolicy | None = None,
    owners: Sequence[str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> list[dg.AssetsDefinition]:
    """Builds the assets of a template: one for each of its tasks, with its checks.

    They depend on the data sets and models that they read: `mloc_sources` returns these. Their keys
    take no prefix, since templates of a project share them.

    They bring their IO manager along, under the key `mloc_io_manager`.

    Args:
        template: A file, the name of a template of the library, or a template as a mapping.
        set: Changes of it by path, such as `{"spec.inference.temperature": 0}`.
        deps: Assets that its first tasks wait for.
        rows_from: The asset whose rows its first task works on: a table of pyarrow, pandas or
            polars, a list of texts or of mappings, the path of a file, or an asset of mloc's.
        key_prefix: What the assets' keys start with.
        group_name: Their group; by default the template's name.
        partitions_def: Their partitions, instead of the template's own; `${partition_key}` in the
            template is the run's.
        backfill_policy: How many partitions a run of a backfill computes; one by default, and one
            is all that a template which names `${partition_key}` can.
        automation_condition: When they are materialized by themselves.
        freshness_policy: How old they may be.
        owners: Owners beside the template's.
        tags: Tags beside the template's labels.

    Raises:
        TemplateError: If the template is wrong; carries every finding.
        UnknownNameError: If it is neither a file nor in the library.
    """
    placement = Placement(
        key_prefix=prefix_of(key_prefix),
        group_name=group_name,
        deps=tuple(dg.AssetKey.from_coercible(each) for each in deps),
        rows_from=None if rows_from is None else dg.AssetKey.from_coercible(rows_from),
        partitions_def=partitions_def,
        backfill_policy=backfill_policy,
        automation_condition=automation_condition,
        freshness_policy=freshness_policy,
        owners=tuple(owners or ()),
        tags=dict(tags or {}),
    )
    compiled = compiled_templates(template, set or {}, placement)
    return [asset for each in compiled for asset in task_assets(each, placement)]


def mloc_sources(*assets: dg.AssetsDefinition) -> list[dg.AssetSpec]:
    """Returns the data sets and models that assets of mloc's read, as external assets, each once.

    The assets depend on them in any case; given to `dg.Definitions` as well, they have a group, a
    description and an address there. Several lists of them may name the same ones. One that the
    project makes by an asset of its own, under the same key, is to be left out.

    Args:
        assets: Of `mloc_assets`; those of several templates together.
    """
    keys = dict.fromkeys(
        dep.asset_key for each in assets for spec in each.specs for dep in spec.deps
    )
    found = map(known_source, keys)
    return [each for each in found if each is not None]


def compiled_templates(
    template: Template, set: Mapping[str, JsonValue], placement: Placement
) -> list[CompiledTemplate]:
    """Compiles every document of a template.

    Args:
        template: A file, the name of a template of the library, or a template as a mapping.
        set: Changes by path.
        placement: Says whether its runs each have a partition, and which asset holds the rows of
            its first task, whatever its `data` says.

    Raises:
        TemplateError: If it is wrong; carries every finding.
        UnknownNameError: If it is neither a file nor in the library.
    """
    if isinstance(template, Mapping):
        documents = [Document("template", tree_of(dict(template), Position("template")))]
    else:
        path = Path(template)
        documents = load_documents(path if path.exists() else library_file(str(template)))
    documents = [apply_sets(each, set) for each in documents]
    if placement.rows_from is not None:
        # Which file it is, a run knows.
        file = f"{ROWS}:{placement.rows_from.to_user_string()}"
        documents = [with_rows(each, file, "rows_from") for each in documents]
    partitioned = placement.partitions_def is not None
    if partitioned:
        documents = [without_partitions(each) for each in documents]
    found = [compile_document(each, partitioned=partitioned) for each in documents]
    for each in found:
        each.check_built()
    return found
