"""The task type `answer`: a row becomes a prompt with passages, its answer is read for citations.

Everything else is as for inference: engines, reuse, budgets, pictures.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice

import msgspec

from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.engines.protocol import Engine, LimitedEngine
from mloc_dagster.executors.inference import InferenceExecutor
from mloc_dagster.executors.prompts import RowOptions, last_user_text
from mloc_dagster.executors.row_requests import WINDOW_ROWS
from mloc_dagster.results import (
    ABSTENTION,
    InputRow,
    Message,
    OutputRow,
    Passage,
    Prompt,
    abstains,
    check_citations,
)
from mloc_dagster.schema import Answering, AnswerSpec, ModelSpec, certain_engine

_NO_PASSAGES = (
    "the row has no passages: an answer is made of what an earlier task of type `retrieve` or "
    "`rerank` found for it"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[。！？\n]")

_MOST_COUNTED = 16_384
"""Passages whose tokens are remembered: popular ones are found for many rows."""


class AnswerExecutor(InferenceExecutor):
    """Answers each row by its passages."""

    def run(self, shard: ShardInput, spec: ModelSpec, model: Engine, context: ShardContext) -> None:
        """Answers every row of the shard, emitting each as it finishes.

        Raises:
            TaskCancelled: If the task was asked to stop; looked at between tokens.
        """
        if not isinstance(spec, AnswerSpec):
            raise TypeError(f"expected the spec of an answer task, not {type(spec).__name__}")
        answers = _Answers(spec.answer, model, context)
        prompts = _Prompts(spec, model, answers)
        shard = replace(shard, rows=prompts.of(shard.rows))
        super().run(shard, spec, model, replace(context, emit=answers.emit))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A row under way: what it asked, and what its answer is made of."""

    prompt: Prompt
    passages: list[Passage]
    left_out: int
    cut_characters: int = 0


@dataclass(frozen=True, slots=True)
class _Answers:
    """Gives rows back what they asked, and reads their answers."""

    answering: Answering
    engine: Engine
    context: ShardContext
    asked: dict[int, _Asked] = field(default_factory=dict)

    def emit(self, row: OutputRow) -> None:
        asked = self.asked.pop(row.index, None)
        if asked is not None:
            row = self._read(row, asked)
        self.context.emit(row)

    def abstain(self, row: InputRow) -> None:
        """Emits the answer to a row for which nothing was found: no model has to be asked."""
        self.context.emit(
            OutputRow(
                index=row.index,
                prompt=row.prompt,
                output=ABSTENTION,
                engine=self.engine.label,
                custom_id=row.custom_id,
                retrieved=[],
                citations=None if self.answering.citations == "none" else [],
                abstained=True,
            )
        )

    def _read(self, row: OutputRow, asked: _Asked) -> OutputRow:
        row = msgspec.structs.replace(
            row,
            prompt=asked.prompt,
            retrieved=asked.passages,
            left_out=asked.left_out,
            cut_characters=asked.cut_characters,
        )
        if row.error is not None:
            return row
        abstained = abstains(row.output) if self.answering.abstain else None
        if self.answering.citations == "none":
            return msgspec.structs.replace(row, abstained=abstained)
        required = self.answering.citations == "required" and not abstained
        citations, problem = check_citations(row.output, asked.passages, required=required)
        return msgspec.structs.replace(
            row, abstained=abstained, citations=citations, citation_error=problem
        )


class _Prompts:
    """Makes prompts of rows with passages.

    Args:
        spec: The task.
        engine: Counts tokens.
        answers: Keeps in mind what was asked.
    """

    def __init__(self, spec: AnswerSpec, engine: Engine, answers: _Answers) -> None:
        self._answering = spec.answer
        self._instructions = spec.answer.instructions or ""
        self._options = RowOptions(spec.row_block, certain_engine(spec))
        self._engine = engine
        self._answers = answers
        self._longest = engine.longest if isinstance(engine, LimitedEngine) else None
        self._tokens = _TokenCounts(engine)

    def of(self, rows: Iterable[InputRow]) -> Iterator[InputRow]:
        """Yields rows whose prompts are what the model reads; a window of them at a time."""
        given = iter(rows)
        while window := list(islice(given, WINDOW_ROWS)):
            blocks = [_blocks(row) for row in window]
            counts = self._tokens.of([text for some in blocks for text in some])
            for row, some, room in zip(window, blocks, self._rooms(window), strict=True):
                yield from self._prompt(row, some, [counts[text] for text in some], room)

    def _prompt(
        self, row: InputRow, blocks: Sequence[str], counts: Sequence[int], room: int
    ) -> Iterator[InputRow]:
        if row.error is None and row.retrieved is None:
            row = msgspec.structs.replace(row, error=_NO_PASSAGES)
        if row.error is not None:
            yield row
            return
        passages = row.retrieved or []
        if not passages and self._answering.abstain:
            self._answers.abstain(row)
            return
        taken = sum(each <= room for each in accumulate(counts))
        if passages and not taken:
            yield self._cut(row, passages, counts[0], room)
            return
        left_out = len(passages) - taken
        self._answers.asked[row.index] = _Asked(row.prompt, passages[:taken], left_out)
        yield self._asking(row, blocks[:taken])

    def _cut(self, row: InputRow, passages: Sequence[Passage], tokens: int, room: int) -> InputRow:
        """Returns the prompt with as much of the first passage as there is room for."""
        first = passages[0]

        def block(length: int) -> str:
            return passage_block(1, msgspec.structs.replace(first, text=first.text[:length]))

        def too_long(length: int) -> bool:
            (ids,) = self._engine.tokenize([block(length)], special=False)
            return len(ids) >= room

        longest = bisect_left(range(1, len(first.text) + 1), x=True, key=too_long)
        length = _border(first.text, longest)
        if not first.text[:length].strip():
            return msgspec.structs.replace(row, error=self._too_long(tokens, room))
        kept = msgspec.structs.replace(
            first, text=first.text[:length], end=min(first.end, first.start + length)
        )
        self._answers.asked[row.index] = _Asked(
            row.prompt, [kept], len(passages) - 1, len(first.text) - length
        )
        return self._asking(row, [block(length)])

    def _asking(self, row: InputRow, blocks: Sequence[str]) -> InputRow:
        prompt = prompt_of(row.prompt, self._instructions, blocks)
        return msgspec.structs.replace(row, prompt=prompt, retrieved=None, verbatim=False)

    def _rooms(self, rows: Sequence[InputRow]) -> list[int]:
        """Returns how many tokens of passages each row may have."""
        most = self._answering.max_context_tokens
        if self._longest is None:
            return [most] * len(rows)
        rooms: list[int] = []
        for row in rows:
            try:
                block = self._options.of(row)
                rendered = self._engine.render(self._asking(row, ()), block)
            except ValueError:  # it becomes the row's error where all rows are rendered
                rooms.append(most)
                continue
            (tokens,) = self._engine.tokenize([rendered.text], special=rendered.special)
            kept = min(getattr(block, "max_tokens", 0), self._longest // 2)
            rooms.append(min(most, self._longest - kept - len(tokens)))
        return rooms

    def _too_long(self, tokens: int, room: int) -> str:
        most = self._answering.max_context_tokens
        why = f"answer.max_context_tokens is {most:,}"
        if room < most:
            why = f"the model, which reads {self._longest:,}, has room for {max(room, 0):,}"
        return f"the first passage has {tokens:,} tokens, and {why}: cut documents into less"


class _TokenCounts:
    """Counts tokens of texts, the most recently used of which are remembered.

    Args:
        engine: Has the tokenizer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: OrderedDict[str, int] = OrderedDict()

    def of(self, texts: Sequence[str]) -> dict[str, int]:
        wanted = dict.fromkeys(texts)
        new = [each for each in wanted if each not in self._known]
        # What stands between two passages is no more than a token of its own.
        counted = self._engine.tokenize(new, special=False) if new else []
        self._known |= {text: len(ids) + 1 for text, ids in zip(new, counted, strict=True)}
        found: dict[str, int] = {}
        for each in wanted:
            self._known.move_to_end(each)
            found[each] = self._known[each]
        while len(self._known) > _MOST_COUNTED:
            self._known.popitem(last=False)
        return found


def _border(text: str, longest: int) -> int:
    """Returns where a sentence ends, if one does in the latter half of what there is room for.

    Else it is where a word does, or where the room does.
    """
    if longest >= len(text):
        return len(text)
    ends = [found.end() for found in _SENTENCE_END.finditer(text, 0, longest)]
    if ends and 2 * ends[-1] >= longest:
        return ends[-1]
    space = text.rfind(" ", 0, longest + 1)
    return space if 2 * space >= longest else longest


def _blocks(row: InputRow) -> list[str]:
    return [passage_block(n, each) for n, each in enumerate(row.retrieved or (), 1)]


def passage_block(n: int, passage: Passage) -> str:
    """Returns a passage as the model reads it: its number, where it stands, its text."""
    place = " > ".join(each for each in (passage.document, *passage.heading) if each)
    return f"[{n}] {place}".rstrip() + f"\n{passage.text.strip()}"


def prompt_of(prompt: Prompt, instructions: str, blocks: Sequence[str]) -> Prompt:
    """Returns what a model is asked: instructions, passages, and the row's own question.

    What is the same for all rows stands first, so that engines compute it once. Of a chat the
    last thing that the user said is the question.

    Args:
        prompt: The row's.
        instructions: How to answer.
        blocks: The passages, as `passage_block` has them.
    """
    found = "\n\n".join(blocks) or "(None was found.)"
    parts = [instructions.strip(), f"Passages:\n\n{found}", f"Question: {last_user_text(prompt)}"]
    asked = "\n\n".join(filter(None, parts))
    if isinstance(prompt, str):
        return asked
    places = [place for place, each in enumerate(prompt) if each.role == "user"]
    if not places:
        return [*prompt, Message("user", asked)]
    chat = list(prompt)
    chat[places[-1]] = msgspec.structs.replace(chat[places[-1]], content=asked)
    return chat
