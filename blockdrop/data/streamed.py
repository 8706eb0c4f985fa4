"""Images that stay on disk and are read as they are needed."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from blockdrop.data.batching import Augment, derived_seed, normalise, plan_batches
from blockdrop.data.files import ImageFiles, UnreadableImageError, none_readable, resize_short_side
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

    def subset(self, rows: Tensor) -> StreamedImages:
        """The images of these rows, int64 (S,)."""
        rows_left = self.rows[rows.numpy()]
        return StreamedImages(self.files, self.preprocessing, self.workers, self.bad_images, rows_left)

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
        order = torch.arange(len(self))
        if augment is not None:
            generator = torch.Generator().manual_seed(derived_seed(*augment))
            order = torch.randperm(len(self), generator=generator)
        plan = plan_batches(order, batch_size, augment is None, start, share)
        loader = torch.utils.data.DataLoader(
            _Reader(self, augment),
            batch_size=None,
            sampler=(rows.tolist() for rows in plan),
            num_workers=self.workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals_to_the_main_process,
            generator=torch.Generator(),  # else it draws from the global one, which a run that goes on restores
            pin_memory=torch.device(device).type == "cuda",
        )
        count = 0
        unread: list[tuple[str, str]] = []
        for batch in self._watched(loader):
            if isinstance(batch, DataError):
                raise batch
            for name, reason in batch.bad:
                assert self.bad_images is not None
                self.bad_images[name] = reason
            count += len(batch.labels)
            unread += [] if count else batch.bad
            images = batch.images.to(device, non_blocking=True)
            yield normalise(images, normalisation, channels_last), batch.labels.to(device, non_blocking=True)
        if unread and not count and start == 0 and (len(unread) > 1 or len(self) == 1):  # each a batch of its own
            raise none_readable(len(unread), "the data set", UnreadableImageError(*unread[0]))

    def _watched(self, loader: torch.utils.data.DataLoader[Any]) -> Iterator[Any]:
        """What the loader yields; raises `DataError` where one of its processes is killed or can't be started."""
        others = set(multiprocessing.active_children())
        try:
            batches = iter(loader)
        except OSError as error:
            raise DataError(
                f"--workers {self.workers}: can't be started ({error.strerror}); pass fewer, or free memory"
            ) from None
        readers = set(multiprocessing.active_children()) - others
        if readers:
            _leave_dead_workers_to_the_loader()
        try:
            yield from batches
        except Exception as error:
            killed = isinstance(error, RuntimeError | OSError | EOFError) and _first_ended(readers)
            for reader in readers:
                reader.kill()  # they ignore other signals, and the program can't end before them
            if killed:
                raise _killed(killed) from None
            raise


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


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A signal may come to all processes, and the main one may want to finish its batch."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Quietly:
    """torch's handler for the end of a child process, less the errors that it raises wherever the program is."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]):
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):
            self.handler(number, frame)


def _leave_dead_workers_to_the_loader() -> None:
    """It looks for them by itself when a batch takes longer than 5 seconds."""
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    in_main_thread = threading.current_thread() is threading.main_thread()  # no other may set handlers
    if in_main_thread and callable(handler) and not isinstance(handler, _Quietly):
        signal.signal(signal.SIGCHLD, _Quietly(handler))


def _first_ended(readers: Iterable[BaseProcess]) -> BaseProcess | None:
    """One that is over, though there is more to read. Where one is lost in the midst of handing over a batch, that
    is seen a moment before its end is."""
    wait([reader.sentinel for reader in readers], timeout=1)
    return next((reader for reader in readers if reader.exitcode), None)


def _killed(reader: BaseProcess) -> DataError:
    code = reader.exitcode or 0
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return DataError(
        f"process {reader.pid}, which reads images, was ended {how}, as happens where memory runs out; pass fewer "
        "--workers, or free memory"
    )
