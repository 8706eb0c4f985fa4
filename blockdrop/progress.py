"""Progress bars."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
SECONDS = 30
"""From one line in a log file to the next."""


def progress(
    items: Iterable[Item], description: str, total: int, unit: str = "batches", start: int = 0
) -> Iterable[Item]:
    """A progress bar with rate and time left on stderr, `start` of `total` done; in a log file, where nothing can
    be drawn over, a line every 30 seconds."""
    from tqdm import tqdm  # here, so that a command line is understood without tqdm and torch

    from blockdrop.processes import current_processes

    if not current_processes().first:
        return items
    if not sys.stderr.isatty():
        return _lines(items, description, total, unit, start)
    return tqdm(items, description, total, unit=f" {unit}", leave=False, dynamic_ncols=True, initial=start)


def _lines(items: Iterable[Item], description: str, total: int, unit: str, start: int) -> Iterator[Item]:
    begun = last = time.monotonic()
    for number, item in enumerate(items, start + 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS:
            last = now
            rate = (number - start) / (now - begun)
            print(
                f"{description}: {number:,} of {total:,} {unit}, {rate:.3g} a second", file=sys.stderr, flush=True
            )
