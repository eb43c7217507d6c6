"""A training as one would write it with TRL alone: `python training_bare.py job.json`.

The job names the task type, the model's folder, the rows' file, the trainer's arguments, and
perhaps a LoRA configuration. The last line printed is JSON with times and the logged history.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback

ROLES = {
    "prompt": "user",
    "completion": "assistant",
    "chosen": "assistant",
    "rejected": "assistant",
}


class FirstStep(TrainerCallback):
    """Notes when the first step was done, in seconds since 1970."""

    at = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes it."""
        self.at = self.at or time.time()


def length_reward(completions: list[Any], **_: Any) -> list[float]:
    """Scores as mloc's `length` with `least: 20` does: words of the answer over 20, at most 1."""
    return [min(1.0, len(each[0]["content"].split()) / 20) for each in completions]


def as_chat(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """Returns a row with messages instead of texts."""
    return {name: [{"role": ROLES[name], "content": text}] for name, text in row.items()}


def build_trainer(job: dict[str, Any], first: FirstStep) -> Any:
    """Returns the trainer of a job."""
    import trl

    lines = Path(job["rows"]).read_text().splitlines()
    rows = Dataset.from_list([as_chat(json.loads(line)) for line in lines])
    parts: dict[str, Any] = {"train_dataset": rows, "callbacks": [first]}
    if "lora" in job:
        from peft import LoraConfig

        parts["peft_config"] = LoraConfig(task_type="CAUSAL_LM", **job["lora"])
    name = {"sft": "SFT", "lora_sft": "SFT", "dpo": "DPO", "reward": "Reward", "grpo": "GRPO"}
    kind = name[job["method"]]
    if kind == "GRPO":
        parts["reward_funcs"] = [length_reward]
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    config = getattr(trl, f"{kind}Config")(**job["arguments"])
    trainer = getattr(trl, f"{kind}Trainer")
    return trainer(model=job["model"], args=config, processing_class=tokenizer, **parts)


def main() -> None:
    """Trains, saves the weights, and prints what was measured."""
    process_began = psutil.Process().create_time()
    job = json.loads(Path(sys.argv[1]).read_text())
    first = FirstStep()
    trainer = build_trainer(job, first)
    began = time.perf_counter()
    result = trainer.train()
    call_s = time.perf_counter() - began
    trainer.save_model(str(Path(job["arguments"]["output_dir"]) / "final"))
    measured = {
        "train_call_s": round(call_s, 3),
        "loop_s": result.metrics["train_runtime"],
        "first_step_s": round(first.at - process_began, 3),
        "history": [each for each in trainer.state.log_history if "loss" in each],
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
