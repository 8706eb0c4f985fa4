"""A data set by name, wherever its images lie."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from blockdrop.data.cache import Cache
from blockdrop.data.files import ImageFiles, left_out
from blockdrop.data.images import Images
from blockdrop.data.memory import MemoryImages, decode_once, load_digits
from blockdrop.data.sets import DATASETS, LARGEST_IN_MEMORY, Preprocessing
from blockdrop.data.shards import Archives, find_shards, open_shards, read_class_names
from blockdrop.data.splitting import SomeFiles, split_rows
from blockdrop.data.streamed import StreamedImages
from blockdrop.data.tree import ImageTree, find_trees, flat_classes, has_part, open_tree
from blockdrop.errors import DataError


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
        skip_bad_images: bool = False,
        *,
        preprocessing: Preprocessing | None = None,
        classes: Sequence[str] | None = None,
        split: float | None = None,
    ):
        """
        Args:
            data_dir: image tree `train/<class>/…` beside `test/` or `val/`; or tar archives in WebDataset's
                layout, `train/*.tar` or `train-*.tar` and the same for test or val, with `classes.txt` beside
                them if classes have names; or torchvision's CIFAR folder. Not needed for Digits.
            image_size: side in pixels.
            download: fetch CIFAR by torchvision where it is missing.
            cache_dir: where decoded images and indices are kept if `data_dir` isn't writable.
            workers: processes that read streamed images.
            skip_bad_images: leave out images that can't be read, and list them in `bad_images`, instead of
                stopping at the first.
            preprocessing: how images of more than 64 px are resized and cut out; its `image_size` wins. Default:
                the usual of `image_size`.
            classes: of an image tree of which the test images alone are wanted: it needs no train/ then, and not
                every class in test/. Empty: those of test/.
            split: share of each class's images that are for tests, of a folder that holds class folders and no
                train/ and test/; see `split_rows`.
        Raises:
            DataError: missing or empty folder, unknown name.
        """
        if name not in DATASETS:
            raise DataError(f"unknown data set {name}; choose {', '.join(DATASETS)}")
        self.name, self.info = name, DATASETS[name]
        self.preprocessing = preprocessing or Preprocessing.usual(image_size, self.info.normalisation)
        self.data_dir, self.image_size, self.workers = Path(data_dir), self.preprocessing.image_size, workers
        self.cache = Cache(self.data_dir, Path(cache_dir) / "decoded" if cache_dir else None)
        self.cifar: dict[bool, Any] | None = None
        self._files: dict[bool, Callable[[], ImageFiles]] = {}
        self._bad_images: dict[str, str] | None = {} if skip_bad_images else None
        if name == "Digits":
            self.classes = [str(digit) for digit in range(10)]
        elif archives := find_shards(self.data_dir):
            self.classes = self._open_shards(archives)
        elif split is not None:
            self.classes = flat_classes(self.data_dir)
            files = functools.cache(partial(open_tree, self.data_dir, self.classes, self.cache))
            for train in (True, False):
                self._files[train] = functools.cache(partial(_part, files, self.data_dir, split, train))
        elif (
            classes is not None
            and not has_part(self.data_dir, train=True)
            and has_part(self.data_dir, train=False)
        ):
            folders, self.classes = find_trees(self.data_dir, classes)
            self._files[False] = functools.cache(
                partial(open_tree, folders[False], self.classes, self.cache, some=True)
            )
        elif name in ("C10", "C100") and not has_part(self.data_dir, train=True):
            self.cifar = _open_cifar(name, self.data_dir, download)
            self.classes = list(self.cifar[False].classes)
        else:
            folders, self.classes = find_trees(self.data_dir)
            for train, folder in folders.items():
                self._files[train] = functools.cache(partial(open_tree, folder, self.classes, self.cache))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def train(self) -> Images:
        return self._read(train=True)

    @cached_property
    def test(self) -> Images:
        return self._read(train=False)

    def files(self, train: bool) -> ImageFiles | None:
        """Where the images of a part lie, none of them read yet; None where they aren't images on disk."""
        return self._files[train]() if train in self._files else None

    @property
    def bad_images(self) -> list[tuple[str, str]]:
        """Names of the images left out so far, in order, and what was wrong with them."""
        return sorted((self._bad_images or {}).items())

    @property
    def left_out(self) -> str | None:
        """One line that counts and names them; None if there is none."""
        return left_out(self.bad_images)

    def _open_shards(self, archives: dict[bool, Archives]) -> list[str]:
        """Returns the classes: the lines of classes.txt, else the numbers that labels go up to."""
        names = read_class_names(archives[True])
        known = None if names is None else len(names)
        for train, part in archives.items():
            self._files[train] = functools.cache(partial(open_shards, part, self.cache, known))
        if names is None:
            largest = max(int(files().labels.max()) for files in self._files.values())
            names = [str(number) for number in range(largest + 1)]
        return names

    def _read(self, train: bool) -> Images:
        if self.name == "Digits":
            images, labels = load_digits(train, self.image_size)
        elif self.cifar is not None:
            part = self.cifar[train]
            images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
            labels = torch.tensor(part.targets)
        else:
            if train not in self._files:
                raise DataError(f"{self.data_dir}: no train folder, whose images are needed")
            files = self._files[train]()
            if self.image_size > LARGEST_IN_MEMORY:
                return StreamedImages(files, self.preprocessing, self.workers, self._bad_images)
            images, labels = decode_once(files, self.image_size, self.cache, self._bad_images)
        return MemoryImages(images, labels, self.info.padding, self.info.flip)


def _part(files: Callable[[], ImageTree], root: Path, share: float, train: bool) -> ImageFiles:
    tree = files()
    names = [os.path.relpath(tree.name(row), root) for row in range(len(tree.labels))]
    rows = split_rows(names, tree.labels, share)
    return SomeFiles(tree, rows[0] if train else rows[1])


def _open_cifar(name: str, data_dir: Path, download: bool) -> dict[bool, Any]:
    import torchvision

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
