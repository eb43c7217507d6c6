"""How the models that ship learn: Muon, batches of equally long chats, and the loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from random import Random

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

type Example = tuple[torch.Tensor, torch.Tensor]
"""Token ids, and labels: the answer where the assistant speaks, `IGNORED` elsewhere."""

WARMUP_STEPS = 20
DECAY_FROM = 0.3
IGNORED = -100
THINK = "<think>"


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for the matrices inside the network.

    `torch.optim.Muon` does the same in bfloat16, which CPUs without such instructions emulate:
    there the optimizer alone took 0.47 s a step, three times as long as the model. Here matrices of
    one shape go through together, in float32: 0.04 s.
    """

    # Newton-Schulz: brings all singular values near 1; four rounds are near enough.
    ROUNDS = 4
    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(self, matrices: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": 0.95, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every matrix from its gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                updates = self.orthogonalise(
                    torch.stack([self._momentum(m, group["momentum"]) for m in matrices])
                )
                # Gives the update the size that AdamW's would have.
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-size)

    def _momentum(self, matrix: torch.nn.Parameter, decay: float) -> torch.Tensor:
        state = self.state[matrix]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(matrix)
        if matrix.grad is None:
            raise ValueError("every matrix takes part in every step")
        state["mean"].lerp_(matrix.grad, 1 - decay)
        return matrix.grad.lerp(state["mean"], decay)

    @classmethod
    def orthogonalise(cls, stack: torch.Tensor) -> torch.Tensor:
        """Replaces the singular values of each matrix in a stack by about 1."""
        a, b, c = cls.COEFFICIENTS
        tall = stack.shape[-2] > stack.shape[-1]
        x = stack.mT if tall else stack
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(cls.ROUNDS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.mT if tall else x


def encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Returns chats, as the chat template renders them, as examples."""
    start, end, think = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|end|>", THINK])
    examples = []
    for ids in tokenizer(texts)["input_ids"]:
        labels: list[int] = []
        said = False
        for token in ids:
            # What opens a thought stands in the prompt.
            labels.append(token if said and token != think else IGNORED)
            said = token == start or (said and token != end)
        examples.append((torch.tensor(ids), torch.tensor(labels)))
    return examples


def collate(examples: list[Example], pad: int, tokens: int, rng: Random) -> list[Example]:
    """Groups examples of similar length into batches of so many tokens, in random order."""
    groups: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda example: len(example[0])):
        if (len(groups[-1]) + 1) * len(example[0]) > tokens and groups[-1]:
            groups.append([])
        groups[-1].append(example)
    rng.shuffle(groups)
    # Padding on the right needs no mask: causal attention never looks there.
    return [
        (
            pad_sequence([ids for ids, _ in group], batch_first=True, padding_value=pad),
            pad_sequence([labels for _, labels in group], batch_first=True, padding_value=IGNORED),
        )
        for group in groups
    ]


def chat_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss over chats; a short answer counts as much as a long one."""
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    said = targets != IGNORED
    weights = (said / said.sum(dim=1, keepdim=True))[said]
    # Logits of answers only: prompts are nine tenths of the positions.
    losses = cross_entropy(model.lm_head(states[said]), targets[said], reduction="none")
    return (losses * weights).sum() / len(ids)


def learning_rate_scale(step: int, steps: int) -> float:
    """Warm-up, plateau, then a straight line to zero."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (steps * (1 - DECAY_FROM)))


def train(
    model: LlamaForCausalLM,
    batches: list[Example],
    report: Callable[[int, float], None],
    *,
    lr_hidden: float,
    lr_embedding: float,
) -> None:
    """Trains in place: Muon for the matrices, AdamW for embeddings and norms.

    Args:
        model: The model.
        batches: One per step.
        report: Called with the step and its loss, every 50 steps.
        lr_hidden: Muon's highest learning rate.
        lr_embedding: AdamW's.
    """
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "embed" not in name
        (matrices if inner else others).append(parameter)
    muon = Muon(matrices, lr=lr_hidden)
    adam = torch.optim.AdamW(others, lr=lr_embedding, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    for step, (ids, labels) in enumerate(batches):
        scale = learning_rate_scale(step, len(batches))
        muon.param_groups[0]["lr"] = lr_hidden * scale
        adam.param_groups[0]["lr"] = lr_embedding * scale
        loss = chat_loss(model, ids, labels)
        loss.backward()
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0:
            report(step, loss.item())
    model.eval()
