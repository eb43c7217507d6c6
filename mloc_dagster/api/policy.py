"""What the operator allows to those who submit, checked where it stands in their file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from mloc_dagster.compile import CompiledTemplate, Diagnostic, Tree, at_value, find, format_path
from mloc_dagster.net import FALSE, OutOfReachError, Reach
from mloc_dagster.schema import FileRef, Host, Marked, Url, marked, marked_values
from mloc_dagster.settings import settings

_HTTP_URL = re.compile(r"https?://\S+", re.IGNORECASE)
_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")

_CODE = ("trust_remote_code",)
_NO_SCHEDULE = (
    "a submission runs once, and its schedule would never start: put the template into the library "
    "(MLOC_TEMPLATES_DIR), or submit it with --set spec.schedule=null"
)
_NO_PARTITIONS = (
    "a submission runs once, and its partitions would never be asked for: put the template into "
    "the library and use `mloc launch --partition KEY`, or submit it with --set "
    "spec.partitions=null"
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
        self._hosts: dict[str, str | None] = {}
        self.findings: list[Diagnostic] = []
        self.rows = 0

    def apply(self, root: Tree) -> Tree:
        """Returns a document with uploaded files by their address; `findings` has the rest."""
        self._visit(root)
        uploaded: dict[tuple[str | int, ...], str] = {}
        for spec, each in marked_values(root.mapping()):
            place = (*spec, *each.path)
            address = self._upload(each)
            if address is not None:
                uploaded[place] = address
            elif (why := self._why_refused(each) or self._why_unreachable(each)) is not None:
                self.findings.append(at_value(find(root, place) or root, why))
        return root.replaced(uploaded)

    def check_compiled(self, templates: Iterable[CompiledTemplate], name: str) -> None:
        """Adds what shows only once a document is compiled, such as what an old spelling means."""
        known = {each.message for each in self.findings}
        nodes = [(node, template) for template in templates for node in template.tasks]
        for node, template in nodes:
            if node.mapping == template.document["spec"]:
                continue  # `apply` has seen all of it
            for each in marked(type(node.task.spec), dict(node.mapping)):
                why = self._why_refused(each)
                if why is not None and why not in known:
                    place = format_path(("spec", *each.path))
                    self.findings.append(Diagnostic(name, 0, 0, place, why))

    def _upload(self, found: Marked) -> str | None:
        """Returns the address of the file that came along by this name, if one did."""
        if isinstance(found.marker, FileRef) and isinstance(found.value, str):
            return self._uploads.get(found.value.removeprefix("./"))
        return None

    def _why_refused(self, found: Marked) -> str | None:
        try:
            self._reach.check_marked(found)
        except OutOfReachError as error:
            return str(error)
        return None

    def _why_unreachable(self, found: Marked) -> str | None:
        """Returns what is wrong with the addresses of a URL; the worker looks at them again."""
        if not isinstance(found.marker, FileRef | Url | Host) or not isinstance(found.value, str):
            return None
        if isinstance(found.marker, Url) and found.marker.listed:
            return None  # the operator has listed it, wherever it is
        if isinstance(found.marker, Url) and found.value in settings().api_index_urls:
            return None
        named = isinstance(found.marker, Host)
        text = f"http://{found.value.removeprefix('*.')}" if named else found.value
        for url in _HTTP_URL.findall(text):
            try:
                host = urlsplit(url).hostname or ""
                if "${" not in host and host not in self._hosts:  # rows may name one very often
                    self._hosts[host] = self._reach.why_host_refused(host)
            except ValueError as error:
                return f"no URL: {error}"
            if self._hosts.get(host) is not None:
                return self._hosts[host]
        return None

    def _visit(self, tree: Tree) -> None:
        if tree.path == ("spec", "schedule") and tree.content is not None:
            self.findings.append(at_value(tree, _NO_SCHEDULE))
        if tree.path == ("spec", "partitions") and tree.content is not None:
            self.findings.append(at_value(tree, _NO_PARTITIONS))
        if isinstance(tree.content, list) and tree.path[-2:] == ("data", "items"):
            self.rows += len(tree.content)
        for key, child in tree.fields.items():
            self._check_text(child, key)
            self._visit(child)
        for child in tree.items:
            self._visit(child)
        if isinstance(tree.content, str):
            self._check_text(tree, tree.content)
        elif isinstance(tree.content, float) and not math.isfinite(tree.content):
            self.findings.append(at_value(tree, f"{tree.raw} is no number that JSON can carry"))
        self._check_code(tree)

    def _check_text(self, tree: Tree, text: str) -> None:
        if _UNSTORABLE.search(text):
            message = "a NUL, or half of a surrogate pair, is no character that can be stored"
            self.findings.append(at_value(tree, message))

    def _check_code(self, tree: Tree) -> None:
        if self._remote_code or (tree.path[:1], tree.path[-1:]) != (("spec",), _CODE):
            return
        if str(tree.content).lower() not in FALSE:
            message = (
                "code that comes with a model's weights runs only where the operator allows it "
                "(MLOC_TRUST_REMOTE_CODE)"
            )
            self.findings.append(at_value(tree, message))
