"""An example of a Dagster project with a template of mloc."""
