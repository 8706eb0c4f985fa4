"""Data as users bring them to Python's `train` and `evaluate`: made into `Images` and `Data`."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Subset

from blockdrop.data.checks import Wanted
from blockdrop.data.files import left_out
from blockdrop.data.images import Data, Images
from blockdrop.data.own import OwnImages
from blockdrop.data.source import DataSource
from blockdrop.errors import DataError

LISTED = 3
"""So many classes are named in a line."""


@dataclass(frozen=True)
class OwnData:
    """Training and test images of a user's own; `as_data` makes it of data sets and loaders."""

    train: Images
    test: Images
    classes: Sequence[str]
    """Names in label order."""
    name: str = "own data"

    @property
    def num_classes(self) -> int:
        """How many classes."""
        return len(self.classes)

    @property
    def bad_images(self) -> list[tuple[str, str]]:
        """Names of the images left out so far, in order, and what was wrong with them."""
        parts = [getattr(images, "bad_images", None) or {} for images in (self.train, self.test)]
        return sorted({**parts[0], **parts[1]}.items())

    @property
    def left_out(self) -> str | None:
        """One line that counts and names them; None if there is none."""
        return left_out(self.bad_images)


def as_images(data: Any, image_size: int, num_classes: int, *, workers: int = 0, name: str = "data") -> Images:
    """What a user brings to be tested on, or to learn from; a few items are looked at.

    Args:
        data: a Dataset or DataLoader as `OwnImages` takes it; a part of a `DataSource`, such as its `test`; a
            DataSource or an `OwnData`, which stands for its test images.
        image_size, num_classes: the network's.
        workers: processes that read a Dataset; a DataLoader has its own.
        name: for messages.
    Raises:
        DataError: no such thing; images of another size, labels of no class.
    """
    if isinstance(data, DataSource | OwnData):
        data = data.test
    if not _is_images(data):
        return OwnImages(data, image_size, num_classes, workers=workers, name=name).look()
    if data.image_size != image_size:
        raise DataError(
            f"{name}: images of {data.image_size} px; the network takes {image_size}: make the data with "
            f"image_size={image_size}"
        )
    if not isinstance(data, OwnImages):  # which looks at labels by itself
        Wanted(image_size, num_classes, name).check_range(data.labels, "labels")
    return data


def as_data(
    train_data: Any,
    test_data: Any = None,
    *,
    image_size: int,
    num_classes: int,
    classes: Sequence[str] | None = None,
    workers: int = 0,
    name: str = "own data",
) -> Data:
    """What a user brings to learn from and to be tested on.

    Args:
        train_data, test_data: each as for `as_images`; or for the two a `DataSource` or an `OwnData` alone.
        image_size, num_classes: the network's.
        classes: names in label order; default: the data set's `classes`, else "0", "1", ….
        workers: processes that read a Dataset; a DataLoader has its own.
        name: for messages.
    Raises:
        DataError: as `as_images`; a data set with other classes than the network, or than the other one.
    """
    if isinstance(train_data, DataSource | OwnData):
        if test_data is not None:
            raise DataError(
                "test_data: train_data holds test images already; leave test_data out, or pass "
                "train_data=source.train"
            )
        for part in ("train", "test"):
            as_images(getattr(train_data, part), image_size, num_classes, name=f"train_data.{part}")
        _check_names({"train_data": list(train_data.classes)}, num_classes, classes)
        return train_data
    if test_data is None:
        raise DataError("test_data: missing; give the images that the network is tested on")
    own = {"train_data": class_names(train_data), "test_data": class_names(test_data)}
    named = {part: names for part, names in own.items() if names is not None}
    _check_names(named, num_classes, classes)
    train, test = (
        as_images(data, image_size, num_classes, workers=workers, name=part)
        for part, data in (("train_data", train_data), ("test_data", test_data))
    )
    numbers = [str(number) for number in range(num_classes)]
    return OwnData(train, test, list(classes or next(iter(named.values()), numbers)), name)


def class_names(data: Any) -> list[str] | None:
    """Those that a data set, or a loader's, has as `classes`, in label order; None if it has none."""
    dataset = data.dataset if isinstance(data, DataLoader | OwnImages) else data
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return list(names)


def identify(data: Data) -> dict[str, Any]:
    """What a resumed run must find again, as plain values."""
    names = hashlib.sha256("\n".join(data.classes).encode("utf-8", "surrogatepass")).hexdigest()
    facts: dict[str, Any] = {"training": len(data.train), "test": len(data.test), "classes": names[:16]}
    if isinstance(data.train, OwnImages) and data.train.loader is not None:
        facts["loader"] = data.train.loader.summary
    return facts


def _is_images(data: Any) -> bool:
    return callable(getattr(data, "batches", None)) and callable(getattr(data, "count_batches", None))


def _check_names(named: Mapping[str, Sequence[str]], num_classes: int, classes: Sequence[str] | None) -> None:
    """Raises `DataError` where labels would mean other things than the network's outputs, or than each other.

    Args:
        named: class names by what has them.
        classes: the network's; then data may have others, as where one says "n02123045" and the other "tabby".
    """
    if classes is None:
        for part, names in named.items():
            _check_count(part, names, num_classes, "name the network's classes with classes=[…]")
    else:
        _check_count("classes", classes, num_classes, "name as many")
    every = {**named, **({} if classes is None else {"classes": classes})}
    for (part, names), (other, others) in itertools.combinations(every.items(), 2):
        odd = sorted(set(names) ^ set(others))
        if odd and "classes" not in (part, other):
            raise DataError(f"{part}, {other}: class {odd[0]!r} is in only one of them; mend one")
        if not odd and list(names) != list(others):
            raise DataError(f"{part}, {other}: the same classes in another order, so labels differ; mend one")


def _check_count(part: str, names: Sequence[str], num_classes: int, or_else: str) -> None:
    if len(names) != num_classes:
        listed = ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
        raise DataError(
            f"{part}: {len(names)} classes ({listed}); the network has {num_classes}: give it a head of "
            f"{len(names)}, or {or_else}"
        )
