"""How good and how fast retrieval is, beside the libraries that it stands on.

    .venv/bin/python benchmarks/rag.py PART --embedder FOLDER --generator FOLDER --data FOLDER

Parts: quality, index, refresh, answers, embed, or all. Each appends an entry to
benchmarks/results/rag.json; with `--quick` it runs with tiny sizes and only prints.
"""

from __future__ import annotations

from parts import run_parts
from rag_answers import measure_answers
from rag_embed import measure_embed
from rag_index import measure_index
from rag_options import parse
from rag_quality import measure_quality
from rag_refresh import measure_refresh

PARTS = {
    "quality": measure_quality,
    "index": measure_index,
    "refresh": measure_refresh,
    "answers": measure_answers,
    "embed": measure_embed,
}

if __name__ == "__main__":
    run_parts("rag", "Measures retrieval, in real tasks.", PARTS, parse)
