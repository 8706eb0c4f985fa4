"""From keep probabilities to policies, and from rewards to a loss whose gradient trains the policy network."""

from __future__ import annotations

import torch
from torch import Tensor


def bound_keep_probs(keep_probs: Tensor, alpha: float) -> Tensor:
    """α p + (1-α)(1-p): keeps exploring by bounding p to [1-α, α] (arXiv:1711.08393, eq. 9).

    >>> bound_keep_probs(torch.tensor([0.0, 0.5, 1.0]), alpha=0.75)
    tensor([0.2500, 0.5000, 0.7500])
    """
    return alpha * keep_probs + (1 - alpha) * (1 - keep_probs)


def map_policy(keep_probs: Tensor, threshold: float = 0.5) -> Tensor:
    """The most probable policy: bool, keep probability ≥ threshold."""
    return keep_probs >= threshold


def sample_policy(keep_probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A Bernoulli draw for every decision: bool, of the shape of `keep_probs`."""
    draws = torch.rand(keep_probs.shape, device=keep_probs.device, generator=generator)
    return draws < keep_probs


def log_prob(keep_probs: Tensor, policy: Tensor) -> Tensor:
    """log π(u_k) of each decision, of the shape of `keep_probs`; finite also at p = 0 and p = 1."""
    eps = torch.finfo(keep_probs.dtype).eps
    p = keep_probs.clamp(eps, 1 - eps)
    return torch.where(policy, p, 1 - p).log()


def self_critical_loss(
    keep_probs: Tensor, policy: Tensor, reward: Tensor, baseline_reward: Tensor, decided: int | None = None
) -> Tensor:
    """REINFORCE with the MAP policy's reward as baseline (arXiv:1711.08393, eq. 6; Rennie et al. 2017).

    mean over images of Σ_k -log π(u_k) · (reward(u) - reward(MAP)) over the decided blocks. The baseline
    doesn't depend on the draw, so the gradient is unbiased: its mean over all 2^K policies is the gradient of
    minus the expected reward.

    Args:
        keep_probs: (N, K), as sampled from (after bounding), with gradient.
        policy: bool (N, K), the draw u.
        reward: (N,), reward of the draw.
        baseline_reward: (N,), reward of the same image's MAP policy.
        decided: only the last `decided` blocks count (curriculum learning); None = all.
    Returns:
        scalar loss.
    """
    advantage = (reward - baseline_reward).detach().unsqueeze(-1)  # (N, 1)
    terms = -log_prob(keep_probs, policy) * advantage  # (N, K)
    if decided is not None:
        terms = terms[:, terms.shape[1] - decided :]
    return terms.sum(1).mean()


def entropy(keep_probs: Tensor) -> Tensor:
    """The reference's exploration bonus: mean over images of Σ_k -p log p, a scalar.

    It is half of the Bernoulli entropy (the term of p alone), largest at p = 1/e; subtract β times it from
    the loss. It covers all blocks, decided or not, as the reference's does.
    """
    p = keep_probs.clamp_min(torch.finfo(keep_probs.dtype).tiny)
    return -(p * p.log()).sum(1).mean()
