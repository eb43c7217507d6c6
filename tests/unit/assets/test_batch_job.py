"""The job of small tasks beside the library's: Dagster loads a code location as a whole."""

from __future__ import annotations

import dagster as dg

from mloc_dagster.assets.template_job import JOB, batch_run_config
from mloc_dagster.definitions import defs


def test_it_is_in_a_code_location_that_loads() -> None:
    repository = defs().get_repository_def()
    repository.load_all_definitions()
    job = repository.get_job(JOB)
    assert dg.validate_run_config(job, batch_run_config("some-batch"))
    assert dg.AssetKey([JOB]) in repository.asset_graph.get_all_asset_keys()
