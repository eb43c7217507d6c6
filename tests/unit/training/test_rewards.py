"""What scores answers: registered functions with their options, and classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster import plugins
from mloc_dagster.errors import TerminalError, UnknownNameError
from mloc_dagster.executors.training.rewards import Part, Scorer, build_scorer
from mloc_dagster.models import builtin_model_path
from mloc_dagster.plugins import REWARDS_GROUP
from mloc_dagster.schema import GrpoSpec, RewardModel

OURS = "mloc_dagster.executors.training.rewards"


def half(prompts: Any, completions: Any, columns: Any) -> list[float]:
    return [0.5 for _ in completions]


def short(prompts: Any, completions: Any, columns: Any) -> list[float]:
    return [1.0]


def unsound(prompts: Any, completions: Any, columns: Any) -> list[float]:
    return [math.nan for _ in completions]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = dict.fromkeys(("contains", "ends_with", "exact_match", "regex", "length"), OURS)
    names |= dict.fromkeys(("half", "short", "unsound"), __name__)
    entries = [EntryPoint(name, f"{place}:{name}", REWARDS_GROUP) for name, place in names.items()]
    entries.append(EntryPoint("gone", "nowhere_at_all:gone", REWARDS_GROUP))
    entries.append(EntryPoint("twice", "one:a", REWARDS_GROUP))
    entries.append(EntryPoint("twice", "two:b", REWARDS_GROUP))
    found = EntryPoints(entries)
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: found.select(group=group))
    plugins.load_registered.cache_clear()
    yield
    plugins.load_registered.cache_clear()


def spec_of(*rewards: dict[str, Any], **fields: Any) -> GrpoSpec:
    return GrpoSpec.model_validate(
        {
            "taskType": "grpo",
            "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
            "data": {"prompts": ["a"]},
            "rewards": rewards,
            **fields,
        }
    )


def score(name: str, completions: list[str], columns: Any = None, **options: Any) -> list[float]:
    scorer = build_scorer(spec_of({"name": name, "options": options}), "cpu", lambda _: None)
    return scorer.score(["p"] * len(completions), completions, columns or {})


@pytest.mark.parametrize(
    ("name", "options", "completions", "expected"),
    [
        ("contains", {"text": "yes"}, ["Oh YES!", "no"], [1, 0]),
        ("contains", {"text": "yes", "ignore_case": False}, ["Oh YES!", "yes"], [0, 1]),
        ("ends_with", {"text": "end"}, ["The End \n", "end of"], [1, 0]),
        ("exact_match", {"text": "4"}, [" 4\n", "44"], [1, 0]),
        ("regex", {"pattern": r"^\d+$"}, ["12", "a1"], [1, 0]),
        (
            "length",
            {"least": 2, "most": 4},
            ["a", "a b", "a b c d", "a b c d e f"],
            [0.5, 1, 1, 0.5],
        ),
        ("length", {"most": 2, "unit": "characters"}, [" ab ", "abcdefgh"], [1, 0]),
    ],
)
def test_our_own_functions(
    name: str, options: dict[str, Any], completions: list[str], expected: list[float]
) -> None:
    assert score(name, completions, **options) == expected


def test_rows_may_bring_their_own_right_answers() -> None:
    columns = {"answer": [4, ["four", "4"], "five"]}
    assert score("exact_match", ["4", "Four", "4"], columns, column="answer") == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("contains", {}, "give text, or the column"),
        ("contains", {"text": "a", "column": "b"}, "either text or column"),
        ("contains", {"text": " "}, "text is empty"),
        ("contains", {"column": "anwser"}, "no column 'anwser'; columns: answer"),
        ("contains", {"column": "answer"}, "the column 'answer' is empty in row 0"),
        ("regex", {"pattern": "("}, "the reward function 'regex' failed: .*unterminated"),
        ("length", {"least": 5, "most": 2}, "leave no length that fits"),
        ("length", {"unit": "lines"}, "unit is 'lines'"),
        ("short", {}, "the reward function 'short' gave 1 scores for 2 answers"),
        ("unsound", {}, "the reward function 'unsound' gave nan for the answer 'a'"),
    ],
)
def test_a_function_that_does_not_score_ends_the_task(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TerminalError, match=message):
        score(name, ["a", "b"], {"answer": [None, "x"]}, **options)


def test_options_are_checked_before_anything_is_trained() -> None:
    message = r"'length' does not take its options: .*'last'; it takes least, most, unit"
    with pytest.raises(TerminalError, match=message):
        build_scorer(spec_of({"name": "length", "options": {"last": 3}}), "cpu", print)
    with pytest.raises(TerminalError, match=r"missing a required .*'pattern'; it takes pattern"):
        build_scorer(spec_of({"name": "regex"}), "cpu", print)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "conatins",
            UnknownNameError,
            "unknown reward function 'conatins'; did you mean 'contains'",
        ),
        ("gone", TerminalError, r"'gone' comes from .*nowhere_at_all:gone.*cannot be loaded"),
        ("twice", TerminalError, "registered twice"),
    ],
)
def test_a_function_that_cannot_be_had(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_scorer(spec_of({"name": name}), "cpu", print)


def test_scores_are_summed_by_weight_and_told() -> None:
    told: list[str] = []
    spec = spec_of(
        {"name": "half", "weight": 2},
        {"name": "contains", "weight": -0.5, "options": {"text": "b"}},
    )
    scorer = build_scorer(spec, "cpu", told.append)
    assert scorer.score(["p", "p"], ["a", "b"], {}) == [1.0, 0.5]
    assert told == ["answers are scored by 2 x half, -0.5 x contains"]


def test_an_error_of_a_score_names_it() -> None:
    def broken(prompts: Any, completions: Any, columns: Any) -> list[float]:
        raise KeyError("answer")

    with pytest.raises(TerminalError, match="the judge failed: KeyError: 'answer'"):
        Scorer([Part("the judge", 1.0, broken)]).score(["p"], ["a"], {})


Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Saves a tiny classifier, drawn at random, and returns its folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def save(*labels: str, template: bool = True, pad: bool = True) -> str:
        torch.set_num_threads(1)
        torch.manual_seed(1)
        tokenizer = transformers.AutoTokenizer.from_pretrained(builtin_model_path("tiny-chat"))
        if not template:
            tokenizer.chat_template = None
        if not pad:
            tokenizer.pad_token = None
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            id2label=dict(enumerate(labels)),
            pad_token_id=tokenizer.pad_token_id,
        )
        folder = tmp_path / "-".join(["classifier", *labels])
        transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


def load(folder: str, *, plain: bool = False, **fields: Any) -> Any:
    from mloc_dagster.executors.training.reward_model import load_reward_model

    return load_reward_model(
        RewardModel(identifier=folder, **fields), "cpu", lambda _: None, plain=plain
    )


PROMPT = [{"role": "user", "content": "How are you?"}]
ANSWERS = ["Fine", "Not so well, and it is a long story", "Fine, thank you!"]


def scores_of(folder: str, prompt: Any = PROMPT, **fields: Any) -> list[float]:
    return load(folder, **fields)([prompt] * 3, ANSWERS, {})


def test_a_reward_model_reads_what_it_was_trained_on(save: Save) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = save("reward")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for answer, score in zip(ANSWERS, scores_of(folder), strict=True):
        chat = [*PROMPT, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        given = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            expected = model(given["input_ids"]).logits.item()
        assert score == pytest.approx(expected, abs=1e-5)


def test_a_text_is_judged_as_a_chat_unless_text_was_chosen(save: Save) -> None:
    folder = save("reward")
    chat, text = scores_of(folder), scores_of(folder, "How are you?")
    assert text == pytest.approx(chat)
    assert scores_of(folder, "How are you?", plain=True) != pytest.approx(chat)


def test_without_a_chat_template_messages_are_paragraphs(save: Save) -> None:
    folder = save("reward", template=False)
    assert scores_of(folder) == pytest.approx(scores_of(folder, "How are you?\n\n"))


def test_without_a_pad_token_rows_are_judged_alone(save: Save) -> None:
    together = scores_of(save("reward"))
    assert scores_of(save("unpadded", pad=False)) == pytest.approx(together, abs=1e-5)


def test_which_class_counts(save: Save) -> None:
    folder = save("NEGATIVE", "neutral", "POSITIVE")
    classes = [scores_of(folder, label=name) for name in ("negative", "neutral", "positive")]
    assert scores_of(folder) == classes[2]
    sentiment = scores_of(folder, type="sentiment")
    differences = [good - bad for bad, _, good in zip(*classes, strict=True)]
    assert sentiment == pytest.approx(differences)


def test_an_answer_that_is_too_long_loses_its_beginning(save: Save) -> None:
    judge = load(save("reward"))
    ends = [" yes" * 200 + each for each in (" end", " END")]
    first, second = judge([PROMPT] * 2, ends, {})
    assert first != second


def test_a_reward_model_that_does_not_fit_is_refused(save: Save) -> None:
    with pytest.raises(TerminalError, match=r"no class 'postive'; did you mean 'positive'\?"):
        load(save("negative", "positive"), label="postive")
    with pytest.raises(TerminalError, match=r"no classes whose names begin with 'pos'.*: reward"):
        load(save("reward"), type="sentiment")
    with pytest.raises(TerminalError, match="neither a folder that exists nor a hub id"):
        load("./no/such/folder")
    with pytest.raises(TerminalError, match="is no classifier: it has no weights for score"):
        load(str(builtin_model_path("tiny-chat")))


def test_functions_and_a_reward_model_are_summed(save: Save) -> None:
    folder = save("reward")
    spec = spec_of({"name": "half"}, reward_model={"identifier": folder})
    total = build_scorer(spec, "cpu", lambda _: None).score([PROMPT] * 3, ANSWERS, {})
    assert total == pytest.approx([each + 0.5 for each in scores_of(folder)])


def test_an_adapter_that_a_reward_task_left_is_a_reward_model(save: Save, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = save("reward")
    model = AutoModelForSequenceClassification.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.add_(torch.randn_like(weight))
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    from mloc_dagster.executors.training.reward_model import ClassifierScore

    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = ClassifierScore(adapted.eval(), tokenizer, lambda logits: logits[0])
    assert scores_of(str(folder)) == pytest.approx(expected([PROMPT] * 3, ANSWERS, {}), abs=1e-5)
    assert scores_of(str(folder)) != pytest.approx(scores_of(base))
