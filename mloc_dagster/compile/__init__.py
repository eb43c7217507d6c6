"""YAML → typed tasks: load, merge, normalise, check. Knows neither Dagster nor Redis."""
