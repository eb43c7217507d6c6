"""YAML files → documents with positions; relative file names are anchored at the template."""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from pydantic import JsonValue

from mloc_dagster.compile.builder import TreeBuilder
from mloc_dagster.compile.diagnostics import Diagnostic, Findings, at_value
from mloc_dagster.compile.tree import Path as Place, Tree
from mloc_dagster.errors import NOT_A_FILE, TemplateError, nearest_hint
from mloc_dagster.schema import FileRef, marked_values, written_as_file


def anchor_files(root: Tree, folder: Path) -> Tree:
    """Makes relative paths absolute where what they name lies relative to the template.

    Args:
        root: A document.
        folder: The template's folder.
    """
    return root.replaced(anchored_files(root, folder))


def anchored_files(root: Tree, folder: Path) -> dict[Place, str]:
    """Returns the absolute path of everything that a document names relative to a folder.

    What leads nowhere from there stays as written: relative to the working folder, or a hub id.

    Args:
        root: A document.
        folder: The folder.

    Returns:
        The paths, by the places in the document that name them.
    """
    found: dict[Place, str] = {}
    for spec, each in marked_values(root.mapping()):
        if isinstance(each.marker, FileRef) and each.marker.anchored and each.value:
            if each.marker.among_texts and not written_as_file(str(each.value)):
                continue
            path = _find(folder, str(each.value))
            if path is not None:
                found[*spec, *each.path] = path
    return found


def _find(folder: Path, text: str) -> str | None:
    if "://" in text or text.startswith(("/", "~", "$", "data:")) or "\0" in text:
        return None
    path = folder / text
    try:
        if any(sign in text for sign in "*?["):
            return str(path) if any(folder.glob(text)) else None
        return str(path.resolve()) if path.exists() else None
    except (OSError, ValueError, NotImplementedError):  # too long, or no glob: not a path
        return None


MAX_BYTES = 5_000_000


@dataclass(frozen=True)
class Document:
    """One YAML document: one template.

    Attributes:
        name: The file it came from, as it was named.
        root: Its values and where each stands.
        partition: The partition in place of `${partition_key}`; None where it stands as written.
    """

    name: str
    root: Tree
    partition: str | None = None

    @cached_property
    def mapping(self) -> dict[str, JsonValue]:
        """The document without positions."""
        return self.root.mapping()


def load_documents(path: Path) -> list[Document]:
    """Reads every document of a template file; its data files may be named relative to it.

    Raises:
        TemplateError: If the file cannot be read or is not a template; carries all findings.
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe waits for its writer
            raise TemplateError([_whole(str(path), NOT_A_FILE)])
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise TemplateError([_whole(str(path), _reason(path, error))]) from error
    folder = path.parent.resolve()
    return [
        Document(document.name, anchor_files(document.root, folder))
        for document in parse_documents(content, str(path))
    ]


def parse_documents(text: bytes | str, name: str) -> list[Document]:
    """Reads every document of a YAML text.

    Args:
        text: The YAML.
        name: What to call it in messages: the file's name.

    Raises:
        TemplateError: If it is not a template; carries all findings.
    """
    if len(text) > MAX_BYTES:
        message = f"larger than {MAX_BYTES // 1_000_000} MB; put rows into a dataset file instead"
        raise TemplateError([_whole(name, message)])
    decoded = _decode(text, name)
    findings = Findings()
    try:
        roots = list(TreeBuilder(decoded, name, findings).documents())
    except yaml.YAMLError as error:
        findings.add(_syntax_error(error, decoded, name))
        raise TemplateError(findings.errors) from error
    roots = [root for root in roots if root.content is not None]
    for root in roots:
        if not isinstance(root.content, dict):
            findings.add(
                at_value(root, "a template is a mapping: apiVersion, kind, metadata, spec")
            )
    findings.raise_errors()
    if not roots:
        raise TemplateError([_whole(name, "the file is empty")])
    return [Document(name, root) for root in roots]


def _decode(text: bytes | str, name: str) -> str:
    try:
        if isinstance(text, str):
            text.encode("utf-8")
            return text
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        message = (
            f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}; "
            "save the file as UTF-8"
        )
        raise TemplateError([Diagnostic(name, line, column, "", message)]) from error
    except UnicodeEncodeError as error:
        line = error.object.count("\n", 0, error.start) + 1
        column = error.start - error.object.rfind("\n", 0, error.start)
        raise TemplateError(
            [Diagnostic(name, line, column, "", "half of a surrogate pair is no character")]
        ) from error


def _syntax_error(error: yaml.YAMLError, text: str, name: str) -> Diagnostic:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        line, column = mark.line + 1, mark.column + 1
        message = f"not valid YAML: {error.problem}"
        if error.context:
            message += f" ({error.context})"
        lines = text.splitlines()
        source = lines[mark.line] if mark.line < len(lines) else ""
        indent = source[: len(source) - len(source.lstrip())]
        if "\t" in indent:
            message, column = "a tab cannot indent YAML; use spaces", indent.index("\t") + 1
        return Diagnostic(name, line, column, "", message)
    if isinstance(error, yaml.reader.ReaderError):
        position: int = error.position
        line = text.count("\n", 0, position) + 1
        return Diagnostic(name, line, 1, "", f"YAML does not allow this character: {error.reason}")
    return _whole(name, f"not valid YAML: {error}")


def _reason(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        near = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        return f"no such file{nearest_hint(path.name, near)}"
    if error.errno == errno.EISDIR:
        return "is a folder; name a YAML file in it"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "may not be read (permission denied)"
    return f"cannot be read: {error.strerror or error}"


def _whole(name: str, message: str) -> Diagnostic:
    return Diagnostic(name, 0, 0, "", message)
