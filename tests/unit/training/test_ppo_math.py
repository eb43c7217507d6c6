"""PPO's arithmetic against answers worked out by hand."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from mloc_dagster.executors.training.ppo.experience import (
    penalised,
    token_rewards,
)
from mloc_dagster.executors.training.ppo.kl import (
    AdaptiveKl,
    FixedKl,
    kl_estimate,
)
from mloc_dagster.executors.training.ppo.losses import (
    advantages_and_returns,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    masked_mean,
    masked_variance,
    whiten,
)
from mloc_dagster.executors.training.ppo.rollouts import assemble, cut_after_end

NAN = math.nan


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def full(like: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(like, dtype=torch.bool)


def test_advantages_are_those_worked_out_by_hand() -> None:
    rewards, values = rows([1.0, 0.0, 2.0]), rows([0.5, 1.0, 1.5])

    advantages, returns = advantages_and_returns(rewards, values, full(rewards), gamma=0.9, lam=0.5)

    # errors: 2 - 1.5 = 0.5; 0 + 0.9 * 1.5 - 1 = 0.35; 1 + 0.9 * 1 - 0.5 = 1.4
    # advantages: 0.5; 0.35 + 0.45 * 0.5 = 0.575; 1.4 + 0.45 * 0.575 = 1.65875
    torch.testing.assert_close(advantages, rows([1.65875, 0.575, 0.5]))
    torch.testing.assert_close(returns, rows([2.15875, 1.575, 2.0]))


def test_what_comes_after_the_end_token_changes_no_advantage() -> None:
    rewards, values = rows([1.0, 3.0, NAN, NAN]), rows([0.5, 1.0, NAN, math.inf])
    mask = torch.tensor([[True, True, False, False]])

    advantages, returns = advantages_and_returns(rewards, values, mask, gamma=0.9, lam=0.5)

    # errors: 3 - 1 = 2; 1 + 0.9 * 1 - 0.5 = 1.4
    torch.testing.assert_close(advantages, rows([1.4 + 0.45 * 2, 2.0, 0.0, 0.0]))
    torch.testing.assert_close(returns, rows([2.8, 3.0, 0.0, 0.0]))


def test_with_lambda_1_returns_are_the_discounted_rewards_whatever_the_values() -> None:
    rewards, values = rows([1.0, 2.0, 4.0]), rows([7.0, -3.0, 0.1])

    _, returns = advantages_and_returns(rewards, values, full(rewards), gamma=0.5, lam=1)

    torch.testing.assert_close(returns, rows([1 + 1 + 1, 2 + 2, 4.0]))


def test_with_lambda_0_an_advantage_looks_one_token_ahead() -> None:
    rewards, values = rows([1.0, 2.0]), rows([3.0, 5.0])

    advantages, _ = advantages_and_returns(rewards, values, full(rewards), gamma=1, lam=0)

    torch.testing.assert_close(advantages, rows([1 + 5 - 3.0, 2 - 5.0]))


def test_surrogate_is_clipped_on_the_side_that_would_pay_off() -> None:
    old = torch.zeros(1, 4, dtype=torch.float64)
    now = rows([1.5, 0.5, 1.5, 0.5]).log()
    advantages = rows([2.0, 2.0, -2.0, -2.0])

    loss, clipped = clipped_surrogate(now, old, advantages, 0.2)

    torch.testing.assert_close(loss, rows([-2.4, -1.0, 3.0, 1.6]))
    assert clipped.tolist() == [[True, False, False, True]]


def test_no_gradient_flows_where_the_surrogate_is_clipped() -> None:
    now = rows([1.5, 1.1]).log().requires_grad_()

    loss, _ = clipped_surrogate(now, torch.zeros_like(now), rows([1.0, 1.0]), 0.2)
    loss.sum().backward()

    torch.testing.assert_close(now.grad, rows([0.0, -1.1]))


def test_value_loss_takes_the_worse_of_the_estimate_and_the_nearer_one() -> None:
    values, old, returns = rows([1.0, 0.1, -1.0]), rows([0.0, 0.0, 0.0]), rows([1.0, 1.0, 1.0])

    loss = clipped_value_loss(values, old, returns, 0.2)

    # nearer: 0.2, 0.1, -0.2; errors: max(0, 0.64), 0.81, max(4, 1.44)
    torch.testing.assert_close(loss, rows([0.32, 0.405, 2.0]))


def test_estimators_are_right_on_average() -> None:
    p, q = rows([0.5, 0.3, 0.2])[0], rows([0.2, 0.2, 0.6])[0]
    exact = (p * (p / q).log()).sum()

    for estimator in ("k1", "k3"):
        estimates = kl_estimate(p.log(), q.log(), estimator)
        torch.testing.assert_close((p * estimates).sum(), exact)


def test_k3_is_never_negative_and_varies_less_where_k1_is_and_does() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator, dtype=torch.float64)
    p = logits.log_softmax(-1)
    q = (logits + 0.1 * torch.randn(50, generator=generator, dtype=torch.float64)).log_softmax(-1)

    k1, k3 = kl_estimate(p, q, "k1"), kl_estimate(p, q, "k3")

    assert k1.min() < 0 <= k3.min()
    assert k3.var() < k1.var() / 10
    assert kl_estimate(p, p, "k3").abs().max() == 0


def test_whitening_looks_at_sampled_tokens_only() -> None:
    values = torch.tensor([[1.0, 2.0, NAN], [3.0, NAN, NAN]], dtype=torch.float64)
    mask = ~values.isnan()

    torch.testing.assert_close(whiten(values, mask), rows([-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]))
    kept = whiten(10 * values, mask, shift_mean=False)
    torch.testing.assert_close(kept, rows([19.0, 20.0, 0.0], [21.0, 0.0, 0.0]))


def test_a_single_token_and_none_at_all_have_no_variance() -> None:
    values = rows([5.0, NAN])
    one, none = torch.tensor([[True, False]]), torch.tensor([[False, False]])

    assert masked_mean(values, one) == 5
    assert masked_variance(values, one) == 0
    assert whiten(values, one).tolist() == [[0, 0]]
    assert masked_mean(values, none) == 0


def test_explained_variance_is_1_for_a_perfect_head_and_0_for_the_mean() -> None:
    returns = rows([1.0, 2.0, 3.0, NAN])
    mask = ~returns.isnan()

    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(rows([2.0, 2.0, 2.0, 9.0]), returns, mask) == 0
    assert explained_variance(rows([3.0, 2.0, 1.0, 9.0]), returns, mask) == -3
    assert explained_variance(returns, torch.full_like(returns, 2), mask) == 0


def test_adaptive_price_follows_the_divergence_within_a_fifth() -> None:
    controller = AdaptiveKl(coefficient=0.1, target=4.0, horizon=100)

    controller.update(kl=4.4, episodes=10)  # 10% above: 0.1 * 10 / 100
    assert controller.coefficient == pytest.approx(0.1 * 1.01)
    controller.update(kl=400.0, episodes=10)
    assert controller.coefficient == pytest.approx(0.1 * 1.01 * 1.02)
    controller.update(kl=-1.0, episodes=10)
    assert controller.coefficient == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)


def test_adaptive_price_is_never_negative() -> None:
    controller = AdaptiveKl(coefficient=0.1, target=4.0, horizon=1)
    controller.update(kl=0.0, episodes=100)
    assert controller.coefficient == 0


def test_fixed_price_stays() -> None:
    controller = FixedKl(0.3)
    controller.update(kl=100.0, episodes=1000)
    assert controller.coefficient == 0.3


def test_each_token_pays_for_its_divergence_and_the_last_one_gets_the_score() -> None:
    kl = torch.tensor([[1.0, 2.0, NAN], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])

    rewards = token_rewards(torch.tensor([10.0, -1.0]), kl, mask, kl_coef=0.1)

    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 9.8, 0.0], [-0.4, -0.5, -1.6]]))


def test_an_answer_ends_with_its_first_end_token() -> None:
    ends = frozenset({9, 8})
    assert cut_after_end([1, 9, 0, 9], ends) == [1, 9]
    assert cut_after_end([8, 1], ends) == [8]
    assert cut_after_end([1, 2], ends) == [1, 2]


def test_padding_is_on_the_left_of_prompts_and_on_the_right_of_answers() -> None:
    rollouts = assemble([[1], [2, 3]], [[4, 9], [5]], [True, False], pad=0, device="cpu")

    assert rollouts.tokens.tolist() == [[0, 1, 4, 9], [2, 3, 5, 0]]
    assert rollouts.attention.tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]
    assert rollouts.mask.tolist() == [[True, True], [True, False]]
    assert rollouts.answers.tolist() == [[4, 9], [5, 0]]


def test_only_answers_that_were_cut_off_are_penalised() -> None:
    rollouts = assemble([[1], [2]], [[4, 9], [5, 5]], [True, False], pad=0, device="cpu")

    assert penalised([1.0, 1.0], rollouts, 0.75).tolist() == [1.0, 0.25]
    assert penalised([1.0, 1.0], rollouts, None).tolist() == [1.0, 1.0]
