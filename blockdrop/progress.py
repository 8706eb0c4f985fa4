"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def progress(
    items: Iterable[Item], description: str, total: int, unit: str = "batches", start: int = 0
) -> Iterable[Item]:
    """A progress bar with rate and time left on stderr, `start` of `total` done; in a log file, a line every 30
    seconds."""
    from tqdm import tqdm  # here, so that a command line is understood without tqdm and torch

    from blockdrop.processes import current_processes

    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm(
        items, description, total, unit=f" {unit}", mininterval=interval, leave=False, dynamic_ncols=True,
        initial=start, disable=not current_processes().first,
    )  # fmt: skip
