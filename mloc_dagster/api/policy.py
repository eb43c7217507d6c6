"""What the operator allows to those who submit, checked where it stands in their file."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from mloc_dagster.compile.diagnostics import Diagnostic, at_value
from mloc_dagster.compile.tree import Tree
from mloc_dagster.results.http_addresses import RefusedAddressError, check_address

_FALSE = frozenset({"false", "no", "off", "0", "n", "f", "none", ""})
_URL_KEYS = frozenset(
    {("destination", "url"), ("data", "url"), ("data", "dataset_name"), ("image_url", "url")}
)
_HTTP_URL = re.compile(r"https?://\S+", re.IGNORECASE)  # also within fsspec's chained URLs

_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")


_NO_SCHEDULE = (
    "a submission runs once, and its schedule would never start: put the template into the library "
    "(MLOC_TEMPLATES_DIR), or submit it with --set spec.schedule=null"
)


class Policy:
    """Goes once through a document: names uploaded files, finds what is not allowed.

    Args:
        remote_code: Whether templates may ask for code that comes with weights.
        private_addresses: Whether HTTP may lead to private addresses.
        uploads: Addresses of the files that came along, by name.
    """

    def __init__(
        self, *, remote_code: bool, private_addresses: bool, uploads: Mapping[str, str]
    ) -> None:
        self._remote_code = remote_code
        self._private_addresses = private_addresses
        self._uploads = uploads
        self.findings: list[Diagnostic] = []
        self.rows = 0

    def apply(self, root: Tree) -> Tree:
        """Returns a document with uploaded files by their address; `findings` has the rest."""
        return self._visit(root)

    def _visit(self, tree: Tree) -> Tree:
        if tree.path == ("spec", "schedule") and tree.content is not None:
            self.findings.append(at_value(tree, _NO_SCHEDULE))
        if isinstance(tree.content, dict):
            for key, child in tree.content.items():
                self._check_text(child, key)
            fields = {key: self._visit(child) for key, child in tree.content.items()}
            return tree.with_fields(fields)
        if isinstance(tree.content, list):
            if tree.path[-2:] == ("data", "items"):
                self.rows += len(tree.content)
            return replace(tree, content=[self._visit(child) for child in tree.content])
        if isinstance(tree.content, str):
            self._check_text(tree, tree.content)
        elif isinstance(tree.content, float) and not math.isfinite(tree.content):
            self.findings.append(at_value(tree, f"{tree.raw} is no number that JSON can carry"))
        if tree.path[:1] == ("spec",):
            self._check_code(tree)
            if tree.path[-2:] in _URL_KEYS and tree.text:
                return self._url(tree, tree.text)
        return tree

    def _check_text(self, tree: Tree, text: str) -> None:
        if _UNSTORABLE.search(text):
            message = "a NUL, or half of a surrogate pair, is no character that can be stored"
            self.findings.append(at_value(tree, message))

    def _check_code(self, tree: Tree) -> None:
        if self._remote_code or tree.path[-1] != "trust_remote_code":
            return
        if str(tree.content).lower() not in _FALSE:
            message = (
                "code that comes with a model's weights runs only where the operator allows it "
                "(MLOC_TRUST_REMOTE_CODE)"
            )
            self.findings.append(at_value(tree, message))

    def _url(self, tree: Tree, text: str) -> Tree:
        found = self._uploads.get(text.removeprefix("./"))
        if found is not None:
            return replace(tree, content=found)
        for url in _HTTP_URL.findall(text):
            self._check_addresses(tree, url)
        return tree

    def _check_addresses(self, tree: Tree, url: str) -> None:
        try:
            for address in _addresses(urlsplit(url).hostname or ""):
                check_address(
                    address,
                    private=self._private_addresses,
                    setting="MLOC_API_PRIVATE_ADDRESSES",
                )
        except RefusedAddressError as error:
            self.findings.append(at_value(tree, str(error)))
        except ValueError as error:
            self.findings.append(at_value(tree, f"no URL: {error}"))


def _addresses(host: str) -> Iterator[str]:
    if "${" in host:  # the worker that fills it in looks at it
        return
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return  # nobody can reach it from here; the worker looks again
    for *_, place in found:
        yield str(place[0])
