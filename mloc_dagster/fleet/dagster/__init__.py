"""What Dagster sees of the fleet: executor, run launcher, and the loop of a run."""
