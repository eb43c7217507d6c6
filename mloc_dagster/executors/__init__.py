"""Task executors: what turns the rows of one shard into results. Knows no Dagster."""
