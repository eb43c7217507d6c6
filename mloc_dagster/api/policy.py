"""What the operator allows to those who submit, checked where it stands in their file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from mloc_dagster.compile.compiled import CompiledTemplate
from mloc_dagster.compile.diagnostics import Diagnostic, at_value
from mloc_dagster.compile.tree import Tree, format_path
from mloc_dagster.net.addresses import RefusedAddressError, addresses_of, check_address
from mloc_dagster.net.reach import Reach
from mloc_dagster.net.rules import FALSE, FETCHED, READ, field_of, scalars, why_refused

_HTTP_URL = re.compile(r"https?://\S+", re.IGNORECASE)

_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")


_NO_SCHEDULE = (
    "a submission runs once, and its schedule would never start: put the template into the library "
    "(MLOC_TEMPLATES_DIR), or submit it with --set spec.schedule=null"
)


class Policy:
    """Goes once through a document: names uploaded files, finds what is not allowed.

    Args:
        remote_code: Whether templates may ask for code that comes with weights.
        uploads: Addresses of the files that came along, by name.
    """

    def __init__(self, *, remote_code: bool, uploads: Mapping[str, str]) -> None:
        self._remote_code = remote_code
        self._reach = Reach("api")
        self._uploads = uploads
        self.findings: list[Diagnostic] = []
        self.rows = 0

    def apply(self, root: Tree) -> Tree:
        """Returns a document with uploaded files by their address; `findings` has the rest."""
        return self._visit(root)

    def check_compiled(self, templates: Iterable[CompiledTemplate], name: str) -> None:
        """Adds what shows only once a document is compiled, such as what an old spelling means."""
        known = {each.message for each in self.findings}
        for template in templates:
            for node in template.tasks:
                for path, value in scalars(dict(node.mapping)):
                    why = why_refused(self._reach, path, value)
                    if why is not None and why not in known:
                        place = format_path(("spec", *path))
                        self.findings.append(Diagnostic(name, 0, 0, place, why))

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
        return self._checked(tree) if tree.path[:1] == ("spec",) else tree

    def _checked(self, tree: Tree) -> Tree:
        self._check_code(tree)
        field, text = field_of(tree.path), tree.text
        if text and field in READ:
            found = self._uploads.get(text.removeprefix("./"))
            if found is not None:
                return replace(tree, content=found)
        value = tree.content
        if not isinstance(value, dict | list):
            why = why_refused(self._reach, tree.path, value)
            if why is not None:
                self.findings.append(at_value(tree, why))
            elif text and field in FETCHED:
                for url in _HTTP_URL.findall(text):
                    self._check_addresses(tree, url)
        return tree

    def _check_text(self, tree: Tree, text: str) -> None:
        if _UNSTORABLE.search(text):
            message = "a NUL, or half of a surrogate pair, is no character that can be stored"
            self.findings.append(at_value(tree, message))

    def _check_code(self, tree: Tree) -> None:
        if self._remote_code or tree.path[-1] != "trust_remote_code":
            return
        if str(tree.content).lower() not in FALSE:
            message = (
                "code that comes with a model's weights runs only where the operator allows it "
                "(MLOC_TRUST_REMOTE_CODE)"
            )
            self.findings.append(at_value(tree, message))

    def _check_addresses(self, tree: Tree, url: str) -> None:
        try:
            host = urlsplit(url).hostname or ""
            if "${" in host:  # a variable that may be filled in: the worker checks the address
                return
            for address in addresses_of(host):
                check_address(
                    address,
                    private=self._reach.private_addresses,
                    setting=self._reach.private_setting,
                )
        except RefusedAddressError as error:
            self.findings.append(at_value(tree, str(error)))
        except ValueError as error:
            self.findings.append(at_value(tree, f"no URL: {error}"))
