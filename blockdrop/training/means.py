"""Means of scalars over an epoch."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any


class Means:
    """Means over images of what batches give, and the seconds spent; a resumed epoch goes on where it was cut off.

    >>> means = Means()
    >>> means.add(3, loss=2.0)
    >>> means.add(1, loss=6.0)
    >>> means.means()
    {'loss': 3.0}
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.images = 0
        self.last: dict[str, float] = {}
        """Values of the last batch that go beside the means."""
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the epoch began, without the time in which nothing ran."""
        return time.perf_counter() - self._start

    def add(self, images: int, **values: float) -> None:
        """Values that are means over a batch of so many images."""
        self.images += images
        for name, value in values.items():
            self.sums[name] += value * images
            self.counts[name] += images

    def means(self) -> dict[str, float]:
        """By name, over the images of the batches that gave the value."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here."""
        return {
            "sums": dict(self.sums),
            "counts": dict(self.counts),
            "images": self.images,
            "last": self.last,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` was called."""
        self.sums.update(state_dict["sums"])
        self.counts.update(state_dict["counts"])
        self.images, self.last = state_dict["images"], dict(state_dict["last"])
        self._start = time.perf_counter() - state_dict["seconds"]
