"""A part for training and a part for tests of images that lie in one folder for each class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from blockdrop.data.files import ImageFiles
from blockdrop.errors import DataError


class SomeFiles:
    """Some of the images on disk, see `ImageFiles`.

    Args:
        rows: which, int64 (M,).
    """

    def __init__(self, files: ImageFiles, rows: np.ndarray):
        self.files, self.rows = files, rows
        self.labels = files.labels[rows]

    def name(self, row: int) -> str:
        return self.files.name(int(self.rows[row]))

    def read(self, row: int) -> Image.Image:
        return self.files.read(int(self.rows[row]))

    def fingerprint(self) -> str:
        content = self.files.fingerprint().encode() + self.rows.astype("<i8").tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


def split_rows(names: Sequence[str], labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows for training and those for tests: of each class `share` of the images, at least one, are for tests.

    Which ones is told by their names alone, so that an image stays in its part when others come or go, and
    whatever the seed of a run.

    Args:
        names: of the images, from their common folder on.
        labels: int64 (N,).
        share: above 0 and below 1.
    Raises:
        DataError: a class of a single image.
    """
    keys = np.array([hashlib.sha256(os.fsencode(name)).hexdigest() for name in names])
    for_tests = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise DataError(f"{names[rows[0]]}: the only image of its class, which can't be split; add some")
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        for_tests[rows[np.argsort(keys[rows])[:count]]] = True
    return np.flatnonzero(~for_tests), np.flatnonzero(for_tests)
