"""What `evaluate` finds, as data: the content of the files that its --json writes, which other programs read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from blockdrop.errors import BlockdropError, require
from blockdrop.models.specs import parse_name
from blockdrop.ranges import Count, CountOrNone, NotNegative, Positive, Probability, Range
from blockdrop.typed_json import check_field, read_json, typed

Share = Annotated[float, Range(least=0, most=1)]
ABOUT_ANSWERS = (
    "answer_threshold", "answered", "answered_accuracy", "rest_accuracy", "answered_correlation",
    "flops_by_difficulty",
)  # fmt: skip
"""Fields of an evaluation, its statistics and the points of its curve."""


# ---- statistics of policies


@dataclass(frozen=True)
class ClassStatistics:
    """What a class's images got."""

    name: str
    images: CountOrNone
    accuracy: Share
    blocks: NotNegative
    """Mean blocks used."""
    usage_per_block: list[Share]
    """(K,), shares of its images."""


@dataclass(frozen=True)
class FrequentPolicy:
    """A policy that some images share."""

    policy: str
    """A character for each block: 1 runs, 0 is dropped."""
    images: CountOrNone
    share: Share
    accuracy: Share


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation and the probability of so large a one by chance, two-sided."""

    coefficient: float
    p_value: float


@dataclass(frozen=True)
class PolicyStatistics:
    """What a set of images shows about the policies that it got. None stands for what isn't defined there."""

    usage_per_block: list[Share]
    """(K,), shares of images."""
    usage_per_stage: list[float]
    """Mean of its blocks'."""
    blocks_histogram: list[CountOrNone]
    """(K + 1,), images that use so many blocks."""
    classes: list[ClassStatistics]
    """Of those that have images."""
    unique_policies: Count
    frequent: list[FrequentPolicy]
    """The ten most frequent, of equal ones the fuller first."""
    coverage: dict[int, Share]
    """From 10 and 50 to the share of images that so many most frequent policies serve."""
    blocks_when_right: float | None
    blocks_when_wrong: float | None
    loss_correlation: Correlation | None
    """Of blocks used with the full network's loss; None where all images use as many blocks."""
    margin_correlation: Correlation | None
    """With its margin."""
    answered_correlation: Correlation | None = field(default=None, kw_only=True)
    """Of being answered with the full network's loss; None where no image can be answered, or all or none are."""
    flops_by_difficulty: list[NotNegative] | None = field(default=None, kw_only=True)
    """Mean FLOPs of each tenth of the images, from the full network's lowest loss to its highest; None where no
    image can be answered."""
    class_information: float
    """Mutual information of policy and class, nats, by counts, which overestimate it."""
    shuffled_information: float
    """The same with the labels shuffled, mean of some times: what counts make of none."""
    class_entropy: float
    """Nats: the most that it could be."""
    distance_within: float | None
    """Hamming distance of two images' policies, mean over all pairs of a class."""
    distance_between: float | None
    """The same over all pairs of two classes."""


# ---- the evaluation


@dataclass(frozen=True)
class CurveRow:
    """The dynamic network at one of several thresholds, on the same images."""

    threshold: Probability
    accuracy: Share
    block_usage_mean: NotNegative
    block_usage_std: NotNegative
    flops_mean: NotNegative
    flops_fraction: NotNegative
    """Of the full network's FLOPs."""
    unique_policies: Count
    images_per_second: NotNegative | None
    answer_threshold: Positive | None = None
    """None: no image is answered."""
    answered: Share | None = None
    """Share of the images; None where none can be answered."""


@dataclass(frozen=True)
class ThresholdChoice:
    """How the threshold was chosen; None where no budget chose it."""

    budget: NotNegative | None
    """Fraction of the full network's FLOPs that was asked for."""
    flops_fraction: NotNegative | None
    """The fraction that was met on the images that chose."""
    held_out_images: CountOrNone | None
    """How many chose."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A network on the test images, beside the full one; FLOPs are per image, policy network included."""

    model: str
    """As --model names it."""
    variant: dict[str, Any]
    """Widths that aren't the architecture's own: expansion, reduction, reduction_mode."""
    parameters: CountOrNone
    """Of the network without its policy network."""
    dataset: str
    images: Count
    images_digest: str
    """Tells test sets apart: the same for the same classes and labels."""
    checkpoints: list[str]
    """Files that the networks came from."""
    accuracy: Share
    block_usage_mean: NotNegative
    """Blocks per image."""
    block_usage_std: NotNegative
    """Sample deviation."""
    num_blocks: CountOrNone
    """K."""
    flops_mean: Positive
    flops_std: NotNegative
    """Population deviation."""
    unique_policies: Count
    full_accuracy: Share
    full_flops: Positive
    policy_network_flops: NotNegative
    """0 where none runs."""
    flops_saved: float
    """Fraction of the full network's; below 0 where the policy network costs more than it saves."""
    full_images_per_second: NotNegative | None
    images_per_second: NotNegative | None
    """None where no clock ran."""
    batch_size: Count
    usage_per_block: list[Share]
    """(K,), shares of images."""
    stage_sizes: list[CountOrNone]
    """Blocks of each stage."""
    policy: str | None
    """The static policy that ran, as --policy names it."""
    policy_net: str | None
    """The policy network that ran."""
    threshold: Probability
    answer_threshold: Positive | None = None
    """None: no image is answered."""
    full_latency_ms: dict[str, float] | None = None
    """Of single images: median and p95, in milliseconds. None where no clock ran or nothing is dropped."""
    latency_ms: dict[str, float] | None = None
    """The same of the dynamic network."""
    brought_accuracy: Share | None = None
    """Of the full network before it was trained to drop blocks, on all test images; None where the checkpoint
    doesn't say it."""
    answered: Share | None = None
    """Share of the images that the policy network answered; None where it has no answer head."""
    answered_accuracy: Share | None = None
    """Among the answered; None where there are none."""
    rest_accuracy: Share | None = None
    """Among the others; None where there are none, or no answer head."""
    operating_point: ThresholdChoice
    statistics: PolicyStatistics | None
    curve: list[CurveRow]
    right: str
    """A character for each image, in order: 1 where the prediction is right, else 0."""
    compute: str
    version: str
    config: dict[str, Any]
    """The flags of evaluate."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, its keys in the order of the fields; nothing about answers where none can be given, nor
        about the brought network where nothing is known, nor about single images where no clock ran."""
        content = asdict(self)
        if self.brought_accuracy is None:
            del content["brought_accuracy"]
        if self.images_per_second is None:
            del content["full_latency_ms"], content["latency_ms"]
        if self.answered is None:
            for part in (content, *content["curve"], content["statistics"] or {}):
                for name in ABOUT_ANSWERS:
                    part.pop(name, None)
        return content

    @classmethod
    def from_json(cls, content: object, where: str = "") -> Self:
        """What `to_json` gave, checked.

        Args:
            content: what a JSON file holds.
            where: the file, for errors.
        Raises:
            BlockdropError: one line that names the field which is missing, of another type, out of range, not
                finite or at odds with another one.
        """
        try:
            require(
                isinstance(content, dict) and content.keys() >= {"model", "accuracy", "flops_mean", "checkpoints"},
                "not what evaluate --json writes",
            )
            assert isinstance(content, dict)
            require(
                content.keys() >= {"right", "images_digest"},
                "of an older evaluate, which didn't record the right predictions; evaluate again",
            )
            found = typed(cls, content)
            found._check()
        except BlockdropError as error:
            raise BlockdropError(f"{where}: {error}" if where else str(error)) from None
        return found

    def _check(self) -> None:
        """What no single field's type says."""
        try:
            parse_name(self.model)
        except BlockdropError as error:
            check_field(False, "model", self.model, str(error))
        blocks, lengths = self.num_blocks, f"must be {self.num_blocks} numbers, one for each block"
        check_field(len(self.usage_per_block) == blocks, "usage_per_block", self.usage_per_block, lengths)
        check_field(sum(self.stage_sizes) == blocks, "stage_sizes", self.stage_sizes, f"must add up to {blocks}")
        check_field(
            len(self.right) == self.images and set(self.right) <= {"0", "1"},
            "right", self.right, f"must be {self.images} characters, each 0 or 1",
        )  # fmt: skip
        share = self.right.count("1") / self.images
        if not math.isclose(share, self.accuracy, abs_tol=1e-6):
            raise BlockdropError(
                f"damaged in its right, which isn't the accuracy ({share:.6f}, not {self.accuracy:.6f})"
            )


def recorded_checkpoints(path: Path) -> list[str]:
    """The checkpoints that a file of --json is about, though it may be damaged elsewhere or of an older evaluate;
    none if it is no such file."""
    try:
        content, _ = read_json(path)
        return typed(list[str], content["checkpoints"], "checkpoints")
    except (BlockdropError, LookupError, TypeError):
        return []
