"""Templates as Dagster assets, checks, jobs and schedules."""
