"""The fleet: long-lived workers on Redis, and the Dagster executor that uses them."""
