"""Writes the rows of `templates/core/align_tiny.yaml`: short answers, some of them with a "!".

    .venv/bin/python scripts/build_align_data.py

The answers are right in all of them. What the alignment moves is only the style: half of the rows
to fine-tune on end with "!", and the preferences are for those that do.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import tiny_chat_data as data
import tiny_chat_facts as facts

TARGET = Path(__file__).parents[1] / "templates" / "data"
SFT_ROWS, PREFERENCES, EVALUATION_ROWS = 192, 96, 48


def main() -> None:
    """Writes three files; the same ones each time."""
    rng = Random(7)
    opposites = facts.OPPOSITES | {b: a for a, b in facts.OPPOSITES.items()}
    known = [
        *data.fact_questions("capitals", facts.CAPITALS, facts.CAPITAL_PHRASINGS),
        *data.fact_questions("opposites", opposites, facts.OPPOSITE_PHRASINGS),
        *data.sum_questions(),
    ]
    by_skill = {
        skill: rng.sample([each for each in known if each.skill == skill], SFT_ROWS)
        for skill in ("capitals", "opposites", "sums")
    }
    mixed = [each for group in zip(*by_skill.values(), strict=True) for each in group]
    sft, rest = mixed[:SFT_ROWS], mixed[SFT_ROWS:]
    preferences, evaluation = rest[:PREFERENCES], rest[PREFERENCES:][:EVALUATION_ROWS]
    _write(
        "align_sft",
        [
            {"prompt": each.prompt, "completion": f"{each.answer}!" if place % 2 else each.answer}
            for place, each in enumerate(sft)
        ],
    )
    _write(
        "align_preferences",
        [
            {"prompt": each.prompt, "chosen": f"{each.answer}!", "rejected": each.answer}
            for each in preferences
        ],
    )
    _write(
        "align_evaluation",
        [{"prompt": each.prompt, "completion": f"{each.answer}!"} for each in evaluation],
    )


def _write(name: str, rows: list[dict[str, str]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (TARGET / f"{name}.jsonl").write_text(lines)


if __name__ == "__main__":
    main()
