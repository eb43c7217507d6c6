"""PPO against TRL's GRPO: the same prompts and reward, and as many sampled answers.

    python benchmarks/training_ppo.py [--updates 60] [--seeds 0 1 2]

tiny-chat is asked what it was never taught, and rewarded for saying "I do not know." exactly. The
score of a model is the mean over `--samples` answers to each prompt at temperature 1, with the same
random numbers before and after. All sample the same number of answers in all, and none is tuned: a
constant learning rate of 3e-4, everything else as it comes. By default PPO passes over each batch
of answers four times and pays for leaving its reference, GRPO passes once and pays nothing. So GRPO
is also measured with four passes, and PPO with nothing to pay; the optimiser steps are recorded.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before torch is imported: small matrices are slower on two threads than on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from record import record

from mloc_dagster.executors import Hooks, PpoTrainer, Sampler, TrainingRun, encode_prompts
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import Generation, PpoSpec

WANTED = "I do not know."
QUESTIONS = (
    "Tell me something",
    "Say a word",
    "Who wrote Hamlet?",
    "Give me a city",
    "Sing a song",
    "What is 40 + 41?",
    "Write a poem",
    "How are you?",
    "What do bees make?",
    "Which planet is red?",
    "Where do penguins live?",
    "Who won the match?",
)
ROWS = [{"prompt": [{"role": "user", "content": text}]} for text in QUESTIONS]
GENERATION = {"max_new_tokens": 12, "temperature": 1.0}
LEARNING_RATE = 3e-4
ROLLOUTS = 32
GROUP = 8  # answers to the same prompt that GRPO compares


class WantsRefusals:
    """Scores 1 for the wanted answer, 0 for any other; counts how many it saw."""

    def __init__(self) -> None:
        self.seen = 0

    def score(self, prompts: Any, completions: Sequence[str], columns: Any) -> list[float]:
        """Returns the scores."""
        self.seen += len(completions)
        return [float(each == WANTED) for each in completions]


def load() -> tuple[Any, Any]:
    """Loads the model and its tokenizer afresh."""
    path = builtin_model_path("tiny-chat")
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    return model, transformers.AutoTokenizer.from_pretrained(path, padding_side="left")


def mean_score(model: Any, tokenizer: Any, samples: int) -> float:
    """Returns the mean score of sampled answers."""
    sampler = Sampler(tokenizer, Generation(**GENERATION), lambda: False)
    prompts = [ids for ids in encode_prompts(tokenizer, ROWS, None) for _ in range(samples)]
    answers = sampler.texts(sampler.sample(model.eval(), prompts, chunk=len(prompts), seed=1))
    return statistics.fmean(WantsRefusals().score(None, answers, None))


def train_ppo(
    model: Any, tokenizer: Any, seed: int, updates: int, folder: Path, **training: Any
) -> dict[str, Any]:
    """Trains with PPO; `training` are more of its options."""
    scorer, steps = WantsRefusals(), 0.0

    def count(_: int, __: int, figures: Any) -> None:
        nonlocal steps
        steps += figures["policy/optimizer_steps"]

    spec = PpoSpec.model_validate(
        {
            "taskType": "ppo",
            "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
            "data": {"prompts": list(QUESTIONS)},
            "rewards": [{"name": "exact"}],
            "training": {
                "max_steps": updates,
                "per_device_train_batch_size": ROLLOUTS,
                "learning_rate": LEARNING_RATE,
                "lr_scheduler_type": "constant",
                "save_strategy": "no",
                "seed": seed,
                **training,
            },
            "generation": GENERATION,
        }
    )
    hooks = Hooks(count, lambda _: None, lambda: False, lambda *_: None)
    run = TrainingRun(spec, model, tokenizer, ROWS, folder, None, hooks)
    PpoTrainer(lambda *_: scorer).train(run)
    return {"sampled": scorer.seen, "optimiser_steps": int(steps)}


def train_grpo(
    model: Any, tokenizer: Any, seed: int, updates: int, folder: Path, passes: int = 1
) -> dict[str, Any]:
    """Trains with TRL's GRPO, whose steps are those of the optimiser."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    scorer = WantsRefusals()

    def reward(*, prompts: Any, completions: Any, **_: Any) -> list[float]:
        return scorer.score(prompts, [each[0]["content"] for each in completions], None)

    config = GRPOConfig(
        output_dir=str(folder),
        max_steps=updates * passes,
        num_iterations=passes,
        per_device_train_batch_size=ROLLOUTS,
        num_generations=GROUP,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_completion_length=GENERATION["max_new_tokens"],
        temperature=GENERATION["temperature"],
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=updates * passes,
        seed=seed,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[reward],
        args=config,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return {"sampled": scorer.seen, "optimiser_steps": trainer.state.global_step}


TRAINERS = {
    "ppo": train_ppo,
    "ppo_no_kl": functools.partial(train_ppo, kl_coef=0),
    "grpo": train_grpo,
    "grpo_4_passes": functools.partial(train_grpo, passes=4),
}


def main() -> None:
    """Trains with each, seed by seed, and records."""
    options = _options()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAINERS}
    for seed in options.seeds:
        for name, train in TRAINERS.items():
            model, tokenizer = load()
            before = mean_score(model, tokenizer, options.samples)
            started = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
                facts = train(model, tokenizer, seed, options.updates, Path(folder))
            seconds = time.perf_counter() - started
            after = mean_score(model, tokenizer, options.samples)
            scores = {"before": round(before, 3), "after": round(after, 3)}
            runs[name].append({"seed": seed, **scores, **facts, "seconds": round(seconds, 1)})
            print(name, runs[name][-1], file=sys.stderr)
    record(
        "ppo_proof",
        {
            "updates": options.updates,
            "prompts": len(ROWS),
            "learning_rate": LEARNING_RATE,
            "samples_per_prompt": options.samples,
            **{
                name: {
                    "mean_before": round(statistics.fmean(each["before"] for each in done), 3),
                    "mean_after": round(statistics.fmean(each["after"] for each in done), 3),
                    "runs": done,
                }
                for name, done in runs.items()
            },
        },
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    main()
