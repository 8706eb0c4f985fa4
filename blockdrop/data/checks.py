"""What images and labels of a user's own must be, and one line for each way in which they aren't."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blockdrop.errors import DataError

AS_TENSOR = (
    "give its data set transform=dynamic.transform, or one that ends in ToDtype(torch.float32, scale=True) and "
    "Normalize"
)


@dataclass(frozen=True)
class Wanted:
    """What a network takes: normalised float images, and class numbers."""

    image_size: int
    """Side in pixels."""
    num_classes: int
    name: str
    """Of the data, for messages."""

    def pair(self, sample: Any, where: str, what: str = "(image, label)") -> tuple[Any, Any]:
        """The two parts of an item or batch.

        Args:
            where: for messages, after the data's name.
        Raises:
            DataError: there aren't two.
        """
        if isinstance(sample, tuple | list) and len(sample) == 2:
            return sample[0], sample[1]
        found = f"{len(sample)} values" if isinstance(sample, tuple | list) else _kind(sample)
        mend = "wrap the data set, or give its DataLoader a collate_fn"
        raise self._error(where, f"{found}; {what} is wanted: {mend}")

    def pixels(self, image: Any, where: str, count: int | None = None) -> Tensor:
        """Normalised pixels as float32 (3, H, W), or (count, 3, H, W).

        Raises:
            DataError: they are anything else.
        """
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(image if image.flags.writeable else image.copy())
        if isinstance(image, Image.Image):
            raise self._error(where, f"a PIL image; {AS_TENSOR}")
        if not isinstance(image, Tensor):
            raise self._error(where, f"its image is {_kind(image)}; a float tensor is wanted: {AS_TENSOR}")
        if not image.is_floating_point():
            raise self._error(where, f"an image of {image.dtype}; normalised floats are wanted: {AS_TENSOR}")
        side, leading = self.image_size, () if count is None else (count,)
        if image.shape != (*leading, 3, side, side):
            found, wanted = tuple(image.shape), f"({'' if count is None else 'N, '}3, {side}, {side})"
            raise self._error(where, f"an image of shape {found}; {wanted} is wanted: {_mend(image)}")
        if not image.isfinite().all():
            raise self._error(where, "an image with NaN or infinite values; mend it, or leave it out")
        return image.as_subclass(Tensor).detach().to(torch.float32)

    def label(self, label: Any, where: str) -> int:
        """A class number.

        Raises:
            DataError: it is anything else.
        """
        return int(self.labels(label, where, ()))

    def labels(self, labels: Any, where: str, shape: tuple[int, ...]) -> Tensor:
        """Class numbers as int64, of this shape.

        Raises:
            DataError: they are anything else.
        """
        numbers = f"class numbers 0 … {self.num_classes - 1} are wanted"
        try:
            found = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):
            raise self._error(where, f"label {_shown(labels)}, {_kind(labels)}; {numbers}") from None
        if found.is_floating_point() or found.is_complex():
            raise self._error(where, f"a label of {found.dtype}; {numbers}, as integers")
        if found.shape != shape:
            raise self._error(where, f"labels of shape {tuple(found.shape)}; {numbers}, one for each image")
        found = found.long()
        self.check_range(found.flatten(), where)
        return found

    def check_range(self, labels: Tensor, where: str) -> None:
        """Raises `DataError` for a label, of int64 (N,), of no class."""
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise self._error(
                where,
                f"label {outside[0]}; the network has {self.num_classes} classes, 0 … {self.num_classes - 1}: "
                "mend the label, or give the network another head",
            )

    def _error(self, where: str, what: str) -> DataError:
        return DataError(f"{self.name}, {where}: {what}")


def _mend(image: Tensor) -> str:
    shape = image.shape[-3:]
    if len(shape) == 3 and shape[-1] in (1, 3) and shape[0] not in (1, 3):
        return "channels come first, so permute(2, 0, 1)"
    if len(shape) < 3 or shape[0] != 3:
        return "make it RGB, for example by image.convert('RGB') or Grayscale(3)"
    return "resize and crop it, as dynamic.transform does"


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
