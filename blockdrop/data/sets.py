"""What the names of data sets stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Normalisation(NamedTuple):
    """Per-channel mean and standard deviation of images scaled to [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NORMALISATIONS = {
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": Normalisation((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "none": Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "half": Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set's name says about it."""

    num_classes: int | None
    """None: read from the class folders."""
    image_size: int | None
    """Side in pixels; None: 32 or 224, as suits the model."""
    normalisation: Normalisation
    """For networks trained here from scratch; a checkpoint brings its own."""
    padding: int = 4
    """Pixels by which training images of 32 px are padded before the random crop."""
    flip: bool = True
    """Whether training images are mirrored at random."""


DATASETS = {
    "C10": DatasetInfo(10, 32, NORMALISATIONS["cifar"]),
    "C100": DatasetInfo(100, 32, NORMALISATIONS["cifar"]),
    "ImgNet": DatasetInfo(1000, 224, NORMALISATIONS["imagenet"]),
    "Digits": DatasetInfo(10, 32, NORMALISATIONS["half"], flip=False),  # a mirrored 2 is no digit
    "Folder": DatasetInfo(None, None, NORMALISATIONS["imagenet"]),
}
