"""What a submission carries: the template's text, and the local data files that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import yaml
from pydantic import JsonValue

from mloc_dagster.compile import (
    Diagnostic,
    Document,
    Findings,
    Position,
    Sets,
    Tree,
    anchored_files,
    apply_sets,
    at_value,
    compile_document,
    is_set,
    load_documents,
    parse_documents,
)
from mloc_dagster.errors import InputError, TemplateError
from mloc_dagster.results import check_name


class _Quoting(yaml.SafeDumper):
    """Writes every text in quotes: which plain ones are numbers, YAML's versions do not agree."""


_Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateBody:
    """A template that is ready to be sent.

    Attributes:
        text: YAML.
        shown: How the user calls it; empty if it has no name.
        files: Its data files, by the names that it calls them.
    """

    text: bytes
    shown: str = ""
    files: Mapping[str, Path | bytes] = field(default_factory=dict)


def body_of(
    template: Path | str | Mapping[str, JsonValue] | TemplateBody,
    files: Mapping[str, Path | bytes],
) -> TemplateBody:
    """Returns a template of any kind as a body; `files` come beside those that it names.

    Raises:
        TemplateError: If it is a file that is no YAML.
        InputError: If it is a mapping that YAML cannot hold.
    """
    if isinstance(template, Path):
        template = body_of_file(template)
    elif isinstance(template, str):
        template = TemplateBody(text=template.encode("utf-8", "surrogatepass"))
    elif not isinstance(template, TemplateBody):
        template = TemplateBody(text=_dumped([dict(template)]))
    return replace(template, files={**template.files, **files})


def body_of_file(path: Path, sets: Sets = ()) -> TemplateBody:
    """Reads a template file. Without `sets` its lines stay where they are, for what is found in it.

    Args:
        path: The file.
        sets: Changes; see `compile.Sets`.

    Raises:
        TemplateError: If it is no YAML, or wrong once changed.
    """
    documents = documents_of_file(path)
    if sets:
        return body_of_documents(documents, path.parent, f"{path} (with --set)", sets)
    named = _Named(path.parent.resolve(), Path.cwd())
    places = [each for root in documents for each in named.places(root.root)]
    named.findings.raise_errors()
    return TemplateBody(
        text=_renamed_text(path.read_bytes(), places), shown=str(path), files=named.files
    )


def documents_of_file(path: Path) -> list[Document]:
    """Reads a template file, in which names of files stay as they are written.

    Raises:
        TemplateError: If it is no YAML.
    """
    load_documents(path)  # what cannot be read, it says with the nearest name
    return parse_documents(path.read_bytes(), str(path))


def body_of_documents(
    documents: Sequence[Document], folder: Path, shown: str, sets: Sets = ()
) -> TemplateBody:
    """Returns changed templates as a body.

    Args:
        documents: The templates.
        folder: What names of files in them are relative to.
        shown: How the user calls it.
        sets: Changes; see `compile.Sets`.

    Raises:
        TemplateError: If it is wrong once changed.
    """
    # What is sent has other lines: what is wrong with it is found before.
    documents = _changed(documents, sets)
    named = _Named(folder.resolve(), Path.cwd())
    places = [each for root in documents for each in named.places(root.root)]
    named.findings.raise_errors()
    return TemplateBody(text=_renamed_dump(documents, places), shown=shown, files=named.files)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a template names a file by another name than that under which it is sent."""

    root: Tree
    path: tuple[str | int, ...]
    tree: Tree
    name: str


class _Named:
    """Finds the local files that templates name, and gives each a name to be sent under."""

    def __init__(self, folder: Path, working_folder: Path) -> None:
        self._folder = folder
        self._working_folder = working_folder
        self.files: dict[str, Path | bytes] = {}
        self.findings = Findings()

    def places(self, root: Tree) -> Iterator[_Place]:
        """Yields where a name has to change."""
        by_template = anchored_files(root, self._folder)
        by_shell = anchored_files(root, self._working_folder)
        for path, tree in root.strings():
            # What the command line names is meant from where that is typed.
            from_shell = is_set(tree.at) or path not in by_template
            found = (by_shell if from_shell else by_template).get(path)
            if found is None:
                continue
            if not Path(found).is_file():
                message = (
                    "names several files, and one is sent along for each name: put rows into one "
                    "file, an adapter or weights into an archive"
                )
                self.findings.add(at_value(tree, message))
                continue
            name = self._name(tree.text or "", Path(found))
            if name != (tree.text or "").removeprefix("./"):
                yield _Place(root, path, tree, name)

    def _name(self, text: str, file: Path) -> str:
        """Returns the name under which a file is sent: as written, if that stays in a folder."""
        try:
            wanted = check_name(text.removeprefix("./"))
        except InputError:
            wanted = file.name
        name, number = wanted, 1
        while self.files.setdefault(name, file) != file:
            number += 1
            name = f"{number}-{PurePosixPath(wanted).name}"
        return name


def _changed(documents: Sequence[Document], sets: Sets) -> list[Document]:
    changed: list[Document] = []
    findings: list[Diagnostic] = []
    for document in documents:
        try:
            changed.append(apply_sets(document, sets))
            compile_document(changed[-1])
        except TemplateError as error:
            findings += [each for each in error.diagnostics if isinstance(each, Diagnostic)]
    if findings:
        raise TemplateError(list(dict.fromkeys(findings)))
    return changed


def _renamed_dump(documents: Sequence[Document], places: Sequence[_Place]) -> bytes:
    mappings: list[JsonValue] = []
    for document in documents:
        mapping = document.root.plain()
        for place in places:
            if place.root is document.root:
                _put(mapping, place.path, place.name)
        mappings.append(mapping)
    return _dumped(mappings)


def _put(value: JsonValue, path: Sequence[str | int], name: str) -> None:
    *steps, last = path
    for step in steps:
        value = _child(value, step)
    if isinstance(value, dict) and isinstance(last, str):
        value[last] = name


def _child(value: JsonValue, step: str | int) -> JsonValue:
    if isinstance(value, dict) and isinstance(step, str):
        return value[step]
    return value[step] if isinstance(value, list) and isinstance(step, int) else None


def _renamed_text(text: bytes, places: Sequence[_Place]) -> bytes:
    """Returns the text with names exchanged where they stand, from the last to the first."""
    if not places:
        return text
    lines = text.decode("utf-8-sig").splitlines(keepends=True)
    findings = Findings()
    at: dict[Position, _Place] = {each.tree.at: each for each in places}
    for position in sorted(at, key=lambda each: (each.line, each.column), reverse=True):
        place, line = at[position], lines[position.line - 1]
        before, rest = line[: position.column - 1], line[position.column - 1 :]
        written = _written(rest, place.tree.text or "")
        if written is None:
            message = "write this path plainly on one line, so that its file can be sent along"
            findings.add(at_value(place.tree, message))
            continue
        quoted = "'" + place.name.replace("'", "''") + "'"
        lines[position.line - 1] = before + rest.replace(written, quoted, 1)
    findings.raise_errors()
    return "".join(lines).encode()


def _written(rest: str, text: str) -> str | None:
    """Returns how a text is written at the beginning of a line's rest, behind an anchor perhaps."""
    rest = re.sub(r"&\S+\s+", "", rest, count=1) if rest.startswith("&") else rest
    forms = ("'" + text.replace("'", "''") + "'", f'"{text}"', text)
    return next((each for each in forms if rest.startswith(each)), None)


def _dumped(documents: Sequence[JsonValue]) -> bytes:
    try:
        text = yaml.dump_all(
            documents, Dumper=_Quoting, allow_unicode=True, sort_keys=False, width=1_000
        )
    except yaml.YAMLError as error:
        raise InputError(
            f"a template holds texts, numbers, lists and mappings only: {error}"
        ) from error
    return text.encode("utf-8", "surrogatepass")
