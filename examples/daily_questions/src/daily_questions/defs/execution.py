"""How runs are computed: in one process, which loads a model once; on mloc's fleet with Redis."""

import dagster as dg

import mloc


@dg.definitions
def execution() -> dg.Definitions:
    """Gives every job of the project mloc's executor."""
    return dg.Definitions(executor=mloc.mloc_executor())
