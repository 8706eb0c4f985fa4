"""Images that stay on disk and are read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from blockdrop.data.batching import Augment, batch_sizes, derived_seed, normalise, plan_batches
from blockdrop.data.files import ImageFiles, UnreadableImageError, none_readable, resize_short_side
from blockdrop.data.reading import Reading, read_batches
from blockdrop.data.sets import Normalisation, Preprocessing
from blockdrop.errors import DataError


class StreamedImages:
    """Images read from disk by worker processes, which are a few batches ahead.

    Training: the short side resized, a random crop, a flip. Test: the centre crop.

    Args:
        files: where the images are.
        preprocessing: size of the crop, and what the short side is resized to; images are normalised as `batches`
            is told.
        workers: processes; 0: read in this one.
        bad_images: gets name and reason of the images that can't be read, which are missing in their batches;
            None: the first one ends the batches.
        rows: which of the files, int64 (M,); None: all.
    """

    def __init__(
        self,
        files: ImageFiles,
        preprocessing: Preprocessing,
        workers: int,
        bad_images: dict[str, str] | None = None,
        rows: np.ndarray | None = None,
    ):
        self.files, self.preprocessing = files, preprocessing
        self.workers, self.bad_images = workers, bad_images
        self.rows = np.arange(len(files.labels)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        """int64 (M,), those of unreadable images included."""
        return torch.from_numpy(self.files.labels[self.rows])

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return self.preprocessing.image_size

    def subset(self, rows: Tensor) -> StreamedImages:
        """The images of these rows, int64 (S,)."""
        rows_left = self.rows[rows.numpy()]
        return StreamedImages(self.files, self.preprocessing, self.workers, self.bad_images, rows_left)

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
        """Yields normalised images (N, 3, H, W) and labels (N,); in order and centred without `augment`.

        Args:
            start, share: leave out the first so many batches, and of the others what belongs to other processes:
                see `plan_batches`. N is 0 where a process has no share of the last batch, or can read none of it.
        Raises:
            DataError: an image that can't be read and isn't to be left out; all images of a batch or of the whole
                that can't; a worker process that is killed.
        """
        import torchvision.transforms.v2  # noqa: F401  # once, before there are processes that would each do it

        order = torch.arange(len(self))
        if augment is not None:
            generator = torch.Generator().manual_seed(derived_seed(*augment))
            order = torch.randperm(len(self), generator=generator)
        plan = plan_batches(order, batch_size, augment is None, start, share)
        pinned = torch.device(device).type == "cuda"
        read = read_batches(
            _Reader(self, augment), (rows.tolist() for rows in plan), Reading(self.workers, pin_memory=pinned)
        )
        count = 0
        unread: list[tuple[str, str]] = []
        for batch in read:
            for name, reason in batch.bad:
                assert self.bad_images is not None
                self.bad_images[name] = reason
            count += len(batch.labels)
            unread += [] if count else batch.bad
            images = batch.images.to(device, non_blocking=True)
            yield normalise(images, normalisation, channels_last), batch.labels.to(device, non_blocking=True)
        if unread and not count and start == 0 and (len(unread) > 1 or len(self) == 1):  # each a batch of its own
            raise none_readable(len(unread), "the data set", UnreadableImageError(*unread[0]))


class _Batch(NamedTuple):
    images: Tensor  # uint8 (N, 3, H, W)
    labels: Tensor  # (N,)
    bad: list[tuple[str, str]]


class _Reader(torch.utils.data.Dataset[Any]):
    """Batches by their rows."""

    def __init__(self, source: StreamedImages, augment: Augment | None):
        self.files, self.rows, self.preprocessing = source.files, source.rows, source.preprocessing
        self.skip, self.augment = source.bad_images is not None, augment

    def __getitem__(self, indices: list[int]) -> _Batch | DataError:
        images, labels, bad = [], [], []
        for index in indices:
            try:
                images.append(self._image(index))
                labels.append(int(self.files.labels[self.rows[index]]))
            except UnreadableImageError as error:
                if not self.skip:
                    return DataError(str(error))  # raised by the main process, where it stays one line
                bad.append((error.name, error.reason))
            except DataError as error:
                return error
        if len(bad) == len(indices) > 1:
            return none_readable(len(bad), "a batch", UnreadableImageError(*bad[0]))
        size = self.preprocessing.image_size
        empty = torch.empty(0, 3, size, size, dtype=torch.uint8)
        return _Batch(torch.stack(images) if images else empty, torch.tensor(labels, dtype=torch.int64), bad)

    def _image(self, index: int) -> Tensor:
        """uint8 (3, H, W)."""
        from torchvision.transforms.v2 import functional as transforms

        row, wanted = int(self.rows[index]), self.preprocessing
        size, name = wanted.image_size, self.files.name(row)
        image = resize_short_side(self.files.read(row), wanted.resize, name, wanted.interpolation)
        if self.augment is None:
            image = transforms.center_crop(image, [size])
        else:
            generator = np.random.default_rng([*self.augment, index])
            left, top = (int(generator.integers(0, side - size + 1)) for side in image.size)
            image = transforms.crop(image, top, left, size, size)
            if generator.random() < 0.5:
                image = transforms.horizontal_flip(image)
        return transforms.pil_to_tensor(image)
