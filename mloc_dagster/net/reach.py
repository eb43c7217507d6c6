"""What a task may read and contact: everything, or what the operator lets submitted templates.

A task that came over HTTP carries this with it in `task.json`: the API checks its template when
it is submitted, and each worker checks the task again, with every reference filled in.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from mloc_dagster.errors import InputError
from mloc_dagster.library import library_dir
from mloc_dagster.schema.data_address import is_glob
from mloc_dagster.settings import credential_variables, settings

Origin = Literal["local", "api"]
"""Where a task comes from: a command on this machine, or the HTTP API."""

UPLOADS_FOLDER = ".uploads"
"""Where files that came with a submission lie in the results, by their content's sha256."""

PROTOCOLS = frozenset({"http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"})
"""Protocols of URLs that a submitted template may name."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::)")
_IPV6_HOST = re.compile(r"//\[[0-9A-Fa-f:.]+\]")
_VARIABLE = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)\}")


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


def _roots() -> Iterator[tuple[Path, bool]]:
    """Yields the folders that may be read, each with whether it is the store of results."""
    for root in settings().api_data_roots:
        yield root.expanduser().resolve(), False
    yield library_dir().resolve(), False
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
