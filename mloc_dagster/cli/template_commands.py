"""`mloc validate`, `mloc templates` and `mloc models`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import typer
from pydantic import TypeAdapter, ValidationError

from mloc_dagster.cli.terminal import BAD_INPUT, OK
from mloc_dagster.compile import (
    CompiledTemplate,
    Tree,
    compile_file,
    compile_files,
    errors_of,
    in_file_order,
    look_for_tools,
    parse_documents,
)
from mloc_dagster.data import look_at_data
from mloc_dagster.display import count, print_table
from mloc_dagster.errors import InputError, TemplateError, UnknownNameError
from mloc_dagster.library import added_dir, library_dir, library_file, library_files
from mloc_dagster.models import BUILTIN_MODELS, builtin_model_path
from mloc_dagster.schema import Name, is_glob


def validate(paths: Sequence[Path], *, as_json: bool, strict: bool, look: bool = True) -> int:
    """Checks files and folders of files; prints every finding, and returns the exit code.

    Args:
        paths: The files and folders.
        as_json: Prints one JSON document.
        strict: Warnings count as errors.
        look: Looks at the data files, and for what tools need, too.
    """
    templates, findings = compile_files(template_files(paths))
    if look:
        seen = {id(each): [*look_at_data([each]), *look_for_tools([each])] for each in templates}
        findings = list(in_file_order([*findings, *chain.from_iterable(seen.values())]))
        templates = [each for each in templates if not errors_of(seen[id(each)])]
    errors = errors_of(findings)
    warnings = [each for each in findings if each.severity == "warning"]
    ok = not errors and not (strict and warnings)
    if as_json:
        document = {
            "ok": ok,
            "templates": len(templates),
            "errors": len(errors),
            "warnings": len(warnings),
            "diagnostics": [each.to_json() for each in findings],
        }
        typer.echo(json.dumps(document, ensure_ascii=False))
    else:
        for each in findings:
            colour = typer.colors.RED if each.severity == "error" else typer.colors.YELLOW
            place, separator, rest = str(each).partition(": ")
            typer.echo(typer.style(place, fg=colour) + separator + rest)
        typer.echo(
            f"{count(len(templates), 'valid template')}, {count(len(errors), 'error')}, "
            f"{count(len(warnings), 'warning')}"
        )
    return OK if ok else BAD_INPUT


def template_files(paths: Sequence[Path]) -> list[Path]:
    """Returns the files that `paths` name: a folder stands for every YAML file below it.

    Raises:
        InputError: If a folder holds none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        below = sorted({*path.rglob("*.yaml"), *path.rglob("*.yml")})
        if not below:
            raise InputError(f"no *.yaml or *.yml file below {path}")
        found.update(dict.fromkeys(below))
    return list(found)


_GLOB = re.compile(r"[*?\[]")
_PATH = re.compile(r"(?<![\w:/])[\w.-][\w./-]*/[\w./-]*\w")
"""A relative path in a comment, without the full stop of its sentence."""


def list_templates(*, as_json: bool) -> None:
    """Prints the library: name, task types and description of each template."""
    entries = [_entry(name, path) for name, path in library_files().items()]
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in entries], ensure_ascii=False))
    else:
        rows = [(each.name, ", ".join(each.task_types), each.description) for each in entries]
        print_table(("template", "task types", "description"), rows)


def show_template(name: str) -> None:
    """Prints the file of a library template as it is."""
    typer.echo(library_file(name).read_text(encoding="utf-8"), nl=False)


def new_template(name: str, source: str, output: Path | None) -> None:
    """Copies a library template under a new name.

    Raises:
        InputError: If the name is no template name, or the file exists.
    """
    if not _is_name(name):
        raise InputError(
            f"{name!r} is no template name: expected A-Z a-z 0-9 . _ - with a letter or digit at "
            "both ends"
        )
    target = output or Path(f"{name}.yaml")
    _write(target, _moved(library_file(source), target, name), "choose another --output")
    typer.echo(f"{target}: run it with `mloc run {target}`", err=True)
    typer.echo(str(target))


def add_template(path: Path, name: str | None, *, replace: bool) -> None:
    """Copies a file into the library, if it is valid.

    Args:
        path: The file.
        name: What the library calls it, such as `team/summaries`; by default the file's own name.
        replace: Whether a template that was added by that name goes.

    Raises:
        TemplateError: If the file is no template.
        InputError: If the name is none, or there is such a template.
    """
    compiled = compile_file(path)
    name = name or path.stem
    if not all(_is_name(each) for each in name.split("/")):
        raise InputError(f"--as {name!r}: expected names between slashes, such as team/summaries")
    target = added_dir() / f"{name}.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = _moved(path, target)
    if replace:
        target.unlink(missing_ok=True)
    _write(target, text, "--replace overwrites it, --as NAME gives another name")
    for each in compiled:
        for known in _also_named(each.metadata.name, target):
            typer.echo(
                f"{known} has a template named {each.metadata.name!r}, too: Dagster shows the one"
                " that comes first in `mloc templates list`",
                err=True,
            )
    typer.echo(f"run it with `mloc run {name}`", err=True)
    typer.echo(str(target))


def _also_named(name: str, but: Path) -> list[str]:
    """Returns the files of the library that have a template of a name, all but one."""
    return [
        known
        for known, path in library_files().items()
        if path != but and name in (each.metadata.name for each in compile_files([path])[0])
    ]


def remove_template(name: str) -> None:
    """Removes a template that was added.

    Raises:
        UnknownNameError: If none of that name was added.
    """
    target = added_dir() / f"{name}.yaml"
    root = added_dir()
    known = [each.relative_to(root).with_suffix("").as_posix() for each in root.rglob("*.yaml")]
    if name not in known:
        raise UnknownNameError("added template", name, known)
    target.unlink()
    typer.echo(str(target))


def _write(target: Path, text: str, otherwise: str) -> None:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{target} exists; {otherwise}") from None
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error


def _is_name(text: str) -> bool:
    try:
        TypeAdapter(Name).validate_python(text)
    except ValidationError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    path: str
    task_types: list[str]
    description: str
    valid: bool


def _entry(name: str, path: Path) -> _Entry:
    try:
        compiled = compile_file(path)
    except TemplateError as error:
        return _Entry(name, str(path), [], f"invalid: {error.diagnostics[0]}", valid=False)
    types = dict.fromkeys(node.task.spec.task_type for each in compiled for node in each.tasks)
    description = "; ".join(filter(None, map(_description, compiled)))
    return _Entry(name, str(path), list(types), description, valid=True)


def _description(compiled: CompiledTemplate) -> str:
    metadata = compiled.metadata
    return metadata.description or str(metadata.annotations.get("description", ""))


def _moved(origin: Path, target: Path, name: str | None = None) -> str:
    """Returns the origin's text with paths that hold from `target`, and a new name if given."""
    content = origin.read_text(encoding="utf-8")
    lines = content.splitlines(keepends=True)
    documents = parse_documents(content, str(origin))  # paths as they are written
    for place, document in enumerate(documents):
        metadata = document.root.fields.get("metadata")
        named = metadata.fields.get("name") if metadata else None
        if named is not None and name is not None:
            _replace(lines, named, name if len(documents) == 1 else f"{name}-{place + 1}")
        for tree in _files_named(document.root, origin.parent):
            _replace(lines, tree, _from(target, origin.parent / str(tree.content)))
    own_name = re.compile(rf"\S*{re.escape(origin.name)}")
    folders = (origin.parent, library_dir().parent)
    return "".join(
        own_name.sub(lambda _: str(target), _comment(line, folders, target))
        if line.lstrip().startswith("#")
        else line
        for line in lines
    )


def _comment(line: str, folders: Sequence[Path], target: Path) -> str:
    """Returns a comment with paths that hold from `target`.

    Args:
        line: The comment.
        folders: What its paths may be relative to: the template's folder, or where the library is.
        target: The new file.
    """

    def moved(match: re.Match[str]) -> str:
        there = next((each / match[0] for each in folders if (each / match[0]).exists()), None)
        return match[0] if there is None else _from(target, there)

    return _PATH.sub(moved, line)


def _files_named(tree: Tree, folder: Path) -> list[Tree]:
    if isinstance(tree.content, str):
        path = tree.content
        there = _GLOB.split(path)[0].rpartition("/")[0] if is_glob(path) else path
        named = "/" in path and not Path(path).is_absolute() and (folder / there).exists()
        return [tree] if named else []
    children = tree.fields.values() if isinstance(tree.content, dict) else tree.items
    return [found for child in children for found in _files_named(child, folder)]


def _replace(lines: list[str], tree: Tree, new: str) -> None:
    line, start = tree.at.line - 1, tree.at.column - 1
    old = str(tree.content)
    head, tail = lines[line][:start], lines[line][start:]
    lines[line] = head + tail.replace(old, new, 1)


def _from(target: Path, path: Path) -> str:
    here, there = target.parent.resolve(), path.resolve()
    if os.path.commonpath([here, there]) == here.anchor:
        return there.as_posix()
    return Path(os.path.relpath(there, here)).as_posix()


def list_models(*, as_json: bool) -> None:
    """Prints the models that ship, and how a template names them."""
    models = BUILTIN_MODELS.values()
    if as_json:
        entries = [{**asdict(each), "path": str(builtin_model_path(each.name))} for each in models]
        typer.echo(json.dumps(entries, ensure_ascii=False))
        return
    rows = [(each.name, f"{each.parameters:,}", each.description) for each in models]
    print_table(("model", "parameters", "description"), rows, numbers=(1,))
    typer.echo("In a template: model.source: {type: builtin, identifier: NAME}")


def show_model_path(name: str) -> None:
    """Prints the folder of a model that ships."""
    typer.echo(str(builtin_model_path(name)))
