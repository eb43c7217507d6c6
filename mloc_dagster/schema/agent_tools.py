"""The tools of an agent, as a template lists them: what each is, and what its calls change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    JsonValue,
    SecretStr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from mloc_dagster.schema.base import Block, Memory, Name
from mloc_dagster.schema.index import FilterValue, Index, Search
from mloc_dagster.schema.markers import Code, FileRef, Host, LibraryOptions, Path, Url

Effect = Literal["read", "idempotent", "write"]
"""What a call changes: nothing; the same thing however often it is made; more each time."""

SearchProvider = Literal["serper", "jina", "duckduckgo"]

HttpMethod = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]

_READING: frozenset[HttpMethod] = frozenset({"GET", "HEAD"})
_KINDS = ("python", "mcp", "search", "rag", "http", "entry_point")
_HOST = re.compile(
    r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?"
)


TOOL_SECRETS: Mapping[str, object] = MappingProxyType({"secrets": "tools"})
"""The context of a dump for the process that opens the tools: their secrets stand in it."""


def _some[T](value: tuple[T, ...] | None) -> tuple[T, ...] | None:
    # Not by min_length: pydantic would say of a list with one wrong item that it is too short, too.
    if value == ():
        raise ValueError("name at least one, or leave the field out")
    return value


class PythonTool(Block):
    """Runs Python code in a sandbox without network, files or anything of the machine."""

    memory: Memory = 256 * 1024**2
    """Memory that one call may take."""

    seconds: float = Field(default=10.0, gt=0, le=600)
    """Seconds that one call may take."""


class McpTool(Block):
    """Tools of an MCP server: a program that the worker starts, or one at a URL."""

    command: Annotated[tuple[str, ...] | None, AfterValidator(_some), Code()] = None
    """The program and its arguments; it runs as long as the worker has the task."""

    env: Annotated[Mapping[str, SecretStr], LibraryOptions(lambda path, value: False)] = Field(
        default_factory=dict
    )
    """Variables of the program; beside these it gets `PATH`, `HOME` and little more. Take secrets
    from the worker's environment: `${MY_TOKEN}`."""

    url: Annotated[str, Url()] | None = Field(default=None, pattern=r"^(https?://[^\s/]+|\$\{)")
    """Where a server listens that speaks streamable HTTP."""

    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Sent with each request; take secrets from the environment: `Bearer ${MY_TOKEN}`."""

    allow: Annotated[tuple[str, ...] | None, AfterValidator(_some)] = None
    """The server's tools that the model may call, by the server's names; by default all."""

    @field_serializer("env", "headers", mode="wrap")
    def _for_its_process(
        self,
        value: Mapping[str, SecretStr],
        masked: SerializerFunctionWrapHandler,
        info: SerializationInfo,
    ) -> Mapping[str, object]:
        if info.context is not TOOL_SECRETS:
            return masked(value)
        return {name: each.get_secret_value() for name, each in value.items()}

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        if (self.command is None) == (self.url is None):
            given = "both are given" if self.command is not None else "neither is given"
            raise ValueError(f"an MCP server has either a command or a url: {given}")
        if self.command is not None and self.headers:
            raise ValueError("headers are for a server with a url; a command has env")
        if self.url is not None and self.env:
            raise ValueError("env is for a server with a command; a url has headers")
        return self


class SearchTool(Block):
    """Searches the web."""

    provider: SearchProvider
    """Who searches: `serper` needs `SERPER_API_KEY` in the worker's environment, `jina` needs
    `JINA_API_KEY`, `duckduckgo` needs no key."""

    max_results: int = Field(default=5, ge=1, le=50)
    """Results of one search."""


class RagTool(Block):
    """Finds passages in an index that was built before, with the model that built it."""

    index: Name
    """The index."""

    engine: str = "pgvector"
    """Its engine, as in `index.engine`."""

    url: Annotated[str | None, Url(database=True)] = None
    """Where it is, as in `index.url`."""

    api_key: SecretStr | None = None
    """As in `index.api_key`."""

    top_k: int = Field(default=5, ge=1, le=50)
    """Passages of one call."""

    mode: Literal["dense", "keyword", "hybrid"] = "dense"
    """By meaning, by words (which loads no model), or both."""

    filter: Mapping[str, FilterValue] = Field(default_factory=dict)
    """What the payload of a passage has to hold, as in `search.filter`."""

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        _ = self.place
        return self

    @property
    def place(self) -> Index:
        """The index, as a template's block of that name."""
        try:
            return Index(engine=self.engine, name=self.index, url=self.url, api_key=self.api_key)
        except ValidationError as error:
            said = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise ValueError(said.removeprefix("Value error, ")) from None

    @property
    def search(self) -> Search:
        """How it is searched, as a template's block of that name."""
        return Search(mode=self.mode, top_k=self.top_k, filter=self.filter)


class HttpTool(Block):
    """Sends HTTP requests to the hosts of a list."""

    allow: Annotated[tuple[Annotated[str, Host()], ...], AfterValidator(_some)]
    """Hosts: `api.example.org`, `*.example.org` for any below it, `api.example.org:8080` for
    another port than the usual one. Redirects lead to these only."""

    methods: Annotated[tuple[HttpMethod, ...], AfterValidator(_some)] = ("GET",)
    """What requests may do."""

    @field_validator("allow")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if _HOST.fullmatch(each) is None:
                raise ValueError(
                    f"{each!r} is no host: expected api.example.org, *.example.org or "
                    "api.example.org:8080, without https:// and without a path"
                )
        return tuple(each.lower() for each in value)


class AgentTool(Block):
    """A tool of an agent: one of `python`, `mcp`, `search`, `rag`, `http` and `entry_point`."""

    kinds: ClassVar[tuple[str, ...]] = _KINDS

    python: PythonTool | None = None
    mcp: McpTool | None = None
    search: SearchTool | None = None
    rag: RagTool | None = None
    http: HttpTool | None = None

    entry_point: Annotated[str, Code()] | None = Field(default=None, min_length=1)
    """A function that a distribution registered in the group `mloc_dagster.tools`; mloc's own are
    `calculator` and `lookup`."""

    options: Annotated[Mapping[str, JsonValue], FileRef(among_texts=True)] = Field(
        default_factory=dict
    )
    """Of an entry point: the keyword-only arguments of its function, which the model neither sees
    nor gives. A data file may be named relative to the template."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$")
    """What the model calls it, by default `python`, `search`, `rag`, `http`, or the last part of
    the entry point. Of an MCP server: what stands before the names of its tools."""

    effect: Effect | None = None
    """What a call changes, which decides what happens to one that was cut off: `read` and
    `idempotent` run again, `write` never does. By default `read` for python, search, rag and
    http with GET and HEAD only, and `write` for all else."""

    @model_validator(mode="before")
    @classmethod
    def _python_alone(cls, value: object) -> object:
        """Takes `- python:` for a sandbox with the usual limits."""
        if isinstance(value, dict):
            given = cast("dict[str, object]", value)
            if "python" in given and given["python"] is None and not cls._given(given):
                return dict[str, object](given, python={})
        return cast("object", value)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = self._given({each: getattr(self, each) for each in self.kinds})
        if len(given) != 1:
            which = " and ".join(given) + " are given" if given else "none is given"
            raise ValueError(f"a tool is one of {', '.join(self.kinds)}: {which}")
        if self.options and self.entry_point is None:
            raise ValueError(f"options are for an entry_point; {given[0]} has fields of its own")
        return self

    @property
    def kind(self) -> str:
        """Which of them it is."""
        return next(each for each in self.kinds if getattr(self, each) is not None)

    @property
    def tool_name(self) -> str | None:
        """What the model calls it; None for an MCP server, whose tools have names of their own."""
        if self.mcp is not None:
            return None
        if self.entry_point is not None:
            return self.name or self.entry_point.rpartition(".")[2]
        return self.name or self.kind

    @property
    def call_effect(self) -> Effect:
        """What a call changes, if nothing was said by what it is."""
        if self.effect is not None:
            return self.effect
        if (
            self.python
            or self.search
            or self.rag
            or (self.http and _READING.issuperset(self.http.methods))
        ):
            return "read"
        return "write"

    @classmethod
    def _given(cls, kinds: Mapping[str, object]) -> list[str]:
        return [each for each in cls.kinds if kinds.get(each) is not None]


def distinct[T: AgentTool](tools: tuple[T, ...]) -> tuple[T, ...]:
    """Returns tools, if no two of them have the same name.

    Raises:
        ValueError: If two have.
    """
    names = [each.tool_name for each in tools if each.tool_name is not None]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise ValueError(f"two tools are called {twice!r}: give one of them another name")
    return tools


AgentTools = Annotated[tuple[AgentTool, ...], AfterValidator(distinct)]
"""All tools of an agent, no two of them with the same name."""


def tools_in(value: object, path: Path = ()) -> Iterator[tuple[Path, AgentTool]]:
    """Yields every tool of a typed spec, whichever task type it is, with its place."""
    if isinstance(value, AgentTool):
        yield path, value
    if isinstance(value, BaseModel):  # an agent among the tools has tools of its own
        for name, info in type(value).model_fields.items():
            yield from tools_in(getattr(value, name), (*path, info.alias or name))
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        for number, each in enumerate(cast("tuple[object, ...]", value)):
            yield from tools_in(each, (*path, number))
