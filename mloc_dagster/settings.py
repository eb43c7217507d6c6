"""Every `MLOC_*` variable, once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where mloc keeps its state, and what it talks to. Read from the environment."""

    model_config = SettingsConfigDict(
        env_prefix="MLOC_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    home: Path = Path(".mloc")
    """Folder of everything that is state and not a result: database, logs."""

    results_url: str = Field(
        default="results", validation_alias=AliasChoices("MLOC_RESULTS_URL", "RESULTS_DIR")
    )
    """Where results go: a folder, or any fsspec URL such as `s3://bucket/prefix`."""

    postgres_url: str | None = None
    """PostgreSQL for Dagster's storage; without it the embedded one under `home` is used."""

    templates_dir: Path | None = None
    """The template library; by default `templates/` of the checkout or of the package."""

    flush_rows: int = Field(default=256, ge=1)
    """Rows a shard may hold back before it writes them."""

    flush_interval_s: float = Field(default=2.0, gt=0)
    """Seconds a finished row may wait before it is written."""

    max_cached_models: int = Field(default=1, ge=1)
    """Models one process keeps loaded between shards."""

    trust_remote_code: bool = False
    """Whether a template may ask for code that comes with a model's weights."""


@cache
def settings() -> Settings:
    """Returns the process's settings, read on the first call."""
    return Settings()
