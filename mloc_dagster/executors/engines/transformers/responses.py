"""transformers' own parsing of answers, with TRL's templates for families that ship none.

A `response_template` says which regions an answer has. `choose_template` finds a model's, and
`Response` reads one answer by it, whole or as it grows: transformers' parser finds the regions, and
each call is parsed by itself, so that one that cannot be read stays text and spoils no other.
"""

from __future__ import annotations

import copy
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from mloc_dagster.errors import MissingExtraError, TerminalError
from mloc_dagster.executors.engines.protocol import Answer, EngineRequest
from mloc_dagster.executors.engines.tool_calls import CallIds, finish_reason, format_of
from mloc_dagster.executors.prompts import tool_definitions
from mloc_dagster.results import ToolCall, ToolCallDelta
from mloc_dagster.schema import AUTO_TEMPLATE, NO_TEMPLATE, Inference

CALLS = "tool_calls"

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""What templates call thoughts."""


Thinking = Literal["enabled", "disabled", "auto"]
"""Thoughts that the prompt has begun; none; or such as the model may have."""


@dataclass(frozen=True, slots=True)
class TemplateChoice:
    """How a model's answers are read.

    Attributes:
        template: transformers' `response_template`; None where none is known.
        structural_tag: xgrammar's name of the form in which it finds calls; None where that has
            none.
        note: Why, for the task's log; empty where there is nothing to say.
    """

    template: Mapping[str, Any] | None = None
    structural_tag: str | None = None
    note: str = ""

    @property
    def fields(self) -> Mapping[str, Any]:
        """What it finds in an answer."""
        return MappingProxyType(dict((self.template or {}).get("fields", {})))


def choose_template(
    named: str | Mapping[str, Any],
    tokenizer: Any,
    shipped: Callable[[str], Mapping[str, Any] | None],
    known: Callable[[Any], Mapping[str, Any] | None],
) -> TemplateChoice:
    """Returns the response template of a model: the one that is named, its own, or its family's.

    Args:
        named: `model.transformers.response_template`.
        tokenizer: The model's.
        shipped: Returns TRL's template of a name; None if it has none.
        known: Returns TRL's template for a tokenizer's chat template, to the letter; None if it
            has none.

    Raises:
        TerminalError: If the template is named and none, or cannot be read.
    """
    option = "model.transformers.response_template"
    text = chat_template_of(tokenizer)
    written = format_of(text)
    if named == NO_TEMPLATE:
        return TemplateChoice()
    if not isinstance(named, str):
        return TemplateChoice(_checked(named), None, f"{option}: the task's own")
    if named != AUTO_TEMPLATE:
        template = shipped(named)
        if template is None:
            raise TerminalError(f"{option}: TRL has no response template {named!r}")
        same = written is not None and written.response_template == named
        tag = written.structural_tag if written is not None and same else None
        return TemplateChoice(_checked(template), tag, f"{option}: {named}")
    own = getattr(tokenizer, "response_template", None)
    if isinstance(own, Mapping):
        tag = written.structural_tag if written is not None else None
        return TemplateChoice(_checked(own), tag, f"{option}: the tokenizer's own")
    name = None if written is None else written.response_template
    by_marks = None if name is None else shipped(name)
    template = known(tokenizer)
    if template is not None:
        tag = written.structural_tag if written is not None and template == by_marks else None
        return TemplateChoice(template, tag, f"{option}: TRL's, which knows the chat template")
    if written is None or by_marks is None:
        return TemplateChoice()
    marks = " and ".join(written.marks)
    why = f"{option}: {name} of TRL, because the chat template has {marks}"
    return TemplateChoice(by_marks, written.structural_tag, why)


def shipped_template(name: str) -> Mapping[str, Any] | None:
    """Returns TRL's response template of a name; None if it has none.

    Raises:
        MissingExtraError: If TRL is not installed.
    """
    try:
        from trl import chat_template_utils
    except ImportError:
        raise MissingExtraError("inference.tools on transformers", "hf") from None
    return getattr(chat_template_utils, f"{name}_template", None)


def known_template(tokenizer: Any) -> Mapping[str, Any] | None:
    """Returns TRL's response template for a tokenizer's chat template; None if it has none."""
    from trl.chat_template_utils import add_response_schema

    try:
        return add_response_schema(copy.copy(tokenizer)).response_template
    except ValueError:  # another chat template
        return None


def chat_template_of(tokenizer: Any) -> str:
    """Returns a tokenizer's chat template as one text; some have several, by name."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        return "\n".join(map(str, template.values()))
    return template or ""


def _checked(template: Mapping[str, Any]) -> Mapping[str, Any]:
    from transformers.utils.chat_parsing.response_templates import load_response_template

    try:
        load_response_template(copy.deepcopy(dict(template)))
    except (ValueError, TypeError, KeyError) as error:
        raise TerminalError(f"model.transformers.response_template: {error}") from error
    return template


class Responses:
    """Reads the answers of one model.

    Args:
        named: `model.transformers.response_template`.
        tokenizer: The model's.
        model: What messages call the model.
    """

    def __init__(self, named: str | Mapping[str, Any], tokenizer: Any, model: str) -> None:
        self._named = named
        self._tokenizer = tokenizer
        self._model = model
        self._choice: TemplateChoice | None = None
        self._specials = tuple(tokenizer.all_special_tokens)
        own = getattr(tokenizer, "response_template", None)
        self._may_think = own is not None or "<think>" in chat_template_of(tokenizer)

    @property
    def choice(self) -> TemplateChoice:
        """How answers are read; found out once somebody asks, for TRL is slow to import."""
        if self._choice is None:
            self._choice = choose_template(
                self._named, self._tokenizer, shipped_template, known_template
            )
        return self._choice

    @property
    def note(self) -> str:
        """Why answers are read as they are, once that is known."""
        return "" if self._choice is None else self._choice.note

    def check(self, block: Inference) -> None:
        """Raises what would be every row's error.

        Raises:
            TerminalError: If the answers to a block cannot be read, or not be held to calls.
        """
        try:
            self._readable(block)
        except ValueError as error:
            raise TerminalError(str(error)) from error

    def begin(self, request: EngineRequest, answer: int, say: Say | None = None) -> Response | None:
        """Returns what reads an answer; None for one that is text only.

        Raises:
            ValueError: If nothing reads it, or it cannot be held to calls as its block asks for.
        """
        block = request.sampling
        # A prompt that went through no chat template is continued, not answered.
        if block is None or request.rendered.special:
            return None
        if not self._readable(block):
            return None
        specials = self._specials if block.skip_special_tokens else (self._tokenizer.eos_token,)
        return Response(request, block, answer, self.choice, specials, say)

    def thinking(self, request: EngineRequest) -> Thinking:
        """Returns what xgrammar is to expect before a call."""
        prompt = request.rendered.text.rstrip()
        if prompt.endswith("<think>"):
            return "enabled"
        thinks = self._may_think and any(name in self.choice.fields for name in THOUGHTS)
        return "auto" if thinks and not prompt.endswith("</think>") else "disabled"

    def _readable(self, block: Inference) -> bool:
        """Tells whether there is more than text in the answers to a block."""
        if not block.calls_tools:
            asked = self._may_think or self._named != AUTO_TEMPLATE
            return asked and any(name in self.choice.fields for name in THOUGHTS)
        if CALLS not in self.choice.fields:
            raise ValueError(self._no_template())
        if held(block) and self.choice.structural_tag is None:
            asked = "tool_choice other than auto" if block.forces_calls else "strict: true"
            raise ValueError(
                f"{asked} has to hold answers to the form of calls, and xgrammar knows no such "
                f"form for the response template of {self._model}: take tool_choice: auto"
            )
        return True

    def _no_template(self) -> str:
        option = "model.transformers.response_template"
        if self._named == NO_TEMPLATE:
            return f"inference.tools need a response template, and {option} is none"
        return (
            f"nothing tells how {self._model} writes calls of tools: name one of TRL's response "
            f"templates in {option}, such as qwen3 or llama3, or write one there"
        )


def held(block: Inference) -> bool:
    """Tells whether answers are held to the form of calls."""
    strict = any(each.function.strict for each in block.tools)
    return block.forces_calls or (block.calls_tools and strict)


@dataclass(frozen=True, slots=True)
class Say:
    """Takes pieces of one answer."""

    text: Callable[[str], None]
    reasoning: Callable[[str], None]
    tool_call: Callable[[ToolCallDelta], None]


class Response:
    """Reads one answer.

    Args:
        request: The request.
        block: How it is answered.
        number: Which of its answers it is.
        choice: How it is read.
        specials: Special tokens that are no part of its text.
        say: Takes pieces as they grow; None where nobody listens.
    """

    def __init__(
        self,
        request: EngineRequest,
        block: Inference,
        number: int,
        choice: TemplateChoice,
        specials: tuple[str, ...],
        say: Say | None,
    ) -> None:
        from transformers.utils.chat_parsing.response_parser import ResponseParser
        from transformers.utils.chat_parsing.response_templates import load_response_template

        self._block = block
        self._template = _of_block(choice.template or {}, block)
        self._tools: list[Any] | None = tool_definitions(block) if block.calls_tools else None
        self._specials = specials
        self._ids = CallIds(request, number)
        self._say = say
        template = load_response_template(_raw(self._template))
        prompt = request.rendered.text
        if not template.start_anchor_re.search(prompt):
            # Nothing tells where the answer begins, and calls that the prompt shows are not in it.
            prompt = "<think>\n" if prompt.rstrip().endswith("<think>") else ""
        self._parser: Any = ResponseParser(template, prefix=prompt)
        self._said_thoughts = _Piecewise(self._reason)
        self._said_text = _Piecewise(self._write)
        self._fed = ""
        self._calls: list[ToolCall] = []
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._raw_thoughts = ""

    def grow(self, text: str, start: int = 0) -> None:
        """Reads what is new of an answer that grows; see `Pieces`, which this stands in for."""
        if len(text) > len(self._fed) and text.startswith(self._fed):
            new, self._fed = text[len(self._fed) :], text
            self._take(self._parser.feed(new))

    def answer(
        self, answer: Answer, tokens: list[int], decode: Callable[[Any], list[str]]
    ) -> Answer:
        """Returns an answer with its calls and thoughts apart.

        Args:
            answer: With the text as the model wrote it, special tokens and all.
            tokens: Its tokens.
            decode: Turns lists of token ids into such texts.
        """
        self.grow(answer.text)
        _, events = self._parser.finalize()
        self._take(events)
        found = bool(self._calls)
        self._said_thoughts.end(keep=False)
        self._said_text.end(keep=not found and not self._thoughts)
        calls, thoughts = tuple(self._calls), "".join(self._thoughts)
        text = "".join(self._text)
        if not (text or thoughts or calls) and self._fed.strip():
            self._write(self._clean(self._fed))  # the template has no place for what was said
            text = "".join(self._text)
        return replace(
            answer,
            text=text,
            finish_reason=finish_reason(self._block, answer.finish_reason, calls),
            tool_calls=calls,
            reasoning=thoughts or None,
            reasoning_tokens=self._thought_tokens(tokens, decode) if thoughts else 0,
        )

    def _take(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            field, kind = event["field"], event["type"]
            if field == CALLS:
                if kind == "region_close":
                    self._call(event["value"])
            elif kind == "region_chunk":
                piece = event["text"]
                if field in THOUGHTS:
                    self._raw_thoughts += piece
                    self._said_thoughts.add(self._clean(piece))
                else:
                    self._said_text.add(self._clean(piece))

    def _call(self, region: Mapping[str, Any]) -> None:
        written = f"{region['opened']}{region['content']}"
        found = self._read(written)
        if not found:
            self._said_text.add(self._clean(written))
            return
        for name, arguments in found:
            call = self._ids.call(len(self._calls), name, arguments)
            if self._say is not None:
                piece = ToolCallDelta(len(self._calls), call.id, name, arguments)
                self._say.tool_call(piece)
            self._calls.append(call)

    def _read(self, written: str) -> list[tuple[str, str]]:
        """Returns name and arguments of the calls in a region; none if they cannot be read."""
        from transformers.utils.chat_parsing.response_parser import parse_response

        try:
            message = parse_response(written, self._template, prefix="", tools=self._tools)
        except (ValueError, TypeError, KeyError):
            return []
        found = message.get(CALLS) or []
        calls = [_plain_call(each) for each in (found if isinstance(found, list) else [found])]
        return [each for each in calls if each is not None] if all(calls) else []

    def _thought_tokens(self, tokens: list[int], decode: Callable[[Any], list[str]]) -> int:
        """Returns how many tokens the thoughts have, from their first to their last character."""
        raw = self._raw_thoughts.strip()
        begins = self._fed.find(raw)
        if not raw or begins < 0:
            return 0

        def length(count: int) -> int:
            return len(decode([tokens[:count]])[0])

        counts = range(len(tokens) + 1)
        first = bisect_left(counts, begins + 1, key=length)
        return bisect_left(counts, begins + len(raw), key=length) - first + 1

    def _write(self, piece: str) -> None:
        self._text.append(piece)
        if self._say is not None:
            self._say.text(piece)

    def _reason(self, piece: str) -> None:
        self._thoughts.append(piece)
        if self._say is not None:
            self._say.reasoning(piece)

    def _clean(self, text: str) -> str:
        for each in self._specials:
            if each in text:
                text = text.replace(each, "")
        return text


class _Piecewise:
    """Passes pieces on, but for white space at the start and the end of the whole.

    Args:
        say: Takes the pieces.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._held = ""
        self._began = False

    def add(self, piece: str) -> None:
        """Passes on what is followed by something to be seen."""
        self._held += piece
        seen = self._held.rstrip()
        if seen:
            said, self._held = self._held[: len(seen)], self._held[len(seen) :]
            self._say(said if self._began else said.lstrip())
            self._began = True

    def end(self, *, keep: bool) -> None:
        """Passes on the white space at the end, if that is to be kept."""
        if keep and self._held:
            self._say(self._held)
        self._held = ""


def _of_block(template: Mapping[str, Any], block: Inference) -> dict[str, Any]:
    """Returns the template with what it is to find: calls only where there are tools."""
    found = copy.deepcopy(dict(template))
    if not block.calls_tools:
        found["fields"].pop(CALLS, None)
    for field in found["fields"].values():
        field["optional"] = True
    return found


def _raw(template: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the template with calls as they are written: one that is malformed is text."""
    found = copy.deepcopy(dict(template))
    field = found["fields"].get(CALLS)
    if field is None:
        return found
    opened = field.pop("open", None)
    pattern = field.pop("open_pattern", None) or _either(opened)
    kept = {name: field[name] for name in ("close", "close_pattern") if name in field}
    found["fields"][CALLS] = {
        **kept,
        "open_pattern": f"(?P<opened>{pattern})",
        "repeats": True,
        "content": "text",
        "content_args": {"strip": False},
        "transform": {"opened": "{opened}", "content": "{content}"},
    }
    return found


def _either(literals: str | list[str] | None) -> str:
    given = [literals] if isinstance(literals, str) else list(literals or ())
    return "|".join(re.escape(each) for each in given)


def _plain_call(call: Any) -> tuple[str, str] | None:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name := function.get("name"), str):
        return None
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    return (name, arguments) if name else None
