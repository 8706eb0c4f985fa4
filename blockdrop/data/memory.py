"""Data sets in memory, and small images on disk that are decoded once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blockdrop.data.batching import Augment, batch_sizes, derived_seed, normalise, plan_batches
from blockdrop.data.cache import Arrays, Cache, in_range
from blockdrop.data.files import ImageFiles, UnreadableImageError, none_readable, resize_short_side
from blockdrop.data.sets import Normalisation
from blockdrop.errors import DataError
from blockdrop.progress import progress

SCHEMA = {"images": (np.uint8, 4), "labels": (np.int64, 1), "left_out": (np.int64, 1)}
QUEUE = 4096


class MemoryImages:
    """Images and labels as tensors: uint8 (M, 3, H, W) and int64 (M,)."""

    def __init__(self, images: Tensor, labels: Tensor, padding: int = 4, flip: bool = True):
        self.images, self.labels = images, labels
        self.padding, self.flip = padding, flip

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return self.images.shape[-1]

    def subset(self, rows: Tensor) -> MemoryImages:
        """The images of these rows, int64 (S,)."""
        return MemoryImages(self.images[rows], self.labels[rows], self.padding, self.flip)

    def count_batches(self, batch_size: int) -> int:
        """Training batches of an epoch."""
        return len(batch_sizes(len(self), batch_size))

    def smallest_batch(self, batch_size: int) -> int:
        """Images of the smallest of them."""
        return min(batch_sizes(len(self), batch_size))

    def batches(
        self,
        batch_size: int,
        normalisation: Normalisation,
        device: torch.device | str = "cpu",
        augment: Augment | None = None,
        channels_last: bool = True,
        start: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields normalised images (N, 3, H, W) and labels (N,); in order and as they are without `augment`.

        Args:
            start, share: leave out the first so many batches, and of the others what belongs to other processes:
                see `plan_batches`. N is 0 where a process has no share of the last batch.
        """
        if augment is None:
            order = torch.arange(len(self))
        else:
            generator = torch.Generator().manual_seed(derived_seed(*augment))
            order = torch.randperm(len(self), generator=generator)
            offsets = torch.randint(0, 2 * self.padding + 1, (len(self), 2), generator=generator)
            mirrored = torch.rand(len(self), generator=generator) < 0.5
        for rows in plan_batches(order, batch_size, augment is None, start, share):
            images = self.images[rows]
            if augment is not None:
                images = random_crop(images, self.padding, offsets[rows])
                if self.flip:
                    images = torch.where(mirrored[rows].view(-1, 1, 1, 1), images.flip(3), images)
            images = images.to(device, non_blocking=True)
            yield normalise(images, normalisation, channels_last), self.labels[rows].to(device, non_blocking=True)


def random_crop(images: Tensor, padding: int, offsets: Tensor) -> Tensor:
    """Pads with black and cuts a window of the old size out of each image.

    Args:
        images: (N, C, H, W).
        padding: pixels on each side.
        offsets: int (N, 2) in 0 … 2 · padding: the window's row and column; `padding` leaves the image as it is.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
    rows = torch.arange(len(images))
    return windows[rows, :, offsets[:, 0], offsets[:, 1]]


def decode_once(
    files: ImageFiles, image_size: int, cache: Cache, bad_images: dict[str, str] | None
) -> tuple[Tensor, Tensor]:
    """Decodes images, or takes them from the cache that an earlier or a parallel run made.

    Args:
        bad_images: gets name and reason of the images that can't be read, which are left out; None: there must be
            none.
    Returns:
        uint8 (M, 3, image_size, image_size), int64 (M,), those left out not counted.
    Raises:
        DataError: an image that can't be read, or all of them.
    """
    with cache.entry(f"{files.fingerprint()}-{image_size}-2.npz") as entry:
        kept = entry.load(SCHEMA, lambda arrays: _fitting(arrays, files.labels, image_size))
        errors = _errors(files, [] if kept is None else kept["left_out"].tolist(), image_size)
        if kept is None or len(errors) < len(kept["left_out"]):  # nothing kept, or a file has been mended
            kept, errors = _decode(files, image_size, skip=bad_images is not None)
            entry.save(**kept)
    if errors and bad_images is None:
        raise next(iter(errors.values()))
    if errors and len(errors) == len(files.labels):
        raise none_readable(len(errors), "the data set", next(iter(errors.values())))
    if bad_images is not None:
        bad_images |= {error.name: error.reason for error in errors.values()}
    return torch.from_numpy(kept["images"]), torch.from_numpy(kept["labels"])


def _fitting(arrays: Arrays, expected: np.ndarray, image_size: int) -> Arrays:
    images, labels, left_out = (arrays[name] for name in SCHEMA)
    if not in_range(left_out, len(expected) - 1):
        raise ValueError("rows that there are not")
    if not np.array_equal(labels, np.delete(expected, left_out)):
        raise ValueError(f"other labels, or not {len(left_out)} left out")
    if images.shape != (len(labels), 3, image_size, image_size):
        raise ValueError(f"images {images.shape} of {len(labels)} labels")
    return arrays


def _errors(files: ImageFiles, rows: Sequence[int], image_size: int) -> dict[int, UnreadableImageError]:
    """What is wrong with these images, by row; nothing for those that can be read."""
    errors = {}
    for row in rows:
        try:
            _pixels(files, row, image_size)
        except UnreadableImageError as error:
            errors[row] = error
    return errors


def _decode(
    files: ImageFiles, image_size: int, skip: bool
) -> tuple[dict[str, np.ndarray], dict[int, UnreadableImageError]]:
    """Arrays as in `SCHEMA`, and what is wrong with the images that are left out, by row."""
    count = len(files.labels)
    images = np.empty((count, 3, image_size, image_size), np.uint8)
    errors: dict[int, UnreadableImageError] = {}

    def decode(row: int) -> None:
        try:
            images[row] = _pixels(files, row, image_size)
        except UnreadableImageError as error:
            if not skip:
                raise
            errors[row] = error

    with ThreadPoolExecutor() as pool:
        queues = (range(first, min(first + QUEUE, count)) for first in range(0, count, QUEUE))
        decoded = itertools.chain.from_iterable(pool.map(decode, rows) for rows in queues)
        try:
            for _ in progress(decoded, "decoding", count, "images"):
                pass
        except DataError:
            pool.shutdown(cancel_futures=True)
            raise
    left_out = np.array(sorted(errors), np.int64)
    kept = {"images": images, "labels": files.labels}
    if errors:
        kept = {name: np.delete(array, left_out, axis=0) for name, array in kept.items()}
    return kept | {"left_out": left_out}, {row: errors[row] for row in left_out.tolist()}


def _pixels(files: ImageFiles, row: int, image_size: int) -> np.ndarray:
    """uint8 (3, image_size, image_size): the short side resized, the centre cut out."""
    image = files.read(row)
    if image.size != (image_size, image_size):
        from torchvision.transforms.v2 import functional as transforms

        image = transforms.center_crop(resize_short_side(image, image_size, files.name(row)), [image_size])
    return np.asarray(image).transpose(2, 0, 1)


def load_digits(train: bool, image_size: int = 32) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, resized and grey in three channels.

    Every fourth digit is a test image, so the parts hold 1,347 and 450 images.

    Returns:
        images uint8 (M, 3, image_size, image_size), labels int64 (M,).
    """
    pixels, labels = _digits()
    images = pixels.float().unsqueeze(1) * (255 / 16)  # (1797, 1, 8, 8) in 0 … 255
    images = F.interpolate(images, size=(image_size, image_size), mode="bilinear", antialias=True)
    images = images.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
    is_test = torch.arange(len(images)) % 4 == 0
    chosen = ~is_test if train else is_test
    return images[chosen].contiguous(), labels[chosen].long()


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    """float64 (1797, 8, 8) in 0 … 16, and their labels; both are to be left as they are."""
    from sklearn.datasets import load_digits as load_sklearn_digits

    digits = load_sklearn_digits()  # from text, which takes a while
    return torch.from_numpy(digits.images), torch.from_numpy(digits.target)
