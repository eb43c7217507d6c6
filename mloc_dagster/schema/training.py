"""Training: TRL's, PEFT's and transformers' own option names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue

from mloc_dagster.schema.base import Block


class Training(Block):
    """Arguments of the trainer (`transformers.TrainingArguments` and TRL's configs)."""

    num_train_epochs: float = Field(default=1.0, gt=0)
    max_steps: int = Field(default=-1, ge=-1)
    per_device_train_batch_size: int = Field(default=8, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=5e-5, gt=0)
    lr_scheduler_type: str | None = None
    warmup_steps: float | None = Field(default=None, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    optim: str | None = None
    seed: int = 42
    max_length: int | None = Field(default=None, ge=1)
    packing: bool = False
    logging_steps: int = Field(default=10, ge=1)
    save_steps: int = Field(default=500, ge=1)
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    save_total_limit: int | None = Field(default=None, ge=1)
    save_model: bool = True
    """Keep the final weights among the results."""

    gradient_checkpointing: bool = False
    fp16: bool = False
    bf16: bool = False
    deepspeed: Mapping[str, JsonValue] | None = None
    """A DeepSpeed configuration, verbatim."""

    beta: float | None = Field(default=None, ge=0)
    """DPO: how far the policy may leave the reference."""

    loss_type: str | None = None
    mini_batch_size: int | None = Field(default=None, ge=1)
    """PPO: rows per optimisation step."""

    num_ppo_epochs: int | None = Field(default=None, ge=1)
    """PPO: passes over each batch of rollouts."""

    target_kl: float | None = Field(default=None, gt=0)
    """PPO: stop a batch early when the policy moved this far."""


class Lora(Block):
    """`peft.LoraConfig`."""

    r: int = Field(default=16, ge=1)
    lora_alpha: float = Field(default=32, gt=0)
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: tuple[str, ...] | str | None = None
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM"
    use_rslora: bool = False


class RewardModel(Block):
    """The model that scores rollouts."""

    identifier: str
    type: Literal["classification", "sentiment"] = "classification"
    revision: str | None = None


class Generation(Block):
    """How rollouts are sampled; names of `transformers.GenerationConfig`."""

    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.7, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    do_sample: bool = True


class CheckpointLoad(Block):
    """Weights to start from instead of the model's own."""

    type: Literal["local", "http", "task"] = "local"
    path: str | None = None
    url: str | None = None
    """An archive; usually `${stage.result.final_model_archive_url}`."""

    task_id: str | None = None
    file: str | None = None


class Checkpoint(Block):
    """Where training starts."""

    load: CheckpointLoad | None = None
