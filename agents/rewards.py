"""What a policy is paid for one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.names import REWARDS, RewardName


def cost_share(policy: Tensor, costs: Tensor | None = None) -> Tensor:
    """The share of all blocks' cost that a policy spends: bool (…, K) to float32 (…,) in [0, 1].

    Args:
        costs: (K,), what each block costs; None = all alike.

    >>> cost_share(torch.tensor([[True, False, False]]), torch.tensor([3.0, 1.0, 2.0]))
    tensor([0.5000])
    """
    if costs is None:
        return policy.float().mean(-1)
    return (policy * (costs / costs.sum()).float().to(policy.device)).sum(-1)  # not @, which autocast would round


def blockdrop_reward(correct: Tensor, policy: Tensor, penalty: float, costs: Tensor | None = None) -> Tensor:
    """1 - (|u| / K)² where the prediction is right, `penalty` where it is wrong (arXiv:1711.08393, eq. 3).

    Args:
        correct: bool (…,), whether the image's prediction under its policy is right.
        policy: bool (…, K), u; |u| counts the blocks that run.
        penalty: reward of a wrong prediction, normally negative: the more so, the more accuracy counts.
        costs: (K,): the share of them takes the place of |u| / K.
    Returns:
        float32 (…,).

    >>> u = torch.tensor([[True, True, False, False], [True, True, True, True]])
    >>> blockdrop_reward(torch.tensor([True, False]), u, penalty=-5.0)
    tensor([ 0.7500, -5.0000])
    """
    share = cost_share(policy, costs)
    return torch.where(correct, 1 - share**2, share.new_tensor(penalty))


@dataclass(frozen=True)
class Reward:
    """A reward by name.

    - blockdrop: see `blockdrop_reward`.
    - flops: the same with each block's FLOPs for its cost.
    - log_likelihood: 1 - share² + |penalty| · log p(label), share of FLOPs: says how wrong a prediction is, and
      how near to wrong.

    With a price (see `agents.budget`) the share of the FLOPs times the price takes the place of the square of it:
    a right prediction earns 1, a wrong one `penalty` (log_likelihood: 1 + |penalty| · log p(label)), less
    price · share.
    """

    name: RewardName = "blockdrop"
    penalty: float = -1.0
    costs: Tensor | None = None
    """(K,), each block's FLOPs."""

    def __post_init__(self) -> None:
        if self.name not in REWARDS:
            raise ValueError(f"unknown reward {self.name}; choose {', '.join(REWARDS)}")
        if self.name != "blockdrop" and self.costs is None:
            raise ValueError(f"reward {self.name}: needs each block's costs")

    def __call__(self, logits: Tensor, labels: Tensor, policy: Tensor, price: float | None = None) -> Tensor:
        """What policies earn.

        Args:
            logits: (…, N, classes), under the policies.
            labels: (N,).
            policy: bool (…, N, K).
            price: of all blocks' FLOPs.
        Returns:
            float32 (…, N).
        """
        losses = None
        if self.name == "log_likelihood":
            chances = logits.float().log_softmax(-1)
            index = labels.expand(chances.shape[:-1]).unsqueeze(-1)
            losses = -chances.gather(-1, index).squeeze(-1)
        return self.of_outcomes(logits.argmax(-1) == labels, losses, policy, price)

    def of_outcomes(
        self, correct: Tensor, losses: Tensor | None, policy: Tensor, price: float | None = None
    ) -> Tensor:
        """What policies earned, from what came out.

        Args:
            correct: bool (…, N), whether the prediction is right.
            losses: float (…, N), -log p(label) in nats; only log_likelihood needs it.
            policy: bool (…, N, K).
            price: of all blocks' FLOPs.
        Returns:
            float32 (…, N).
        """
        if self.name == "log_likelihood":
            assert losses is not None
            earned = 1 - abs(self.penalty) * losses
            share = cost_share(policy, self.costs)
            return earned - (share**2 if price is None else price * share)
        if price is None:
            costs = None if self.name == "blockdrop" else self.costs
            return blockdrop_reward(correct, policy, self.penalty, costs)
        return torch.where(correct, 1.0, self.penalty) - price * cost_share(policy, self.costs)
