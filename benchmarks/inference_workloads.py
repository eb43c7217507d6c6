"""The prompts that engines are compared on, as JSON lines with the column `question`."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path


class Workloads:
    """Writes each workload to a file once.

    Args:
        prompts: JSON lines with `question` and `answer`.
        folder: Where the files go.
        rows: Rows of each workload at most.
    """

    def __init__(self, prompts: Path, folder: Path, rows: int) -> None:
        with prompts.open(encoding="utf-8") as lines:
            known = [json.loads(line) for line in islice(lines, rows)]
        self._solved = [f"Question: {each['question']}\nAnswer: {each['answer']}" for each in known]
        self._questions = [each["question"] for each in known]
        self._folder = folder

    def questions(self) -> Path:
        """The questions as they are."""
        return self._write("questions", self._questions)

    def eight_shot(self) -> Path:
        """Each question behind the same eight solved ones."""
        prefix = self._prefix(0)
        return self._write("eight-shot", [prefix + each for each in self._questions])

    def many_prefixes(self, count: int, rows: int) -> Path:
        """So many questions, each behind one of `count` sets of eight solved ones, shuffled."""
        prefixes = [self._prefix(number) for number in range(count)]
        asked = self._questions[:rows]
        shown = [prefixes[i % count] + each for i, each in enumerate(asked)]
        random.Random(7).shuffle(shown)
        return self._write(f"{count}-prefixes", shown)

    def repeated(self, share: float) -> Path:
        """As many rows, of which this share says what another one says, in random order."""
        distinct = self._questions[: round(len(self._questions) * (1 - share))]
        draw = random.Random(7)
        rows = distinct + draw.choices(distinct, k=len(self._questions) - len(distinct))
        draw.shuffle(rows)
        return self._write("repeated", rows)

    def many(self, count: int) -> Path:
        """So many short distinct rows."""
        rows = [f"What is {number} plus {number % 97}?" for number in range(count)]
        return self._write(f"many-{count}", rows)

    def _prefix(self, number: int) -> str:
        solved = self._solved[8 * number : 8 * number + 8]
        return "\n\n".join([*solved, "Question: "])

    def _write(self, name: str, prompts: Sequence[str]) -> Path:
        path = self._folder / f"{name}.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps({"question": each}) + "\n" for each in prompts))
        return path


def questions_in(prompts: Path) -> list[str]:
    """Returns the prompts of a workload's file."""
    with prompts.open(encoding="utf-8") as lines:
        return [json.loads(line)["question"] for line in lines]


def write_batch(prompts: Path, target: Path, model: str, new_tokens: int) -> Path:
    """Writes a workload as a batch of OpenAI chat requests."""
    with target.open("w") as file:
        for number, question in enumerate(questions_in(prompts)):
            body = {
                "model": model,
                "messages": [{"role": "user", "content": question}],
                "temperature": 0,
                "max_tokens": new_tokens,
                "ignore_eos": True,
            }
            request = {
                "custom_id": f"row-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(request) + "\n")
    return target
