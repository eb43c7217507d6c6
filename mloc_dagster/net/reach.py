"""What a task may read and contact: everything, or what the operator lets submitted templates.

A task that came over HTTP carries this with it in `task.json`: the API checks its template when
it is submitted, and each worker checks the task again, with every reference filled in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import JsonValue

from mloc_dagster.errors import InputError
from mloc_dagster.library import library_dirs
from mloc_dagster.models import BUILTIN_MODELS
from mloc_dagster.net.addresses import RefusedAddressError, addresses_of, check_address
from mloc_dagster.schema import (
    SPELLINGS,
    Code,
    FileRef,
    LibraryOptions,
    Marked,
    ResultPath,
    Secret,
    Url,
    is_glob,
    marked_in_spec,
    names_files,
)
from mloc_dagster.settings import credential_variables, settings

Origin = Literal["local", "api"]
"""Where a task comes from: a command on this machine, or the HTTP API."""

UPLOADS_FOLDER = ".uploads"
"""Where files that came with a submission lie in the results, by their content's sha256."""

PROTOCOLS = frozenset({"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"})
"""Protocols of URLs that a submitted template may name."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::)")
_IPV6_HOST = re.compile(r"//\[[0-9A-Fa-f:.]+\]")
_VARIABLE = re.compile(r"\$\{(?:ENV:)?([A-Z_][A-Z0-9_]*)\}")
_LISTED_ENDPOINT = re.compile(r"(?P<url>.+?)(?:=(?P<variable>[A-Z_][A-Z0-9_]*))?")
_TASK_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# Old keys, which the compiler drops.
_DROPPED = frozenset(each.old for each in SPELLINGS if each.new is None)

FALSE = frozenset({"false", "no", "off", "0", "n", "f", "none", ""})
"""What YAML or pydantic may take for false."""


class OutOfReachError(InputError):
    """A task names what it may not read, contact or set; the message says which setting decides."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What a task of one origin may reach.

    Attributes:
        origin: Where the task comes from.
    """

    origin: Origin = "local"

    @property
    def limited(self) -> bool:
        """Whether the operator's limits for submitted templates hold."""
        return self.origin == "api"

    @property
    def private_addresses(self) -> bool:
        """Whether HTTP may lead to private and loopback addresses."""
        return not self.limited or settings().api_private_addresses

    @property
    def private_setting(self) -> str:
        """The setting that decides on private addresses."""
        return "MLOC_API_PRIVATE_ADDRESSES"

    def private(self, locally: bool, setting: str) -> tuple[bool, str]:
        """Returns whether private addresses may be reached, and the setting that decides.

        Args:
            locally: What holds for all tasks, by a setting of its own.
            setting: That setting.
        """
        if not locally or not self.limited:
            return locally, setting
        return self.private_addresses, self.private_setting

    def allows(self, option: str) -> bool:
        """Tells whether the operator allows an option of a template beyond those that are safe.

        Args:
            option: Its path in a spec, such as `model.vllm.hf_overrides`.
        """
        return not self.limited or option in settings().api_options

    def check_variables(self, text: str) -> None:
        """Checks that a text takes only variables from the environment that it may.

        Raises:
            OutOfReachError: If it takes another one.
        """
        for name in _VARIABLE.findall(text):
            if self.limited and name not in settings().api_variables:
                raise OutOfReachError(
                    f"${{{name}}} is not filled in: a template that comes over the API gets those "
                    "variables of the environment that MLOC_API_VARIABLES names"
                )
            if not self.limited and name in credential_variables():
                raise OutOfReachError(
                    f"${{{name}}} is not filled in: it is a secret of mloc's own; put what the "
                    "receiver needs into a variable of another name"
                )

    def filled_in(self, text: str) -> str:
        """Returns a text with the environment's variable for every `${NAME}`.

        Raises:
            OutOfReachError: If the task may not have a variable.
            InputError: If one is not set.
        """
        self.check_variables(text)
        return _VARIABLE.sub(_variable, text)

    def check_place(self, place: str) -> None:
        """Checks that a path or a URL may be read.

        Raises:
            OutOfReachError: If not.
        """
        if not self.limited or place.startswith("data:"):
            return
        if "::" in _IPV6_HOST.sub("//", place):
            raise OutOfReachError(f"{_shown(place)} chains file systems, which the API refuses")
        url = _URL.match(place)
        protocol = url[1].lower() if url else ""
        if protocol in ("file", "local") or not url:
            self.check_path(place)
        elif self._on_store(place):
            return
        elif protocol not in PROTOCOLS:
            allowed = ", ".join(sorted(PROTOCOLS))
            raise OutOfReachError(
                f"{protocol}:// may not be read by a template that comes over the API, which "
                f"may name {allowed}"
            )

    def check_path(self, path: str) -> None:
        """Checks that a path of the worker's own disk may be read, its links followed.

        Raises:
            OutOfReachError: If it lies outside of what templates of this origin may read.
        """
        if not self.limited:
            return
        url = _URL.match(path)
        plain = unquote(urlsplit(path).path) if url and url[2] == "://" else path
        real = _fixed_part(plain).resolve()
        if plain.startswith("~") or not any(_below(real, each) for each in _roots()):
            raise OutOfReachError(
                f"{_shown(path)} is a path of the server. A template that comes over the API may "
                "name files that are sent along with it, the template library, and folders that "
                "MLOC_API_DATA_ROOTS names"
            )

    def check_endpoint(self, base_url: str) -> None:
        """Checks that an endpoint may be asked.

        Raises:
            OutOfReachError: If it is none of those that templates of this origin may name.
        """
        if self.limited and base_url.rstrip("/") not in _endpoints():
            raise OutOfReachError(
                f"{_shown(base_url)} is no endpoint that a template that comes over the API may "
                "name: the operator lists them in MLOC_API_ENDPOINTS"
            )

    def _check_database(self, url: str, found: Marked) -> None:
        free = not (isinstance(found.marker, Url) and found.marker.database)
        if free or not url or url in settings().api_index_urls:
            return
        if not url.lower().startswith(("http://", "https://")):
            raise OutOfReachError(
                f"{_shown(url)} is a place that the worker would write to: a template that comes "
                "over the API leaves url out, which is mloc's own place, or names an HTTP address "
                "or what the operator has listed, by this very text (MLOC_API_INDEX_URLS)"
            )

    def endpoint_key(self, base_url: str, api_key: str | None) -> str | None:
        """Returns what an endpoint is sent as key: the template's, else the operator's for it.

        Raises:
            OutOfReachError: If the task may not have the variable that it names.
            InputError: If a variable is not set.
        """
        if api_key is not None:
            return self.filled_in(api_key)
        variable = _endpoints().get(base_url.rstrip("/"), "")
        return LOCAL.filled_in(f"${{{variable}}}") if variable else None

    def why_host_refused(self, host: str) -> str | None:
        """Returns why HTTP may not lead to a host, by the addresses that it has here and now."""
        try:
            for address in addresses_of(host):
                check_address(address, private=self.private_addresses, setting=self.private_setting)
        except RefusedAddressError as error:
            return str(error)
        return None

    def check_marked(self, found: Marked) -> None:
        """Checks a value of a template by its field's mark.

        Hosts are not looked at: their addresses are, where a connection is made.

        Raises:
            OutOfReachError: If templates of this origin may not have it.
        """
        text = found.value if isinstance(found.value, str) else ""
        if not self.limited or found.path in _DROPPED:
            return
        match found.marker:
            case FileRef(runs_code=True):
                self._check_option(found.name, allowed=str(found.value).lower() in FALSE)
            case FileRef():
                self._check_reference(text)
            case Url(listed=True):
                self.check_endpoint(text)
            case Url() | Secret():
                self.check_variables(text)
                self._check_database(text, found)
            case Code(command=command):
                if found.path[found.start :] in ((), (0,)):
                    self._check_code(command or text)
            case ResultPath():
                check_result_path(text)
            case LibraryOptions(allows=allows, itself=itself):
                option = found.path[found.start :]
                holds_options = not option and not itself
                allowed = holds_options or allows(option, found.value)
                self._check_option(found.option, allowed=allowed)

    def check_spec(self, spec: JsonValue) -> None:
        """Checks a task's spec whose references are filled in.

        Raises:
            OutOfReachError: For the first value that it may not have.
        """
        for found in marked_in_spec(spec) if self.limited else ():
            try:
                self.check_marked(found)
            except OutOfReachError as error:
                place = ".".join(map(str, found.path))
                raise OutOfReachError(f"spec.{place}: {error}") from error

    def _check_reference(self, text: str) -> None:
        if "${" in text or not text:
            return  # it is looked at again when it is filled in
        if text not in BUILTIN_MODELS and _is_place(text):
            self.check_place(text)

    def _check_option(self, name: str, *, allowed: bool) -> None:
        if not allowed and not self.allows(name):
            raise OutOfReachError(
                f"{name} with this value could run code or read files of the worker: a template "
                f"that comes over the API may set it where the operator allows it "
                f"(MLOC_API_OPTIONS={name})"
            )

    def _check_code(self, name: str) -> None:
        if name not in settings().api_tools:
            raise OutOfReachError(
                f"{name!r} is code that the worker would run: a template that comes over the API "
                "may name it where the operator allows it, by this very text (MLOC_API_TOOLS)"
            )
        self.check_variables(name)

    def _on_store(self, url: str) -> bool:
        """Whether a URL means what lies openly on a remote store of results."""
        root = settings().results_url.rstrip("/") + "/"
        first, _, rest = url.removeprefix(root).partition("/")
        return url.startswith(root) and ".." not in rest.split("/") and _open_folder(first)

    @contextmanager
    def applied(self) -> Generator[None]:
        """Makes this the reach of what is done within the block, in this thread."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


LOCAL = Reach()
"""Of a task that a user of this machine started: everything that the user may reach."""

_current: ContextVar[Reach] = ContextVar("mloc_reach", default=LOCAL)


def current_reach() -> Reach:
    """Returns the reach of the task that is worked on; of a local one where there is none."""
    return _current.get()


def _endpoints() -> dict[str, str]:
    """Returns the operator's endpoints, each with the variable that has its key, or nothing."""
    found = (_LISTED_ENDPOINT.fullmatch(each) for each in settings().api_endpoints)
    return {each["url"].rstrip("/"): each["variable"] or "" for each in found if each is not None}


def _variable(found: re.Match[str]) -> str:
    value = os.environ.get(found[1])
    if value is None:
        raise InputError(f"the environment variable {found[1]} is not set, but {found[0]} needs it")
    return value


def check_result_path(path: str) -> None:
    """Checks a path below the results' root that something is written to.

    Raises:
        OutOfReachError: If it is mloc's own folder, or may become a task's.
    """
    first = next(iter(PurePosixPath(path).parts), "")
    if first.startswith("."):
        raise OutOfReachError(f"{path!r} is a folder that only mloc itself writes to")
    if _TASK_ID.match(first):
        raise OutOfReachError(f"{path!r} is named like a task's own folder, which only it writes")


def _is_place(text: str) -> bool:
    """Whether a text means a file or a folder, not an id of the hub."""
    if names_files(text) or "::" in text or ":/" in text or "\\" in text:
        return True
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long to be a path
        return False


def _roots() -> Iterator[tuple[Path, bool]]:
    """Yields the folders that may be read, each with whether it is the store of results."""
    for root in settings().api_data_roots:
        yield root.expanduser().resolve(), False
    for root in library_dirs():
        yield root.resolve(), False
    results = settings().results_url
    if _URL.match(results) is None or results.startswith(("file://", "local://")):
        plain = unquote(urlsplit(results).path) if "://" in results else results
        yield Path(plain).expanduser().resolve(), True


def _below(path: Path, root: tuple[Path, bool]) -> bool:
    folder, is_store = root
    if not is_store:
        return path.is_relative_to(folder)
    inside = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    return bool(inside) and _open_folder(inside[0])


def _open_folder(name: str) -> bool:
    """Whether a folder of the results may be named: a task's, or the uploads; not mloc's own."""
    return name == UPLOADS_FOLDER or (bool(name) and not name.startswith("."))


def _fixed_part(path: str) -> Path:
    """Returns a path up to its first part with a wildcard."""
    parts = Path(path).parts
    wild = next((n for n, part in enumerate(parts) if is_glob(part)), len(parts))
    return Path(*parts[:wild])


def _shown(place: str) -> str:
    shown = place if len(place) <= 200 else place[:200] + "…"
    return repr(re.sub(r"//[^/@\s]*@", "//", shown))
