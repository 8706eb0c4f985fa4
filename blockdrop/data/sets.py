"""What the names of data sets stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Normalisation(NamedTuple):
    """Per-channel mean and standard deviation of images scaled to [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


RESIZE_FACTOR = 256 / 224
"""Large images are resized to this multiple of the crop, as is usual on ImageNet."""
INTERPOLATIONS = ("bilinear", "bicubic")
LARGEST_IN_MEMORY = 64
"""Images up to this side (pixels) are held in memory, larger ones stream."""


@dataclass(frozen=True)
class Preprocessing:
    """From an image to what a network wants: the short side resized, the centre cut out, values normalised."""

    image_size: int
    """Side of the square that is cut out, in pixels."""
    normalisation: Normalisation
    resize: int
    """The short side before that, in pixels."""
    interpolation: str = "bilinear"
    """bilinear or bicubic."""

    @classmethod
    def usual(cls, image_size: int, normalisation: Normalisation) -> Preprocessing:
        """Large images are resized to 8/7 of the crop first, small ones to the crop itself."""
        large = image_size > LARGEST_IN_MEMORY
        return cls(image_size, normalisation, round(image_size * RESIZE_FACTOR) if large else image_size)

    def at(self, image_size: int | None = None, normalisation: Normalisation | None = None) -> Preprocessing:
        """The same for images of another size, or normalised otherwise; small images are always resized to the
        crop itself, as those held in memory are."""
        size, wanted = image_size or self.image_size, normalisation or self.normalisation
        if size <= LARGEST_IN_MEMORY:
            return Preprocessing.usual(size, wanted)
        return Preprocessing(size, wanted, round(self.resize * size / self.image_size), self.interpolation)

    def transform(self) -> Callable[[Any], Tensor]:
        """A torchvision transform: PIL image to float32 (3, image_size, image_size)."""
        import torch  # names of data sets are needed where torch isn't
        from torchvision.transforms import v2

        return v2.Compose(
            [
                v2.RGB(),
                v2.Resize([self.resize], interpolation=v2.InterpolationMode(self.interpolation)),
                v2.CenterCrop([self.image_size]),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(self.normalisation.mean, self.normalisation.std),
            ]
        )


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


CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
"""In label order, which is alphabetical."""
DATASETS = {
    "C10": DatasetInfo(10, 32, NORMALISATIONS["cifar"]),
    "C100": DatasetInfo(100, 32, NORMALISATIONS["cifar"]),
    "ImgNet": DatasetInfo(1000, 224, NORMALISATIONS["imagenet"]),
    "Digits": DatasetInfo(10, 32, NORMALISATIONS["half"], flip=False),  # a mirrored 2 is no digit
    "Folder": DatasetInfo(None, None, NORMALISATIONS["imagenet"]),
}
