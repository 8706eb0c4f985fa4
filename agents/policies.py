"""From keep probabilities to policies, and what can be said of a policy before it runs."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.names import DEFAULT_THRESHOLD


def bound_keep_probs(keep_probs: Tensor, alpha: float) -> Tensor:
    """α p + (1-α)(1-p): keeps exploring by bounding p to [1-α, α] (arXiv:1711.08393, eq. 9).

    >>> bound_keep_probs(torch.tensor([0.0, 0.5, 1.0]), alpha=0.75)
    tensor([0.2500, 0.5000, 0.7500])
    """
    return alpha * keep_probs + (1 - alpha) * (1 - keep_probs)


def map_policy(keep_probs: Tensor, threshold: float = DEFAULT_THRESHOLD) -> Tensor:
    """The most probable policy: bool, keep probability ≥ threshold."""
    return keep_probs >= threshold


def sample_policy(keep_probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A Bernoulli draw for every decision: bool, of the shape of `keep_probs`."""
    draws = torch.rand(keep_probs.shape, device=keep_probs.device, generator=generator)
    return draws < keep_probs


def log_prob(keep_probs: Tensor, policy: Tensor) -> Tensor:
    """log π(u_k) of each decision, of the broadcast shape; finite also at p = 0 and p = 1."""
    eps = torch.finfo(keep_probs.dtype).eps
    p = keep_probs.clamp(eps, 1 - eps)
    return torch.where(policy, p, 1 - p).log()


def entropy(keep_probs: Tensor) -> Tensor:
    """The reference's exploration bonus: mean over images of Σ_k -p log p, a scalar.

    It is half of the Bernoulli entropy (the term of p alone), largest at p = 1/e; subtract β times it from
    the loss. It covers all blocks, decided or not, as the reference's does.
    """
    p = keep_probs.clamp_min(torch.finfo(keep_probs.dtype).tiny)
    return -(p * p.log()).sum(1).mean()


def policy_information(keep_probs: Tensor) -> Tensor:
    """How much the decisions tell of the image: Σ_k I(u_k; image) = Σ_k H(mean p_k) - mean H(p_k), in nats.

    Zero where every image of the batch gets the same keep probabilities, log 2 for each block that is surely kept
    for one half of the images and surely dropped for the other. As a bonus it works against one policy for all.

    >>> policy_information(torch.tensor([[1.0, 0.7], [0.0, 0.7]]))
    tensor(0.6931)
    """
    return (_bernoulli_entropy(keep_probs.mean(0)) - _bernoulli_entropy(keep_probs).mean(0)).sum()


def _bernoulli_entropy(p: Tensor) -> Tensor:
    eps = torch.finfo(p.dtype).eps
    p = p.clamp(eps, 1 - eps)
    return -(p * p.log() + (1 - p) * (1 - p).log())
