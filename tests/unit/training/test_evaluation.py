"""Measuring a model: figures that can be computed by hand, and no trace left behind."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mloc_dagster import plugins
from mloc_dagster.errors import DataError, TerminalError
from mloc_dagster.executors.training import (
    evaluation as evaluating,
    metrics,
    metrics as metrics_module,
)
from mloc_dagster.executors.training.evaluation import evaluate, undisturbed
from mloc_dagster.executors.training.metrics import answer_likelihoods, greedy_answers
from mloc_dagster.executors.training.sequences import answered, batched, prompt_ids
from mloc_dagster.models import builtin_model_path
from mloc_dagster.plugins import METRICS_GROUP
from mloc_dagster.schema import BUILTIN_METRICS, CLASSIFIER_METRICS, Evaluation, TrainingData

TINY = str(builtin_model_path("tiny-chat"))
DATA = TrainingData(dataset_name="rows.jsonl")


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


CHATS = [
    {"prompt": user("What colour is the sky?"), "completion": assistant("The sky is blue.")},
    {"prompt": user("Hi"), "completion": assistant("Hello, how can I help you today?")},
    {"prompt": user("Count to three, please."), "completion": assistant("One")},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_pretrained(TINY).eval()


@pytest.fixture
def classifier(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.LlamaForSequenceClassification(config)


def measured(
    model: Any, tokenizer: Any, rows: Sequence[Any], *names: str, **fields: Any
) -> dict[str, float]:
    evaluation = Evaluation(data=DATA, metrics=names, **fields)
    return evaluate(model, tokenizer, rows, evaluation, log=lambda _: None)


def losses_by_hand(model: Any, tokenizer: Any, rows: Sequence[Any]) -> list[tuple[float, int]]:
    """The summed loss over each answer's tokens, one row at a time, and how many these are."""
    found: list[tuple[float, int]] = []
    for row in rows:
        start = tokenizer.apply_chat_template(
            row["prompt"], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        whole = tokenizer.apply_chat_template(
            [*row["prompt"], *row["completion"]], tokenize=True, return_dict=False
        )
        ids = torch.tensor([whole])
        labels = ids.clone()
        labels[0, : len(start)] = -100
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss.item()
        found.append((loss * (len(whole) - len(start)), len(whole) - len(start)))
    return found


def test_loss_is_of_the_right_answers_tokens_alone(model: Any, tokenizer: Any) -> None:
    parts = losses_by_hand(model, tokenizer, CHATS)
    expected = sum(loss for loss, _ in parts) / sum(tokens for _, tokens in parts)
    found = measured(model, tokenizer, CHATS, "loss", "perplexity")
    assert found == pytest.approx({"loss": expected, "perplexity": math.exp(expected)}, rel=1e-4)


def test_a_chat_is_measured_by_its_last_answer(model: Any, tokenizer: Any) -> None:
    rows = [{"messages": [*row["prompt"], *row["completion"]]} for row in CHATS]
    whole, split = (measured(model, tokenizer, each, "loss") for each in (rows, CHATS))
    assert whole == pytest.approx(split)


def test_a_comparison_is_measured_by_the_better_answer(model: Any, tokenizer: Any) -> None:
    rows = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": assistant("No")}
        for row in CHATS
    ]
    better, right = (measured(model, tokenizer, each, "loss") for each in (rows, CHATS))
    assert better == pytest.approx(right)


def test_plain_answers_end_with_the_end_token(model: Any, tokenizer: Any) -> None:
    row = {"prompt": "The sky is:\n\n", "completion": "blue."}
    sequence = answered(tokenizer, row["prompt"], row["completion"])
    assert tokenizer.decode(sequence.ids[sequence.start :]) == "blue.<|end|>"
    ids = torch.tensor([sequence.ids])
    labels = ids.clone()
    labels[0, : sequence.start] = -100
    with torch.no_grad():
        expected = model(input_ids=ids, labels=labels).loss.item()
    assert measured(model, tokenizer, [row], "loss")["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_whole_text_is_measured_whole(model: Any, tokenizer: Any) -> None:
    text = "Once upon a time"
    ids = torch.tensor([tokenizer(text + "<|end|>")["input_ids"]])
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.item()
    found = measured(model, tokenizer, [{"text": text}], "loss")
    assert found["loss"] == pytest.approx(expected, rel=1e-4)


def test_an_answer_that_merges_with_its_prompt_is_counted_from_there(tokenizer: Any) -> None:
    for prompt, answer in (("The sk", "y is blue"), ("a ", " b"), ("x", "x")):
        sequence = answered(tokenizer, prompt, answer)
        assert tokenizer.decode(sequence.ids) == f"{prompt}{answer}<|end|>"
        assert answer.strip() in tokenizer.decode(sequence.ids[max(sequence.start - 1, 0) :])


def test_answers_do_not_depend_on_their_batch(model: Any, tokenizer: Any) -> None:
    prompts = [row["prompt"] for row in CHATS]
    together = greedy_answers(model, tokenizer, prompts, 12)
    alone = [greedy_answers(model, tokenizer, [each], 12)[0] for each in prompts]
    assert together == alone
    assert all("<|" not in each for each in together)


def test_answers_are_what_the_model_itself_writes(model: Any, tokenizer: Any) -> None:
    ids = torch.tensor([prompt_ids(tokenizer, user("Hi"))])
    with torch.no_grad():
        for _ in range(8):
            likeliest = model(input_ids=ids).logits[0, -1].argmax()
            ids = torch.cat([ids, likeliest[None, None]], dim=1)
            if likeliest.item() == tokenizer.eos_token_id:
                break
    new = ids[0, len(prompt_ids(tokenizer, user("Hi"))) :]
    expected = tokenizer.decode(new, skip_special_tokens=True)
    assert greedy_answers(model, tokenizer, [user("Hi")], 8) == [expected]


@pytest.fixture
def _answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers as the test says."""
    given = [" The SKY is blue.\n", "Hello!", "3"]
    monkeypatch.setattr(metrics_module, "greedy_answers", lambda *_: given)


@pytest.mark.usefixtures("_answers")
def test_answers_are_compared_without_white_space_and_case(model: Any, tokenizer: Any) -> None:
    references = ["the sky is blue.", "hell", "4"]
    rows = [
        {"prompt": row["prompt"], "completion": assistant(each)}
        for row, each in zip(CHATS, references, strict=True)
    ]
    names = ("exact_match", "contains", "regex")
    found = measured(model, tokenizer, rows, *names, pattern=r"\d")
    assert found == {"exact_match": 1 / 3, "contains": 2 / 3, "regex": 1 / 3}
    assert list(found) == list(names)
    evaluation = Evaluation(data=DATA, metrics=("exact_match",))
    given = evaluate(
        model,
        tokenizer,
        rows,
        evaluation,
        reference_answers=["the sky is blue.", "hello!", "3"],
        log=print,
    )
    assert given == {"exact_match": 1.0}


def test_win_rate_compares_log_probabilities_per_token(model: Any, tokenizer: Any) -> None:
    pairs = [("The sky is blue.", "zq xv zq"), ("zq xv zq", "The sky is blue.")]
    rows = [
        {
            "prompt": user("What colour is the sky?"),
            "chosen": assistant(a),
            "rejected": assistant(b),
        }
        for a, b in pairs
    ]
    first = measured(model, tokenizer, rows[:1], "win_rate")["win_rate"]
    assert first == 1 - measured(model, tokenizer, rows[1:], "win_rate")["win_rate"]
    by_hand = losses_by_hand(
        model,
        tokenizer,
        [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows],
    )
    (better, n), (worse, m) = by_hand
    assert first == float(better / n < worse / m)
    same = [{**rows[0], "rejected": rows[0]["chosen"]}]
    assert measured(model, tokenizer, same, "win_rate") == {"win_rate": 0.0}


def test_a_reward_model_is_measured_by_its_scores(classifier: Any, tokenizer: Any) -> None:
    rows = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": assistant(f"No {n}")}
        for n, row in enumerate(CHATS)
    ]
    margins = []
    for row in rows:
        scores = []
        for name in ("chosen", "rejected"):
            ids = tokenizer.apply_chat_template(
                [*row["prompt"], *row[name]], tokenize=True, return_dict=False
            )
            with torch.no_grad():
                scores.append(classifier(torch.tensor([ids])).logits.item())
        margins.append(scores[0] - scores[1])
    found = measured(classifier, tokenizer, rows, "loss", "accuracy", "win_rate")
    share = sum(each > 0 for each in margins) / 3
    loss = sum(math.log1p(math.exp(-each)) for each in margins) / 3
    expected = {"loss": loss, "accuracy": share, "win_rate": share}
    assert found == pytest.approx(expected, abs=1e-4)


def test_an_adapter_is_seen_through(classifier: Any, tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS", r=2))
    row = {"prompt": user("a"), "chosen": assistant("b"), "rejected": assistant("c")}
    assert measured(adapted, tokenizer, [row], "accuracy")["accuracy"] in (0.0, 1.0)


def test_a_row_that_is_too_long_keeps_its_answer(model: Any, tokenizer: Any) -> None:
    told: list[str] = []
    row = {"prompt": user("long " * 2000), "completion": assistant("blue")}
    evaluation = Evaluation(data=DATA, metrics=("loss", "exact_match"), max_new_tokens=4)
    found = evaluate(model, tokenizer, [row], evaluation, log=told.append)
    assert math.isfinite(found["loss"])
    assert told == ["evaluation: 1 texts were too long and lost their beginning"]
    sequence = answered(tokenizer, row["prompt"], row["completion"], 50)
    assert len(sequence.ids) == 50
    assert tokenizer.decode(sequence.ids[sequence.start :]) == "blue<|end|>"


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_changes_no_mode_and_no_randomness(
    tokenizer: Any,
    *,
    training: bool,
) -> None:
    config = transformers.AutoConfig.from_pretrained(TINY, attention_dropout=0.5)
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, config=config)
    model.train(training)
    model.lm_head.eval()
    modes = [each.training for each in model.modules()]

    def draws() -> tuple[Any, ...]:
        return torch.rand(3).tolist(), random.random(), np.random.rand()

    def seed() -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)

    seed()
    expected = draws()
    seed()
    first = measured(model, tokenizer, CHATS, "loss", "exact_match", max_new_tokens=3)
    assert draws() == expected
    assert [each.training for each in model.modules()] == modes
    assert first == measured(model, tokenizer, CHATS, "loss", "exact_match", max_new_tokens=3)
    assert all(each.grad is None for each in model.parameters())


def test_a_training_ends_the_same_with_evaluations_in_between(tokenizer: Any) -> None:
    def trained(*, evaluating: bool) -> list[float]:
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(TINY, attention_dropout=0.3)
        model = transformers.AutoModelForCausalLM.from_pretrained(TINY, config=config).train()
        steps = torch.optim.SGD(model.parameters(), lr=0.1)
        ids = torch.tensor([tokenizer("The sky is blue and the grass is green")["input_ids"]])
        losses = []
        for _ in range(3):
            if evaluating:
                measured(model, tokenizer, CHATS[:1], "loss", "contains", max_new_tokens=2)
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            steps.step()
            steps.zero_grad()
            losses.append(loss.item())
        return losses

    assert trained(evaluating=True) == trained(evaluating=False)


def test_everything_is_put_back_after_an_error(model: Any) -> None:
    model.train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with suppress(KeyError), undisturbed(model):
        assert not model.training
        torch.rand(5)
        raise KeyError
    assert model.training
    assert torch.equal(torch.rand(1), expected)
    model.eval()


def share_of_long(answers: Any, references: Any, rows: Any) -> float:
    assert references == ["The sky is blue.", "Hello, how can I help you today?", "One"]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in CHATS]
    return sum(len(each) > 5 for each in answers) / len(answers)


def no_number(answers: Any, references: Any, rows: Any) -> float:
    return math.nan


def broken(answers: Any, references: Any, rows: Any) -> float:
    raise ValueError("no judge")


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = ("share_of_long", "no_number", "broken")
    found = EntryPoints(EntryPoint(name, f"{__name__}:{name}", METRICS_GROUP) for name in names)
    for module in (plugins, metrics):
        monkeypatch.setattr(module, "entry_points", lambda *, group: found.select(group=group))
    plugins.load_registered.cache_clear()
    yield
    plugins.load_registered.cache_clear()


@pytest.mark.usefixtures("_registered", "_answers")
def test_registered_metrics(model: Any, tokenizer: Any) -> None:
    assert measured(model, tokenizer, CHATS, "share_of_long") == {"share_of_long": 2 / 3}
    with pytest.raises(TerminalError, match="the metric 'no_number' gave nan"):
        measured(model, tokenizer, CHATS, "no_number")
    with pytest.raises(TerminalError, match="the metric 'broken' failed: ValueError: no judge"):
        measured(model, tokenizer, CHATS, "broken")
    with pytest.raises(TerminalError, match=r"'share_of_lnog'; did you mean 'share_of_long'\?"):
        measured(model, tokenizer, CHATS, "share_of_lnog")


def test_metrics_that_do_not_fit_are_refused_before_anything_is_computed(
    model: Any, classifier: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "measure", lambda *_: pytest.fail("something was computed"))
    with pytest.raises(TerminalError, match=r"unknown metric 'perplexty'; did you mean 'perplexi"):
        measured(model, tokenizer, CHATS, "loss", "perplexty")
    message = "'exact_match' is not for a reward model.*; it has accuracy, loss, win_rate"
    with pytest.raises(TerminalError, match=message):
        measured(classifier, tokenizer, CHATS, "loss", "exact_match")
    with pytest.raises(TerminalError, match="'accuracy' is not for a model that writes"):
        measured(model, tokenizer, CHATS, "accuracy")


def test_rows_that_lack_what_a_metric_needs_are_named(model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"row 1 has no right answer.*data\.response_column"):
        measured(model, tokenizer, [CHATS[0], {"prompt": user("a")}], "loss")
    with pytest.raises(DataError, match="row 0 has no prompt to answer"):
        measured(model, tokenizer, [{"text": "a"}], "exact_match")
    with pytest.raises(DataError, match="row 0 has no chosen and rejected"):
        measured(model, tokenizer, CHATS, "win_rate")
    with pytest.raises(DataError, match="no rows to measure on"):
        measured(model, tokenizer, [], "loss")
    with pytest.raises(TerminalError, match=r"evaluation\.pattern '\(' cannot be read"):
        measured(model, tokenizer, CHATS, "regex", pattern="(", max_new_tokens=1)


def test_every_builtin_metric_is_there() -> None:
    assert metrics.OF_WRITERS.keys() | metrics.OF_CLASSIFIERS.keys() == BUILTIN_METRICS
    assert metrics.OF_CLASSIFIERS.keys() == CLASSIFIER_METRICS


def test_batches_hold_every_row_once_and_are_bounded() -> None:
    lengths = [1, 9000, 5, 4000, 4000, 4100, *[7] * 40]
    batches = list(batched(lengths))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[place] for place in batch)
        assert len(batch) == 1 or (len(batch) <= 16 and len(batch) * longest <= 8192)


def test_likelihoods_keep_their_order(model: Any, tokenizer: Any) -> None:
    sequences = [answered(tokenizer, row["prompt"], row["completion"]) for row in CHATS]
    pad = tokenizer.pad_token_id
    together = answer_likelihoods(model, sequences, pad)
    alone = [answer_likelihoods(model, [each], pad)[0] for each in sequences]
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert [each.logprob for each in together] == pytest.approx(
        [a.logprob for a in alone], rel=1e-4
    )
