"""What policies did on a set of images: accuracy, block usage, unique policies, FLOPs; and what they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

import torch
from torch import Tensor

from agents.answers import is_sure
from agents.rewards import Reward
from blockdrop.evaluation import ClassStatistics, Correlation, FrequentPolicy, PolicyStatistics


@dataclass(frozen=True)
class Outcomes:
    """One row per image, on the CPU."""

    policy: Tensor
    """bool (N, K), the blocks that ran."""
    predictions: Tensor
    """int64 (N,)."""
    labels: Tensor
    """int64 (N,)."""
    flops: Tensor
    """int64 (N,), policy network included where one ran."""
    keep_probs: Tensor | None = None
    """float32 (N, K), where a policy network ran."""
    losses: Tensor | None = None
    """float32 (N,), cross-entropy of each image, nats."""
    margins: Tensor | None = None
    """float32 (N,), the true class's logit less the largest other one."""
    answered: Tensor | None = None
    """bool (N,), images that the policy network answered; None where it can't."""
    answer: Tensor | None = None
    """float32 (N, classes), the answers' log-probabilities; None where there are none."""

    @property
    def correct(self) -> Tensor:
        """bool (N,)."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> float:
        """Share of right predictions, in [0, 1]."""
        return self.correct.double().mean().item()

    def answering(self, threshold: float, flops: int) -> Outcomes:
        """What comes out where images are answered, of outcomes in which none is.

        Args:
            threshold: the answer threshold.
            flops: of an answered image.
        """
        assert self.answer is not None
        answered = is_sure(self.answer, threshold, self.policy)
        losses, margins = losses_and_margins(self.answer, self.labels)
        return replace(
            self,
            policy=self.policy & ~answered.unsqueeze(1),
            predictions=self.answer.argmax(1).where(answered, self.predictions),
            flops=self.flops.where(~answered, flops),
            losses=None if self.losses is None else losses.where(answered, self.losses),
            margins=None if self.margins is None else margins.where(answered, self.margins),
            answered=answered,
        )

    @property
    def answered_share(self) -> float | None:
        """Share of the images that were answered; None where none can be."""
        return None if self.answered is None else self.answered.double().mean().item()

    @property
    def answered_accuracy(self) -> float | None:
        """Share of right predictions among the answered; None where there are none."""
        return None if self.answered is None else _mean(self.correct[self.answered].double())

    @property
    def rest_accuracy(self) -> float | None:
        """Share of right predictions among those that weren't answered, though they could be; None where there are
        none."""
        return None if self.answered is None else _mean(self.correct[~self.answered].double())

    def subset(self, rows: Tensor) -> Outcomes:
        """Of some images: int64 rows, or bool (N,)."""
        given = {name: part for name in self.__dataclass_fields__ if (part := getattr(self, name)) is not None}
        return Outcomes(**{name: part[rows] for name, part in given.items()})

    @property
    def blocks_used(self) -> Tensor:
        """float64 (N,)."""
        return self.policy.sum(1).double()

    @property
    def block_usage(self) -> tuple[float, float]:
        """Mean and sample deviation of the blocks used per image."""
        used = self.blocks_used
        return used.mean().item(), used.std().item() if len(used) > 1 else 0.0

    @property
    def flops_per_image(self) -> tuple[float, float]:
        """Mean and population deviation of the FLOPs per image."""
        flops = self.flops.double()
        return flops.mean().item(), flops.std(correction=0).item()

    @cached_property
    def unique_policies(self) -> int:
        """Number of distinct policies."""
        return len(torch.unique(self.policy, dim=0))

    @property
    def usage_per_block(self) -> Tensor:
        """float64 (K,), share of images that ran each block."""
        return self.policy.double().mean(0)

    def reward(self, reward: Reward) -> float:
        """Mean of a reward, without a price on computation."""
        return reward.of_outcomes(self.correct, self.losses, self.policy).double().mean().item()

    def metrics(self, reward: Reward) -> dict[str, float]:
        """The numbers that training logs after a test; the reward is the one that it trains on."""
        blocks, deviation = self.block_usage
        shares = {
            "answered": self.answered_share,
            "answered_accuracy": self.answered_accuracy,
            "rest_accuracy": self.rest_accuracy,
        }
        answers = {name: share for name, share in shares.items() if share is not None}
        return {
            "accuracy": self.accuracy,
            "reward": self.reward(reward),
            "blocks": blocks,
            "blocks_std": deviation,
            "unique_policies": self.unique_policies,
            "flops": self.flops_per_image[0],
            **({} if self.losses is None else {"loss": self.losses.double().mean().item()}),
            **answers,
        }

    def four_lines(self) -> str:
        """Accuracy, block usage, FLOPs and unique policies in the BlockDrop reference's words."""
        blocks, blocks_std = self.block_usage
        flops, flops_std = self.flops_per_image
        return (
            f"    Accuracy: {self.accuracy:.3f}\n"
            f"    Block Usage: {blocks:.3f} ± {blocks_std:.3f}\n"
            f"    FLOPs/img: {flops:.2E} ± {flops_std:.2E}\n"
            f"    Unique Policies: {self.unique_policies}"
        )


def losses_and_margins(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What makes an image hard.

    Args:
        logits: (N, classes).
        labels: int64 (N,).
    Returns:
        `Outcomes.losses` and `Outcomes.margins`; with a single class margins are infinite.

    >>> losses, margins = losses_and_margins(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([0]))
    >>> round(losses.item(), 4), margins.item()
    (2.1698, -2.0)
    """
    logits = logits.float()
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    true = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return losses, true.squeeze(1) - others


# ---- what policies depend on

COVERAGES = (10, 50)
SHUFFLES = 20
TENTHS = 10


def policy_statistics(
    outcomes: Outcomes, full: Outcomes, classes: Sequence[str], stage_sizes: Sequence[int]
) -> PolicyStatistics:
    """What the policies of some images depend on.

    Args:
        outcomes: of the dynamic network, N images.
        full: of the full network on the same images, with its losses and margins.
        classes: names by label.
        stage_sizes: blocks of each stage.
    """
    policy, labels, used = outcomes.policy, outcomes.labels, outcomes.blocks_used
    usage = outcomes.usage_per_block
    found, index, counts = torch.unique(policy, dim=0, return_inverse=True, return_counts=True)
    order = sorted(range(len(found)), key=lambda row: (-int(counts[row]), -int(found[row].sum()), row))
    ranked = counts[order].tolist()
    information, shuffled, class_entropy = _information(index, labels)
    within, between = policy_distances(policy, labels)
    present = labels.unique().tolist()
    per_class = [(classes[label], outcomes.subset(labels == label)) for label in present]
    frequent = [(found[row], outcomes.subset(index == row)) for row in order[:10]]
    return PolicyStatistics(
        usage_per_block=usage.tolist(),
        usage_per_stage=[part.mean().item() for part in usage.split(list(stage_sizes))],
        blocks_histogram=torch.bincount(used.long(), minlength=policy.shape[1] + 1).tolist(),
        classes=[
            ClassStatistics(
                name, len(part.labels), part.accuracy, part.block_usage[0], part.usage_per_block.tolist()
            )
            for name, part in per_class
        ],
        unique_policies=len(found),
        frequent=[
            FrequentPolicy(policy_text(kept), len(part.labels), len(part.labels) / len(labels), part.accuracy)
            for kept, part in frequent
        ],
        coverage={top: sum(ranked[:top]) / len(labels) for top in COVERAGES},
        blocks_when_right=_mean(used[outcomes.correct]),
        blocks_when_wrong=_mean(used[~outcomes.correct]),
        loss_correlation=_rank_correlation(used, full.losses),
        margin_correlation=_rank_correlation(used, full.margins),
        answered_correlation=(
            None if outcomes.answered is None else _rank_correlation(outcomes.answered.double(), full.losses)
        ),
        flops_by_difficulty=None if outcomes.answered is None else _by_difficulty(outcomes.flops, full.losses),
        class_information=information,
        shuffled_information=shuffled,
        class_entropy=class_entropy,
        distance_within=within,
        distance_between=between,
    )


def policy_text(policy: Tensor) -> str:
    """A policy, bool (K,), as a character for each block.

    >>> policy_text(torch.tensor([True, False, True]))
    '101'
    """
    return "".join(str(int(keep)) for keep in policy)


def policy_distances(policy: Tensor, labels: Tensor) -> tuple[float | None, float | None]:
    """Mean Hamming distance of the policies of two images of one class, and of two of different classes, over all
    pairs.

    A block adds the pairs of which one image keeps it and the other doesn't, so counts are enough.

    Args:
        policy: bool (N, K).
        labels: int64 (N,).
    Returns:
        None where there is no such pair.

    >>> policy_distances(torch.tensor([[1, 1], [1, 0], [0, 0]]).bool(), torch.tensor([0, 0, 1]))
    (1.0, 1.5)
    """
    _, index, images = labels.unique(return_inverse=True, return_counts=True)  # (C,)
    kept = torch.zeros(len(images), policy.shape[1], dtype=torch.int64)  # (C, K)
    kept.index_add_(0, index, policy.long())
    differing = (kept * (images[:, None] - kept)).sum().item()
    all_differing = (kept.sum(0) * (len(labels) - kept.sum(0))).sum().item()
    pairs = (images * (images - 1) // 2).sum().item()
    all_pairs = len(labels) * (len(labels) - 1) // 2
    within = differing / pairs if pairs else None
    between = (all_differing - differing) / (all_pairs - pairs) if all_pairs > pairs else None
    return within, between


def _information(policies: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Mutual information of two labellings, its mean with one of them shuffled, and the second one's entropy."""
    from sklearn.metrics import mutual_info_score  # a second that most commands needn't wait

    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(SHUFFLES)]
    by_chance = fmean(mutual_info_score(policies, labels[order]) for order in orders)
    return mutual_info_score(policies, labels), by_chance, mutual_info_score(labels, labels)


def _rank_correlation(used: Tensor, difficulty: Tensor | None) -> Correlation | None:
    if difficulty is None or len(used.unique()) < 2 or len(difficulty.unique()) < 2:
        return None
    from scipy.stats import spearmanr  # a second that most commands needn't wait

    found = spearmanr(used, difficulty)
    return Correlation(float(found.statistic), float(found.pvalue))


def _by_difficulty(flops: Tensor, losses: Tensor | None) -> list[float] | None:
    """Mean FLOPs of each tenth of the images, from the lowest loss to the highest; None of fewer than ten."""
    if losses is None or len(losses) < TENTHS:
        return None
    return [part.mean().item() for part in flops.double()[losses.argsort(stable=True)].tensor_split(TENTHS)]


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None


def statistics_lines(found: PolicyStatistics) -> str:
    """For a terminal."""
    used = {"right": found.blocks_when_right, "wrong": found.blocks_when_wrong}
    means = [
        f"{blocks:.2f} where the prediction is {which}" for which, blocks in used.items() if blocks is not None
    ]
    lines = ["statistics of the policies:", f"blocks used: {', '.join(means)}"]
    for name, correlation in (("loss", found.loss_correlation), ("margin", found.margin_correlation)):
        if correlation is not None:
            lines.append(
                f"rank correlation of blocks used with the full network's {name}: {correlation.coefficient:+.3f} "
                f"(p = {correlation.p_value:.1e})"
            )
    if found.answered_correlation is not None:
        lines.append(
            "rank correlation of being answered with the full network's loss: "
            f"{found.answered_correlation.coefficient:+.3f} (p = {found.answered_correlation.p_value:.1e})"
        )
    if found.flops_by_difficulty is not None:
        tenths = " ".join(f"{flops:.2E}" for flops in found.flops_by_difficulty)
        lines.append(f"FLOPs/img by tenths of the images, from the full network's lowest loss on: {tenths}")
    lines.append(
        f"mutual information of policy and class: {max(found.class_information, 0.0):.3f} nats of at most "
        f"{found.class_entropy:.3f} ({found.shuffled_information:.3f} with labels shuffled)"
    )
    if found.distance_within is not None and found.distance_between is not None:
        lines.append(
            f"blocks in which the policies of two images differ: {found.distance_within:.2f} within a class, "
            f"{found.distance_between:.2f} between classes"
        )
    covered = ", ".join(f"the {top} most frequent serve {share:.1%}" for top, share in found.coverage.items())
    lines.append(f"{found.unique_policies} policies; of the images {covered}")
    lines += [
        f"    {policy.policy}  {policy.images:>6,} images ({policy.share:>6.1%}), accuracy {policy.accuracy:.4f}"
        for policy in found.frequent
    ]
    lines.append("images by blocks used:")
    longest = max(found.blocks_histogram)
    lines += [
        f"    {blocks:>3}  {images:>6,}  {'#' * round(40 * images / longest)}"
        for blocks, images in enumerate(found.blocks_histogram)
        if images
    ]
    width = max(len(part.name) for part in found.classes)
    lines.append(f"{'class':<{width + 4}}  images  accuracy  blocks  images that run each block, in tenths")
    for part in found.classes:
        tenths = "".join("x" if usage > 0.95 else f"{10 * usage:.0f}" for usage in part.usage_per_block)
        lines.append(
            f"    {part.name:<{width}}  {part.images:>6,}  {part.accuracy:>8.4f}  {part.blocks:>6.2f}  {tenths}"
        )
    return "\n".join(lines)
