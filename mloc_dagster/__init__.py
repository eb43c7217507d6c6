"""mloc: an LLM task platform on Dagster. One YAML template in, results out."""

__version__ = "0.1.0"
