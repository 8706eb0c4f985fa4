"""Image sets in tar archives, as WebDataset lays them out (Aizman et al., 2020, https://arxiv.org/abs/2001.01858).

Files of a tar whose paths are the same up to the first dot of the file's name are one sample: `key.jpg`, and in
`key.cls` its label as a number. The webdataset library reads such archives from front to back and shuffles what a
buffer holds. Here every image's place is looked up once, and images are then read where they lie: any order, any
part of an epoch and going on within one work as with files, and nothing is unpacked.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from blockdrop.data.cache import INT64_MAX, Arrays, Cache, Change, in_range, last_change
from blockdrop.data.files import ENDINGS, LARGEST_FILE, PARTS, Names, decode_image, pack_names
from blockdrop.errors import DataError
from blockdrop.progress import progress

SCHEMA = {
    "shards": (np.uint8, 1),
    "stamps": (np.int64, 2),
    "members": (np.uint8, 1),
    "places": (np.int64, 2),
    "labels": (np.int64, 1),
}
LARGEST_LABEL = 999_999
LARGEST_LABEL_FILE = 64
LARGEST_HEADER = 64 << 10
MOST_GLOBAL_HEADERS = 64
"""tarfile copies them for every member."""
LARGEST_CLASS_LIST = 16 << 20
LABEL = re.compile(rb"\s*(\d{1,6})\s*")
KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
PACKED_BEGINNINGS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Archives(NamedTuple):
    """The archives of a part of a data set."""

    part: str
    paths: Sequence[Path]


class Shard(NamedTuple):
    """A tar archive and where its images lie."""

    name: str
    size: int
    change: Change
    """Its time is `UNSETTLED` if it may still be written to."""
    members: np.ndarray
    """uint8: the images' paths in the archive, as in `Names`."""
    places: np.ndarray
    """int64 (M, 2): offset and size in bytes."""
    labels: np.ndarray
    """int64 (M,)."""


class TarImages:
    """The images of several tar archives, one after the other; see `open_shards`."""

    def __init__(self, paths: Sequence[Path], shards: Sequence[Shard]):
        self.paths = paths
        self.ends = np.cumsum([len(shard.labels) for shard in shards])  # the row after each shard's last one
        self.members = Names(np.concatenate([shard.members for shard in shards]))
        self.places = np.concatenate([shard.places for shard in shards])
        self.labels = np.concatenate([shard.labels for shard in shards])

    def name(self, row: int) -> str:
        return f"{self._path(row)}/{self.members[row]}"

    def read(self, row: int) -> Image.Image:
        offset, size = self.places[row].tolist()
        path = self._path(row)
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise _unreachable(path, error) from None
        if len(content) != size:
            raise DataError(f"{path}: has changed since training began; start again")
        return decode_image(io.BytesIO(content), self.name(row))

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                status = path.stat()
            except OSError as error:
                raise _unreachable(path, error) from None
            digest.update(repr((path.name, status.st_size, *last_change(status))).encode())
        return digest.hexdigest()[:16]

    def _path(self, row: int) -> Path:
        return self.paths[int(np.searchsorted(self.ends, row, side="right"))]


def find_shards(data_dir: Path) -> dict[bool, Archives] | None:
    """The archives of training and test images, by whether it's training; None if there are none.

    They are `train/*.tar`, where `train` has no folders in it, or `train-*.tar` where there is no such folder; in
    order of their names.

    Raises:
        DataError: compressed archives; none for the test; a folder that can't be read.
    """
    training = _archives(data_dir, "train")
    if training is None:
        return None
    for name in PARTS[False]:
        if test := _archives(data_dir, name):
            return {True: training, False: test}
    raise DataError(f"{data_dir}: no archives to test on; expected test/*.tar or val/*.tar")


def _archives(data_dir: Path, part: str) -> Archives | None:
    folder, beginning = (data_dir / part, "") if os.path.isdir(data_dir / part) else (data_dir, f"{part}-")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if os.path.isdir(folder) else []
    except OSError as error:
        raise DataError(f"{folder}: can't be read ({error.strerror})") from None
    if not beginning and any(entry.is_dir() for entry in entries):
        return None  # an image tree
    paths = [folder / entry.name for entry in entries if entry.name.startswith(beginning)]
    for path in paths:
        if path.name.endswith(PACKED):
            raise _packed_shard(path)
    archives = [path for path in paths if path.suffix == ".tar"]
    return Archives(part, archives) if archives else None


def open_shards(archives: Archives, cache: Cache, num_classes: int | None = None) -> TarImages:
    """The images of the archives, in order.

    Their places come from the index that an earlier run left in the cache. Archives that are new, or whose size or
    last change differs, are looked through again.

    Args:
        num_classes: how many labels there are; None: as many as it takes.
    Raises:
        DataError: an archive that is damaged or compressed; an image without a label, or a label without an image;
            a key that stands twice; a label out of range; files of absurd size; no sample at all.
    """
    part, paths = archives
    with cache.entry(f"{part}-shards-2.npz") as entry:
        known: dict[str, Shard] = entry.load(SCHEMA, _by_name) or {}
        stale = [path for path in paths if path.name not in known or not _unchanged(path, known[path.name])]
        for path in progress(stale, f"listing {part}", len(stale), "archives") if stale else ():
            known[path.name] = _list_shard(path)
        shards = [known[path.name] for path in paths]
        if stale or len(known) > len(shards):
            entry.save(
                shards=np.frombuffer(pack_names([shard.name for shard in shards]), np.uint8),
                stamps=np.array([(shard.size, len(shard.labels), *shard.change) for shard in shards]),
                members=np.concatenate([shard.members for shard in shards]),
                places=np.concatenate([shard.places for shard in shards]),
                labels=np.concatenate([shard.labels for shard in shards]),
            )
    images = TarImages(paths, shards)
    if not len(images.labels):
        raise DataError(f"{paths[0]}: no sample in it or any other; expected KEY.jpg and KEY.cls, its label")
    if num_classes is not None and images.labels.max() >= num_classes:
        row = int(images.labels.argmax())
        label = images.labels[row]
        raise DataError(f"{images.name(row)}: has label {label}, but classes.txt has {num_classes} lines")
    return images


def read_class_names(archives: Archives) -> list[str] | None:
    """The lines of `classes.txt` beside the archives, or in the folder above; None if there is no such file.

    Raises:
        DataError: it can't be read.
    """
    beside = archives.paths[0].parent
    for folder in (beside, beside.parent):
        path = folder / "classes.txt"
        try:
            if path.stat().st_size > LARGEST_CLASS_LIST:
                raise DataError(f"{path}: {path.stat().st_size:,} bytes; expected one class name a line")
            return path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: can't be read ({error}); expected one class name a line") from None
    return None


def _by_name(arrays: Arrays) -> dict[str, Shard]:
    (sizes, counts), changes = arrays["stamps"][:, :2].T, arrays["stamps"][:, 2:].tolist()
    (offsets, lengths), labels = arrays["places"].T, arrays["labels"]
    members = Names(arrays["members"])
    if not (in_range(sizes, INT64_MAX) and in_range(counts, len(offsets))):  # else their sum may wrap
        raise ValueError("archives that there can't be")
    if not (in_range(lengths, LARGEST_FILE) and in_range(labels, LARGEST_LABEL)):
        raise ValueError("images or labels out of range")
    ends = np.cumsum(counts)
    if not ends[-1] == len(offsets) == len(labels) == len(members):
        raise ValueError("images don't fit their archives")
    if not in_range(offsets, INT64_MAX) or np.any(offsets > np.repeat(sizes, counts) - lengths):
        raise ValueError("images outside their archives")
    name_ends = np.append(0, members.ends + 1)[ends]
    columns = (
        Names(arrays["shards"]), sizes.tolist(), itertools.starmap(Change, changes),
        np.split(members.buffer, name_ends[:-1]), np.split(arrays["places"], ends[:-1]),
        np.split(labels, ends[:-1]),
    )  # fmt: skip
    return {shard.name: shard for shard in itertools.starmap(Shard, zip(*columns, strict=True))}


def _unchanged(path: Path, shard: Shard) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, last_change(status)) == (shard.size, shard.change)


def _list_shard(path: Path) -> Shard:
    started = time.time_ns()
    members, places, labels = [], [], []
    try:
        with _HeaderReader(path) as file:
            status = os.fstat(file.fileno())
            if file.read(8).startswith(PACKED_BEGINNINGS):
                raise _packed_shard(path)
            file.seek(0)
            for image, label in _samples(path, file):
                members.append(image.name.replace("\0", ""))
                places.append((image.offset_data, image.size))
                labels.append(label)
    except OSError as error:
        raise _unreachable(path, error) from None
    return Shard(
        path.name,
        status.st_size,
        last_change(status, started),
        np.frombuffer(pack_names(members), np.uint8),
        np.array(places, np.int64).reshape(-1, 2),
        np.array(labels, np.int64),
    )


def _samples(path: Path, file: _HeaderReader) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Images with their labels."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    done: set[str] = set()
    for member in _files(path, file):
        parts = KEY.fullmatch(member.name)
        if parts is None:
            continue
        key, suffix = parts.groups()
        if f".{suffix.lower()}" in (".cls", *ENDINGS) and key in done:
            raise DataError(f"{path}: {key} stands in it twice; pack it anew, every key once")
        if suffix.lower() == "cls":
            if key in labels:
                raise DataError(f"{path}: {key} has two labels; pack it anew with one")
            labels[key] = _read_label(path, file, member)
        elif f".{suffix.lower()}" in ENDINGS:
            if key in images:
                raise DataError(f"{path}: {images[key].name} and {member.name} are one sample; expected one image")
            if member.size > LARGEST_FILE:
                most = f"an image may have {LARGEST_FILE >> 20} MiB"
                raise DataError(f"{path}: {member.name} has {member.size:,} bytes; {most}")
            images[key] = member
        if key in images and key in labels:
            done.add(key)
            yield images.pop(key), labels.pop(key)
    for key in (*images, *labels):
        missing = "label" if key in images else "image"
        raise DataError(
            f"{path}: {key} has no {missing}; expected {key}.cls and {key}.jpg (or .png, …) in one archive"
        )


def _files(path: Path, file: _HeaderReader) -> Iterator[tarfile.TarInfo]:
    """Plain files of the archive: no folders, links, devices or files with holes."""
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            end = 0
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all, maybe a million
                if member.size < 0 or not end < archive.offset <= size:
                    raise tarfile.ReadError(f"cut off in {member.name}")
                end = archive.offset
                if len(archive.pax_headers) > MOST_GLOBAL_HEADERS:
                    raise tarfile.ReadError(f"{len(archive.pax_headers):,} global headers")
                if member.isreg() and not member.issparse():
                    yield member
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no end mark at byte {archive.offset:,}")
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, RecursionError):  # tarfile calls itself for every header before a member
            error = tarfile.ReadError("too many headers of one member")
        raise DataError(f"{path}: damaged, or not a tar archive ({error}); make or fetch it again") from None


def _read_label(path: Path, file: _HeaderReader, member: tarfile.TarInfo) -> int:
    found = None
    if member.size <= LARGEST_LABEL_FILE:
        file.seek(member.offset_data)
        found = LABEL.fullmatch(file.read(member.size))
    if found is None:
        raise DataError(f"{path}: {member.name} is no label; expected a number from 0 to {LARGEST_LABEL} as text")
    return int(found[1])


class _HeaderReader(io.FileIO):
    """A file of which no more is read at once than a header may be long, whatever the header says."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size)


def _unreachable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: can't be read ({error.strerror}); mend that, and start again")


def _packed_shard(path: Path) -> DataError:
    return DataError(f"{path}: compressed, so that images can't be read where they lie; decompress it to a .tar")
