"""The fleet: long-lived workers on Celery and Redis, and the Dagster executor that uses them."""
