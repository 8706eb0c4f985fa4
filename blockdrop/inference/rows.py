"""How many rows a program takes at once: what pays on the machine at hand, found out by measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence

SIZES = (1, 4, 16, 64)
"""Rows that a program may take."""
USUAL = (1, 4)
"""What is used where nothing was measured: enough rows to keep arithmetic busy, few enough to stay in cache."""
GAIN = 1.25
"""How much slower than in the fastest programs a row may be to make larger ones not worth compiling: more than the
noise of a busy machine."""
PADDED = 0.75
"""Share of a program's rows from which on it is filled up instead of taking smaller ones."""


def worthwhile(seconds: Callable[[int], float], most: int) -> tuple[int, ...]:
    """The sizes of programs that pay, smallest first: the usual ones, and more up to the first that runs a row
    about as fast as any does.

    Args:
        seconds: of one row in programs of so many; infinite where they don't fit into memory, nor larger ones.
        most: largest size that matters.

    >>> worthwhile({1: 4.0, 4: 2.0, 16: 1.02, 64: 1.0}.__getitem__, 256)
    (1, 4, 16)
    """
    times: dict[int, float] = {}
    for size in SIZES:
        if size > max(most, SIZES[0]) or (now := seconds(size)) == float("inf"):
            break
        times[size] = now
    chosen = []
    for size, time in times.items():
        chosen.append(size)
        if size >= USUAL[-1] and time <= GAIN * min(times.values()):
            break
    return tuple(chosen)


def split(rows: int, sizes: Sequence[int] = USUAL, most: int | None = None) -> dict[int, int]:
    """How many rows of a group go through programs of which size; the last program of a size may be filled up.

    Args:
        sizes: smallest first, which is 1.
        most: largest size to be used.

    >>> split(27, (1, 4, 16)), split(27), split(9), split(27, (1, 4, 16), most=4)
    ({16: 16, 4: 11}, {4: 27}, {4: 8, 1: 1}, {4: 27})
    """
    parts = {}
    for size in reversed(sizes):
        if most is not None and size > max(most, sizes[0]):
            continue
        rest = rows % size
        part = rows if rest >= PADDED * size else rows - rest
        if part:
            parts[size] = part
            rows -= part
    return parts
