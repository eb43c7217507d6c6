"""Checks of JSON Schemas, regular expressions and EBNF grammars before an engine sees them.

Engines build automata from JSON Schemas and regular expressions, and leave out without a word
what these cannot express. An answer that only looks guided is worse than a template that is
refused, so everything that would be left out is named here.

xgrammar has the last word when the model runs. Here is told what it would refuse for certain: rules
that are not there, what is not closed, and where nothing stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from pydantic import JsonValue

from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema.engine_type import EngineType
from mloc_dagster.schema.inference import StructuredOutputs

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|\#[^\n]*)
    | (?P<define>::=)
    | (?P<element>"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\])
    | (?P<name>[A-Za-z_.][\w.-]*)
    | (?P<sign>[|()*+?]|\{[\d\s,]*\})
    | (?P<other>.)
    """,
    re.VERBOSE,
)
_UNCLOSED = {'"': "a string without its closing quote", "[": "a character class without its ']'"}


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def grammar_problem(text: str) -> str | None:
    """Returns what is wrong with a grammar, or None where nothing is."""
    tokens = list(_tokens(text))
    if any(token.text.startswith(("TagDispatch", "Token")) for token in tokens):
        return None  # xgrammar's macros have a syntax of their own
    return _odd_sign(tokens) or _unknown_rule(tokens) or _hole(tokens)


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "space":
            yield _Token(match.lastgroup or "", match[0], line)
        line += match[0].count("\n")


def _odd_sign(tokens: list[_Token]) -> str | None:
    for token in tokens:
        if token.kind == "other":
            what = _UNCLOSED.get(token.text, f"{token.text!r}, which no grammar has there")
            return f"line {token.line}: {what}"
    return None


def _unknown_rule(tokens: list[_Token]) -> str | None:
    following = [*tokens[1:], _Token("", "", 0)]
    defined: dict[str, int] = {}
    for token, after in zip(tokens, following, strict=True):
        if after.kind == "define" and token.kind == "name":
            if token.text in defined:
                return (
                    f"line {token.line}: rule {token.text!r} was defined in line "
                    f"{defined[token.text]}"
                )
            defined[token.text] = token.line
    if "root" not in defined:
        return f"there is no rule 'root ::= …', where answers begin{nearest_hint('root', defined)}"
    for token in tokens:
        if token.kind == "name" and token.text not in defined:
            hint = nearest_hint(token.text, defined)
            return f"line {token.line}: there is no rule {token.text!r}{hint}"
    return None


def _hole(tokens: list[_Token]) -> str | None:
    """Finds where an element is missing, and brackets without a partner."""
    depth = 0
    needs_element = False
    for place, token in enumerate([*tokens, _Token("", "", tokens[-1].line)]):
        after = tokens[place + 1] if place + 1 < len(tokens) else None
        ends_rule = not token.kind or (after is not None and after.kind == "define")
        before = tokens[max(place - 1, 0)]
        starts = token.kind in ("name", "element") or token.text == "("
        empty = before.text + token.text == "()"
        if needs_element and (ends_rule or not (starts or empty)):
            return f"line {before.line}: nothing stands behind {before.text!r}"
        if ends_rule and depth:
            return f"line {token.line}: a '(' is not closed"
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if depth < 0:
            return f"line {token.line}: a ')' closes nothing"
        needs_element = token.kind == "define" or token.text in ("|", "(")
    return None


Path = tuple[str | int, ...]

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
FORMATS = (
    *("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "json-pointer"),
    *("relative-json-pointer", "time", "uri", "uri-reference", "uri-template", "uuid"),
)
"""Values of `format` that xgrammar enforces."""

_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPPINGS = ("properties", "patternProperties", "$defs", "definitions")
_SINGLE = ("items", "additionalProperties", "propertyNames")
_NOWHERE = ("not", "if", "dependentRequired", "dependentSchemas", "dependencies")
_NOT_IN_XGRAMMAR = ("multipleOf", "uniqueItems", "contains", "minContains", "maxContains")

# What no flavour of regular expressions reads; where flavours differ the engine has its say.
_BROKEN_EVERYWHERE = re.compile(
    "missing \\)|unbalanced parenthesis|unterminated character set|end of pattern|"
    "nothing to repeat|min repeat greater|bad character range"
)
_OUTSIDE_CLASSES = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]|(\\.|\(\?(?!:|<[A-Za-z]).{1,2})", re.S)
_NOWHERE_GUIDED = {
    **dict.fromkeys(("(?=", "(?!"), "a look-ahead"),
    **dict.fromkeys(("(?<=", "(?<!"), "a look-behind"),
    "(?>": "an atomic group",
    "(?#": "a comment",
    **dict.fromkeys((r"\b", r"\B"), "a word boundary"),
    **{rf"\{digit}": "a reference to a group" for digit in range(1, 10)},
}
"""What neither xgrammar nor llguidance can follow, to which engines turn where it refuses."""

_UNKNOWN_ESCAPES = {
    **dict.fromkeys("AZz", "an anchor (the whole answer is matched anyway)"),
    **dict.fromkeys("pP", "a Unicode class"),
}


@dataclass(frozen=True, slots=True)
class FormProblem:
    """Why answers cannot be given a form.

    Attributes:
        path: Where below `structured_outputs` it stands.
        reason: What is wrong, and what would work.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"structured_outputs.{'.'.join(map(str, self.path))}: {self.reason}"


def form_problems(form: StructuredOutputs, engine: EngineType | None) -> Iterator[FormProblem]:
    """Yields what is wrong with a form.

    Args:
        form: The form.
        engine: The engine that answers; None when any may, and only what none can do is wrong.
    """
    if form.json_schema is not None:
        yield from _Schema(form.json_schema, engine).problems()
    if form.regex is not None:
        yield from _regex(form.regex, ("regex",), engine)
    if form.grammar is not None:
        yield from _grammar(form.grammar, engine)
    if form.choice is not None and len(set(form.choice)) < len(form.choice):
        twice = next(each for each in form.choice if form.choice.count(each) > 1)
        yield FormProblem(("choice",), f"{twice!r} stands there twice")


def _grammar(grammar: str, engine: EngineType | None) -> Iterator[FormProblem]:
    if not grammar.strip():
        yield FormProblem(("grammar",), "the grammar is empty")
    # Engines with a choice read Lark as well, and take for it what defines no rule by `::=`.
    elif _by_xgrammar(engine) or "::=" in grammar:
        problem = grammar_problem(grammar)
        if problem is not None:
            yield FormProblem(("grammar",), problem)


def _regex(pattern: str, path: Path, engine: EngineType | None) -> Iterator[FormProblem]:
    if not pattern or "\0" in pattern:
        yield FormProblem(path, "the regular expression is empty or holds a NUL character")
        return
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        if _BROKEN_EVERYWHERE.search(str(error)):
            yield FormProblem(path, f"{pattern!r} is no regular expression: {error}")
            return
    for match in _OUTSIDE_CLASSES.finditer(pattern):
        part = match[1]
        if part is None:
            continue
        what = next((what for start, what in _NOWHERE_GUIDED.items() if part.startswith(start)), "")
        if not what and _by_xgrammar(engine):
            what = _UNKNOWN_ESCAPES.get(part[1]) if part[0] == "\\" else "a special group"
        if what:
            reason = f"{part!r} in {pattern!r} is {what}, which guided answers cannot have"
            yield FormProblem(path, reason)


class _Schema:
    """Walks a JSON Schema."""

    def __init__(self, schema: Mapping[str, JsonValue], engine: EngineType | None) -> None:
        self._root = schema
        self._engine = engine

    def problems(self) -> Iterator[FormProblem]:
        yield from self._schema(cast("JsonValue", self._root), ("json",))

    def _schema(self, schema: JsonValue, path: Path) -> Iterator[FormProblem]:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, Mapping):
            reason = f"expected a schema: a mapping, true or false; got {schema!r}"
            yield FormProblem(path, reason)
            return
        yield from self._type(schema, path)
        yield from self._values(schema, path)
        yield from self._left_out(schema, path)
        yield from self._below(schema, path)

    def _type(self, schema: Mapping[str, JsonValue], path: Path) -> Iterator[FormProblem]:
        given = schema.get("type", [])
        for name in given if isinstance(given, list) else [given]:
            if name not in TYPES:
                hint = nearest_hint(str(name), TYPES)
                yield FormProblem((*path, "type"), f"unknown type {name!r}{hint}")

    def _values(self, schema: Mapping[str, JsonValue], path: Path) -> Iterator[FormProblem]:
        if "enum" in schema and not (isinstance(schema["enum"], list) and schema["enum"]):
            yield FormProblem((*path, "enum"), "expected a list with at least one value")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
            yield FormProblem((*path, "required"), "expected a list of property names")
        pattern = schema.get("pattern")
        if isinstance(pattern, str):
            yield from _regex(pattern, (*path, "pattern"), self._engine)
        for low, high in (("minimum", "maximum"), ("minLength", "maxLength")):
            least, most = schema.get(low), schema.get(high)
            if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
                yield FormProblem((*path, low), f"{low} {least} is more than {high} {most}")
        reference = schema.get("$ref")
        if reference is not None and not self._resolves(reference):
            reason = f"{reference!r} is nowhere in this schema; references start with '#/'"
            yield FormProblem((*path, "$ref"), reason)

    def _left_out(self, schema: Mapping[str, JsonValue], path: Path) -> Iterator[FormProblem]:
        for key in _NOWHERE:
            if key in schema:
                yield FormProblem((*path, key), f"no engine can enforce {key!r}")
        if self._engine is None or not self._engine.xgrammar_only:
            return
        engine = self._engine
        for key in _NOT_IN_XGRAMMAR:
            if key in schema:
                yield _not_here(engine, (*path, key), repr(key))
        if len(_list(schema.get("allOf"))) > 1:
            yield _not_here(engine, (*path, "allOf"), "'allOf' with several schemas")
        text = next((key for key in ("pattern", "format") if key in schema), None)
        length = next((key for key in ("minLength", "maxLength") if key in schema), None)
        if text and length:
            yield _not_here(engine, (*path, length), f"{length!r} beside {text!r}")
        if schema.get("format", "uuid") not in FORMATS:
            hint = nearest_hint(str(schema["format"]), FORMATS)
            yield FormProblem((*path, "format"), f"unknown format {schema['format']!r}{hint}")
        names = [
            key for key in ("properties", "patternProperties", "propertyNames") if key in schema
        ]
        if len(names) > 1 or len(_mapping(schema.get("patternProperties"))) > 1:
            yield _not_here(engine, (*path, names[-1]), f"{names[-1]!r} beside other names")

    def _below(self, schema: Mapping[str, JsonValue], path: Path) -> Iterator[FormProblem]:
        for key in _SINGLE:
            if key in schema:
                yield from self._schema(schema[key], (*path, key))
        for key in _LISTS:
            if key in schema and not isinstance(schema[key], list):
                yield FormProblem((*path, key), "expected a list of schemas")
            for place, each in enumerate(_list(schema.get(key))):
                yield from self._schema(each, (*path, key, place))
        for key in _MAPPINGS:
            if key in schema and not isinstance(schema[key], Mapping):
                yield FormProblem((*path, key), "expected a mapping of names to schemas")
            for name, each in _mapping(schema.get(key)).items():
                yield from self._schema(each, (*path, key, name))

    def _resolves(self, reference: JsonValue) -> bool:
        if reference == "#":
            return True
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return False
        found: JsonValue = cast("JsonValue", self._root)
        for step in reference[2:].split("/"):
            below = _mapping(found)
            name = step.replace("~1", "/").replace("~0", "~")
            if name not in below:
                return False
            found = below[name]
        return True


def _by_xgrammar(engine: EngineType | None) -> bool:
    return engine is not None and engine.xgrammar_only


def _not_here(engine: EngineType, path: Path, what: str) -> FormProblem:
    return FormProblem(path, f"the {engine.name} engine cannot enforce {what}")


def _list(value: JsonValue) -> Sequence[JsonValue]:
    return value if isinstance(value, list) else ()


def _mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, Mapping) else {}
