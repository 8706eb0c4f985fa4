"""Curriculum learning: decide few blocks first, the last ones, and one more every epoch."""

from __future__ import annotations

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
