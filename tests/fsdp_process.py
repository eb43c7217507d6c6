"""A process of a training with FSDP on a CPU: `python -m tests.fsdp_process job.json said.jsonl`.

PyTorch shards on CPUs, with gloo; accelerate 1.15 drops the plugin there without a word, as its
list of devices with FSDP has all but CPUs. Here it is given back, and mloc is told of a GPU: what
is left is what runs on GPUs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from accelerate import state
from accelerate.utils import DistributedType

from mloc_dagster.executors import Hooks, Message, TrainingJob, train
from mloc_dagster.executors.training import arguments, spread


def allow_fsdp_on_cpus() -> None:
    """Lets accelerate spread weights over processes on a CPU."""
    begin: Any = state.AcceleratorState.__init__

    def begin_with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = self.distributed_type
            self.fsdp_plugin = fsdp_plugin

    state.AcceleratorState.__init__ = begin_with_fsdp

    def on_cpu(*_: Any, **__: Any) -> dict[str, Any]:
        return {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False}

    for module in (arguments, spread):
        module.has_gpu = lambda _: True
    arguments._device = on_cpu


def main(job: Path, said: Path) -> None:
    """Trains as the job says, and writes down what it says and which weights it holds."""
    with said.open("w") as out:

        def say(message: Message) -> None:
            out.write(json.dumps([type(message).__name__, msgspec.to_builtins(message)]) + "\n")

        hooks = Hooks(
            progress=lambda *told: out.write(json.dumps(["Progress", told]) + "\n") and None,
            log=lambda line: out.write(json.dumps(["LogLine", line]) + "\n") and None,
            cancelled=lambda: False,
            checkpoint=lambda path, _: out.write(json.dumps(["Saved", str(path)]) + "\n") and None,
        )
        say(train(TrainingJob.model_validate_json(job.read_bytes()), hooks, say))


if __name__ == "__main__":
    allow_fsdp_on_cpus()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
