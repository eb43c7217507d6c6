"""The task type `judge`: a model reads a row's answer and its passages, and its verdict is read.

The row stays as it was, with the verdict beside it. Everything else is as for inference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from mloc_dagster.errors import InputError
from mloc_dagster.executors.base import Caller, ShardContext, ShardInput
from mloc_dagster.executors.engines.choice import choose_engine
from mloc_dagster.executors.engines.protocol import Engine
from mloc_dagster.executors.inference import InferenceExecutor
from mloc_dagster.executors.prompts import last_user_text, message_text
from mloc_dagster.executors.retrieval.answer import passage_block
from mloc_dagster.executors.retrieval.verdict import VERDICT_FORM, read_verdict
from mloc_dagster.results import InputRow, OutputRow, Passage, Prompt, without_citations
from mloc_dagster.schema import Inference, JudgeSpec, ModelSpec

_NO_ANSWER = "the row has no answer to judge"

_OF_THE_ANSWER = (
    *("output", "outputs", "finish_reason", "finish_reasons", "reasoning", "all_reasoning"),
    *("tool_calls", "all_tool_calls", "steps", "stop", "failed_calls"),
    *("retrieved", "citations", "abstained", "citation_error", "left_out", "cut_characters"),
)
"""What a row keeps of its answer; tokens, seconds and who computed it are the judge's."""


class JudgeExecutor(InferenceExecutor):
    """Judges the answer of each row."""

    def run(self, shard: ShardInput, spec: ModelSpec, model: Engine, context: ShardContext) -> None:
        """Judges every row of the shard, emitting each as it finishes.

        Raises:
            TaskCancelled: If the task was asked to stop; looked at between tokens.
        """
        if not isinstance(spec, JudgeSpec):
            raise TypeError(f"expected the spec of a judge task, not {type(spec).__name__}")
        rows = _Rows(spec.judge.instructions or "", model.label, context)
        shard = replace(shard, rows=rows.asking(shard.rows))
        super().run(shard, _in_form(spec, context), model, replace(context, emit=rows.emit))

    def answer(
        self, rows: Sequence[InputRow], spec: ModelSpec, model: Engine, caller: Caller
    ) -> Sequence[OutputRow]:
        """Refuses: nobody waits for such tasks row by row.

        Raises:
            InputError: Always.
        """
        raise InputError(f"a task of type {spec.task_type!r} answers no calls")


def _in_form(spec: JudgeSpec, context: ShardContext) -> JudgeSpec:
    """Returns the task with the form of its verdicts, where the engine can keep to one."""
    engine, own = choose_engine(spec).engine, spec.inference
    # The judge's own defaults are no engine's: an endpoint is told what was given, and no more.
    given = {"temperature": own.temperature, "max_tokens": own.max_tokens}
    given |= own.model_dump(by_alias=True, exclude_unset=True)
    if "guided" in engine.abilities:
        given["structured_outputs"] = {"json": VERDICT_FORM}
    else:
        context.log(f"{engine.label} keeps to no form: verdicts are read as they are written")
    return spec.model_copy(update={"inference": Inference.model_validate(given)})


@dataclass(frozen=True, slots=True)
class _Judged:
    """A row under way: what was asked in it, and answered."""

    prompt: Prompt
    answer: OutputRow
    passages: int


@dataclass(frozen=True, slots=True)
class _Rows:
    """Asks the judge about rows, and gives them back with its verdicts."""

    instructions: str
    label: str
    context: ShardContext
    judged: dict[int, _Judged] = field(default_factory=dict)

    def asking(self, rows: Iterable[InputRow]) -> Iterator[InputRow]:
        """Yields rows whose prompts are what the judge reads; others are emitted in time."""
        for row in rows:
            answer = row.answer
            if row.error is not None:
                yield row
            elif answer is None:
                yield msgspec.structs.replace(row, error=_NO_ANSWER)
            elif answer.abstained or not answer.output.strip():
                unjudged = OutputRow(
                    row.index, row.prompt, engine=self.label, custom_id=row.custom_id
                )
                self.context.emit(_with_answer(unjudged, answer))
            else:
                passages = judged_by(row.prompt, answer)
                self.judged[row.index] = _Judged(row.prompt, answer, len(passages))
                asked = judge_prompt(self.instructions, row.prompt, answer, passages)
                yield msgspec.structs.replace(row, prompt=asked, answer=None, verbatim=False)

    def emit(self, row: OutputRow) -> None:
        """Emits a row with its answer, and what the judge says of that."""
        judged = self.judged.pop(row.index, None)
        if judged is None:
            self.context.emit(row)
            return
        if row.error is not None:
            failed = msgspec.structs.replace(
                row, prompt=judged.prompt, retrieved=judged.answer.retrieved
            )
            self.context.emit(failed)
            return
        whole = row.finish_reason != "length"
        judgement = read_verdict(row.output, judged.passages, whole=whole)
        row = msgspec.structs.replace(row, prompt=judged.prompt, judgement=judgement)
        self.context.emit(_with_answer(row, judged.answer))


def _with_answer(row: OutputRow, answer: OutputRow) -> OutputRow:
    kept = {name: getattr(answer, name) for name in _OF_THE_ANSWER}
    return msgspec.structs.replace(row, **kept)


def judged_by(prompt: Prompt, answer: OutputRow) -> list[Passage]:
    """Returns what has to support an answer: its passages, or else all that was asked."""
    if answer.retrieved is not None:
        return answer.retrieved
    texts = [prompt] if isinstance(prompt, str) else map(message_text, prompt)
    return [Passage("", "\n\n".join(filter(None, texts)))]


def judge_prompt(
    instructions: str, prompt: Prompt, answer: OutputRow, passages: Sequence[Passage]
) -> str:
    """Returns what the judge reads; what is the same for all rows stands first.

    Citations are left out of the answer, so that they do not vouch for it.
    """
    blocks = [passage_block(n, each) for n, each in enumerate(passages, 1)]
    parts = [instructions.strip(), "Passages:", *(blocks or ["(None was found.)"])]
    if answer.retrieved is not None:
        parts.append(f"Question: {last_user_text(prompt)}")
    said = answer.output if answer.citations is None else without_citations(answer.output)
    return "\n\n".join(filter(None, [*parts, f"Answer: {said}"]))
