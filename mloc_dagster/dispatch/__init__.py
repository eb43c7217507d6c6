"""From accepted tasks to Dagster runs, and from ended runs back to the ledger."""
