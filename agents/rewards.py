"""What a policy is paid for one image."""

from __future__ import annotations

import torch
from torch import Tensor


def blockdrop_reward(correct: Tensor, policy: Tensor, penalty: float) -> Tensor:
    """1 - (|u| / K)² where the prediction is right, `penalty` where it is wrong (arXiv:1711.08393, eq. 3).

    Args:
        correct: bool (…,), whether the image's prediction under its policy is right.
        policy: bool (…, K), u; |u| counts the blocks that run.
        penalty: reward of a wrong prediction, normally negative: the more so, the more accuracy counts.
    Returns:
        float32 (…,).

    >>> u = torch.tensor([[True, True, False, False], [True, True, True, True]])
    >>> blockdrop_reward(torch.tensor([True, False]), u, penalty=-5.0)
    tensor([ 0.7500, -5.0000])
    """
    usage = policy.float().mean(-1)
    return torch.where(correct, 1 - usage**2, usage.new_tensor(penalty))
