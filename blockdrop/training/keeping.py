"""Which of a run's checkpoints is its best, and which ones stay."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Test = Mapping[str, Any]
"""A line of metrics.jsonl about a test."""


def best_test(tests: Sequence[Test], most_flops: float | None = None) -> Test | None:
    """The test of highest accuracy, the later one of equals.

    Args:
        most_flops: among those that spend at most so many FLOPs, if there are any.
    """
    within = [test for test in tests if most_flops is None or test.get("flops", 0.0) <= most_flops]
    return max(within or tests, key=lambda test: (test["accuracy"], test["epoch"]), default=None)


def stalled(tests: Sequence[Test], patience: int, since: int = 0, most_flops: float | None = None) -> bool:
    """Whether so many tests in a row were no better than the best one before, which spends at most `most_flops`.

    Args:
        tests: in their order.
        since: the first epoch whose test counts.
        most_flops: as for `best_test`.
    """
    merits = [
        (most_flops is None or test.get("flops", 0.0) <= most_flops, test["accuracy"])
        for test in tests
        if test["epoch"] >= since
    ]
    if not merits or not max(merits)[0]:
        return False  # none is within the budget yet
    return len(merits) - 1 - merits.index(max(merits)) >= patience


def drop_checkpoints(paths: Mapping[int, Path], newest: int, best: int | None) -> None:
    """Deletes a run's checkpoints but the newest ones and the best.

    Args:
        paths: by epoch.
        newest: how many of them stay.
        best: the epoch of another one that stays.
    """
    for epoch in sorted(paths)[:-newest]:
        if epoch != best:
            with contextlib.suppress(FileNotFoundError):
                paths[epoch].unlink()
