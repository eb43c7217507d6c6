"""TRL's trainers on the builtin model: what is trained on, what is learnt, resuming, stopping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mloc_dagster.errors import DataError, TaskCancelled, TerminalError
from mloc_dagster.executors.training import trainers
from mloc_dagster.executors.training.base import (
    Hooks,
    Row,
    Trainer,
    TrainingOutcome,
    TrainingRun,
)
from mloc_dagster.executors.training.trainers import (
    DpoTrainer,
    KtoTrainer,
    RewardTrainer,
    SftTrainer,
    sft_trainer,
)
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import TrainingSpec, find_task_type

FOLDER = builtin_model_path("tiny-chat")
END = "<|end|>"
WORDS = ["red", "green", "blue", "cat", "dog", "sun", "moon", "tree"]
PLAIN_TEMPLATE = """\
{%- for m in messages -%}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"""


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ANSWERS = [{"prompt": [user(f"Say {w}")], "completion": [assistant(f"{w} {w}")]} for w in WORDS]
PAIRS = [
    {
        "prompt": [user(f"Say {w}")],
        "chosen": [assistant(f"{w} yes")],
        "rejected": [assistant(f"no {w}")],
    }
    for w in WORDS
]
JUDGED = [
    {
        "prompt": [user(f"Say {w}")],
        "completion": [assistant(f"{w} yes" if good else f"no {w}")],
        "label": good,
    }
    for w in WORDS
    for good in (True, False)
]
QUICK = {"logging_steps": 2, "save_strategy": "no", "learning_rate": 1e-3}
QUESTIONS = [{"prompt": f"{w} and", "word": w} for w in WORDS]


@dataclass
class Heard:
    """What the hooks were told."""

    progress: list[tuple[int, int, Mapping[str, float]]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    checkpoints: list[tuple[Path, int]] = field(default_factory=list)


@dataclass
class Bench:
    """Makes runs in a folder of their own."""

    folder: Path
    heard: Heard = field(default_factory=Heard)

    def run(
        self,
        task_type: str,
        rows: Sequence[Row],
        training: Mapping[str, Any],
        *,
        lora: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        **more: Any,
    ) -> TrainingRun:
        """Returns a run; `lora` is the dropout of an adapter."""
        if task_type in ("grpo", "rloo"):
            more = {"rewards": [{"name": "contains"}], **more}
        spec = find_task_type(task_type).spec.model_validate(
            {
                "taskType": task_type,
                "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
                "data": {"rows": [{"text": "the rows of the run"}]},
                "training": training,
                "enforce_cpu": True,
                **more,
            }
        )
        assert isinstance(spec, TrainingSpec)
        self.folder.mkdir(exist_ok=True)
        heard = self.heard
        return TrainingRun(
            spec=spec,
            model=model_for(task_type, lora),
            tokenizer=transformers.AutoTokenizer.from_pretrained(FOLDER),
            rows=rows,
            output_dir=self.folder,
            resume_from=None,
            hooks=Hooks(
                progress=lambda *told: heard.progress.append(told),
                log=heard.lines.append,
                cancelled=cancelled,
                checkpoint=lambda *told: heard.checkpoints.append(told),
            ),
        )


def model_for(task_type: str, lora: float | None) -> Any:
    torch.manual_seed(0)
    if task_type == "reward":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            FOLDER, num_labels=1
        )
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER)
    if lora is None:
        return model
    peft = pytest.importorskip("peft")
    kind = "SEQ_CLS" if task_type == "reward" else "CAUSAL_LM"
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=16, lora_alpha=32, lora_dropout=lora, target_modules="all-linear", task_type=kind
        ),
    )


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "checkpoints")


class LikesO:
    """Scores the share of the letter o."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any, Any]] = []

    def score(
        self, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, Any]
    ) -> list[float]:
        self.asked.append((list(prompts), list(completions), dict(columns)))
        return [10 * text.count("o") / max(1, len(text)) for text in completions]


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> LikesO:
    likes = LikesO()
    monkeypatch.setattr(trainers, "build_scorer", lambda *_: likes)
    return likes


def trained_on(run: TrainingRun) -> list[str]:
    """Returns the texts that have labels, over all rows, each unbroken stretch by itself."""
    trainer = sft_trainer(run)
    batch = trainer.data_collator(
        [trainer.train_dataset[n] for n in range(len(trainer.train_dataset))]
    )
    stretches: list[str] = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        stretch: list[int] = []
        for token, label in [*zip(ids.tolist(), labels.tolist(), strict=True), (0, -100)]:
            if label != -100:
                assert label == token
                stretch.append(token)
            elif stretch:
                stretches.append(run.tokenizer.decode(stretch))
                stretch = []
    return stretches


def series(outcome: TrainingOutcome, name: str) -> list[float]:
    return [entry[name] for entry in outcome.history if name in entry]


# What supervised fine-tuning trains on


@pytest.mark.parametrize("packing", [False, True])
def test_of_a_plain_answer_the_answer_and_its_end_are_trained(bench: Bench, packing: bool) -> None:
    rows = [
        {"prompt": "Q: capital?\n\n", "completion": "Paris it is."},
        {"prompt": "Q: hot?\n\n", "completion": "cold"},
    ]
    texts = trained_on(bench.run("sft", rows, {"packing": packing}))
    assert sorted(texts) == [f"Paris it is.{END}", f"cold{END}"]


@pytest.mark.parametrize("packing", [False, True])
def test_of_a_chat_answer_the_answer_and_its_end_are_trained(bench: Bench, packing: bool) -> None:
    texts = trained_on(bench.run("sft", ANSWERS[:3], {"packing": packing}))
    assert sorted(texts) == sorted(f"{w} {w}{END}" for w in WORDS[:3])


@pytest.mark.parametrize("packing", [False, True])
def test_a_text_is_trained_whole(bench: Bench, packing: bool) -> None:
    rows = [{"text": "The sky is blue."}, {"text": "And so am I."}]
    run = bench.run("sft", rows, {"packing": packing})
    expected = [row["text"] + END for row in rows]
    if packing:  # nothing comes before the first token of a sequence that it could follow from
        first = {text: run.tokenizer(text)["input_ids"] for text in expected}
        expected = [run.tokenizer.decode(ids[1:]) for ids in first.values()]
    assert sorted(trained_on(run)) == sorted(expected)


CONVERSATION = {
    "messages": [
        {"role": "system", "content": "Be short."},
        user("Say red"),
        assistant("red"),
        user("Say blue"),
        assistant("blue"),
    ]
}


@pytest.mark.parametrize("packing", [False, True])
def test_of_a_conversation_all_answers_are_trained(bench: Bench, packing: bool) -> None:
    rows = [CONVERSATION, {"messages": [user("Say sun"), assistant("sun")]}]
    texts = trained_on(bench.run("sft", rows, {"packing": packing}))
    assert sorted(texts) == [f"blue{END}", f"red{END}", f"sun{END}"]


@pytest.mark.parametrize("packing", [False, True])
def test_without_marks_in_the_template_the_last_answer_is_trained(
    bench: Bench, packing: bool
) -> None:
    run = bench.run("sft", [CONVERSATION], {"packing": packing})
    run.tokenizer.chat_template = PLAIN_TEMPLATE
    assert trained_on(run) == [f"blue{END}"]
    (line,) = bench.heard.lines
    assert "does not mark the assistant's turns" in line


def test_a_user_turn_at_the_end_is_left_away(bench: Bench) -> None:
    messages = [*CONVERSATION["messages"], user("Say sun")]
    run = bench.run("sft", [{"messages": messages}], {})
    run.tokenizer.chat_template = PLAIN_TEMPLATE
    assert trained_on(run) == [f"blue{END}"]


def test_a_conversation_without_answers_is_an_error(bench: Bench) -> None:
    run = bench.run("sft", [CONVERSATION, {"messages": [user("Say red")]}], {})
    with pytest.raises(DataError, match="row 2: no message is the assistant's"):
        sft_trainer(run)


def test_messages_need_a_chat_template(bench: Bench) -> None:
    run = bench.run("sft", [CONVERSATION], {})
    run.tokenizer.chat_template = None
    with pytest.raises(TerminalError, match="chat_template_path"):
        sft_trainer(run)


def test_rows_of_no_known_form_are_an_error(bench: Bench) -> None:
    with pytest.raises(DataError, match="rows have 'question'; expected text, or messages"):
        sft_trainer(bench.run("sft", [{"question": "a"}], {}))


def test_packed_rows_do_not_see_each_other(bench: Bench) -> None:
    run = bench.run("sft", ANSWERS, {"packing": True})
    trainer = sft_trainer(run)
    (packed,) = trainer.train_dataset
    run.model.eval()
    together = trainer.compute_loss(run.model, trainer.data_collator([packed])).item()
    total, count, start = 0.0, 0, 0
    for length in packed["seq_lengths"]:
        ids, labels = (
            torch.tensor([packed[name][start : start + length]]) for name in ("input_ids", "labels")
        )
        shown = int((labels[:, 1:] != -100).sum())
        total += run.model(input_ids=ids, labels=labels).loss.item() * shown
        count, start = count + shown, start + length
    assert together == pytest.approx(total / count, rel=1e-4)


def test_rows_that_are_too_long_are_counted(bench: Bench) -> None:
    rows = [
        {"prompt": "short\n\n", "completion": "answer"},
        {"prompt": "short\n\n", "completion": "a long answer " * 20},
        {"prompt": "a long question " * 20, "completion": "answer"},
    ]
    run = bench.run("sft", rows, {"max_length": 24, "max_steps": 1, "save_strategy": "no"})
    outcome = SftTrainer().train(run)
    assert outcome.dataset_size == 2
    assert bench.heard.lines == [
        "1 of 3 rows left out: no answer within max_length=24 tokens",
        "1 of 3 rows fill max_length=24 tokens, and were cut if longer",
    ]


LONG = "a long text " * 20


@pytest.mark.parametrize(
    ("task_type", "trainer", "rows", "expected"),
    [
        (
            "dpo",
            DpoTrainer(),
            [{"prompt": LONG, "chosen": "a", "rejected": "b"}]
            + [{"prompt": "c", "chosen": LONG, "rejected": "b"}] * 2,
            [
                "1 of 3 rows left out: the prompt alone fills max_length=24 tokens",
                "2 of 3 rows cut to max_length=24 tokens",
            ],
        ),
        (
            "reward",
            RewardTrainer(),
            [{"chosen": LONG, "rejected": "b"}] + [{"chosen": "a", "rejected": "b"}] * 2,
            ["1 of 3 rows left out: longer than max_length=24 tokens"],
        ),
    ],
)
def test_preferences_that_are_too_long_are_counted(
    bench: Bench, task_type: str, trainer: Trainer, rows: list[Row], expected: list[str]
) -> None:
    training = {**QUICK, "max_length": 24, "max_steps": 1}
    outcome = trainer.train(bench.run(task_type, rows, training))
    assert outcome.dataset_size == 2
    assert bench.heard.lines == expected


def test_no_row_that_fits_is_an_error(bench: Bench) -> None:
    rows = [{"prompt": "a long question " * 20, "completion": "answer"}]
    with pytest.raises(TerminalError, match="within max_length=8 tokens"):
        sft_trainer(bench.run("sft", rows, {"max_length": 8}))


# What is learnt


@pytest.mark.parametrize(("task_type", "lora"), [("sft", None), ("lora_sft", 0.0)])
def test_supervised_training_lowers_the_loss(
    bench: Bench, task_type: str, lora: float | None
) -> None:
    training = {**QUICK, "learning_rate": 3e-3, "max_steps": 10}
    run = bench.run(task_type, ANSWERS, training, lora=lora)
    outcome = SftTrainer().train(run)
    losses = series(outcome, "loss")
    assert losses[-1] < losses[0] * 0.7
    assert (outcome.steps, outcome.dataset_size) == (10, 8)
    assert losses[-1] < outcome.metrics["train_loss"] < losses[0]


@pytest.mark.parametrize("lora", [None, 0.0])
@pytest.mark.parametrize(
    ("task_type", "trainer", "rows", "rising"),
    [
        ("dpo", DpoTrainer(), PAIRS, "rewards/margins"),
        ("kto", KtoTrainer(), JUDGED, "rewards/margins"),
        ("reward", RewardTrainer(), PAIRS, "margin"),
    ],
)
def test_preferences_are_learnt(
    bench: Bench,
    task_type: str,
    trainer: Trainer,
    rows: Sequence[Row],
    rising: str,
    lora: float | None,
) -> None:
    run = bench.run(task_type, rows, {**QUICK, "max_steps": 8}, lora=lora)
    outcome = trainer.train(run)
    margins = series(outcome, rising)
    assert margins[-1] > margins[0] + 0.05
    assert outcome.dataset_size == len(rows)
    accuracies = [*series(outcome, "rewards/accuracies"), *series(outcome, "accuracy")]
    assert accuracies[-1:] in ([1.0], [])
    if lora is not None:
        assert list(run.model.peft_config) == ["default"]  # TRL's reference adapter is gone


@pytest.mark.parametrize(
    ("trainer", "task_type"), [(trainers.GrpoTrainer(), "grpo"), (trainers.RlooTrainer(), "rloo")]
)
def test_a_reward_rises(bench: Bench, scorer: LikesO, trainer: Trainer, task_type: str) -> None:
    training = {
        **QUICK,
        "learning_rate": 3e-4,
        "logging_steps": 10,
        "max_steps": 30,
        "per_device_train_batch_size": 32,
        "num_generations": 8,
    }
    generation = {"max_new_tokens": 12, "temperature": 1.5}
    outcome = trainer.train(bench.run(task_type, QUESTIONS, training, generation=generation))
    rewards = series(outcome, "reward")
    assert rewards[-1] > 1.5 * rewards[0]
    assert outcome.steps == 30


def test_scorers_get_texts_and_the_rows_own_columns(bench: Bench, scorer: LikesO) -> None:
    rows = [{"prompt": [user(f"Say {w}")], "word": w, "points": n} for n, w in enumerate(WORDS)]
    training = {**QUICK, "max_steps": 1, "num_generations": 4, "logging_steps": 1}
    run = bench.run("grpo", rows, training, generation={"max_new_tokens": 6})
    trainers.GrpoTrainer().train(run)
    ((prompts, completions, columns),) = scorer.asked
    assert len(prompts) == len(completions) == 8
    assert all(isinstance(each, str) for each in completions)
    assert prompts[0] == [user(f"Say {columns['word'][0]}")]
    assert columns.keys() == {"word", "points"}


def test_numbers_of_generations_that_do_not_divide_are_explained(
    bench: Bench, scorer: LikesO
) -> None:
    run = bench.run("grpo", QUESTIONS, {"num_generations": 3})
    with pytest.raises(TerminalError, match=r"no multiple of num_generations 3"):
        trainers.GrpoTrainer().train(run)


def moved(run: TrainingRun) -> TrainingRun:
    """The weights are no longer those of the folder, as when a task starts from a checkpoint."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in run.model.parameters():
            weights.add_(torch.randn_like(weights) * 0.02)
    return run


def test_the_reference_is_the_model_at_the_start(bench: Bench, scorer: LikesO) -> None:
    first = {**QUICK, "max_steps": 1, "logging_steps": 1}
    outcome = DpoTrainer().train(moved(bench.run("dpo", PAIRS, first)))
    assert series(outcome, "rewards/margins") == [pytest.approx(0.0, abs=1e-5)]
    sampled = {**first, "beta": 0.1, "num_generations": 4}
    varied = {"max_new_tokens": 8, "temperature": 1.5}  # a sure answer diverges from nothing
    asked = [{"prompt": [user(f"Tell me of {word}")]} for word in WORDS]
    run = moved(bench.run("grpo", asked, sampled, generation=varied))
    assert series(trainers.GrpoTrainer().train(run), "kl") == [pytest.approx(0.0, abs=1e-5)]


# Resuming, stopping, reporting


class Cut(Exception):
    """The machine is gone."""


def cut_at(run: TrainingRun, step: int) -> TrainingRun:
    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == step and "loss" in metrics:
            raise Cut

    return replace(run, hooks=replace(run.hooks, progress=progress))


@pytest.mark.parametrize(
    ("task_type", "trainer", "rows", "lora", "more"),
    [
        ("sft", SftTrainer(), ANSWERS, None, {}),
        ("sft", SftTrainer(), ANSWERS, 0.2, {}),
        ("dpo", DpoTrainer(), PAIRS, 0.2, {}),
        ("kto", KtoTrainer(), JUDGED, 0.2, {}),
        ("grpo", trainers.GrpoTrainer(), QUESTIONS, None, {"num_generations": 4}),
        ("rloo", trainers.RlooTrainer(), QUESTIONS, 0.2, {"num_generations": 4, "beta": 0.1}),
    ],
)
def test_a_resumed_training_goes_on_as_if_nothing_had_been(
    tmp_path: Path,
    scorer: LikesO,
    task_type: str,
    trainer: Trainer,
    rows: Sequence[Row],
    lora: float | None,
    more: dict[str, Any],
) -> None:
    training = {
        "max_steps": 7,
        "save_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 4 if more else 2,
        "learning_rate": 1e-3,
        **more,
    }
    blocks = {"generation": {"max_new_tokens": 8, "temperature": 1.5}} if more else {}

    def fresh(name: str) -> TrainingRun:
        return Bench(tmp_path / name).run(task_type, rows, training, lora=lora, **blocks)

    whole = trainer.train(fresh("whole"))
    with pytest.raises(Cut):
        trainer.train(cut_at(fresh("cut"), 5))
    resumed = trainer.train(replace(fresh("cut"), resume_from=tmp_path / "cut" / "checkpoint-3"))
    assert series(resumed, "step") == series(whole, "step") == [1, 2, 3, 4, 5, 6, 7]
    assert series(resumed, "loss") == pytest.approx(series(whole, "loss"), abs=1e-6)
    assert resumed.steps == 7
    assert resumed.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], abs=1e-5)


@pytest.mark.parametrize("lora", [None, 0.2])
def test_from_the_checkpoint_of_its_last_step_a_training_makes_no_step_more(
    bench: Bench, lora: float | None
) -> None:
    # Four steps are an epoch: the seventh is the last of the training, not of an epoch.
    training = {"max_steps": 7, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    run = bench.run("sft", ANSWERS, training | {"logging_steps": 1, "save_steps": 7}, lora=lora)
    whole = SftTrainer().train(run)
    last = run.output_dir / "checkpoint-7"
    again = replace(run, model=model_for("sft", lora), resume_from=last)
    bench.heard.progress.clear()
    ended = SftTrainer().train(again)
    assert (ended.steps, series(ended, "loss")) == (7, series(whole, "loss"))
    assert ended.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], abs=1e-5)
    trained, loaded = run.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in trained.items())


def test_checkpoints_are_reported_when_their_files_are_there(bench: Bench) -> None:
    found: dict[int, set[str]] = {}

    def checkpoint(folder: Path, step: int) -> None:
        assert folder.name == f"checkpoint-{step}"
        found[step] = {each.name for each in folder.iterdir()}

    run = bench.run("sft", ANSWERS, {"max_steps": 5, "save_steps": 2, "save_total_limit": 1})
    SftTrainer().train(replace(run, hooks=replace(run.hooks, checkpoint=checkpoint)))
    assert list(found) == [2, 4, 5]  # the last step is kept, whatever the interval
    for names in found.values():
        assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= names
    assert [each.name for each in run.output_dir.glob("checkpoint-*")] == ["checkpoint-5"]


def test_a_cancelled_training_ends_after_its_step(bench: Bench) -> None:
    answers = iter([False, True])
    run = bench.run(
        "sft",
        ANSWERS,
        {**QUICK, "max_steps": 9, "logging_steps": 1},
        cancelled=lambda: next(answers),
    )
    with pytest.raises(TaskCancelled, match="after step 2"):
        SftTrainer().train(run)


def test_the_model_is_measured_on_the_way(bench: Bench) -> None:
    run = bench.run(
        "sft",
        ANSWERS,
        {**QUICK, "max_steps": 6},
        evaluation={"data": {"rows": [{"text": "a"}]}, "every": 2},
    )

    def evaluate() -> dict[str, float]:
        run.model.eval()
        return {"loss": 0.5}

    outcome = SftTrainer().train(replace(run, evaluate=evaluate))
    told = [(step, dict(told)) for step, _, told in bench.heard.progress if "eval_loss" in told]
    assert told == [(2, {"eval_loss": 0.5}), (4, {"eval_loss": 0.5})]  # at 6 it is done
    assert [entry["step"] for entry in outcome.history if "eval_loss" in entry] == [2, 4]
    assert run.model.training


def test_progress_has_figures_and_nothing_is_printed(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    SftTrainer().train(bench.run("sft", ANSWERS, {**QUICK, "max_steps": 4}))
    steps = [(step, total) for step, total, told in bench.heard.progress if "loss" in told]
    assert steps == [(2, 4), (4, 4)]
    figures = next(told for _, _, told in bench.heard.progress if "loss" in told)
    assert {"loss", "learning_rate", "epoch", "num_tokens", "tokens_per_s"} <= figures.keys()
    assert all(isinstance(value, float | int) for value in figures.values())
    assert capsys.readouterr().out == ""


def test_an_option_value_that_trl_refuses_is_explained(bench: Bench) -> None:
    with pytest.raises(TerminalError, match=r"training: SFTConfig says: .*nonsense"):
        SftTrainer().train(bench.run("sft", ANSWERS, {"lr_scheduler_type": "nonsense"}))


def test_columns_of_mixed_types_are_an_error(bench: Bench, scorer: LikesO) -> None:
    rows = [{"prompt": "a", "word": "x"}, {"prompt": "b", "word": 3.5}]
    with pytest.raises(DataError, match="column 'word' holds values of more than one type"):
        trainers.GrpoTrainer().train(bench.run("grpo", rows, {"num_generations": 4}))


@pytest.mark.parametrize(
    "trainer",
    [SftTrainer(), DpoTrainer(), KtoTrainer(), trainers.GrpoTrainer(), trainers.RlooTrainer()],
)
def test_every_trainer_is_one(trainer: object) -> None:
    assert isinstance(trainer, Trainer)
    assert trainer.model_kind == "causal_lm"
    assert RewardTrainer.model_kind == "classifier"
