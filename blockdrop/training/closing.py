"""What a person should know when policies have been learned, before they believe the numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from blockdrop.flops import FlopTable

FEW_STEPS = 100
"""Steps of learning under which a policy network has hardly left its start."""
MISSED = 0.03
"""Share of the full network's FLOPs by which a target may be missed without a word."""
EDGE = 0.001
"""How near to 0 or 1 a threshold is at an end of its range."""


def warn_of_learning(
    metrics: Mapping[str, float],
    flops: FlopTable,
    *,
    steps: int,
    target: float | None = None,
    threshold: float = 0.5,
    same_for_all: bool = False,
) -> None:
    """Prints a line on stderr for each thing that looks wrong in the last test of a run that learned policies.

    Args:
        metrics: of the test.
        steps: in which the policy network learned.
        target: share of the full network's FLOPs that was aimed for.
        threshold: of keep probabilities, as it was chosen.
        same_for_all: whether one policy for all images was wanted.
    """
    for line in learning_warnings(metrics, flops, steps, target, threshold, same_for_all):
        print(f"warning: {line}", file=sys.stderr)


def learning_warnings(
    metrics: Mapping[str, float],
    flops: FlopTable,
    steps: int,
    target: float | None,
    threshold: float,
    same_for_all: bool,
) -> Iterator[str]:
    """The lines, see `warn_of_learning`."""
    blocks, share = metrics["blocks"], metrics["flops"] / flops.full
    if 0 < steps < FEW_STEPS:
        yield (
            f"policies learned for {steps} steps, with which they hardly leave their start; pass a smaller "
            "--batch_size or more --max_epochs"
        )
    if blocks == 0 and not metrics.get("answered"):
        yield "every block is dropped for every image; pass more --max_epochs, or a higher --target_flops"
    elif blocks == len(flops.blocks):
        yield "no block is dropped for any image"
    elif metrics["unique_policies"] == 1 and not same_for_all:
        yield "one policy serves all images: the policy network tells them not apart"
    if target is not None and abs(share - target) > MISSED:
        yield f"{share:.1%} of the full network's FLOPs are spent, {target:.1%} were aimed for"
    if not EDGE <= threshold <= 1 - EDGE:
        yield f"the threshold that was chosen, {threshold:.4g}, is at an end of its range"
