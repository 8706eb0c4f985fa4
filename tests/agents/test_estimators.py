"""Gradient estimators against exact gradients."""

from itertools import product

import pytest
import torch
from torch import Tensor

from agents.estimators import bound_keep_probs, entropy, log_prob, map_policy, sample_policy, self_critical_loss

ALL_POLICIES = torch.tensor(list(product([False, True], repeat=3)))  # (8, 3)
REWARDS = torch.tensor([-1.0, 0.9, -1.0, 0.6, 0.9, 0.5, -1.0, 0.0], dtype=torch.float64)  # one a policy


def probability(keep_probs: Tensor, policy: Tensor) -> Tensor:
    return torch.where(policy, keep_probs, 1 - keep_probs).prod(-1)


@pytest.mark.parametrize("baseline", [0.0, 0.37, -5.0])
def test_mean_gradient_over_all_policies_is_the_exact_gradient(baseline: float) -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64, requires_grad=True)
    exact_loss = -(probability(logits.sigmoid(), ALL_POLICIES) * REWARDS).sum()
    (exact,) = torch.autograd.grad(exact_loss, logits)

    estimate = torch.zeros_like(logits)
    for policy, reward in zip(ALL_POLICIES, REWARDS, strict=True):
        keep_probs = logits.sigmoid()
        loss = self_critical_loss(keep_probs, policy[None], reward[None], torch.tensor([baseline]).double())
        (gradient,) = torch.autograd.grad(loss, logits)
        estimate += probability(logits.sigmoid().detach(), policy) * gradient
    torch.testing.assert_close(estimate, exact, rtol=1e-10, atol=1e-12)


def test_undecided_blocks_get_no_gradient() -> None:
    keep_probs = torch.full((2, 4), 0.5, requires_grad=True)
    policy = torch.tensor([[True, True, False, True], [True, True, True, True]])
    self_critical_loss(keep_probs, policy, torch.tensor([1.0, 0.5]), torch.zeros(2), decided=2).backward()
    gradient = keep_probs.grad
    assert gradient is not None
    assert gradient[:, :2].eq(0).all()
    # d/dp of -log π · advantage, averaged over two images: ∓ advantage / 0.5 / 2
    torch.testing.assert_close(gradient[:, 2:], torch.tensor([[1.0, -1.0], [-0.5, -0.5]]))


def test_better_than_baseline_is_made_more_probable() -> None:
    keep_probs = torch.tensor([[0.5, 0.5]], requires_grad=True)
    self_critical_loss(keep_probs, torch.tensor([[True, False]]), torch.ones(1), torch.zeros(1)).backward()
    assert keep_probs.grad is not None
    assert keep_probs.grad[0, 0] < 0 < keep_probs.grad[0, 1]


def test_bounding_maps_0_and_1_to_the_bounds() -> None:
    torch.testing.assert_close(bound_keep_probs(torch.tensor([0.0, 1.0]), 0.8), torch.tensor([0.2, 0.8]))


def test_map_policy_keeps_at_the_threshold() -> None:
    assert map_policy(torch.tensor([0.49, 0.5, 0.51])).tolist() == [False, True, True]
    assert map_policy(torch.tensor([0.29, 0.3]), threshold=0.3).tolist() == [False, True]


def test_samples_have_the_frequency_of_their_probability() -> None:
    keep_probs = torch.tensor([0.1, 0.5, 0.95]).expand(40_000, 3)
    frequency = sample_policy(keep_probs, torch.Generator().manual_seed(1)).float().mean(0)
    torch.testing.assert_close(frequency, keep_probs[0], atol=0.01, rtol=0)


def test_log_prob_is_finite_at_the_ends() -> None:
    keep_probs = torch.tensor([0.0, 1.0, 0.25])
    assert log_prob(keep_probs, torch.tensor([True, False, True])).isfinite().all()
    torch.testing.assert_close(log_prob(keep_probs, torch.ones(3).bool())[2], torch.tensor(0.25).log())


def test_entropy_by_hand() -> None:
    # Σ -p log p for p = (0.5, 0.25) and (1, 0), averaged over the two images
    expected = (-(0.5 * torch.tensor(0.5).log() + 0.25 * torch.tensor(0.25).log())) / 2
    torch.testing.assert_close(entropy(torch.tensor([[0.5, 0.25], [1.0, 0.0]])), expected)
