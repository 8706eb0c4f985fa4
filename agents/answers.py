"""Answers: what a policy network that is sure of an image says of its class, so that nothing else runs for it.

An image whose largest probability is at least the answer threshold is *answered*: its logits are the answer's.
All others go on, and may have the answer's log-probabilities added to their logits with a weight: a product of
experts (Hinton 2002, "Training Products of Experts by Minimizing Contrastive Divergence").
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from agents.names import DEFAULT_THRESHOLD

NEVER = math.inf
"""An answer threshold that no image reaches."""
ANSWER_ALL = 1e-60
"""An answer threshold that every image reaches."""


class Thresholds(NamedTuple):
    """By which a policy network's decisions are made."""

    keep: float = DEFAULT_THRESHOLD
    """A block runs where its keep probability is at least this."""
    answer: float = NEVER
    """An image is answered where its largest probability is at least this."""


def confidence(answer: Tensor) -> Tensor:
    """The largest probability of each image: log-probabilities (…, classes) to (…).

    >>> confidence(torch.tensor([[0.25, 0.75]]).log())
    tensor([0.7500])
    """
    return answer.amax(-1).exp()


def is_sure(answer: Tensor | None, threshold: float | Tensor, like: Tensor) -> Tensor:
    """Which images are answered, bool (N,).

    Args:
        answer: log-probabilities (N, classes); None: there is none, so nothing is answered.
        threshold: the answer threshold, a number or a tensor ().
        like: of N rows, on the device that is wanted.
    """
    if answer is None:
        return torch.zeros(len(like), dtype=torch.bool, device=like.device)
    return confidence(answer) >= threshold


def with_answer_chance(keep_probs: Tensor, answer: Tensor) -> Tensor:
    """The chances of all decisions, (N, K + 1): keep probabilities (N, K), and, last, that of the answer.

    Its chance is its confidence, so REINFORCE makes the policy network surer where answering pays and less sure
    where it doesn't.

    Args:
        answer: log-probabilities (N, classes), with gradient.
    """
    return torch.cat([keep_probs, confidence(answer).unsqueeze(-1)], -1)


def split_decisions(decisions: Tensor) -> tuple[Tensor, Tensor]:
    """Decisions on K blocks and, last, on the answer: bool (…, K + 1) to the policy, bool (…, K), all False where
    the answer is given, and to whether it is, bool (…).

    >>> split_decisions(torch.tensor([[True, False, False], [True, False, True]]))
    (tensor([[ True, False],
            [False, False]]), tensor([False,  True]))
    """
    answered = decisions[..., -1]
    return decisions[..., :-1] & ~answered.unsqueeze(-1), answered


def with_answers(
    logits: Tensor, answer: Tensor | None, answered: Tensor | None, weight: float | Tensor | None
) -> Tensor:
    """The logits of a batch: the answer where an image is answered, else those given plus weight · answer.

    Args:
        logits: of the network under its policies, (N, classes); rows of answered images may hold anything.
        answer: log-probabilities (N, classes), or None: there is none.
        answered: bool (N,); None: no image is.
        weight: of the answer beside the network's logits, a number or a tensor (); None where there is no answer.
    """
    if answer is None or weight is None:
        return logits
    answer = answer.to(logits.dtype)
    others = logits + weight * answer
    return others if answered is None else torch.where(answered.unsqueeze(-1), answer, others)
