"""Marks on fields whose values need care: files, URLs, secrets, options of a library.

A field is marked where it is declared: `corpus: Annotated[str, FileRef()]`. The mark decides if
a path may be relative to the template and its file comes along with a submission, what the API
refuses, and what is masked. No module keeps a list of such fields, so the blocks of any
distribution are treated alike. `SecretStr` is a `Secret` without a mark.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Annotated, NamedTuple, TypeAliasType, Union, cast, get_args, get_origin

from pydantic import BaseModel, JsonValue, SecretStr
from pydantic.fields import FieldInfo

from mloc_dagster.schema.base import Annotation, Block, alternatives, tags_of

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class FileRef:
    """What a worker reads: a path, or a URL of any file system; a field may take hub ids as well.

    Attributes:
        anchored: Whether a path may be relative to the template's folder.
        runs_code: Whether code that lies there is run, which is the operator's to allow.
        among_texts: Whether other texts stand there, too: then only what is written as a path or
            with the suffix of a data format is looked for.
    """

    anchored: bool = True
    runs_code: bool = False
    among_texts: bool = False


@dataclass(frozen=True, slots=True)
class Url:
    """An HTTP address that a worker contacts; `${NAME}` in it may come from the environment.

    Attributes:
        listed: Whether a template that comes over the API may name only those that the operator
            has listed (`MLOC_API_ENDPOINTS`).
        database: Whether it may also be a database or a folder that a worker writes to: a template
            that comes over the API may name only those that the operator has listed
            (`MLOC_API_INDEX_URLS`), and HTTP addresses.
    """

    listed: bool = False
    database: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """A host that a worker contacts, with a port or without; `*.` before it means any below it."""


@dataclass(frozen=True, slots=True)
class Code:
    """What names code that a worker runs: a text, or a command as a list of its words.

    Attributes:
        command: In what is found, of a word of a list: all of them, as a shell would take them. The
            operator allows that, as every argument may decide what a program does.
    """

    command: str = ""


@dataclass(frozen=True, slots=True)
class Secret:
    """A text that nobody is shown; `${NAME}` in it may come from the environment."""


@dataclass(frozen=True, slots=True)
class ResultPath:
    """A folder below the results' root that a worker writes to."""


@dataclass(frozen=True, slots=True)
class LibraryOptions:
    """Options that a library gets as they are. Of a block it is the `block_marker`.

    Attributes:
        allows: Takes an option's place below the mark and its value, a scalar. Tells whether that
            can name no code, file or host; anything else is the operator's to allow.
        itself: Whether the mark stands on one option, not on what holds options: then the place
            below it is empty, or a place in a list.
    """

    allows: Callable[[Path, JsonValue], bool]
    itself: bool = False


Marker = FileRef | Url | Host | Code | Secret | ResultPath | LibraryOptions


class Marked(NamedTuple):
    """A value below a mark.

    Attributes:
        path: Its place below what was walked.
        value: A scalar.
        marker: The mark.
        start: How many steps of the path lead to the mark: a mark on a list or a mapping holds for
            every scalar in it.
    """

    path: Path
    value: JsonValue
    marker: Marker
    start: int

    @property
    def name(self) -> str:
        """The field with the mark, without places in lists: `model.vllm`."""
        return _name(self.path[: self.start])

    @property
    def option(self) -> str:
        """The option below the mark that the value belongs to: `model.vllm.hf_overrides`."""
        return _name(self.path[: self.start + 1])


def marked(block: type[BaseModel], value: JsonValue) -> Iterator[Marked]:
    """Yields every scalar below a mark, once for each mark.

    Args:
        block: What the value is meant to be.
        value: A mapping as it is written. It need not be whole or right: what does not fit is
            passed over, and where `type` is missing it may be any member of a union.
    """
    yield from dict.fromkeys(_walk(_Shape(blocks=[block]), value, ()))


def hides(block: type[BaseModel], loc: Sequence[str | int]) -> bool:
    """Tells whether a wrong value at a place may hold a secret.

    Args:
        block: What the value is meant to be.
        loc: The place, as pydantic's errors have it.
    """
    shapes = [_Shape(blocks=[block])]
    for step in loc:
        if any(shape.is_secret() for shape in shapes):
            return True
        # A step that leads nowhere is pydantic's label of a union member.
        shapes = [found for shape in shapes for found in shape.below(step)] or shapes
    return any(shape.is_secret() for shape in shapes)


def secrets_in(value: object) -> Iterator[str]:
    """Yields the secrets of a typed block as they are written: dumped, all of them look alike."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for name, each in (*value, *(value.model_extra or {}).items()):
            del name
            yield from secrets_in(each)
    elif isinstance(value, Mapping):
        for each in cast("Mapping[str, object]", value).values():
            yield from secrets_in(each)
    elif isinstance(value, tuple):
        for each in cast("tuple[object, ...]", value):
            yield from secrets_in(each)


def scalars(value: JsonValue, path: Path = ()) -> Iterator[tuple[Path, JsonValue]]:
    """Yields every scalar of a value, with its place."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from scalars(child, (*path, key))
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from scalars(child, (*path, number))
    else:
        yield path, value


def replaced(value: JsonValue, changes: Mapping[Path, JsonValue]) -> JsonValue:
    """Returns a value with others at some places of it; what does not change is not copied."""
    if not changes:
        return value
    if () in changes:
        return changes[()]
    below: dict[str | int, dict[Path, JsonValue]] = {}
    for (step, *rest), change in changes.items():
        below.setdefault(step, {})[tuple(rest)] = change
    if isinstance(value, dict):
        return {key: replaced(each, below.get(key, {})) for key, each in value.items()}
    items = cast("list[JsonValue]", value)
    return [replaced(each, below.get(number, {})) for number, each in enumerate(items)]


@dataclass(slots=True)
class _Shape:
    """What may stand at a place, all members of a union together.

    Attributes:
        single: Marks that hold for a scalar there.
        whole: Marks that hold for everything there and below.
        blocks: Blocks that may stand there.
        items: What the items of a list may be.
        values: What the values of a mapping may be.
    """

    single: list[Marker] = field(default_factory=list[Marker])
    whole: list[Marker] = field(default_factory=list[Marker])
    blocks: list[type[BaseModel]] = field(default_factory=list[type[BaseModel]])
    items: _Shape | None = None
    values: _Shape | None = None

    def __bool__(self) -> bool:
        return bool(self.single or self.whole or self.blocks or self.items or self.values)

    def is_secret(self) -> bool:
        """Whether a secret stands there, or in a list or a mapping that does."""
        inner = (each for each in (self.items, self.values) if each is not None)
        return Secret() in (*self.single, *self.whole) or any(each.is_secret() for each in inner)

    def below(self, step: str | int) -> Iterator[_Shape]:
        """Yields what may stand one step below; of a union of blocks every member's."""
        fields = (_fields(block).get(step) for block in self.blocks if isinstance(step, str))
        yield from (each for each in fields if each is not None)
        inner = self.items if isinstance(step, int) else self.values
        if inner is not None:
            yield inner

    def read(self, annotation: Annotation, aliases: tuple[TypeAliasType, ...] = ()) -> None:
        """Adds what a type says.

        Args:
            annotation: The type.
            aliases: Names of types that it stands below; a type may contain itself.
        """
        origin, arguments = get_origin(annotation), get_args(annotation)
        if isinstance(annotation, TypeAliasType):
            if annotation not in aliases:
                self.read(annotation.__value__, (*aliases, annotation))
        elif origin is Annotated:
            self.mark(arguments[0], arguments[1:])
            self.read(arguments[0], aliases)
        elif origin in (Union, UnionType):
            for each in arguments:
                self.read(each, aliases)
        elif origin in (tuple, list, set, frozenset, Sequence):
            inner = [each for each in arguments if each is not ...]
            self.items = _inner(self.items, inner, aliases)
        elif origin in (dict, Mapping):
            self.values = _inner(self.values, arguments[1:], aliases)
        elif annotation is SecretStr:
            self.single.append(Secret())
        elif _is_block(annotation):
            self.blocks.append(annotation)

    def mark(self, annotation: Annotation, metadata: Sequence[object]) -> None:
        """Adds the marks that stand on a type."""
        found = [each for each in metadata if isinstance(each, Marker)]
        inside = any(
            get_origin(each) is not None or _is_block(each) for each in alternatives(annotation)
        )
        (self.whole if inside else self.single).extend(found)


def _inner(
    known: _Shape | None, annotations: Sequence[Annotation], aliases: tuple[TypeAliasType, ...]
) -> _Shape | None:
    inner = known or _Shape()
    for each in annotations:
        inner.read(each, aliases)
    return inner if inner else None


def _fields(block: type[BaseModel]) -> Mapping[str | int, _Shape]:
    """Returns what may stand under the keys of a block, of those with a mark or a block below."""
    registered = block.registered_fields() if issubclass(block, Block) else None
    return {**_declared(block), **_shapes(registered)} if registered else _declared(block)


@cache
def _declared(block: type[BaseModel]) -> Mapping[str | int, _Shape]:
    return _shapes(block.model_fields)


def _shapes(fields: Mapping[str, FieldInfo]) -> Mapping[str | int, _Shape]:
    found: dict[str | int, _Shape] = {}
    for name, info in fields.items():
        shape = _Shape()
        shape.mark(info.annotation, info.metadata)
        shape.read(info.annotation)
        if shape:
            found[info.alias or name] = shape
    return found


def _walk(shape: _Shape, value: JsonValue, path: Path) -> Iterator[Marked]:
    if isinstance(value, dict):
        yield from _everything(shape.whole, value, path)
        for block in shape.blocks:
            if _fits(block, value):
                yield from _everything([getattr(block, "block_marker", None)], value, path)
                yield from _walk_fields(block, value, path)
        yield from _walk_each(shape.values, value.items(), path)
    elif isinstance(value, list):
        yield from _everything(shape.whole, value, path)
        yield from _walk_each(shape.items, enumerate(value), path)
    else:
        yield from _everything((*shape.single, *shape.whole), value, path)


def _everything(marks: Iterable[object], value: JsonValue, path: Path) -> Iterator[Marked]:
    for mark in marks:
        if isinstance(mark, Code) and isinstance(value, list):
            mark = Code(shlex.join(map(str, value)))
        if isinstance(mark, Marker):
            for below, each in scalars(value):
                yield Marked((*path, *below), each, mark, len(path))


def _walk_fields(
    block: type[BaseModel], value: Mapping[str, JsonValue], path: Path
) -> Iterator[Marked]:
    fields = _fields(block)
    for key, child in value.items():
        if key in fields:
            yield from _walk(fields[key], child, (*path, key))


def _walk_each(
    shape: _Shape | None, children: Iterable[tuple[str | int, JsonValue]], path: Path
) -> Iterator[Marked]:
    if shape is None:
        return
    marks_texts = bool(shape.single or shape.whole)
    for step, child in children:
        # Rows, of which there may be very many, are mostly texts without a mark.
        if marks_texts or isinstance(child, dict | list):
            yield from _walk(shape, child, (*path, step))


def _fits(block: type[BaseModel], value: Mapping[str, JsonValue]) -> bool:
    tags, given = tags_of(block), value.get("type")
    return not tags or given is None or given in tags or "${" in str(given)


def _is_block(annotation: Annotation) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _name(path: Path) -> str:
    return ".".join(step for step in path if isinstance(step, str))
