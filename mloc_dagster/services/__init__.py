"""What mloc runs on: the embedded PostgreSQL and the Dagster instance over it."""
