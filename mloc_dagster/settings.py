"""Every `MLOC_*` variable, once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mloc_dagster.errors import InputError, nearest_hint
from mloc_dagster.plugins import ENGINES_GROUP, entry_points

_PREFIX = "MLOC_"


def _listed(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(each for each in (part.strip() for part in value.split(",")) if each)


def _octal(value: object) -> object:
    try:
        return int(value, 8) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("it should be an octal number such as 027") from None


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
"""Several names in one variable, with commas between them."""

_CREDENTIALS = "credentials"
"""Marks settings that open one of mloc's own services: no task may have them sent anywhere."""

_Folders = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """Where mloc keeps its state, and what it talks to. Read from the environment."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    home: Path = Path(".mloc")
    """Folder of everything that is state and not a result: database, logs."""

    umask: Annotated[int, BeforeValidator(_octal)] = Field(default=0o077, ge=0, le=0o777)
    """Rights that nobody has on what `mloc` writes, in octal: state, logs, results. With 077 all of
    it is its owner's alone, with 027 the group may read it."""

    results_url: str = Field(
        default="results", validation_alias=AliasChoices("MLOC_RESULTS_URL", "RESULTS_DIR")
    )
    """Where results go: a folder, or any fsspec URL such as `s3://bucket/prefix`."""

    postgres_url: Annotated[str | None, _CREDENTIALS] = None
    """PostgreSQL for Dagster's storage; without it the embedded one under `home` is used."""

    redis_url: Annotated[str | None, _CREDENTIALS] = None
    """Redis for the fleet and its events; `mloc up` starts an embedded one without it."""

    worker_redis_url: Annotated[str | None, _CREDENTIALS] = None
    """The same Redis as the workers of `mloc up` reach it, as a user with fewer rights; with the
    embedded one they have such a user anyway."""

    worker_postgres_url: Annotated[str | None, _CREDENTIALS] = None
    """The same PostgreSQL as the workers of `mloc up` reach it, as a role without rights on tables
    themselves; with the embedded one they have such a role anyway."""

    templates_dir: Path | None = None
    """The template library; by default `templates/` of the checkout or of the package."""

    templates_path: str = ""
    """More folders of the library, as `PATH` has them: the first one that has a name wins."""

    max_stages: int = Field(default=64, ge=1, le=256)
    """Stages or graph nodes that one template may have: the job of each is built from all."""

    flush_rows: int = Field(default=256, ge=1)
    """Rows a shard may hold back before it writes them."""

    flush_interval_s: float = Field(default=2.0, gt=0)
    """Seconds a finished row may wait before it is written."""

    run_note_interval_s: float = Field(default=10.0, ge=0)
    """Seconds between the notes that a shard leaves in its run's log on how far it is."""

    interactive_share: float = Field(default=0.5, gt=0, le=1)
    """Share of an engine that requests somebody waits for take at most while rows of a shard wait:
    of the rows computed at once on vLLM, of the time on transformers."""

    engine: str = "auto"
    """Engine of templates that name none; `auto` is vLLM where it can run, else transformers."""

    @field_validator("engine")
    @classmethod
    def _registered(cls, name: str) -> str:
        if name != "auto":
            known = entry_points(group=ENGINES_GROUP).names
            if name not in known:
                raise ValueError(f"unknown engine{nearest_hint(name, {*known, 'auto'})}")
        return name

    max_cached_models: int = Field(default=1, ge=1)
    """Models one process keeps loaded between shards; with `cache_bytes` alone, all that fit."""

    cache_bytes: int = Field(default=0, ge=0)
    """Bytes of loaded models one process may keep, least recently used evicted; 0 is no limit."""

    sleeping_bytes: int | None = Field(default=None, ge=0)
    """Main memory in which one process keeps models that left their GPU to make room and can be
    woken (`model.vllm.enable_sleep_mode`); by default a quarter of this worker's share of the
    machine, 0 unloads them instead."""

    row_cache_bytes: int = Field(default=0, ge=0)
    """Bytes of answers kept for later tasks (`spec.reuse`), the oldest go first; 0 is no limit."""

    image_max_bytes: int = Field(default=20_000_000, ge=1)
    """Bytes of the largest image file that a row may name or carry."""

    image_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that fetching one image may take, every attempt included."""

    image_private_addresses: bool = True
    """Whether `http` images may lie at private and loopback addresses; never at link-local ones."""

    destination_private_addresses: bool = True
    """Whether a worker may send results to private and loopback addresses over HTTP; never to
    link-local ones. Tasks that came in over the API obey `api_private_addresses` as well."""

    serper_url: str = "https://google.serper.dev/search"
    """Where agents' tool `search` asks Serper, with `SERPER_API_KEY`."""

    jina_url: str = "https://s.jina.ai/"
    """Where agents' tool `search` asks Jina, with `JINA_API_KEY`."""

    api_url: str | None = None
    """Where commands and clients find the API; by default that of this home's stack."""

    api_host: str = "127.0.0.1"
    """Address that the API listens on; give it a token before it is one that others reach."""

    api_port: int = Field(default=8000, ge=1, le=65535)
    """Port of the API."""

    allowed_hosts: Names = ()
    """Names by which the API and Dagster's UI may be called, with commas between them, beside
    `localhost`, loopback addresses and the address they listen on; `*` is any name."""

    api_allowed_origins: Names = ()
    """Origins whose web pages may use the API beside its own, such as `https://tools.example.org`,
    with commas between them."""

    api_token: Annotated[SecretStr | None, _CREDENTIALS] = None
    """What the API's callers give as `Authorization: Bearer`; without one it asks nobody."""

    api_token_file: Annotated[Path | None, _CREDENTIALS] = None
    """A file of tokens, one a line, read anew when it changes; any of them opens the API."""

    api_private_addresses: bool = False
    """Whether templates that come in over the API may name private and loopback addresses in any
    HTTP URL; never link-local ones. The workers obey it as well."""

    api_data_roots: _Folders = ()
    """Folders, separated by commas, whose files a template that comes in over the API may name,
    links followed; by default only files that are sent along, the template library and results.
    The workers obey it as well."""

    api_variables: Names = ()
    """Variables of the workers' environment, separated by commas, that a template that comes in
    over the API may put into `output.destination` as `${NAME}`; by default none. Set it where the
    API and where the workers start."""

    api_endpoints: Names = ()
    """Endpoints, separated by commas, that a template that comes in over the API may name in
    `model.source.base_url`, by default none; private and loopback addresses, too. With
    `=VARIABLE` behind it, such as `https://api.openai.com/v1=OPENAI_API_KEY`, the workers take the
    key from there for any task whose template has none. Set it where the API and where the
    workers start."""

    api_index_urls: Names = ()
    """What a template that comes in over the API may name in `index.url` besides HTTP addresses:
    databases, buckets and folders, separated by commas, by default none. Set it where the API and
    where the workers start."""

    api_options: Names = ()
    """Options, separated by commas, that a template that comes in over the API may set besides
    those that can neither run code nor read files: `model.vllm.hf_overrides`,
    `training.report_to`. Set it where the API and where the workers start."""

    api_tools: Names = ("calculator", "lookup")
    """What templates that come in over the API may have workers run for an agent, separated by
    commas: entry points, and MCP servers by their whole command (`uvx mcp-server-time`). Set it
    where the API and where the workers start."""

    api_max_body_bytes: int = Field(default=5_000_000, ge=1)
    """Bytes of the largest request that is no upload and no result; no template may have more."""

    api_max_upload_bytes: int = Field(default=1 << 30, ge=1)
    """Bytes of the largest request with files."""

    api_max_result_bytes: int = Field(default=64_000_000, ge=1)
    """Bytes of the largest result document that is posted; it is checked in memory."""

    api_max_rows: int = Field(default=100_000, ge=1)
    """Rows that one request may carry in its templates; data files may have any number."""

    api_max_documents: int = Field(default=1_000, ge=1)
    """Templates that one request may carry."""

    api_max_streams: int = Field(default=200, ge=1)
    """Live logs that the API serves at a time."""

    api_max_calls: int = Field(default=256, ge=1)
    """Chats and other requests of OpenAI's API that are answered at a time; 429 beyond."""

    api_max_connections: int = Field(default=1_000, ge=1)
    """Connections that the API holds at a time; it answers 503 beyond."""

    api_patience_s: float = Field(default=30.0, gt=0)
    """Seconds that a client may take for its headers, for each pause in its body, and for each
    256 KiB of an answer, before the API hangs up."""

    webserver_port: int = Field(default=3000, ge=1, le=65535)
    """Port of Dagster's UI under `mloc up`."""

    webserver_host: str = "127.0.0.1"
    """Address that Dagster's UI listens on under `mloc up`; it asks nobody for a password."""

    bind_host: str = "127.0.0.1"
    """Address that the embedded Redis and PostgreSQL listen on; workers elsewhere need another."""

    redis_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the embedded Redis; by default a free one, and the same one next time."""

    postgres_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the embedded PostgreSQL; by default a free one, and the same one next time."""

    run_slots: int = Field(default=32, ge=1)
    """Runs that one run worker carries at a time: they mostly wait for their shards."""

    max_concurrent_runs: int | None = Field(default=None, ge=-1)
    """Runs in progress at a time, the others wait in Dagster's queue, where their priority counts;
    by default as many as the run workers can carry, -1 is no limit."""

    heartbeat_ttl_s: float = Field(default=120.0, gt=0)
    """Seconds after its last heartbeat until a worker counts as lost."""

    lease_ttl_s: float = Field(default=10.0, ge=1)
    """Seconds a worker may be silent before its shard goes to another one."""

    stall_timeout_s: float = Field(default=900.0, gt=0)
    """Seconds a shard may show no sign of life before its worker is given up."""

    drain_grace_s: float = Field(default=10.0, ge=0)
    """Seconds a stopping worker lets its shard go on before it gives the rest back."""

    unsatisfiable_timeout_s: float = Field(default=600.0, ge=0)
    """Seconds a shard waits for a worker that could take it before its task fails."""

    worker_name: str | None = None
    """Name of this machine's workers; by default the host's."""

    machine_share: int = Field(default=1, ge=1)
    """Workers among which this machine's cores and memory are divided; GPUs each has its own."""

    fake_hardware: str | None = None
    """What hardware detection returns instead of the truth: JSON of `fleet.hardware.Hardware`."""

    trust_remote_code: bool = False
    """Whether a template may ask for code that comes with a model's weights."""

    allow_pickle: bool = False
    """Whether local models, adapters and checkpoints may have pickled weights (`.bin`, `.pt`),
    which can run any code when they are loaded; without it they must be safetensors."""


def credential_variables() -> frozenset[str]:
    """Returns the variables that open one of mloc's own services."""
    fields = Settings.model_fields.items()
    names = [name for name, field in fields if _CREDENTIALS in field.metadata]
    return frozenset(f"{_PREFIX}{name.upper()}" for name in names)


@cache
def settings() -> Settings:
    """Returns the process's settings, read on the first call.

    Raises:
        InputError: If a variable has a value that it cannot have; names each.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise InputError("\n".join(_findings(error))) from error


def _findings(error: ValidationError) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        variable = _PREFIX + str(detail["loc"][0]).upper().removeprefix(_PREFIX)
        message = detail["msg"].removeprefix("Value error, ")
        yield f"{variable} is {detail['input']!r}: {message[:1].lower()}{message[1:]}"
