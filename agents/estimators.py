"""From rewards to a loss whose gradient trains the policy network.

An estimator draws the policies that it wants rewards for, and turns their rewards into a loss. All but the
pathwise ones need nothing of the classifier but its rewards, and all of these are unbiased: the mean of the loss's
gradient over the draws is the gradient of minus the expected reward.

Shapes: S policies for each of N images with K decisions; keep probabilities (N, K), policies bool (S, N, K),
rewards (S, N). For a curriculum the undecided blocks have keep probability one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.deciders import Decision
from agents.names import ESTIMATORS, PATHWISE, PathwiseName
from agents.policies import log_prob, map_policy, sample_policy


@dataclass(frozen=True)
class Estimator:
    """Draws policies, and makes a loss of their rewards."""

    draw: Callable[[Tensor, torch.Generator | None], Tensor]
    """Keep probabilities (N, K) to policies bool (S, N, K); the first is a plain Bernoulli draw."""
    loss: Callable[..., Tensor]
    """(keep probabilities with gradient, policies, rewards) to a scalar; with `wants_values` also the value
    estimates (N,), with gradient."""
    samples: int
    """How many of the policies, from the first one, are plain Bernoulli draws; the others are there for credit."""
    wants_values: bool = False


def make_estimator(name: str, samples: int = 2) -> Estimator:
    """An estimator by name.

    Args:
        samples: for leave_one_out (at least 2), antithetic (pairs: even) and value_baseline the policies drawn for
            each image; for block_credit the decisions that are tried both ways. self_critical always takes two.
    Raises:
        ValueError: unknown name, or a number of samples that the estimator can't work with.

    >>> estimator = make_estimator("leave_one_out", samples=4)
    >>> keep_probs = torch.full((8, 3), 0.5, requires_grad=True)
    >>> policies = estimator.draw(keep_probs, None)
    >>> policies.shape
    torch.Size([4, 8, 3])
    >>> estimator.loss(keep_probs, policies, policies.float().mean(-1)).shape
    torch.Size([])
    """
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name}; choose {', '.join(ESTIMATORS)}")
    least = 2 if name in ("leave_one_out", "antithetic") else 1
    if samples < least:
        raise ValueError(f"{name} with {samples} samples: needs at least {least}")
    if name == "antithetic" and samples % 2:
        raise ValueError(f"antithetic with {samples} samples: they come in pairs; choose an even number")
    if name == "self_critical":
        return Estimator(draw_with_map, self_critical_loss, samples=1)
    if name == "leave_one_out":
        return Estimator(functools.partial(draw_independent, samples=samples), leave_one_out_loss, samples)
    if name == "antithetic":
        return Estimator(functools.partial(draw_antithetic, samples=samples), antithetic_loss, samples)
    if name == "value_baseline":
        draw = functools.partial(draw_independent, samples=samples)
        return Estimator(draw, value_baseline_loss, samples, wants_values=True)
    return Estimator(functools.partial(draw_with_flips, flips=samples), block_credit_loss, samples=1)


def values_for(estimator: Estimator, decision: Decision, rows: slice = slice(None)) -> tuple[Tensor, ...]:
    """What an estimator's loss takes beside the rewards: the value estimates (N,) of these rows, or nothing.

    Raises:
        ValueError: it wants estimates, and the decider makes none.
    """
    if not estimator.wants_values:
        return ()
    if decision.values is None:
        raise ValueError("the estimator wants values, and the decider estimates none")
    return (decision.values.float().squeeze(1)[rows],)


# ---- draws


def draw_independent(keep_probs: Tensor, generator: torch.Generator | None = None, samples: int = 1) -> Tensor:
    """Independent Bernoulli draws: (N, K) to bool (samples, N, K)."""
    return sample_policy(keep_probs.expand(samples, *keep_probs.shape), generator)


def draw_with_map(keep_probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One draw and the most probable policy: (N, K) to bool (2, N, K)."""
    return torch.stack([sample_policy(keep_probs, generator), map_policy(keep_probs)])


def draw_antithetic(keep_probs: Tensor, generator: torch.Generator | None = None, samples: int = 2) -> Tensor:
    """Pairs of draws, from uniform numbers and from one minus them: (N, K) to bool (samples, N, K).

    Policies 0 and 1 are a pair, 2 and 3, and so on; each of them alone is a plain Bernoulli draw.
    """
    shape = (samples // 2, *keep_probs.shape)
    uniform = torch.rand(shape, device=keep_probs.device, generator=generator)
    return torch.stack([uniform < keep_probs, uniform >= 1 - keep_probs], 1).flatten(0, 1)


def draw_with_flips(keep_probs: Tensor, generator: torch.Generator | None = None, flips: int = 1) -> Tensor:
    """A draw, and copies of it with one decision turned round: (N, K) to bool (1 + flips, N, K).

    Each image gets `flips` of its uncertain decisions turned, drawn without replacement, and certain ones (p is 0
    or 1) only where it has fewer; `flips` is at most what an image has of uncertain ones.
    """
    policy = sample_policy(keep_probs, generator)
    uncertain = _is_uncertain(keep_probs)
    flips = max(1, min(flips, int(uncertain.sum(-1).max())))
    order = torch.rand(policy.shape, device=policy.device, generator=generator)
    order, _ = order.where(uncertain, 2).argsort(-1)[:, :flips].sort(-1)
    turned = policy.expand(order.shape[1], *policy.shape).clone()  # (flips, N, K)
    index = order.T.unsqueeze(-1)  # (flips, N, 1)
    turned.scatter_(2, index, ~turned.gather(2, index))
    return torch.cat([policy[None], turned])


# ---- losses


def self_critical_loss(keep_probs: Tensor, policies: Tensor, rewards: Tensor) -> Tensor:
    """REINFORCE with the MAP policy's reward as baseline (arXiv:1711.08393, eq. 6; Rennie et al. 2017).

    Mean over images of Σ_k -log π(u_k) · (reward(u) - reward(MAP)).

    Args:
        keep_probs: (N, K), as sampled from (after bounding), with gradient.
        policies: bool (2, N, K), a draw u and the MAP policy.
        rewards: (2, N).
    """
    return _score_loss(keep_probs, policies[:1], rewards[:1] - rewards[1:])


def leave_one_out_loss(keep_probs: Tensor, policies: Tensor, rewards: Tensor) -> Tensor:
    """REINFORCE over S independent draws, the mean reward of the others as each one's baseline (Kool et al. 2019,
    "Buy 4 REINFORCE samples, get a baseline for free!").

    Args:
        keep_probs: (N, K), with gradient.
        policies: bool (S, N, K), S at least 2.
        rewards: (S, N).
    """
    count = len(rewards)
    return _score_loss(keep_probs, policies, (rewards - rewards.mean(0)) * count / (count - 1))


def value_baseline_loss(keep_probs: Tensor, policies: Tensor, rewards: Tensor, values: Tensor) -> Tensor:
    """REINFORCE with a learned estimate of the image's reward as baseline, and half the estimate's squared error
    (Mnih and Gregor 2014, arXiv:1402.0030).

    Args:
        keep_probs: (N, K), with gradient.
        policies: bool (S, N, K).
        rewards: (S, N).
        values: (N,), the policy network's value estimates, with gradient.
    """
    error = values - rewards.detach()
    return _score_loss(keep_probs, policies, -error) + error.square().mean() / 2


def antithetic_loss(keep_probs: Tensor, policies: Tensor, rewards: Tensor) -> Tensor:
    """DisARM or U2G: the difference of an antithetic pair's rewards, credited to the decisions in which they
    differ (Dong et al. 2020, arXiv:2006.10680; Yin et al. 2020, arXiv:2007.12220).

    For the logit φ_k = log p_k / (1 - p_k) the gradient is ½ (r - r̃) · (u_k - ũ_k) · max(p_k, 1 - p_k).

    Args:
        keep_probs: (N, K), with gradient.
        policies: bool (S, N, K), pairs of `draw_antithetic` one after the other.
        rewards: (S, N).
    """
    eps = torch.finfo(keep_probs.dtype).eps
    p = keep_probs.clamp(eps, 1 - eps)
    policies = policies.to(p.dtype)
    difference = (rewards[0::2] - rewards[1::2]).detach().unsqueeze(-1)  # (S / 2, N, 1)
    direction = policies[0::2] - policies[1::2]  # (S / 2, N, K), -1, 0 or 1
    gradient = difference / 2 * direction * torch.maximum(p, 1 - p).detach()
    return -(gradient.mean(0) * p.logit()).sum(-1).mean()


def block_credit_loss(keep_probs: Tensor, policies: Tensor, rewards: Tensor) -> Tensor:
    """What each decision changed: the reward with the block less the reward without it, all else as drawn (Titsias
    and Lázaro-Gredilla 2015, "Local Expectation Gradients").

    That difference is the exact derivative by p_k given the other decisions. Where only some of an image's
    uncertain decisions were turned round, they stand for all of these.

    Args:
        keep_probs: (N, K), with gradient.
        policies: bool (1 + flips, N, K) of `draw_with_flips`.
        rewards: (1 + flips, N).
    """
    policy, turned = policies[0], policies[1:]
    uncertain = _is_uncertain(keep_probs)  # (N, K)
    flipped = (policy ^ turned) & uncertain  # (flips, N, K), at most one True each
    gain = (rewards[:1] - rewards[1:]).detach().unsqueeze(-1)  # (flips, N, 1)
    credit = (flipped * torch.where(policy, gain, -gain)).sum(0)  # (N, K)
    shown_for = uncertain.sum(-1).to(keep_probs.dtype) / flipped.sum((0, -1)).clamp_min(1)  # (N,)
    return -((credit * keep_probs).sum(-1) * shown_for).mean()


def _is_uncertain(keep_probs: Tensor) -> Tensor:
    return (keep_probs > 0) & (keep_probs < 1)


def _score_loss(keep_probs: Tensor, policies: Tensor, advantage: Tensor) -> Tensor:
    """Mean over policies and images of Σ_k -log π(u_k) · advantage; policies (S, N, K), advantage (S, N)."""
    return -(log_prob(keep_probs, policies).sum(-1) * advantage.detach()).mean()


# ---- pathwise: the gradient of the loss itself, through gates that multiply what the blocks change


def draw_gates(
    name: PathwiseName, keep_probs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A policy and the gates that carry its gradient.

    straight_through: a Bernoulli draw, whose derivative by p is taken to be one (Bengio et al. 2013,
    arXiv:1308.3432). kept_straight_through: the same for kept blocks only, weighted by 1 / p, so that dropped
    blocks need not run. Both are exact in the mean where the loss is linear in each gate, biased otherwise.
    gumbel: a draw whose derivative is that of a relaxed one (Jang et al. 2017, arXiv:1611.01144; Maddison et al.
    2017, arXiv:1611.00712), biased even there.

    Args:
        keep_probs: (N, K), with gradient.
        temperature: of gumbel's relaxation.
    Returns:
        policy bool (N, K), and gates (N, K): the policy's zeros and ones, with gradient.
    Raises:
        ValueError: unknown name.
    """
    if name == "gumbel":
        eps = torch.finfo(keep_probs.dtype).eps
        logits = keep_probs.clamp(eps, 1 - eps).logit()
        noise = torch.rand(logits.shape, device=logits.device, generator=generator).clamp(eps, 1 - eps).logit()
        relaxed = torch.sigmoid((logits + noise) / temperature)
        policy = relaxed >= 0.5
        return policy, policy.to(relaxed.dtype) + (relaxed - relaxed.detach())
    policy = sample_policy(keep_probs, generator)
    if name == "straight_through":
        return policy, policy.to(keep_probs.dtype) + (keep_probs - keep_probs.detach())
    if name == "kept_straight_through":
        p = keep_probs.detach().clamp_min(torch.finfo(keep_probs.dtype).tiny)  # 0 / 0 where p = 0
        return policy, policy * (1 + (keep_probs - keep_probs.detach()) / p)
    raise ValueError(f"unknown pathwise estimator {name}; choose {', '.join(PATHWISE)}")
