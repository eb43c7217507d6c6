"""Sampling: what each field does to a distribution, and what the draw depends on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mloc_dagster.executors.engines.transformers.sampling import (
    Penalties,
    Sampler,
    UniformStreams,
    logits_processors,
)
from mloc_dagster.schema import Inference

PROBABILITIES = [0.5, 0.25, 0.15, 0.06, 0.04]


def drawn_shares(draws: int = 4000, **fields: Any) -> np.ndarray[Any, Any]:
    """Returns how often each token is drawn, over many rows with the same logits."""
    inference = Inference(**{"temperature": 1.0, **fields})
    uniforms = UniformStreams([(row, 0) for row in range(draws)])
    logits = torch.log(torch.tensor(PROBABILITIES)).repeat(draws, 1)
    picked = Sampler(inference, uniforms, 1)(torch.zeros(draws, 1, dtype=torch.long), logits)
    assert (torch.isfinite(picked).sum(dim=1) == 1).all()
    return np.bincount(picked.argmax(dim=1).numpy(), minlength=5) / draws


def expect(weights: list[float]) -> Any:
    return pytest.approx(np.array(weights) / sum(weights), abs=0.03)


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, [p**2 for p in PROBABILITIES]),
        ({"top_k": 2}, [0.5, 0.25, 0, 0, 0]),
        ({"top_k": -1}, PROBABILITIES),
        ({"top_p": 0.8}, [0.5, 0.25, 0.15, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0, 0]),
        ({"min_p": 0.2}, [0.5, 0.25, 0.15, 0, 0]),
        ({"top_k": 3, "top_p": 0.6}, [0.5, 0.25, 0, 0, 0]),
        ({"temperature": 1e-9}, [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_from_the_distribution_that_the_fields_leave(
    fields: dict[str, Any], weights: list[float]
) -> None:
    shares = drawn_shares(**fields)
    assert shares == expect(weights)
    assert all(shares[token] == 0 for token, weight in enumerate(weights) if weight == 0)


def test_a_nucleus_wider_than_the_guess_is_still_exact() -> None:
    size = 5000  # flat: half of it makes up half of the mass
    logits = torch.zeros(64, size) - torch.arange(size) * 1e-6
    sampler = Sampler(
        Inference(temperature=1.0, top_p=0.5), UniformStreams([(i, 0) for i in range(64)]), 0
    )
    picked = sampler(torch.zeros(64, 0, dtype=torch.long), logits).argmax(dim=1)
    assert int(picked.max()) < size // 2 + 20
    assert int(picked.max()) > 2000


def test_a_stream_depends_on_seed_row_and_answer_alone() -> None:
    alone = UniformStreams([(7, 2)])
    among = UniformStreams([(3, 0), (7, 2), (7, 1)])
    long = [float(alone.at(place)[0]) for place in range(200)]
    assert long == [float(among.at(place)[1]) for place in range(200)]
    assert len(set(long)) == 200
    for other in (UniformStreams([(6, 2)]), UniformStreams([(8, 2), (7, 1)])):
        assert long[0] not in other.at(0)


def test_a_negative_seed_works() -> None:
    assert 0 <= UniformStreams([(-5, 0)]).at(0)[0] < 1


def test_penalties_follow_their_formulas() -> None:
    inference = Inference(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    penalties = Penalties(inference, torch.tensor([[0, 1]]))  # token 4 is padding
    logits = torch.tensor([[1.0, -1.0, 2.0, 3.0, 4.0]])
    first = penalties(torch.tensor([[4, 1]]), logits.clone())
    assert first.tolist() == [[1.0, -2.0, 2.0, 3.0, 4.0]]
    penalties(torch.tensor([[4, 1, 3]]), logits.clone())
    third = penalties(torch.tensor([[4, 1, 3, 3]]), logits.clone())
    assert third.tolist() == [[1.0, -2.0, 2.0, 1.5 - 0.5 - 2 * 0.25, 4.0]]


def test_plain_greedy_decoding_has_no_processor() -> None:
    mask = torch.ones(1, 3, dtype=torch.long)
    for greedy in (Inference(temperature=0), Inference(do_sample=False)):
        assert logits_processors(greedy, [(0, 0)], mask, [1]) == []
    assert len(logits_processors(Inference(min_tokens=2), [(0, 0)], mask, [1])) == 2
