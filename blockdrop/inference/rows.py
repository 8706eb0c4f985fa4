"""How many rows a program takes at once: what pays on the machine at hand, found out by measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence

SIZES = (1, 4, 16, 64)
"""Rows that a program may take."""
USUAL = (1, 4)
"""What is used where nothing was measured: enough rows to keep arithmetic busy, few enough to stay in cache."""
GAIN = 1.05
"""By how much a row has to be faster in larger programs to make more of them worth their compilation."""
PADDED = 0.75
"""Share of a program's rows from which on it is filled up instead of taking smaller ones."""


def worthwhile(seconds: Callable[[int], float], most: int) -> tuple[int, ...]:
    """The sizes of programs that pay, smallest first: each runs a row faster than the one before.

    Args:
        seconds: of one row in programs of so many. It is called for one size after the other, until one is no
            faster than the one before.
        most: largest size that matters.

    >>> worthwhile({1: 4.0, 4: 2.0, 16: 1.0, 64: 0.99}.__getitem__, 256)
    (1, 4, 16)
    """
    chosen, fastest = [SIZES[0]], seconds(SIZES[0])
    for size in SIZES[1:]:
        if size > most or (now := seconds(size)) * GAIN > fastest:
            break
        chosen.append(size)
        fastest = now
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
