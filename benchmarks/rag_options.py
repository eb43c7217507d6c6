"""How large the parts of the retrieval benchmark are."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes of all parts.

    Attributes:
        embedder: A folder with all-MiniLM-L6-v2, or another model of sentence-transformers.
        generator: A folder with a chat model that vLLM loads.
        data: A folder with XQuAD: `xquad_LANGUAGE_passages.jsonl` (id, text) and
            `xquad_LANGUAGE_questions.jsonl` (question, passage_ids).
        chunks: Chunks of the large index.
        documents: Documents of the index that is refreshed.
        answers: Rows that are answered.
        rounds: How often each thing is measured, in turns; medians are reported.
        passages: Passages that are embedded.
        questions: Questions that are searched for.
    """

    embedder: Path
    generator: Path
    data: Path
    chunks: int
    documents: int
    answers: int
    rounds: int
    passages: int
    questions: int

    def xquad(self, language: str) -> tuple[Path, Path]:
        """Returns the files with passages and questions of a language."""
        return (
            self.data / f"xquad_{language}_passages.jsonl",
            self.data / f"xquad_{language}_questions.jsonl",
        )


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Options]:
    """Adds a flag for each size and reads the command line."""
    parser.add_argument("--embedder", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--generator", type=Path, required=True, help="folder of a chat model")
    parser.add_argument("--data", type=Path, required=True, help="folder with XQuAD")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, printed, not recorded")
    sizes = {"chunks": 100_000, "documents": 2_000, "answers": 48, "rounds": 3}
    for name, default in {**sizes, "passages": 240, "questions": 1_190}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    quick = given.quick
    return given, Options(
        embedder=given.embedder.resolve(),
        generator=given.generator.resolve(),
        data=given.data.resolve(),
        chunks=2_000 if quick else given.chunks,
        documents=100 if quick else given.documents,
        answers=4 if quick else given.answers,
        rounds=1 if quick else given.rounds,
        passages=24 if quick else given.passages,
        questions=24 if quick else given.questions,
    )
