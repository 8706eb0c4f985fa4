"""Cuts the rows of a segment into pieces, each for one worker: through a program, or through the torch engine."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockdrop.inference.choice import Choice
from blockdrop.inference.openvino_engine import Program
from blockdrop.inference.plan import Range, SegmentPlan
from blockdrop.inference.programs import Programs, Shape, Sized

MIXED_ROWS_AT_ONCE = 32
"""Rows that the torch engine takes at once; more of them share a call."""
RETRY_AFTER = 2000
"""Batches between two trials of the slower way: the torch engine may have to pack all weights anew for one."""


class WithoutOwn:
    """The rows of a segment that have no programs of their own, and which way they go: 0 the torch engine, 1 a
    program that runs all blocks."""

    def __init__(self, choice: Choice, rows: int):
        self._choice, self._rows, self.way = choice, rows, choice.pick()
        self.seconds: list[float] = []
        """Of the pieces, as they are run."""

    def note(self) -> None:
        """Tells the choice how long a row took."""
        self._choice.note(self.way, sum(self.seconds) / self._rows)


class Piece(NamedTuple):
    """Some rows of a segment, for one worker."""

    rows: NDArray[np.intp] | slice
    program: Program | None
    without_own: WithoutOwn | None = None
    """What the piece is part of, where its rows go one of two ways that are compared."""

    @property
    def num_rows(self) -> int:
        """Rows."""
        return self.rows.stop - self.rows.start if isinstance(self.rows, slice) else len(self.rows)

    @property
    def masked(self) -> bool:
        """Whether its program runs all blocks, whatever its rows keep."""
        return self.program is not None and self.without_own is not None


class Cutter:
    """Cuts rows into pieces.

    Args:
        least: pieces, at least, that rows of the torch engine are cut into; None: they stay one piece.
    """

    def __init__(self, least: int | None):
        self._least = least
        self._choices: dict[tuple[Range, Shape, int], Choice] = {}

    def evenly(self, count: int) -> list[Piece]:
        """Rows 0 … count - 1 for the torch engine."""
        return [Piece(slice(*cut), None) for cut in self._even_cuts(count)]

    def by_programs(
        self, start: int, parts: dict[int, int], find: Callable[[int, int], Program | None]
    ) -> list[Piece]:
        """Rows from `start` on in pieces of a program's batch size, of each size as many as `parts` says, where
        `find` knows one for it and so many rows; the others without."""
        pieces = []
        for batch, rows in parts.items():
            program = find(batch, rows)
            step = batch if program is not None else rows
            ends = range(start + step, start + rows + step, step)
            pieces += [Piece(slice(end - step, min(end, start + rows)), program) for end in ends]
            start += rows
        return pieces

    def cut(self, segment: SegmentPlan, image_shape: Shape, programs: Programs) -> list[Piece]:
        """All rows of a segment, compiling what has become worth it. Rows without programs of their own come
        first: their pieces are the longest, and workers should end together.

        Raises:
            RuntimeError: of OpenVINO.
        """
        programs.prepare(segment, image_shape)
        pieces: list[Piece] = []
        without: list[NDArray[np.intp]] = []
        for start, stop in segment.groups:
            parts = programs.split(stop - start, len(segment.source), Sized("blocks", image_shape))
            found = self.by_programs(start, parts, functools.partial(programs.find, segment, start, image_shape))
            pieces += [piece for piece in found if piece.program is not None]
            without += [np.r_[piece.rows] for piece in found if piece.program is None]
        if without:
            pieces = self._cut_others(segment, np.concatenate(without), image_shape, programs) + pieces
        return pieces

    def _cut_others(
        self, segment: SegmentPlan, rows: NDArray[np.intp], image_shape: Shape, programs: Programs
    ) -> list[Piece]:
        """Rows without programs of their own: by the torch engine or by a program that runs all blocks, whichever
        has turned out faster."""
        key, program = programs.masked(segment, len(rows), image_shape)
        others = None
        if key is not None:
            like = (segment.blocks, image_shape, len(rows).bit_length())
            choice = self._choices.setdefault(like, Choice(retry_after=RETRY_AFTER))
            others = WithoutOwn(choice, len(rows))
            if others.way == 1:
                programs.cache.count(key, len(rows))
                starts = range(0, len(rows), key.batch)
                return [Piece(rows[start : start + key.batch], program, others) for start in starts]
        return [Piece(rows[slice(*cut)], None, others) for cut in self._even_cuts(len(rows))]

    def _even_cuts(self, count: int) -> list[Range]:
        """0 … count - 1 in about equal parts."""
        if count == 0 or self._least is None:
            return [(0, count)] if count else []
        pieces = min(count, max(-(-count // MIXED_ROWS_AT_ONCE), self._least))
        cuts = [count * i // pieces for i in range(pieces + 1)]
        return list(itertools.pairwise(cuts))
