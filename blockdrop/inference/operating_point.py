"""The operating point: a threshold on the keep probabilities, chosen after training to meet a FLOPs budget; of a
policy network that answers, an answer threshold beside it.

A higher threshold drops more blocks, a lower answer threshold answers more images. Only finitely many thresholds
differ on a set of images (its distinct keep probabilities), and keep probabilities don't depend on the threshold,
so one run of the policy network is enough to find the best one exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from agents.answers import ANSWER_ALL, NEVER, confidence
from blockdrop.errors import BlockdropError
from blockdrop.flops import FlopTable

KEEP_ALL = 1e-60
"""A threshold above 0 that float32 and bfloat16 round to 0: every block runs, also where its probability is 0."""
DROP_ALL = 1 - 1e-8
"""A threshold below 1 that they round to 1: no block runs, unless its keep probability was rounded to 1, too."""


def held_out_halves(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Splits images in two: one half to choose a threshold on, the other to report.

    Images are sorted by class (those of a class stay in order) and dealt alternately. So each class, and the
    whole, differs by at most one image between the halves; where images lie sorted by class already, those of
    even index choose and those of odd index are reported.

    Args:
        labels: int64 (M,).
    Returns:
        ascending rows of the choosing half, ⌈M/2⌉ of them, and of the reported half, ⌊M/2⌋.

    >>> [rows.tolist() for rows in held_out_halves(torch.tensor([1, 0, 1, 0, 0]))]
    [[1, 2, 4], [0, 3]]
    """
    by_class = labels.argsort(stable=True)
    return by_class[0::2].sort().values, by_class[1::2].sort().values


def flops_by_threshold(keep_probs: Tensor, table: FlopTable) -> tuple[Tensor, Tensor]:
    """What the images cost at every threshold that makes a difference.

    Args:
        keep_probs: float32 or bfloat16 (N, K).
        table: costs of the K blocks, and of what always runs.
    Returns:
        thresholds, float64 (V,), ascending from `KEEP_ALL` to `DROP_ALL`, between them the distinct keep
        probabilities; and FLOPs, int64 (V,), falling: the sum over all images, policy network included.
    """
    bounds = torch.tensor([0.0, 1.0], dtype=torch.float64)
    values, position = torch.cat([keep_probs.double().flatten(), bounds]).unique(return_inverse=True)
    costs = torch.tensor(table.blocks).repeat(len(keep_probs))  # (N·K,)
    cost_at = torch.zeros(len(values), dtype=torch.int64).index_add_(0, position[:-2], costs)  # (V,)
    kept = cost_at.flip(0).cumsum(0).flip(0)  # of the blocks whose keep probability is at least the value
    always = len(keep_probs) * (table.fixed + table.policy_network)
    return values.clamp(KEEP_ALL, DROP_ALL), always + kept


def threshold_for_budget(keep_probs: Tensor, table: FlopTable, budget: float) -> float:
    """The lowest threshold under which the images cost at most `budget` on average, so the fullest use of it.

    Integers are compared, and the budget is taken as the decimal number that it prints as, so the answer is
    exact. It lies in the middle between two keep probabilities, of which it divides what runs from what doesn't,
    so that it does so too where rounding differs a little (another machine, another batch size); or it is
    `KEEP_ALL` where the budget pays for all blocks, or `DROP_ALL`.

    Args:
        keep_probs: float32 or bfloat16 (N, K), of images that aren't reported afterwards.
        table: costs, see `flops_by_threshold`.
        budget: mean FLOPs per image, policy network included, as a fraction of the full network's.
    Raises:
        BlockdropError: even the highest threshold costs more; the message names the least possible fraction.
        BlockdropError: no images, or a budget that isn't a positive number.
    """
    if not (budget > 0 and math.isfinite(budget)) or len(keep_probs) == 0:
        raise BlockdropError(f"budget {budget} for {len(keep_probs)} images: needs a positive number and an image")
    thresholds, flops = flops_by_threshold(keep_probs, table)
    full = len(keep_probs) * table.full
    limit = min(math.floor(Fraction(str(budget)) * full), int(flops[0]))
    if limit < flops[-1]:
        least = math.ceil(Fraction(int(flops[-1]), full) * 10_000) / 10_000
        raise BlockdropError(
            f"budget {budget}: can't be met; the least possible, with all blocks dropped that a threshold can "
            f"drop, is {least:.4f} of the full network's FLOPs "
            f"(policy network: {table.policy_network / table.full:.4f})"
        )
    at = int((flops > limit).sum())
    if at in (0, len(thresholds) - 1):
        return thresholds[at].item()
    middle = thresholds[at - 1 : at + 1].mean()
    rounded = middle.to(keep_probs.dtype)  # as it will be compared
    return (middle if rounded > thresholds[at - 1] else thresholds[at]).item()


def curve_thresholds(
    keep_probs: Tensor, table: FlopTable, points: int = 9, include: Iterable[float] = ()
) -> list[float]:
    """Thresholds whose costs spread evenly from all blocks to none, as far as these images allow.

    Args:
        keep_probs: float32 or bfloat16 (N, K).
        table: costs, see `flops_by_threshold`.
        points: steps of the even spread; fewer come back where several have the same cost.
        include: thresholds that must be among them; they replace those of the same cost.
    Returns:
        distinct thresholds, ascending.
    """
    thresholds, flops = flops_by_threshold(keep_probs, table)
    included = torch.tensor(list(include), dtype=torch.float64)
    costs = set(flops[torch.searchsorted(thresholds, included).clamp(max=len(flops) - 1)].tolist())
    targets = torch.linspace(flops[0].item(), flops[-1].item(), points, dtype=torch.float64)
    rows = (flops > targets.unsqueeze(1)).sum(1).tolist()  # the lowest threshold within each target
    spread = [thresholds[row].item() for row in rows if flops[row].item() not in costs]
    return sorted({*included.tolist(), *spread})


# ---- pairs of thresholds


class AnswerOutcomes(NamedTuple):
    """What the answers of N images are worth."""

    confidence: Tensor
    """float32 (N,), the largest probability."""
    right: Tensor
    """bool (N,), of the answers."""

    @classmethod
    def of(cls, answer: Tensor, labels: Tensor) -> AnswerOutcomes:
        """From log-probabilities (N, classes) and labels int64 (N,)."""
        return cls(confidence(answer), answer.argmax(1) == labels)


class RestOutcomes(NamedTuple):
    """What N images get under one threshold if they aren't answered."""

    threshold: float
    right: Tensor
    """bool (N,)."""
    flops: Tensor
    """int64 (N,), policy network included."""


class Pair(NamedTuple):
    """A pair of thresholds, and what N images cost and get under it."""

    threshold: float
    answer_threshold: float
    flops: int
    """Sum over the images."""
    right: int
    """How many images."""
    answered: int
    """How many images."""


def pairs(rest: RestOutcomes, answers: AnswerOutcomes, table: FlopTable) -> list[Pair]:
    """All that differ on these images under one threshold, from none answered to all answered."""
    found, order = answers.confidence.sort(descending=True)
    count = len(found)
    answered = torch.arange(count + 1)
    zero = torch.zeros(1, dtype=torch.int64)
    gained = torch.cat([zero, (answers.right[order].long() - rest.right[order].long()).cumsum(0)])
    saved = torch.cat([zero, (rest.flops[order] - table.policy_network).cumsum(0)])
    right = int(rest.right.sum()) + gained
    flops = int(rest.flops.sum()) - saved
    cuts = torch.ones(count + 1, dtype=torch.bool)  # not between images of equal confidence
    cuts[1:-1] = found[:-1] > found[1:]
    rows = [int(row) for row in answered[cuts]]
    between = [NEVER, *_between(found), ANSWER_ALL]
    return [Pair(rest.threshold, between[row], int(flops[row]), int(right[row]), row) for row in rows]


def _between(falling: Tensor) -> list[float]:
    """For 1 … N - 1 a threshold that the first so many reach and the others don't."""
    middle = (falling[:-1].double() + falling[1:].double()) / 2
    above = middle.to(falling.dtype) > falling[1:]  # as it will be compared
    return torch.where(above, middle, falling[:-1].double()).tolist()


def pair_for_budget(
    rests: Sequence[RestOutcomes], answers: AnswerOutcomes, table: FlopTable, budget: float
) -> Pair:
    """The pair with most right predictions among those that cost at most `budget` on average; of equal ones the
    cheapest.

    Args:
        rests: outcomes of the same images under the thresholds to choose from.
        answers: of these images, which aren't reported afterwards.
        budget: mean FLOPs per image, policy network included, as a fraction of the full network's.
    Raises:
        BlockdropError: even all images answered cost more; or a budget that isn't a positive number.
    """
    count = len(answers.confidence)
    if not (budget > 0 and math.isfinite(budget)) or count == 0:
        raise BlockdropError(f"budget {budget} for {count} images: needs a positive number and an image")
    limit = math.floor(Fraction(str(budget)) * count * table.full)
    within = [pair for rest in rests for pair in pairs(rest, answers, table) if pair.flops <= limit]
    if not within:
        least = math.ceil(Fraction(table.policy_network, table.full) * 10_000) / 10_000
        raise BlockdropError(
            f"budget {budget}: can't be met; the least possible, with all images answered, is {least:.4f} of the "
            "full network's FLOPs, the policy network's own"
        )
    return max(within, key=lambda pair: (pair.right, -pair.flops))


def front_of_pairs(
    rests: Sequence[RestOutcomes], answers: AnswerOutcomes, table: FlopTable, points: int = 12
) -> list[Pair]:
    """Pairs that no other one beats in both accuracy and cost, some of them, spread evenly over the costs.

    Args:
        rests, answers: see `pair_for_budget`.
        points: at most so many come back.
    Returns:
        the front, its costs falling.
    """
    every = sorted(
        (pair for rest in rests for pair in pairs(rest, answers, table)), key=lambda p: (p.flops, -p.right)
    )
    front: list[Pair] = []
    for pair in every:
        if not front or pair.right > front[-1].right:
            front.append(pair)
    front.reverse()
    if len(front) <= points:
        return front
    targets = torch.linspace(front[0].flops, front[-1].flops, points, dtype=torch.float64).tolist()
    costs = [pair.flops for pair in front]
    chosen = sorted({min(range(len(front)), key=lambda row: abs(costs[row] - target)) for target in targets})
    return [front[row] for row in chosen]
