"""The shipped models of retrieval: that one finds paraphrases, and the other puts them first."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mloc_dagster.executors.engines.pooling import PoolingPlan, pooling_plan
from mloc_dagster.models import builtin_model_path

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[3]
QUESTIONS = [
    json.loads(row)
    for row in (ROOT / "templates" / "data" / "handbook.jsonl").read_text().splitlines()
]

# A little below what the models' cards say.
PARAPHRASES_FIRST, PARAPHRASES_AMONG_FIVE = 0.95, 0.98
QUESTIONS_AMONG_FIVE = 0.8
SCENES_ABOVE, FACTS_ABOVE = 0.95, 0.9


@pytest.fixture(scope="module")
def data() -> Any:
    """The grammar that the models were trained on, and what was held out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return importlib.import_module("tiny_retrieval_data")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(builtin_model_path("tiny-embed"))


@pytest.fixture(scope="module")
def embed(tokenizer: Any) -> Any:
    """Vectors of texts, as the files beside the model say they are made."""
    model = transformers.AutoModel.from_pretrained(builtin_model_path("tiny-embed")).eval()

    def embed(texts: list[str]) -> Any:
        found = []
        for start in range(0, len(texts), 50):
            inputs = tokenizer(
                texts[start : start + 50], padding=True, truncation=True, return_tensors="pt"
            )
            with torch.inference_mode():
                states = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1)
            found.append((states * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)

    return embed


@pytest.fixture(scope="module")
def score() -> Any:
    """Scores of pairs."""
    folder = builtin_model_path("tiny-rerank")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def score(asked: list[str], told: list[str]) -> Any:
        inputs = tokenizer(asked, told, truncation="only_second", padding=True, return_tensors="pt")
        with torch.inference_mode():
            return model(**inputs).logits[:, 0]

    return score


def recall(scores: Any, right: list[set[int]], k: int) -> float:
    found = scores.topk(k, dim=1).indices.tolist()
    return sum(bool(set(row) & each) for row, each in zip(found, right, strict=True)) / len(right)


def test_the_files_beside_it_say_how_vectors_are_made(tokenizer: Any) -> None:
    folder = builtin_model_path("tiny-embed")
    config = transformers.AutoConfig.from_pretrained(folder)
    assert pooling_plan(str(folder), config, tokenizer, None) == PoolingPlan("MEAN", 512)


def test_paraphrases_without_a_common_word_are_found(embed: Any, data: Any) -> None:
    examples = data.held_out_paraphrases(200, Random(7))
    for each in examples:
        assert not data.content_words(each.query) & data.content_words(each.passage)
    scores = embed([each.query for each in examples]) @ embed([e.passage for e in examples]).T
    right = [{place} for place in range(len(examples))]
    assert recall(scores, right, 1) >= PARAPHRASES_FIRST
    assert recall(scores, right, 5) >= PARAPHRASES_AMONG_FIVE


def test_chinese_is_found_by_chinese_and_english(embed: Any) -> None:
    passages = [
        "At the seaside the policeman, who is small, has to fix the ship at night.",
        "在农场，聪明的学员每天阅读书籍。",
        "The wealthy lawyer sells a house downtown.",
        "在医院，疲倦的医生半夜检查药物。",
    ]
    asked = ["累的大夫夜里在诊所审查什么？", "富有的律师在哪里出售住宅？"]
    assert (embed(asked) @ embed(passages).T).argmax(dim=1).tolist() == [3, 2]


def test_questions_about_mloc_find_their_page(embed: Any, data: Any) -> None:
    sections = data.read_sections()
    scores = embed([row["question"] for row in QUESTIONS]) @ embed([s.text for s in sections]).T
    right = [
        {place for place, each in enumerate(sections) if each.page in row["relevant"]}
        for row in QUESTIONS
    ]
    assert recall(scores, right, 5) >= QUESTIONS_AMONG_FIVE


def test_the_questions_name_pages_that_are_there() -> None:
    for row in QUESTIONS:
        assert row["question"]
        assert row["answer"]
        for page in row["relevant"]:
            assert (ROOT / "docs" / page).is_file(), page


def test_the_right_passage_is_above_one_that_shares_more_words(score: Any, data: Any) -> None:
    rng = Random(9)
    for draw, least in (
        (data.scene_example, SCENES_ABOVE),
        (data.fact_example, FACTS_ABOVE),
    ):
        examples = [draw(rng, held_out=True) for _ in range(100)]
        asked = [each.query for each in examples]
        right = score(asked, [each.passage for each in examples])
        hard = score(asked, [each.others[0] for each in examples])
        assert (right > hard).float().mean().item() >= least


def test_a_score_does_not_depend_on_what_else_is_in_the_batch(score: Any) -> None:
    question = "How tall is the tower?"
    passages = ["The tower is 40 metres high.", "Bread " * 300, "高", "The tower is green."]
    together = score([question] * len(passages), passages)
    alone = torch.cat([score([question], [each]) for each in passages])
    assert together.tolist() == pytest.approx(alone.tolist(), abs=1e-4)


def test_what_stands_between_words_and_their_case_are_not_read(tokenizer: Any) -> None:
    assert tokenizer("`MAX_Num-seqs` | 8")["input_ids"] == tokenizer("max num seqs 8")["input_ids"]


@pytest.mark.parametrize("text", ["naïve café", "東京 🙂 ok", "x = [1, 22]", "?!"])
def test_no_text_is_unknown_to_the_tokenizer(tokenizer: Any, text: str) -> None:
    words = "".join(each for each in text.lower() if each.isalnum())
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).replace(" ", "") == words


def test_a_pair_says_which_text_a_token_is_of(tokenizer: Any) -> None:
    encoded = tokenizer("one two", "three")
    first = len(tokenizer("one two")["input_ids"])
    assert encoded["token_type_ids"] == [0] * first + [1] * (len(encoded["input_ids"]) - first)
