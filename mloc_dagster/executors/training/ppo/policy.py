"""The policy: a causal language model with a value head beside it; and its reference."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_dagster.executors.training.ppo.rollouts import Rollouts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """What a model says of each answer token.

    Attributes:
        logprobs: Log-probability of the token, at the temperature that it was sampled at.
        entropy: Entropy of the distribution that it was sampled from; without gradient.
        values: What the value head expects of the text before the token.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


class Policy:
    """A language model and its value head, which reads the last hidden states.

    One pass gives log-probabilities and values. The head is no part of the model, which stays what
    it was: it starts at 0, so that the first advantages are the rewards themselves.

    Args:
        model: A causal language model, or a `PeftModel` around one.
        temperature: What rollouts are sampled at.
        bf16: Compute in bfloat16 where torch's autocast does.
    """

    def __init__(self, model: Any, *, temperature: float, bf16: bool = False) -> None:
        import torch

        self.model = model
        self.value_head = torch.nn.Linear(
            model.config.get_text_config().hidden_size, 1, device=model.device
        )
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self._temperature = temperature
        self._bf16 = bf16

    def parameters(self) -> list[Any]:
        """Returns all that is trained, the value head last."""
        trained = [each for each in self.model.parameters() if each.requires_grad]
        return [*trained, *self.value_head.parameters()]

    def autocast(self) -> Any:
        """Returns a context in which the model computes as it was asked to."""
        import torch

        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._bf16)

    def figures(self, rollouts: Rollouts) -> TokenFigures:
        """Runs the policy over rollouts."""
        with self.autocast():
            logits, hidden = _forward(self.model, rollouts, hidden=True)
        logprobs, entropy = _token_figures(logits, rollouts.answers, self._temperature)
        values = self.value_head(hidden.float()).squeeze(-1)
        return TokenFigures(logprobs, entropy, values)

    def logprobs_of(self, model: Any, rollouts: Rollouts) -> Tensor:
        """Runs another model over rollouts, such as the reference."""
        with self.autocast():
            logits, _ = _forward(model, rollouts, hidden=False)
        return _token_figures(logits, rollouts.answers, self._temperature)[0]


class Reference:
    """The model as it was when the reference was made, before its training.

    With a new LoRA adapter that is the model without it. An adapter that was trained before, or
    that trains biases, does not come off that way: there the weights of the start are kept, and put
    back while the reference is lent. Of a whole model it is a copy.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._copy: Any = None
        self._start: list[tuple[Any, Any]] = []
        if not hasattr(model, "peft_config"):
            self._copy = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        elif not _comes_off(model):
            trained = (each for each in model.parameters() if each.requires_grad)
            self._start = [(each, each.detach().clone()) for each in trained]

    @contextmanager
    def model(self) -> Iterator[Any]:
        """Lends the reference, without gradients; the policy is not to be used meanwhile."""
        import torch

        with torch.no_grad():
            if self._copy is not None:
                yield self._copy
            elif self._start:
                with self._as_it_was():
                    yield self._model
            else:
                with self._model.disable_adapter():
                    yield self._model

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        now = [(weight, weight.data) for weight, _ in self._start]
        for weight, start in self._start:
            weight.data = start
        try:
            yield
        finally:
            for weight, data in now:
                weight.data = data


def begin_training(model: Any, *, gradient_checkpointing: bool) -> None:
    """Puts the model into the mode for rollouts and updates alike: without dropout.

    With dropout an update would compare a thinned-out policy with the whole one that sampled, and
    the ratio of their probabilities would not start at 1.
    """
    model.eval()
    if not gradient_checkpointing:
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})


@contextmanager
def recomputing(model: Any, *, enabled: bool) -> Iterator[None]:
    """Lets layers forget their activations, if enabled; dropout stays off.

    `transformers` recomputes only in layers that are in training mode. Only these are put into it,
    not the modules within, which hold the dropout.
    """
    layers = [each for each in model.modules() if getattr(each, "gradient_checkpointing", False)]
    for layer in layers if enabled else []:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def _comes_off(model: Any) -> bool:
    """Tells whether the model is the same with its adapter and without."""
    if any(getattr(each, "bias", "none") != "none" for each in model.peft_config.values()):
        return False
    # A new adapter starts at 0 in its second factor, for embeddings in its first.
    zero_at_first = ("lora_B", "lora_embedding_A")
    return not any(
        weight.any() for name, weight in model.named_parameters() if _named(name, zero_at_first)
    )


def _named(name: str, parts: Iterable[str]) -> bool:
    return any(part in name for part in parts)


def _forward(model: Any, rollouts: Rollouts, *, hidden: bool) -> tuple[Tensor, Any]:
    """Returns logits for each answer token, and the hidden states that they come from."""
    width = rollouts.mask.shape[1]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = inspect.signature(base.forward).parameters
    options: dict[str, Any] = {"use_cache": False, "output_hidden_states": hidden}
    if "position_ids" in accepted:
        options["position_ids"] = (rollouts.attention.cumsum(-1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = width + 1
    output = model(input_ids=rollouts.tokens, attention_mask=rollouts.attention, **options)
    # What comes out at a token is about the next one.
    places = slice(-width - 1, -1)
    return output.logits[:, places], output.hidden_states[-1][:, places] if hidden else None


def _token_figures(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    import torch

    logits = logits.float() / temperature
    total = logits.logsumexp(-1)
    logprobs = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - total
    with torch.no_grad():
        entropy = total - (logits.softmax(-1) * logits).sum(-1)
    return logprobs, entropy
