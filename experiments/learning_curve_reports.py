"""What `experiments.learning_curve --json` writes and --reports reads, as far as it is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockdrop.errors import BlockdropError, require
from blockdrop.evaluation import Share
from blockdrop.ranges import Count, NotNegative
from blockdrop.studies.worth_of_looking import WorthOfLooking
from blockdrop.typed_json import read_json, typed


@dataclass(frozen=True)
class Test:
    """A test of a run."""

    command: str
    epochs: Count
    """Of that command, before the test."""
    work: NotNegative
    """Block executions of the run so far."""
    minutes: NotNegative
    """Of training, so far."""
    accuracy: Share
    flops: NotNegative
    """A fraction of the full network's."""
    blocks: NotNegative
    reward: float
    """Mean, at one penalty for all runs."""
    unique_policies: Count


@dataclass(frozen=True, kw_only=True)
class End(WorthOfLooking):
    """The last checkpoint."""

    change: float
    """Of the accuracy with all blocks, since before the run."""


@dataclass(frozen=True)
class Run:
    """An arm and a seed."""

    arm: str
    seed: int
    tests: list[Test]
    end: End
    flags: list[dict[str, Any]] = field(default_factory=list)
    """Of each command; older reports lack them."""


@dataclass(frozen=True)
class FullNetwork:
    """What all runs started from."""

    accuracy: Share
    flops: Count
    blocks: Count


@dataclass(frozen=True)
class Flags:
    """Those that tell reports apart."""

    model: str


@dataclass(frozen=True)
class Report:
    """A file."""

    config: Flags
    backbone: FullNetwork
    runs: list[Run]


def read_report(path: str) -> dict[str, Any]:
    """A file's content, checked against `Report`.

    Raises:
        BlockdropError: it can't be read, is no report or damaged; the line names the field.
    """
    try:
        content, _ = read_json(Path(path))
        is_report = isinstance(content, dict) and content.keys() >= {"config", "backbone", "runs"}
        require(is_report, "not what learning_curve --json writes")
        typed(Report, content)
    except BlockdropError as error:
        raise BlockdropError(f"--reports {path}: {error}") from None
    return content
