"""Training: TRL's, PEFT's and transformers' own option names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from mloc_dagster.schema.agent_tools import AgentTools
from mloc_dagster.schema.base import Block
from mloc_dagster.schema.data import TrainingData
from mloc_dagster.schema.markers import FileRef
from mloc_dagster.schema.safe_options import LORA_OPTIONS, TRAINING_OPTIONS
from mloc_dagster.schema.tracking import ReportTo


class Training(Block):
    """Arguments of the trainer (`transformers.TrainingArguments` and TRL's configs).

    Any other argument of the task type's own config in the installed TRL may stand here as well, by
    its own name; the compiler checks it.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    block_marker: ClassVar[object] = TRAINING_OPTIONS

    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the data."""

    max_steps: int = Field(default=-1, ge=-1)
    """Optimiser steps instead of epochs; -1 counts epochs."""

    @field_validator("max_steps")
    @classmethod
    def _trains_at_all(cls, value: int) -> int:
        if value == 0:
            raise ValueError("0 steps train nothing: give a number of steps, or -1 for epochs")
        return value

    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Rows per device and step."""

    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches per optimiser step."""

    learning_rate: float | None = Field(default=None, gt=0)
    """The highest learning rate; by default the method's own (of PPO 5e-5)."""

    lr_scheduler_type: str | None = None
    """How the learning rate changes: `linear`, `cosine`, …"""

    warmup_steps: float | None = Field(default=None, ge=0)
    """Steps until the learning rate is reached; below 1 a share of all."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""

    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm."""

    optim: str | None = None
    """The optimiser, such as `adamw_torch`."""

    seed: int = 42
    """Seed of weights, order and dropout."""

    max_length: int | None = Field(default=None, ge=1)
    """Tokens per row at most; longer rows are cut."""

    packing: bool = False
    """Fill each sequence with several rows."""

    logging_steps: int = Field(default=10, ge=1)
    """Steps between two log lines."""

    save_steps: int = Field(default=500, ge=1)
    """Steps between two checkpoints."""

    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When checkpoints are written."""

    save_total_limit: int | None = Field(default=None, ge=1)
    """Checkpoints that are kept."""

    save_model: bool = True
    """Keep the final weights among the results."""

    gradient_checkpointing: bool = False
    """Less memory for more time."""

    fp16: bool = False
    """Train in half precision."""

    bf16: bool = False
    """Train in bfloat16."""

    num_processes: int | None = Field(default=None, ge=1)
    """Processes that train together, each with a GPU; by default one for each GPU."""

    deepspeed: Mapping[str, JsonValue] | None = None
    """A DeepSpeed configuration, verbatim."""

    beta: float | None = Field(default=None, ge=0)
    """DPO: how far the policy may leave the reference."""

    loss_type: str | None = None
    """DPO: the loss, such as `sigmoid`."""

    mini_batch_size: int | None = Field(default=None, ge=1)
    """PPO: rows per optimisation step."""

    num_ppo_epochs: int | None = Field(default=None, ge=1)
    """PPO: passes over each batch of rollouts."""

    target_kl: float | None = Field(default=None, gt=0)
    """PPO: stop a batch early when the policy moved this far."""

    tools: AgentTools = ()
    """GRPO: what the model may call while it answers, as an agent's `tools`."""


class Lora(Block):
    """`peft.LoraConfig`; any other of its options may stand here as well, by its own name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    block_marker: ClassVar[object] = LORA_OPTIONS

    r: int = Field(default=16, ge=1)
    """Rank of the adapter."""

    lora_alpha: float = Field(default=32, gt=0)
    """Scale of the adapter: `lora_alpha / r`."""

    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout before the adapter."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""

    target_modules: tuple[str, ...] | str | None = None
    """Layers that get an adapter; by default PEFT's choice for the model."""

    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM"
    """PEFT's task type."""

    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)`."""


class RewardModel(Block):
    """The model that scores rollouts: a sequence classifier."""

    identifier: Annotated[str, FileRef(anchored=False)]
    """A hub id, a folder, or an earlier stage: `${reward.result.final_model_path}`."""

    type: Literal["classification", "sentiment"] = "classification"
    """`classification`: its only logit, or that of `label`; `sentiment`: positive less negative."""

    label: str | None = None
    """Which class's logit is the score, of a classifier with several; by default the last."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""


class RewardFunction(Block):
    """A function that scores rollouts, by the name that it is registered under."""

    name: str
    """A name of the entry-point group `mloc_dagster.reward_functions`, such as `contains`."""

    weight: float = 1.0
    """What its score counts in the sum."""

    options: Mapping[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the function."""


class Harness(Block):
    """Benchmarks of lm-evaluation-harness, under the names of `lm_eval.simple_evaluate`.

    Needs the extra `eval`. Each figure is a metric by the name `task/metric`.
    """

    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks, groups, tags or patterns, such as `arc_easy` or `mmlu_*`."""

    include_path: Annotated[str | None, FileRef(runs_code=True)] = None
    """A folder with task files of your own; Python that they name is run."""

    num_fewshot: int | None = Field(default=None, ge=0)
    """Solved examples before each question; by default the task's own number."""

    limit: float | None = Field(default=None, gt=0)
    """Questions of each task at most; below 1 a share of them."""

    batch_size: int = Field(default=8, ge=1)
    """Questions that are computed together."""

    apply_chat_template: bool = False
    """Ask through the model's chat template."""


class Evaluation(Block):
    """What a model is measured by, before and after its training."""

    data: TrainingData
    """Rows to measure on."""

    metrics: tuple[str, ...] = ("loss",)
    """`loss`, `perplexity`, `exact_match`, `contains`, `regex`, `win_rate`, or a registered one."""

    every: int | None = Field(default=None, ge=1)
    """Measured every so many steps as well."""

    pattern: str | None = None
    """What `regex` looks for in an answer."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of an answer at most; answers are greedy."""

    harness: Harness | None = None
    """Benchmarks to measure by as well."""

    gate: str | None = None
    """What must hold for the model to be handed on: `exact_match >= before + 0.05`."""

    report_to: ReportTo = ()
    """Where the figures are sent as well: `mlflow`, `tensorboard`, `wandb`, or a list of them."""

    @model_validator(mode="after")
    def _has_pattern(self) -> Evaluation:
        if "regex" in self.metrics and self.pattern is None:
            raise ValueError("the metric 'regex' needs a pattern")
        return self

    def may_measure(self, metric: str) -> bool:
        """Tells whether a metric is among those asked for; of benchmarks only a run knows them."""
        return metric in self.metrics or (self.harness is not None and "/" in metric)


class Generation(Block):
    """How rollouts are sampled; names of `transformers.GenerationConfig`."""

    max_new_tokens: int = Field(default=128, ge=1)
    """New tokens per rollout at most."""

    temperature: float = Field(default=0.7, gt=0)
    """Higher is more varied."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the most likely tokens that make up this share."""

    top_k: int = Field(default=0, ge=0)
    """Only so many of the most likely tokens; 0: all."""

    do_sample: bool = True
    """`false` is greedy."""


_LOAD_SOURCES = {"local": "path", "http": "url", "task": "task_id"}


class CheckpointLoad(Block):
    """Weights to start from instead of the model's own."""

    type: Literal["local", "http", "task"] | None = None
    """Where the weights are; may be left out, as `path`, `url` or `task_id` says so."""

    path: Annotated[str | None, FileRef()] = None
    """A folder or an archive."""

    url: Annotated[str | None, FileRef()] = None
    """An archive; usually `${stage.result.final_model_archive_url}`."""

    task_id: str | None = None
    """An earlier task whose weights to take."""

    file: str | None = None
    """A file among that task's results."""

    @model_validator(mode="after")
    def _one_source(self) -> CheckpointLoad:
        given = [name for name in _LOAD_SOURCES.values() if getattr(self, name) is not None]
        if len(given) != 1:
            got = f"got {' and '.join(given)}" if given else "got none of them"
            raise ValueError(f"give one of path, url and task_id; {got}")
        if self.type is not None and _LOAD_SOURCES[self.type] != given[0]:
            needed = _LOAD_SOURCES[self.type]
            raise ValueError(f"type {self.type!r} takes {needed!r}, but {given[0]!r} is given")
        return self


class Checkpoint(Block):
    """Where training starts."""

    load: CheckpointLoad | None = None
