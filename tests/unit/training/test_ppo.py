"""PPO on tiny-chat: what it learns, what it logs, how it stops and goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from mloc_dagster.errors import DataError, TaskCancelled, TerminalError
from mloc_dagster.executors.training.base import (
    Hooks,
    Row,
    Trainer,
    TrainingOutcome,
    TrainingRun,
)
from mloc_dagster.executors.training.checkpoints import latest, seal
from mloc_dagster.executors.training.ppo import state
from mloc_dagster.executors.training.ppo.policy import Policy, Reference
from mloc_dagster.executors.training.ppo.prompts import (
    PromptOrder,
    encode_prompts,
    prompt_limit,
)
from mloc_dagster.executors.training.ppo.rollouts import Sampler
from mloc_dagster.executors.training.ppo.trainer import PpoTrainer
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import PpoSpec, ppo_options

REFUSAL = "I do not know."
PROMPTS = (
    "Tell me something",
    "Say a word",
    "Who wrote Hamlet?",
    "Sing a song",
    "Give me a city",
    "Write a poem",
)
ROWS: tuple[Row, ...] = tuple(
    {"prompt": [{"role": "user", "content": text}], "number": number}
    for number, text in enumerate(PROMPTS)
)
LOGGED = {
    "objective/kl",
    "objective/score",
    "objective/rlhf_reward",
    "policy/clipfrac",
    "policy/approxkl",
    "policy/entropy",
    "loss/policy",
    "loss/value",
    "val/explained_variance",
    "learning_rate",
    "episode",
}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(builtin_model_path("tiny-chat"))


@pytest.fixture(scope="module")
def pristine() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(builtin_model_path("tiny-chat"))


@pytest.fixture
def model(pristine: Any) -> Any:
    return copy.deepcopy(pristine)


def adapted(model: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    for name, value in options.items():
        setattr(config, name, value)
    return peft.get_peft_model(copy.deepcopy(model), config)


def make_spec(training: Mapping[str, Any] | None = None, **blocks: Any) -> PpoSpec:
    given = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "mini_batch_size": 2,
        "learning_rate": 3e-4,
        "save_strategy": "no",
        "logging_steps": 1,
        **(training or {}),
    }
    return PpoSpec.model_validate(
        {
            "taskType": "ppo",
            "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
            "data": {"prompts": list(PROMPTS)},
            "rewards": [{"name": "contains"}],
            "training": given,
            "generation": {"max_new_tokens": 6, "temperature": 1.0},
            **blocks,
        }
    )


class Refusals:
    """Likes answers that admit to know nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], list[str], dict[str, list[Any]]]] = []

    def score(
        self, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, Any]
    ) -> list[float]:
        self.calls.append((list(prompts), list(completions), dict(columns)))
        return [float(each == REFUSAL) for each in completions]


@dataclass
class Heard:
    """What a trainer told."""

    progress: list[tuple[int, int, Mapping[str, float]]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    checkpoints: list[tuple[str, int]] = field(default_factory=list)

    def hooks(self, cancelled: Callable[[], bool] = lambda: False) -> Hooks:
        def checkpoint(path: Path, step: int) -> None:
            seal(path, step, {})
            self.checkpoints.append((path.name, step))

        return Hooks(
            progress=lambda step, total, figures: self.progress.append((step, total, figures)),
            log=self.lines.append,
            cancelled=cancelled,
            checkpoint=checkpoint,
        )


def train(
    model: Any,
    tokenizer: Any,
    folder: Path,
    spec: PpoSpec | None = None,
    *,
    hooks: Hooks | None = None,
    scorer: Any = None,
    **more: Any,
) -> TrainingOutcome:
    run = TrainingRun(
        **{
            "spec": spec or make_spec(),
            "model": model,
            "tokenizer": tokenizer,
            "rows": ROWS,
            "output_dir": folder,
            "resume_from": None,
            "hooks": hooks or Heard().hooks(),
            **more,
        }
    )
    return PpoTrainer(lambda *_: scorer or Refusals()).train(run)


def test_a_rewarded_answer_becomes_likelier(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    class Guesses:
        """Likes any answer better than the one that admits to know nothing."""

        def score(self, prompts: Any, completions: Sequence[str], columns: Any) -> list[float]:
            return [float("I do not know" not in each) for each in completions]

    # A prompt with a single answer leaves nothing to prefer; these are answered in many ways.
    unsure = [row for row in ROWS if row["number"] in {0, 2, 3, 5}]
    spec = make_spec(
        {
            "max_steps": 10,
            "per_device_train_batch_size": 24,
            "mini_batch_size": 8,
            "num_ppo_epochs": 2,
            "lr_scheduler_type": "constant",
        },
        generation={"max_new_tokens": 10, "temperature": 1.0},
    )

    outcome = train(model, tokenizer, tmp_path, spec, rows=unsure, scorer=Guesses())

    scores = [each["objective/score"] for each in outcome.history]
    assert scores[0] < 0.5
    assert sum(scores[-3:]) / 3 > 0.9


def test_every_update_is_told_with_all_figures(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    heard = Heard()
    spec = make_spec({"max_steps": 3, "logging_steps": 2})

    outcome = train(model, tokenizer, tmp_path, spec, hooks=heard.hooks())

    assert [(step, total) for step, total, _ in heard.progress] == [(1, 3), (2, 3), (3, 3)]
    assert all(set(figures) >= LOGGED for _, _, figures in heard.progress)
    assert [figures["episode"] for _, _, figures in heard.progress] == [4, 8, 12]
    assert [each["step"] for each in outcome.history] == [2, 3]
    assert [line.partition(":")[0] for line in heard.lines] == ["update 2 of 3", "update 3 of 3"]
    assert outcome.steps == 3
    assert outcome.dataset_size == len(ROWS)
    assert set(outcome.metrics) >= LOGGED


def test_the_scorer_gets_prompts_answers_and_columns_of_the_same_rows(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    scorer = Refusals()

    train(model, tokenizer, tmp_path, scorer=scorer)

    seen = 0
    for prompts, answers, columns in scorer.calls:
        assert len(prompts) == len(answers) == 4
        assert [ROWS[number]["prompt"] for number in columns["number"]] == prompts
        assert set(columns) == {"number"}
        assert not any("<|" in answer for answer in answers)
        seen += len(prompts)
    assert seen == 8


def test_the_model_stays_a_plain_model(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    kind, names = type(model), set(model.state_dict())

    train(model, tokenizer, tmp_path)

    assert type(model) is kind
    assert set(model.state_dict()) == names
    assert isinstance(PpoTrainer(), Trainer)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_dropout_the_first_pass_starts_where_it_sampled(
    pristine: Any, tokenizer: Any, tmp_path: Path, *, checkpointing: bool
) -> None:
    model = adapted(pristine, lora_dropout=0.5)
    spec = make_spec(
        {
            "mini_batch_size": 4,
            "num_ppo_epochs": 1,
            "max_steps": 1,
            "gradient_checkpointing": checkpointing,
        }
    )

    (figures,) = train(model, tokenizer, tmp_path, spec).history

    assert figures["policy/approxkl"] == pytest.approx(0, abs=1e-7)
    assert figures["policy/clipfrac"] == 0


def test_gradient_checkpointing_changes_no_figure(
    pristine: Any, tokenizer: Any, tmp_path: Path
) -> None:
    plain, thrifty = (
        train(adapted(pristine), tokenizer, tmp_path, make_spec({"gradient_checkpointing": on}))
        for on in (False, True)
    )

    for one, other in zip(plain.history, thrifty.history, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_small_chunks_change_no_figure(pristine: Any, tokenizer: Any, tmp_path: Path) -> None:
    # Rows drawn together share random numbers, so whole and chunked runs sample different answers;
    # what is learned from the same answers must not differ.
    policies = [Policy(copy.deepcopy(pristine), temperature=1.0) for _ in range(2)]
    prompts = encode_prompts(tokenizer, ROWS[:4], None)
    sampler = Sampler(tokenizer, make_spec().generation, lambda: False)
    rollouts = sampler.sample(pristine.eval(), prompts, chunk=4, seed=0)
    whole = policies[0].figures(rollouts)
    parts = [policies[1].figures(chunk) for chunk in rollouts.chunks(1)]

    torch.testing.assert_close(
        whole.logprobs, torch.cat([each.logprobs for each in parts]), atol=1e-5, rtol=1e-5
    )


def test_log_probabilities_are_those_of_the_tempered_distribution(
    pristine: Any, tokenizer: Any
) -> None:
    generation = make_spec(generation={"max_new_tokens": 4, "temperature": 0.5}).generation
    prompts = encode_prompts(tokenizer, ROWS[:3], None)
    rollouts = Sampler(tokenizer, generation, lambda: False).sample(
        pristine.eval(), prompts, chunk=3, seed=1
    )

    figures = Policy(pristine, temperature=0.5).figures(rollouts)

    for row, prompt in enumerate(prompts):
        answer = rollouts.answers[row][rollouts.mask[row]]
        alone = torch.tensor([[*prompt, *answer.tolist()]])
        logits = pristine(alone).logits[0, len(prompt) - 1 : -1] / 0.5
        expected = logits.log_softmax(-1).gather(-1, answer[:, None])[:, 0]
        found = figures.logprobs[row][rollouts.mask[row]]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (figures.values == 0).all()


def test_sampling_leaves_other_random_numbers_alone(pristine: Any, tokenizer: Any) -> None:
    sampler = Sampler(tokenizer, make_spec().generation, lambda: False)
    prompts = encode_prompts(tokenizer, ROWS, None)
    before = torch.get_rng_state()

    first, second, other = (
        sampler.sample(pristine.eval(), prompts, chunk=6, seed=seed).tokens.tolist()
        for seed in (5, 5, 6)
    )

    assert first == second != other
    assert torch.equal(before, torch.get_rng_state())


def test_the_reference_of_an_adapter_is_the_model_without_it(
    pristine: Any, tokenizer: Any, tmp_path: Path
) -> None:
    fresh = adapted(pristine)
    base = {name: each.clone() for name, each in fresh.named_parameters() if "lora" not in name}

    history = train(fresh, tokenizer, tmp_path, make_spec({"max_steps": 3})).history

    assert history[0]["objective/kl"] == 0
    assert any(each["objective/kl"] != 0 for each in history[1:])
    assert all(
        torch.equal(base[name], each)
        for name, each in fresh.named_parameters()
        if "lora" not in name
    )


def test_the_reference_of_a_whole_model_does_not_learn(model: Any, tokenizer: Any) -> None:
    reference = Reference(model)
    token = torch.tensor([[5, 6, 7]])
    with reference.model() as before, torch.no_grad():
        said = before(token).logits

    with torch.no_grad():
        model.lm_head.weight.mul_(2)

    with reference.model() as after, torch.no_grad():
        assert torch.equal(after(token).logits, said)


@pytest.mark.parametrize("kind", ["trained before", "with biases"])
def test_an_adapter_that_does_not_come_off_is_compared_with_its_start(
    pristine: Any, tokenizer: Any, tmp_path: Path, kind: str
) -> None:
    model = adapted(pristine, bias="all" if kind == "with biases" else "none")
    if kind == "trained before":
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(weight, 0.05)
    token = torch.tensor([[5, 6, 7]])
    said = model(token).logits
    reference = Reference(model)

    history = train(model, tokenizer, tmp_path, make_spec({"max_steps": 2})).history

    learned = model(token).logits
    with reference.model() as start:
        assert torch.equal(start(token).logits, said)
    assert torch.equal(model(token).logits, learned)
    assert not torch.equal(learned, said)
    assert history[0]["objective/kl"] == 0 != history[1]["objective/kl"]


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_a_resumed_training_ends_as_one_that_never_stopped(
    pristine: Any, tokenizer: Any, tmp_path: Path, kind: str
) -> None:
    make = (lambda: copy.deepcopy(pristine)) if kind == "whole" else (lambda: adapted(pristine))
    spec = make_spec(
        {
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 2,
            "lr_scheduler_type": "cosine",
            "adaptive_kl": True,
            "kl_horizon": 10,
        }
    )
    whole, resumed = make(), make()

    expected = train(whole, tokenizer, tmp_path, spec)
    torch.manual_seed(12345)  # a new process would not stand where the old one did
    found = train(resumed, tokenizer, tmp_path, spec, resume_from=tmp_path / "checkpoint-2")

    for each in (found, expected):
        each.metrics.pop("train_runtime")
    assert found == expected
    assert len(found.history) == 4
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_resuming_needs_the_same_data(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    spec = make_spec({"max_steps": 1, "save_strategy": "steps"})
    train(copy.deepcopy(model), tokenizer, tmp_path, spec)

    with pytest.raises(TerminalError, match="on 6 rows with seed 42; this one has 5 rows"):
        train(
            model, tokenizer, tmp_path, spec, rows=ROWS[:5], resume_from=tmp_path / "checkpoint-1"
        )


def test_checkpoints_are_told_and_old_ones_go(
    pristine: Any, tokenizer: Any, tmp_path: Path
) -> None:
    heard = Heard()
    spec = make_spec(
        {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    )

    train(adapted(pristine), tokenizer, tmp_path, spec, hooks=heard.hooks())

    assert heard.checkpoints == [("checkpoint-1", 1), ("checkpoint-2", 2), ("checkpoint-3", 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    files = {path.name for path in (tmp_path / "checkpoint-3").iterdir()}
    assert files >= {"adapter_model.safetensors", "value_head.safetensors", "optimizer.pt"}
    assert "model.safetensors" not in files


def test_a_checkpoint_that_was_not_finished_has_no_name(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    spec = make_spec({"save_strategy": "steps", "save_steps": 1})
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            train(copy.deepcopy(model), tokenizer, tmp_path, spec)
    assert not list(tmp_path.glob("checkpoint-*"))
    assert latest(tmp_path) is None

    train(model, tokenizer, tmp_path, spec)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_epochs_are_when_checkpoints_are_written(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    heard = Heard()  # 6 rows, 4 per update: epochs end in updates 2 and 3
    spec = make_spec({"max_steps": -1, "num_train_epochs": 2, "save_strategy": "epoch"})

    train(model, tokenizer, tmp_path, spec, hooks=heard.hooks())

    assert heard.checkpoints == [("checkpoint-2", 2), ("checkpoint-3", 3)]


@pytest.mark.parametrize("looks", [0, 1, 2, 6])
def test_it_stops_when_asked_to(model: Any, tokenizer: Any, tmp_path: Path, looks: int) -> None:
    asked = iter([False] * looks)

    with pytest.raises(TaskCancelled):
        train(model, tokenizer, tmp_path, hooks=Heard().hooks(lambda: next(asked, True)))


def test_an_update_ends_early_when_the_policy_moved_far(
    pristine: Any, tokenizer: Any, tmp_path: Path
) -> None:
    def steps(target: float | None) -> float:
        spec = make_spec({"max_steps": 1, "target_kl": target, "learning_rate": 1e-3})
        outcome = train(copy.deepcopy(pristine), tokenizer, tmp_path, spec)
        return outcome.metrics["policy/optimizer_steps"]

    assert steps(None) == 8  # 4 passes over 2 mini-batches
    assert 1 <= steps(1e-4) < 8


def test_the_model_is_measured_when_it_is_time(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    spec = make_spec({"max_steps": 4}, evaluation={"data": {"prompts": ["Hello"]}, "every": 2})

    outcome = train(model, tokenizer, tmp_path, spec, evaluate=lambda: {"loss": 1.5})

    measured = [each for each in outcome.history if "eval_loss" in each]
    assert measured == [{"eval_loss": 1.5, "step": 2}]  # after the last update its owner measures
    assert "objective/score" in outcome.metrics


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "1 scores for 4 answers"),
        ([1.0, 2.0, float("nan"), 0.0], "nan, not a finite number"),
        ([None] * 4, "None, not a finite number"),
    ],
)
def test_scores_that_are_none_are_refused(
    model: Any, tokenizer: Any, tmp_path: Path, scores: list[Any], message: str
) -> None:
    class Broken:
        def score(self, *_: Any) -> list[Any]:
            return scores

    with pytest.raises(TerminalError, match=message):
        train(model, tokenizer, tmp_path, scorer=Broken())


def test_a_loss_that_is_no_number_ends_it(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    class Huge:
        def score(self, prompts: Any, completions: Sequence[str], columns: Any) -> list[float]:
            return [3e38 * (-1) ** place for place in range(len(completions))]

    with pytest.raises(TerminalError, match="try a smaller learning_rate"):
        train(model, tokenizer, tmp_path, make_spec({"whiten_advantages": False}), scorer=Huge())


def test_no_rows_and_several_processes_are_refused(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no prompts"):
        train(model, tokenizer, tmp_path, rows=())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TerminalError, match="one process, not in 2"):
        train(model, tokenizer, tmp_path)


def test_prompts_lose_their_beginning_when_they_are_too_long(tokenizer: Any) -> None:
    whole, cut = (encode_prompts(tokenizer, ROWS[:1], limit)[0] for limit in (None, 3))

    assert tokenizer.decode(whole) == "<|user|>Tell me something<|end|><|assistant|>"
    assert cut == whole[-3:]
    assert encode_prompts(tokenizer, [{"prompt": "plain text"}], None) == [
        tokenizer("plain text")["input_ids"]
    ]
    with pytest.raises(TerminalError, match=r"a prompt in each row, this has none: \{'prompt': ''"):
        encode_prompts(tokenizer, [{"prompt": ""}], None)


def test_an_answer_that_was_begun_is_gone_on_with(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am"}]

    (ids,) = encode_prompts(tokenizer, [{"prompt": chat}], None)

    assert tokenizer.decode(ids) == "<|user|>Hi<|end|><|assistant|>I am"


def test_prompt_and_answer_fit_into_the_model(pristine: Any) -> None:
    assert prompt_limit(pristine, 24, None) == 1000
    assert prompt_limit(pristine, 24, 100) == 100
    with pytest.raises(TerminalError, match="the model has 1024 positions"):
        prompt_limit(pristine, 1024, None)


def test_each_epoch_has_every_row_once_in_another_order() -> None:
    order = PromptOrder(rows=20, seed=1)

    first, second = order.take(0, 20), order.take(20, 20)

    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert PromptOrder(rows=20, seed=1).take(15, 10) == [*first[15:], *second[:5]]
    assert PromptOrder(rows=20, seed=2).take(0, 20) != first


def test_options_follow_from_the_spec() -> None:
    spec = make_spec(
        {
            "max_steps": -1,
            "total_episodes": 100,
            "gradient_accumulation_steps": 4,
            "mini_batch_size": None,
            "num_mini_batches": 2,
            "warmup_steps": 0.1,
            "kl_coef": 0,
        }
    )

    options = ppo_options(spec, rows=7)

    assert (options.rollouts, options.chunk, options.mini_batch) == (16, 4, 8)
    assert (options.updates, options.warmup, options.passes) == (7, 1, 4)
    assert (options.kl_coef, options.cliprange, options.missing_eos_penalty) == (0, 0.2, None)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"clip_range": 0.1}, "training.clip_range: PPO has no such option; .*'cliprange'"),
        ({"cliprange": 0}, "training.cliprange: expected greater than 0, got 0"),
        ({"kl_estimator": "k2"}, "training.kl_estimator: expected 'k1' or 'k3', got .k2."),
        ({"packing": True}, "training.packing: True means nothing to PPO"),
        ({"optim": "lion"}, "training.optim: .*not 'lion'"),
        ({"mini_batch_size": 5}, "mini_batch_size 5 is more than the 4 rollouts"),
        ({"num_mini_batches": 2}, "give mini_batch_size .2. or num_mini_batches .2."),
        ({"total_episodes": 9}, "give max_steps .2. or total_episodes .9."),
    ],
)
def test_options_that_do_not_work_are_named(training: dict[str, Any], message: str) -> None:
    with pytest.raises(TerminalError, match=message):
        ppo_options(make_spec(training), rows=6)


def test_greedy_rollouts_are_refused() -> None:
    with pytest.raises(TerminalError, match="do_sample"):
        ppo_options(make_spec(generation={"do_sample": False}), rows=6)


def test_an_unknown_schedule_is_named(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    spec = make_spec({"lr_scheduler_type": "sawtooth"})
    with pytest.raises(TerminalError, match=r"lr_scheduler_type: 'sawtooth'.*cosine"):
        train(model, tokenizer, tmp_path, spec)


def test_random_numbers_go_on_where_they_were() -> None:
    import random

    import numpy as np

    kept = state._random_state()
    first = (random.random(), np.random.random(), torch.rand(1).item())

    state._restore_random_state(kept)

    assert (random.random(), np.random.random(), torch.rand(1).item()) == first
