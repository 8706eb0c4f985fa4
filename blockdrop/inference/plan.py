"""The planner: from a batch's policies to rows that share their work, sorted so that equal ones lie together.

The network is cut into segments of consecutive blocks. Within a segment a row needs one *sub-policy*, the
policy's bits of those blocks; there are far fewer distinct sub-policies than policies (a trained policy network
had 469 policies of 54 blocks, and some ten to eighty sub-policies of 18), so rows come in groups that one
straight-line program serves. Nothing here knows about engines or tensors: bool matrices in, row ranges out, at
a cost of O(rows · K) plus sorting.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Range = tuple[int, int]
"""Rows start … stop - 1."""


JOIN_LIMIT = 1.5
"""Segments are joined while that makes at most so many times more groups; each border costs about 3 % of a row."""


class SegmentPlan(NamedTuple):
    """What one segment does; its rows stand in running order, those of equal sub-policy side by side."""

    blocks: Range
    """First block and last + 1."""
    bits: NDArray[np.bool_]
    """(rows, blocks of the segment)."""
    source: NDArray[np.intp]
    """(rows,): the row of the segment before (or the image, for the first one) that each row continues."""
    groups: list[Range]
    """Maximal ranges of equal sub-policy, in order; they cover all rows."""


class Plan(NamedTuple):
    """A batch's way through the network."""

    segments: list[SegmentPlan]
    rows: NDArray[np.intp]
    """(S, N): the last segment's row that holds the result of each (policy, image)."""


def plan_batch(policies: NDArray[np.bool_], segments: Sequence[Range]) -> Plan:
    """Plans S policies for each of N images.

    Two policies of an image share one row up to the segment in which they first differ.

    Args:
        policies: bool (S, N, K).
        segments: ranges of blocks that cover 0 … K-1 in order.
    """
    num_policies, num_images, _ = policies.shape
    rows = np.broadcast_to(np.arange(num_images), (num_policies, num_images))
    plans = []
    for first, last in segments:
        bits = policies[:, :, first:last].reshape(-1, last - first)
        key = _names(bits)
        if num_policies > 1:  # one row for all (policy, image) pairs of the same parent and sub-policy
            pairs = np.stack([key, rows.reshape(-1)], axis=1)
            _, kept, inverse = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
            bits, key, source = bits[kept], key[kept], rows.reshape(-1)[kept]
            positions = inverse.reshape(-1)
        else:
            source, positions = rows.reshape(-1), None
        order = np.argsort(key, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        key = key[order]
        edges = [*np.flatnonzero(np.diff(key, prepend=-1)).tolist(), len(key)]
        groups = list(itertools.pairwise(edges))
        plans.append(SegmentPlan((first, last), bits[order], source[order], groups))
        rows = (place if positions is None else place[positions]).reshape(num_policies, num_images)
    return Plan(plans, rows)


def join_segments(policies: NDArray[np.bool_], segments: Sequence[Range]) -> list[Range]:
    """The whole network as one segment where that makes hardly more groups than its segments do.

    Args:
        policies: bool (S, N, K). Several policies of an image always go by segments, whose work they share.
        segments: ranges of blocks that cover 0 … K-1 in order.
    """
    if len(policies) > 1:
        return list(segments)

    def groups(first: int, last: int) -> int:
        return len(np.unique(_names(policies[0, :, first:last])))

    whole = (segments[0][0], segments[-1][1])
    joins = groups(*whole) <= JOIN_LIMIT * max(groups(*segment) for segment in segments)
    return [whole] if joins else list(segments)


def _names(bits: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(rows, n) to a number per row, equal where the rows are equal; rows alike at the end get close numbers."""
    if bits.shape[1] < 63:
        return bits @ (1 << np.arange(bits.shape[1], dtype=np.intp))
    packed = np.ascontiguousarray(np.packbits(bits, axis=1))
    return np.unique(packed.view(f"V{packed.shape[1]}").reshape(-1), return_inverse=True)[1].reshape(-1)


def block_ranges(bits: NDArray[np.bool_]) -> list[list[Range]]:
    """For each block the maximal ranges of consecutive rows that run it: bool (rows, n) to n lists.

    >>> block_ranges(np.array([[1, 0], [1, 1], [0, 0], [1, 1]], dtype=bool))
    [[(0, 2), (3, 4)], [(1, 2), (3, 4)]]
    """
    edges = np.diff(bits.T.astype(np.int8), axis=1, prepend=0, append=0)  # (n, rows + 1)
    blocks, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    ranges: list[list[Range]] = [[] for _ in range(bits.shape[1])]
    for block, start, stop in zip(blocks.tolist(), starts.tolist(), stops.tolist(), strict=True):
        ranges[block].append((start, stop))
    return ranges
