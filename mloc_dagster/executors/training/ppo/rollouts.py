"""Rollouts: answers that the policy samples, and the tensors that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mloc_dagster.executors.engines.transformers.generation import StopWhenCancelled
from mloc_dagster.schema import Generation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Prompts, padded on the left, followed by answers, padded on the right.

    Attributes:
        tokens: Token ids of both.
        attention: Where they are not padding.
        mask: Which answer tokens were sampled, the end token included; as wide as the answers.
        ended: Which answers ended with an end token.
    """

    tokens: Tensor
    attention: Tensor
    mask: Tensor
    ended: Tensor

    @property
    def answers(self) -> Tensor:
        """Token ids of the answers."""
        return self.tokens[:, -self.mask.shape[1] :]

    def pick(self, rows: Tensor | slice) -> Rollouts:
        """Returns some of the rows."""
        return replace(
            self,
            tokens=self.tokens[rows],
            attention=self.attention[rows],
            mask=self.mask[rows],
            ended=self.ended[rows],
        )

    def chunks(self, size: int) -> Iterator[Rollouts]:
        """Yields all rows, so many at a time."""
        for start in range(0, len(self.tokens), size):
            yield self.pick(slice(start, start + size))


class Sampler:
    """Samples answers, as `transformers` generates.

    Only temperature, top-p and top-k shape the distribution; what the model's own generation
    settings add, such as a repetition penalty, would make log-probabilities untrue, and is off.

    Args:
        tokenizer: The model's.
        generation: How to sample.
        cancelled: Looked at between tokens.
    """

    def __init__(
        self, tokenizer: Any, generation: Generation, cancelled: Callable[[], bool]
    ) -> None:
        self._tokenizer = tokenizer
        self._generation = generation
        self._cancelled = cancelled

    def sample(
        self, model: Any, prompts: Sequence[Sequence[int]], *, chunk: int, seed: int
    ) -> Rollouts:
        """Samples an answer to each prompt; the same ones for the same weights and seed.

        Args:
            model: The policy, in evaluation mode.
            prompts: Token ids.
            chunk: Prompts at a time.
            seed: Of the random numbers; those outside are left as they were.

        Raises:
            TaskCancelled: If the task was asked to stop.
        """
        import torch

        ends = end_tokens(model, self._tokenizer)
        config = self._config(sorted(ends))
        devices = [model.device] if model.device.type == "cuda" else []
        answers: list[list[int]] = []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), chunk):
                some = prompts[start : start + chunk]
                generated = self._generate(model, some, config)
                answers += [cut_after_end(each, ends) for each in generated]
        ended = [answer[-1] in ends for answer in answers]
        return assemble(prompts, answers, ended, self._tokenizer.pad_token_id, model.device)

    def texts(self, rollouts: Rollouts) -> list[str]:
        """Returns the answers' texts, without special tokens."""
        answers = [
            ids[mask].tolist() for ids, mask in zip(rollouts.answers, rollouts.mask, strict=True)
        ]
        return self._tokenizer.batch_decode(answers, skip_special_tokens=True)

    def _generate(
        self, model: Any, prompts: Sequence[Sequence[int]], config: Any
    ) -> list[list[int]]:
        import torch

        width = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id
        tokens = torch.tensor([_left(ids, width, pad) for ids in prompts], device=model.device)
        attention = torch.tensor(
            [_left([1] * len(ids), width, 0) for ids in prompts], device=model.device
        )
        output = model.generate(
            input_ids=tokens,
            attention_mask=attention,
            generation_config=config,
            stopping_criteria=[StopWhenCancelled(self._cancelled)],
        )
        return output[:, width:].tolist()

    def _config(self, ends: list[int]) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            max_new_tokens=self._generation.max_new_tokens,
            do_sample=True,
            temperature=self._generation.temperature,
            top_p=self._generation.top_p,
            top_k=self._generation.top_k,
            eos_token_id=ends or None,
            pad_token_id=self._tokenizer.pad_token_id,
            # Where a value is absent here, generate takes the model's own.
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            typical_p=1.0,
            min_p=0.0,
            min_length=0,
            num_beams=1,
            num_return_sequences=1,
        )


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Returns the tokens that end an answer: those of the model and the tokenizer's."""
    own = getattr(model.generation_config, "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return frozenset(each for each in [*listed, tokenizer.eos_token_id] if each is not None)


def cut_after_end(answer: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Returns the answer up to and including its first end token."""
    for place, token in enumerate(answer):
        if token in ends:
            return list(answer[: place + 1])
    return list(answer)


def assemble(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    ended: Sequence[bool],
    pad: int,
    device: Any,
) -> Rollouts:
    """Pads prompts on the left and answers on the right, and puts them side by side."""
    import torch

    before, after = max(map(len, prompts)), max(map(len, answers))
    pairs = list(zip(prompts, answers, strict=True))
    lengths = torch.tensor([len(answer) for answer in answers])
    return Rollouts(
        tokens=torch.tensor(
            [_left(prompt, before, pad) + _right(answer, after, pad) for prompt, answer in pairs],
            device=device,
        ),
        attention=torch.tensor(
            [
                _left([1] * len(prompt), before, 0) + _right([1] * len(answer), after, 0)
                for prompt, answer in pairs
            ],
            device=device,
        ),
        mask=(torch.arange(after) < lengths[:, None]).to(device),
        ended=torch.tensor(list(ended), device=device),
    )


def _left(ids: Sequence[int], width: int, filler: int) -> list[int]:
    return [filler] * (width - len(ids)) + list(ids)


def _right(ids: Sequence[int], width: int, filler: int) -> list[int]:
    return list(ids) + [filler] * (width - len(ids))
