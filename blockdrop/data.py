"""Data sets by name or folder: small ones live in memory as uint8 tensors, big ones stream from disk.

Both kinds hand out normalised float batches through `batches`; random crops and flips are drawn per image
from (seed, epoch), so a run sees the same pixels however often it is repeated.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from blockdrop.console import progress
from blockdrop.errors import DataError


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
LARGEST_IN_MEMORY = 64
"""Images up to this side (pixels) are held in memory, larger ones stream."""
RESIZE_FACTOR = 256 / 224
"""Streamed images are resized to this multiple of the crop, as is usual on ImageNet."""


def derived_seed(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several numbers, such as (seed, epoch)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Augment(NamedTuple):
    """Shuffle, crop and flip at random, drawn from these two numbers alone."""

    seed: int
    epoch: int


def normalise(images: Tensor, normalisation: Normalisation, channels_last: bool = True) -> Tensor:
    """uint8 (N, 3, H, W) to float32 (N, 3, H, W): (x / 255 - mean) / std."""
    mean = torch.tensor(normalisation.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(normalisation.std, device=images.device).view(3, 1, 1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = images.to(torch.float32, memory_format=layout)
    return images.sub_(mean * 255).div_(std * 255)


def split_rows(order: Tensor, batch_size: int, keep_single: bool) -> list[Tensor]:
    """Splits row numbers (M,) into batches. Unless `keep_single`, a last batch of one image joins the one before
    it, since BatchNorm can't train on a single value.

    >>> [rows.tolist() for rows in split_rows(torch.arange(5), 2, keep_single=False)]
    [[0, 1], [2, 3, 4]]
    """
    batches = list(order.split(batch_size))
    if not keep_single and len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class MemoryImages:
    """Images and labels as tensors: uint8 (M, 3, H, W) and int64 (M,)."""

    def __init__(self, images: Tensor, labels: Tensor, padding: int = 4, flip: bool = True):
        self.images, self.labels = images, labels
        self.padding, self.flip = padding, flip

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Tensor) -> MemoryImages:
        """The images of these rows, int64 (S,)."""
        return MemoryImages(self.images[rows], self.labels[rows], self.padding, self.flip)

    def batches(
        self,
        batch_size: int,
        normalisation: Normalisation,
        device: torch.device | str = "cpu",
        augment: Augment | None = None,
        channels_last: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields normalised images (N, 3, H, W) and labels (N,); in order and as they are without `augment`."""
        if augment is None:
            order = torch.arange(len(self))
        else:
            generator = torch.Generator().manual_seed(derived_seed(*augment))
            order = torch.randperm(len(self), generator=generator)
            offsets = torch.randint(0, 2 * self.padding + 1, (len(self), 2), generator=generator)
            mirrored = torch.rand(len(self), generator=generator) < 0.5
        for rows in split_rows(order, batch_size, keep_single=augment is None):
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


class StreamedImages:
    """Images read from disk as they are needed, by worker processes.

    Training: the short side resized to 8/7 of `image_size`, a random crop, a flip. Test: the centre crop.
    """

    def __init__(self, samples: Sequence[tuple[str, int]], image_size: int, workers: int):
        self.samples, self.image_size, self.workers = samples, image_size, workers

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> Tensor:
        """int64 (M,)."""
        return torch.tensor([label for _, label in self.samples])

    def subset(self, rows: Tensor) -> StreamedImages:
        """The images of these rows, int64 (S,)."""
        return StreamedImages([self.samples[row] for row in rows.tolist()], self.image_size, self.workers)

    def batches(
        self,
        batch_size: int,
        normalisation: Normalisation,
        device: torch.device | str = "cpu",
        augment: Augment | None = None,
        channels_last: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields normalised images (N, 3, H, W) and labels (N,); in order and centred without `augment`."""
        order = torch.arange(len(self))
        if augment is not None:
            generator = torch.Generator().manual_seed(derived_seed(*augment))
            order = torch.randperm(len(self), generator=generator)
        loader = torch.utils.data.DataLoader(
            _ImageFiles(self.samples, self.image_size, augment),
            batch_sampler=[rows.tolist() for rows in split_rows(order, batch_size, keep_single=augment is None)],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=torch.device(device).type == "cuda",
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            images, labels = batch
            images = images.to(device, non_blocking=True)
            yield normalise(images, normalisation, channels_last), labels.to(device, non_blocking=True)


class _ImageFiles(torch.utils.data.Dataset[Any]):
    def __init__(self, samples: Sequence[tuple[str, int]], image_size: int, augment: Augment | None):
        self.samples, self.image_size, self.augment = samples, image_size, augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | DataError:
        path, label = self.samples[index]
        try:
            image = read_image(path)
        except DataError as error:
            return error  # raised by the main process, where it stays one line
        size = self.image_size
        image = transforms.resize(image, [round(size * RESIZE_FACTOR)])
        if self.augment is None:
            image = transforms.center_crop(image, [size])
        else:
            generator = np.random.default_rng([*self.augment, index])
            left, top = (int(generator.integers(0, side - size + 1)) for side in image.size)
            image = transforms.crop(image, top, left, size, size)
            if generator.random() < 0.5:
                image = transforms.horizontal_flip(image)
        return transforms.pil_to_tensor(image), label


def _collate(samples: list[tuple[Tensor, int] | DataError]) -> tuple[Tensor, Tensor] | DataError:
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return torch.stack(images), torch.tensor(labels)


Images = MemoryImages | StreamedImages


class DataSource:
    """A data set with its two parts, each read when first asked for.

    Attributes:
        name: C10, C100, ImgNet, Digits or Folder.
        classes: class names in label order.
    """

    def __init__(
        self,
        name: str,
        data_dir: str | Path = "data/",
        image_size: int = 32,
        download: bool = False,
        cache_dir: str | Path | None = None,
        workers: int = 2,
    ):
        """
        Args:
            data_dir: image tree `train/<class>/…` beside `test/` or `val/`, or torchvision's CIFAR folder.
                Not needed for Digits.
            image_size: side in pixels.
            download: fetch CIFAR by torchvision where it is missing.
            cache_dir: where decoded images are kept if `data_dir` isn't writable.
            workers: processes that read streamed images.
        Raises:
            DataError: missing or empty folder, unknown name.
        """
        if name not in DATASETS:
            raise DataError(f"unknown data set {name}; choose {', '.join(DATASETS)}")
        self.name, self.info = name, DATASETS[name]
        self.data_dir, self.image_size, self.workers = Path(data_dir), image_size, workers
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self.cifar: dict[bool, Any] | None = None
        if name == "Digits":
            self.classes = [str(digit) for digit in range(10)]
        elif name in ("C10", "C100") and not os.path.isdir(self.data_dir / "train"):
            self.cifar = _open_cifar(name, self.data_dir, download)
            self.classes = list(self.cifar[False].classes)
        else:
            self.classes = self._class_folders()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def train(self) -> Images:
        return self._read(train=True)

    @cached_property
    def test(self) -> Images:
        return self._read(train=False)

    def _read(self, train: bool) -> Images:
        if self.name == "Digits":
            images, labels = load_digits(train, self.image_size)
        elif self.cifar is not None:
            part = self.cifar[train]
            images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
            labels = torch.tensor(part.targets)
        else:
            samples = self._scan(self._part_folder(train))
            if self.image_size > LARGEST_IN_MEMORY:
                return StreamedImages(samples, self.image_size, self.workers)
            images, labels = self._decode_once(samples)
        return MemoryImages(images, labels, self.info.padding, self.info.flip)

    def _part_folder(self, train: bool) -> Path:
        names = ("train",) if train else ("test", "val")
        for name in names:
            if os.path.isdir(self.data_dir / name):
                return self.data_dir / name
        raise DataError(
            f"{self.data_dir}: no {' or '.join(names)} folder; expected train/<class>/… and test/<class>/… "
            "(or val/)"
        )

    def _class_folders(self) -> list[str]:
        if not os.path.isdir(self.data_dir):
            raise DataError(f"{self.data_dir}: no such folder; point --data_dir at the images")
        names = {}
        for train in (True, False):
            folder = self._part_folder(train)
            try:
                names[train] = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
            except OSError as error:
                raise DataError(f"{folder}: can't be read ({error.strerror})") from None
            if not names[train]:
                raise DataError(f"{folder}: no class folders in it; expected {folder.name}/<class>/<image>")
        if names[True] != names[False]:
            odd = sorted(set(names[True]) ^ set(names[False]))[0]
            raise DataError(f"{self.data_dir}: class {odd} is in only one of train and {folder.name}")
        return names[True]

    def _scan(self, folder: Path) -> list[tuple[str, int]]:
        try:
            return torchvision.datasets.ImageFolder(str(folder)).samples
        except FileNotFoundError as error:
            raise DataError(f"{folder}: {str(error).splitlines()[0]}") from None

    def _decode_once(self, samples: list[tuple[str, int]]) -> tuple[Tensor, Tensor]:
        """Decodes the files, or takes them from the cache that an earlier or a parallel run made."""
        cache = self._writable_cache_dir()
        if cache is None:
            return _decode(samples, self.image_size)
        path = cache / f"{_fingerprint(samples, self.data_dir, self.image_size)}.pt"
        with FileLock(f"{path}.lock"):
            try:
                stored = torch.load(path, weights_only=True)
                images, labels = stored["images"], stored["labels"]
                if images.shape == (len(samples), 3, self.image_size, self.image_size):
                    return images, labels
            except FileNotFoundError:
                pass
            except Exception:
                warnings.warn(f"{path}: damaged cache, decoding the images anew", stacklevel=2)
            images, labels = _decode(samples, self.image_size)
            temporary = path.with_suffix(".tmp")
            try:
                torch.save({"images": images, "labels": labels}, temporary)
                os.replace(temporary, path)
            except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
                temporary.unlink(missing_ok=True)
                warnings.warn(f"{path}: decoded images not cached ({error})", stacklevel=2)
        return images, labels

    def _writable_cache_dir(self) -> Path | None:
        for folder in (self.data_dir / ".blockdrop-cache", self.cache_dir and self.cache_dir / "decoded"):
            if folder:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    if os.access(folder, os.W_OK):
                        return folder
                except OSError:
                    continue
        return None


def read_image(path: str | Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        DataError: it can't be read or decoded.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).split("\n")[0].replace(f" {str(path)!r}", "")
        raise DataError(f"{path}: not a readable image ({reason}); remove or replace it") from None


def _decode(samples: list[tuple[str, int]], image_size: int) -> tuple[Tensor, Tensor]:
    images = torch.empty(len(samples), 3, image_size, image_size, dtype=torch.uint8)

    def decode(index: int) -> None:
        image = read_image(samples[index][0])
        if image.size != (image_size, image_size):
            image = transforms.center_crop(transforms.resize(image, [image_size]), [image_size])
        images[index] = transforms.pil_to_tensor(image)

    with ThreadPoolExecutor() as pool:
        try:
            for _ in progress(pool.map(decode, range(len(samples))), "decoding", len(samples), "images"):
                pass
        except DataError:
            pool.shutdown(cancel_futures=True)
            raise
    return images, torch.tensor([label for _, label in samples])


def _fingerprint(samples: list[tuple[str, int]], root: Path, image_size: int) -> str:
    """Changes whenever a file comes, goes or is written."""
    digest = hashlib.sha256(f"{image_size}".encode())
    for path, label in samples:
        stat = os.stat(path)
        digest.update(f"{os.path.relpath(path, root)} {label} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _open_cifar(name: str, data_dir: Path, download: bool) -> dict[bool, Any]:
    dataset = {"C10": torchvision.datasets.CIFAR10, "C100": torchvision.datasets.CIFAR100}[name]
    try:  # torchvision compares the files with known checksums before it reads them
        return {train: dataset(str(data_dir), train=train, download=download) for train in (True, False)}
    except (RuntimeError, OSError) as error:
        if download:
            raise DataError(f"{data_dir}: downloading {name} failed: {str(error).splitlines()[0]}") from None
        what = "no such folder" if not os.path.isdir(data_dir) else f"holds no (undamaged) {dataset.base_folder}"
        raise DataError(
            f"{data_dir}: {what} and no train/<class>/ images; pass --download, or point --data_dir at {name}"
        ) from None


def load_digits(train: bool, image_size: int = 32) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, resized and grey in three channels.

    Every fourth digit is a test image, so the parts hold 1,347 and 450 images.

    Returns:
        images uint8 (M, 3, image_size, image_size), labels int64 (M,).
    """
    from sklearn.datasets import load_digits as load_sklearn_digits

    digits = load_sklearn_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)  # (1797, 1, 8, 8) in 0 … 255
    images = F.interpolate(images, size=(image_size, image_size), mode="bilinear", antialias=True)
    images = images.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
    is_test = torch.arange(len(images)) % 4 == 0
    chosen = ~is_test if train else is_test
    return images[chosen].contiguous(), torch.from_numpy(digits.target)[chosen].long()
