"""What a training says before it begins and when it ends: warnings, what came out, the next command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blockdrop.flops import FlopTable
from blockdrop.training.brought import ACCURACY
from blockdrop.training.config import RunConfig
from blockdrop.training.session import Session

FEW_STEPS = 100
"""Steps of learning under which a policy network has hardly left its start."""
POLICY_STEPS = "policy_steps"
"""Their name in the metrics of a test."""
MISSED = 0.03
"""Share of the full network's FLOPs by which a target may be missed without a word."""
EDGE = 0.001
"""How near to 0 or 1 a threshold is at an end of its range."""


def warn_of_few_steps(steps: int, batches: int, epochs: int) -> None:
    """Prints a line on stderr if a run will have too few steps to learn policies.

    Args:
        steps: in which the policy network will learn.
        batches: of an epoch.
        epochs: of the run.
    """
    if 0 < steps < FEW_STEPS:
        needed = -(-FEW_STEPS * epochs // steps)
        print(
            f"warning: policies will be learned for {_steps(steps)}, and need {FEW_STEPS} or more (an epoch has "
            f"{batches} of them); pass --max_epochs {needed} or a smaller --batch_size",
            file=sys.stderr,
        )


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def close(session: Session[Any], metrics: Mapping[str, float]) -> None:
    """Prints what came out of a run, beside the network that was brought.

    Args:
        metrics: of the last test.
    """
    words = [f"accuracy {metrics['accuracy']:.4f}"]
    known = session.brought or session.run.last_or_none("brought") or {}
    brought = known.get(ACCURACY)
    if brought is not None:
        difference = 100 * (metrics["accuracy"] - brought)
        side = "above" if difference > 0 else "below"
        points = f"{abs(difference):.2f} points {side}" if abs(difference) >= 0.005 else "the same as"
        words.append(f"{points} the network as brought ({brought:.4f})")
    if "flops_share" in metrics:
        words.append(f"at {metrics['flops_share']:.1%} of its FLOPs")
    print(", ".join(words))


def beside(folder: str, ending: str) -> str:
    """A folder's name with an ending: the next run's.

    >>> beside("cv/r32/", "ft")
    'cv/r32-ft'
    """
    path = Path(folder)
    if path.name in ("", ".."):
        path = path.resolve()
    return str(path.with_name(f"{path.name}-{ending}"))


def print_next(config: RunConfig, command: str, *flags: str) -> None:
    """Prints the command that usually comes next.

    Args:
        config: whose data it takes, and whose network if a function of the user's makes it.
        command: its name, for example evaluate.
        flags: of it, and their values.
    """
    words = [*flags]
    if config.model is not None and ":" in config.model and "--model" not in words:
        words += ["--model", config.model]
    words += ["--data_dir", config.data_dir]
    if config.split is not None:
        words += ["--split", str(config.split)]
    print(f"next: python -m blockdrop.{command} {shlex.join(words)}")


def warn_of_learning(
    metrics: Mapping[str, float],
    flops: FlopTable,
    *,
    target: float | None = None,
    threshold: float = 0.5,
    same_for_all: bool = False,
) -> None:
    """Prints a line on stderr for each thing that looks wrong in the last test of a run that learned policies.

    Args:
        metrics: of the test.
        target: share of the full network's FLOPs that was aimed for.
        threshold: of keep probabilities, as it was chosen.
        same_for_all: whether one policy for all images was wanted.
    """
    for line in learning_warnings(metrics, flops, target, threshold, same_for_all):
        print(f"warning: {line}", file=sys.stderr)


def learning_warnings(
    metrics: Mapping[str, float],
    flops: FlopTable,
    target: float | None,
    threshold: float,
    same_for_all: bool,
) -> Iterator[str]:
    """The lines, see `warn_of_learning`."""
    blocks, share, steps = metrics["blocks"], metrics["flops"] / flops.full, int(metrics.get(POLICY_STEPS, 0))
    if 0 < steps < FEW_STEPS:
        yield (
            f"policies were learned for {_steps(steps)}, with which they hardly leave their start; pass a smaller "
            "--batch_size or more --max_epochs"
        )
    if blocks == 0 and not metrics.get("answered"):
        yield "every block is dropped for every image; pass more --max_epochs, or a higher --target_flops"
    elif blocks == len(flops.blocks):
        yield "no block is dropped for any image"
    elif metrics["unique_policies"] == 1 and not same_for_all:
        yield "one policy serves all images: the policy network doesn't tell them apart"
    if target is not None and abs(share - target) > MISSED:
        yield f"{share:.1%} of the full network's FLOPs are spent, {target:.1%} were aimed for"
    if not EDGE <= threshold <= 1 - EDGE:
        yield f"the threshold that was chosen, {threshold:.4g}, is at an end of its range"
