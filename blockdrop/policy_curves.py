"""Accuracy against FLOPs on a set of images, over thresholds and under policies that don't look at the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.answers import ANSWER_ALL, NEVER
from agents.policies import map_policy
from agents.static_policies import make_static_policy
from blockdrop.data import evenly_spaced
from blockdrop.flops import FlopTable
from blockdrop.inference.operating_point import (
    DROP_ALL,
    KEEP_ALL,
    AnswerOutcomes,
    RestOutcomes,
    curve_thresholds,
    pairs,
)

POINTS = 9
"""Of a curve, about."""


@dataclass(frozen=True)
class CurvePoint:
    """A way to run the network."""

    flops: float
    """Mean FLOPs per image, policy network included where one runs."""
    accuracy: float
    """Share of right predictions, in [0, 1]."""
    label: str
    """What sets it, for people: "threshold 0.43", "first 7 blocks"."""


@dataclass(frozen=True)
class Curve:
    """The points of one kind of policy, by ascending FLOPs."""

    name: str
    """For a legend: "dynamic", "first K blocks"."""
    points: tuple[CurvePoint, ...]


def nested_policies(keep_probs: Tensor) -> Tensor:
    """All policies that thresholds can give each image: its m most probable blocks run, m from 0 to K; of equally
    probable ones the lower block comes first.

    Args:
        keep_probs: (N, K).
    Returns:
        bool (K + 1, N, K).

    >>> nested_policies(torch.tensor([[0.2, 0.9]])).int().squeeze(1).tolist()
    [[0, 0], [0, 1], [1, 1]]
    """
    rank = keep_probs.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # (N, K)
    return rank < torch.arange(keep_probs.shape[1] + 1)[:, None, None]


def predictions_at(keep_probs: Tensor, nested_predictions: Tensor, threshold: float) -> Tensor:
    """What a threshold makes the network say.

    Args:
        keep_probs: (N, K).
        nested_predictions: int64 (K + 1, N), of `nested_policies`.
    Returns:
        int64 (N,).
    """
    kept = map_policy(keep_probs, threshold).sum(1)
    return nested_predictions.gather(0, kept[None])[0]


def dynamic_curve(
    keep_probs: Tensor,
    nested_predictions: Tensor,
    labels: Tensor,
    table: FlopTable,
    threshold: float,
    answers: AnswerOutcomes | None = None,
    answer_threshold: float = NEVER,
) -> Curve:
    """The learned policies at thresholds from all blocks to none, the given one among them.

    Args:
        keep_probs: (N, K).
        nested_predictions: int64 (K + 1, N), see `predictions_at`.
        labels: int64 (N,).
        answers: of the same images; None: none of them can be answered.
        answer_threshold: the same at all points.
    """
    points = []
    for other in curve_thresholds(keep_probs, table, 2 * POINTS, include=(threshold,)):
        rest = rest_at(keep_probs, nested_predictions, labels, table, other)
        right, flops = rest.right, rest.flops
        if answers is not None:
            answered = answers.confidence >= answer_threshold
            right, flops = answers.right.where(answered, right), flops.where(~answered, table.policy_network)
        points.append(_point(flops, right, threshold_words(other)))
    return Curve("dynamic", tuple(reversed(points)))


def answer_outcomes(answer: Tensor, labels: Tensor) -> AnswerOutcomes:
    """What answers are worth: log-probabilities (N, classes), and labels int64 (N,)."""
    return AnswerOutcomes.of(answer, labels)


def rest_at(
    keep_probs: Tensor, nested_predictions: Tensor, labels: Tensor, table: FlopTable, threshold: float
) -> RestOutcomes:
    """What images get at a threshold if they aren't answered; for the arguments see `dynamic_curve`."""
    right = predictions_at(keep_probs, nested_predictions, threshold) == labels
    return RestOutcomes(threshold, right, table.per_image(map_policy(keep_probs, threshold)))


def answer_curve(rest: RestOutcomes, answers: AnswerOutcomes, table: FlopTable, answer_threshold: float) -> Curve:
    """One threshold with answer thresholds from none answered to all answered, the given one among them.

    Args:
        rest: of N images.
        answers: of the same.
    """
    count = len(answers.confidence)
    found = sorted(pairs(rest, answers, table), key=lambda pair: pair.answered)
    own = int((answers.confidence >= answer_threshold).sum())
    wanted = {*evenly_spaced(len(found), 2 * POINTS).tolist()}
    chosen = [pair for row, pair in enumerate(found) if row in wanted or pair.answered == own]
    points = []
    for pair in chosen:
        threshold = answer_threshold if pair.answered == own else pair.answer_threshold
        points.append(CurvePoint(pair.flops / count, pair.right / count, answer_words(threshold)))
    return Curve("dynamic, other answer thresholds", tuple(sorted(points, key=lambda point: point.flops)))


def answer_words(threshold: float) -> str:
    """An answer threshold for people."""
    return {NEVER: "none answered", ANSWER_ALL: "all answered"}.get(threshold, f"answer threshold {threshold:.4g}")


def blind_curves(
    keep_probs: Tensor, labels: Tensor, table: FlopTable, predict: Callable[[Tensor, Tensor], Tensor]
) -> list[Curve]:
    """What policies reach that don't look at the image, with the same weights.

    - the learned policies dealt to other images at random: as many blocks, as often, but not by what is in the
      image (and the policy network still runs),
    - each class's mean keep probabilities, for images whose class somebody else knows,
    - the first K blocks; K random blocks of each image (Wu et al. 2018, BlockDrop, arXiv:1711.08393, section 4.2).

    Args:
        keep_probs: (N, K).
        labels: int64 (N,).
        predict: from policies, bool (S, N, K), and for which of them the policy network runs, bool (S,), to
            predictions, int64 (S, N); no image is answered.
    """
    num_images, num_blocks = keep_probs.shape
    generator = torch.Generator().manual_seed(0)
    alone = FlopTable(table.fixed, table.blocks, policy_network=0)
    named: list[tuple[str, FlopTable, list[str], list[Tensor]]] = []

    dealt = keep_probs[torch.randperm(num_images, generator=generator)]
    means = class_means(keep_probs, labels)[labels]
    for name, probabilities, costs in (
        ("learned, of another image", dealt, table),
        ("class means", means, alone),
    ):
        thresholds = curve_thresholds(probabilities, costs, POINTS)[::-1]
        policies = [map_policy(probabilities, threshold) for threshold in thresholds]
        named.append((name, costs, [threshold_words(threshold) for threshold in thresholds], policies))
    counts = evenly_spaced(num_blocks + 1, POINTS).tolist()
    for kind, words in (("first_k", "first"), ("random_k", "random")):
        drawn = [make_static_policy(f"{kind}:{k}", num_blocks).draw(num_images, generator) for k in counts]
        labels_of = [f"{words} {k} {'block' if k == 1 else 'blocks'}" for k in counts]
        named.append((f"{words} K blocks", alone, labels_of, drawn))

    looks = torch.tensor([costs is table for _, costs, _, policies in named for _ in policies])
    predictions = predict(torch.stack([policy for *_, policies in named for policy in policies]), looks)
    right = iter(predictions == labels)
    return [
        Curve(
            name,
            tuple(
                _point(costs.per_image(policy), next(right), label)
                for label, policy in zip(texts, policies, strict=True)
            ),
        )
        for name, costs, texts, policies in named
    ]


def threshold_words(threshold: float) -> str:
    """A threshold for people, who know those that keep or drop everything by what they do."""
    return {KEEP_ALL: "all blocks", DROP_ALL: "no block"}.get(threshold, f"threshold {threshold:.4g}")


def class_means(values: Tensor, labels: Tensor) -> Tensor:
    """Means over the images of each class: (N, K) to (largest label + 1, K); 0 for labels that don't occur.

    >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 2])).flatten().tolist()
    [2.0, 0.0, 5.0]
    """
    classes = int(labels.max()) + 1
    sums = torch.zeros(classes, values.shape[1], dtype=values.dtype).index_add_(0, labels, values)
    return sums / labels.bincount(minlength=classes).clamp_min(1)[:, None]


def full_curve(right: Tensor, table: FlopTable) -> Curve:
    """The full network without a policy network: one point. right: bool (N,)."""
    return Curve("full network", (_point(torch.tensor([table.full]), right, "all blocks"),))


def brought_curve(accuracy: float, table: FlopTable) -> Curve:
    """The network before it was trained to drop blocks: one point. accuracy: on the same images."""
    return Curve("network as brought", (CurvePoint(float(table.full), accuracy, "all blocks"),))


def _point(flops: Tensor, right: Tensor, label: str) -> CurvePoint:
    return CurvePoint(flops.double().mean().item(), right.double().mean().item(), label)
