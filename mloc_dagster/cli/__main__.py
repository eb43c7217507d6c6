"""`python -m mloc_dagster.cli` is `mloc`."""

from mloc_dagster.cli import main

main()
