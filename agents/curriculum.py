"""Curriculum learning: decide few blocks first, the last ones, and one more every epoch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def num_decided(epoch: int, num_blocks: int, step: int = 1) -> int:
    """How many blocks, counted from the end, are decided in `epoch` (from 0); the earlier ones always run.

    With `step` = 1: t = 1 + epoch, until t = K (arXiv:1711.08393, section 3.4).

    >>> [num_decided(epoch, num_blocks=3) for epoch in range(5)]
    [1, 2, 3, 3, 3]
    >>> [num_decided(epoch, num_blocks=5, step=2) for epoch in range(4)]
    [2, 4, 5, 5]
    """
    return min(num_blocks, step * (1 + epoch))


def keep_undecided(policy: Tensor, decided: int) -> Tensor:
    """The policy bool (…, K) with all but the last `decided` blocks switched on.

    >>> import torch
    >>> keep_undecided(torch.zeros(1, 4, dtype=torch.bool), decided=3)
    tensor([[ True, False, False, False]])
    """
    policy = policy.clone()
    policy[..., : policy.shape[-1] - decided] = True
    return policy


def decide_last(keep_probs: Tensor, decided: int) -> Tensor:
    """Keep probabilities (N, K) with a certain one, without gradient, for all but the last `decided` blocks.

    >>> import torch
    >>> decide_last(torch.tensor([[0.5, 0.5, 0.5]]), decided=2)
    tensor([[1.0000, 0.5000, 0.5000]])
    """
    undecided = keep_probs.shape[-1] - decided
    return F.pad(keep_probs[..., undecided:], (undecided, 0), value=1.0)
