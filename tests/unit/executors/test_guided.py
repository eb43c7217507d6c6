"""Grammars: each form, what cannot be one, and answers guided in a batch with free ones."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")
xgrammar = pytest.importorskip("xgrammar")

from mloc_dagster.errors import MissingExtraError
from mloc_dagster.executors.engines.transformers import sampling
from mloc_dagster.executors.engines.transformers.sampling import GrammarCache, GrammarMask
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import Inference

VOCABULARY = 1152
PAD, END = 0, 4


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    return AutoTokenizer.from_pretrained(builtin_model_path("tiny-chat"), local_files_only=True)


@pytest.fixture(scope="module")
def shelf(tokenizer: Any) -> GrammarCache:
    return GrammarCache(tokenizer, VOCABULARY)


def asking(**form: Any) -> Inference:
    return Inference.model_validate({"structured_outputs": form})


def write(
    shelf: GrammarCache, tokenizer: Any, forms: list[Inference], steps: int = 200
) -> list[str]:
    """Returns random answers of the given forms, written side by side by no model at all."""
    grammars = [shelf.of(form) for form in forms]
    mask = GrammarMask(grammars, [END], width=1)
    chance = torch.Generator().manual_seed(3)
    ids = torch.zeros(len(forms), 1, dtype=torch.long)
    ended = torch.zeros(len(forms), dtype=torch.bool)
    for _ in range(steps):
        logits = torch.rand(len(forms), VOCABULARY, generator=chance)
        logits[:, END] += 0.9  # else they would go on for long
        newest = mask(ids, logits).argmax(dim=1).masked_fill(ended, PAD)
        ended |= newest == END
        ids = torch.cat([ids, newest[:, None]], dim=1)
    return tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)


def test_answers_of_a_batch_have_each_their_form(shelf: GrammarCache, tokenizer: Any) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    forms = [
        asking(regex=r"\d{3}-[a-f]{2}"),
        asking(choice=['say "hi"', "a\nb", "été"]),
        asking(grammar='root ::= "<" [a-c]+ ">"'),
        asking(json=schema),
        Inference(),
        asking(regex="[xy]"),
    ]
    texts = write(shelf, tokenizer, forms)
    assert re.fullmatch(r"\d{3}-[a-f]{2}", texts[0])
    assert texts[1] in ('say "hi"', "a\nb", "été")
    assert re.fullmatch("<[a-c]+>", texts[2])
    assert isinstance(json.loads(texts[3])["age"], int)
    assert not re.fullmatch("[xy]", texts[4])
    assert texts[5] in ("x", "y")


def test_equal_options_share_a_grammar_and_free_answers_have_none(shelf: GrammarCache) -> None:
    form = asking(regex="a+")
    assert shelf.of(form) is shelf.of(form) is not None
    assert shelf.of(Inference()) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"grammar": "root ::= nowhere"}, "grammar: line 1: there is no rule 'nowhere'"),
        ({"grammar": 'root ::= "a"{2,1}'}, "made a grammar: .*Lower bound is larger"),
        ({"regex": "x{y}"}, "made a grammar: .*Invalid repetition count"),
        ({"regex": "a(?=b)"}, "structured_outputs.regex: .* is a look-ahead"),
        ({"json": {"type": "integer", "multipleOf": 2}}, "json.multipleOf: the transformers"),
    ],
)
def test_a_form_without_a_grammar_says_why(
    shelf: GrammarCache, fields: dict[str, Any], reason: str
) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=reason):
            shelf.of(asking(**fields))


def test_options_that_contradict_each_other_are_refused(shelf: GrammarCache) -> None:
    both = Inference.model_validate({"min_tokens": 2, "structured_outputs": {"regex": "a"}})
    with pytest.raises(ValueError, match=r"inference\.min_tokens: min_tokens cannot be kept"):
        shelf.of(both)


def test_a_grammar_without_end_ends_with_an_error(shelf: GrammarCache, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no token fits structured_outputs after 0 tokens"):
        write(shelf, tokenizer, [asking(grammar="root ::= root")])


def test_a_model_without_an_end_cannot_be_guided(shelf: GrammarCache) -> None:
    with pytest.raises(ValueError, match="name one in stop_token_ids"):
        GrammarMask([shelf.of(asking(regex="a"))], [], width=1)


def test_a_missing_library_names_the_extra(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"structured_outputs needs the extra 'hf'"):
        GrammarCache(tokenizer, VOCABULARY).of(asking(regex="a"))
