"""Image trees, `<root>/<class>/…/<image>`, by an index that is made once and then only checked."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from PIL import Image

from blockdrop.data.cache import Arrays, Cache, Change, in_range, last_change
from blockdrop.data.files import ENDINGS, PARTS, Names, pack_names, read_image
from blockdrop.errors import DataError
from blockdrop.progress import progress

SCHEMA = {"folders": (np.uint8, 1), "changes": (np.int64, 2), "lengths": (np.int64, 1), "names": (np.uint8, 1)}
LISTED = 5
LITTER = ("__MACOSX", "@eaDir", "lost+found", "Thumbs.db", "desktop.ini")
"""What archivers, file servers and systems leave beside images."""


class Folder(NamedTuple):
    """A folder's own images."""

    path: str
    """From the root; its first part is the class."""
    change: Change
    """Another one when a name in the folder has changed."""
    names: np.ndarray
    """uint8: file names in order, as in `Names`."""


class ImageTree:
    """The images of a tree, in the order of torchvision's ImageFolder.

    A path takes as many bytes as the file's name has letters; see `open_tree`.

    Args:
        root: the folder of the class folders.
        classes: their names, in label order.
        folders: every folder below, in order, also those without images of their own.
    """

    def __init__(self, root: Path, classes: Sequence[str], folders: Sequence[Folder]):
        self.root = root
        self.folders = Names(_joined(pack_names([folder.path for folder in folders])))
        self.names = Names(np.concatenate([folder.names for folder in folders]))
        counts = np.array([np.count_nonzero(folder.names == 0) for folder in folders])
        self.ends = np.cumsum(counts)  # the row after each folder's last one
        numbers = {name: number for number, name in enumerate(classes)}
        self.labels = np.repeat([numbers[_class_of(folder)] for folder in folders], counts)

    def name(self, row: int) -> str:
        folder = int(np.searchsorted(self.ends, row, side="right"))
        return os.path.join(self.root, self.folders[folder], self.names[row])

    def read(self, row: int) -> Image.Image:
        return read_image(self.name(row))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.root.name.encode())
        for row, label in enumerate(self.labels):
            path = self.name(row)
            try:
                status = os.stat(path)
            except OSError:
                stamp = "unreadable"
            else:
                stamp = f"{status.st_size} {last_change(status)}"
            digest.update(os.fsencode(f"{os.path.relpath(path, self.root)} {label} {stamp}\n"))
        return digest.hexdigest()[:16]


def find_trees(data_dir: Path, known: Sequence[str] | None = None) -> tuple[dict[bool, Path], list[str]]:
    """The roots of training and test images, by whether it's training, and their classes in label order.

    Args:
        known: the classes, where only the test images are needed: training images may be missing then, and some
            of the classes in the test images. Empty: all of those are there.

    Raises:
        DataError: a folder is missing, empty or can't be read; the two have other classes.
    """
    if not os.path.isdir(data_dir):
        raise DataError(f"{data_dir}: no such folder; point --data_dir at the images")
    if known is not None:
        test = _part_folder(data_dir, PARTS[False])
        present = _class_folders(test)
        strange = [name for name in present if known and name not in known]
        if strange:
            raise DataError(
                f"{test}: class {strange[0]} is none of the checkpoint's: {', '.join(known[:LISTED])}, …"
            )
        return {False: test}, list(known) or present
    folders = {train: _part_folder(data_dir, names) for train, names in PARTS.items()}
    (classes, others) = (_class_folders(folder) for folder in folders.values())
    if classes != others:
        odd = sorted(set(classes) ^ set(others))[0]
        raise DataError(f"{data_dir}: class {odd} is in only one of train and {folders[False].name}")
    return folders, classes


def flat_classes(data_dir: Path) -> list[str]:
    """The classes of a folder that holds class folders and no parts.

    Raises:
        DataError: it has parts, or no class folders.
    """
    if not os.path.isdir(data_dir):
        raise DataError(f"{data_dir}: no such folder; point --data_dir at the images")
    if has_part(data_dir, train=True) or has_part(data_dir, train=False):
        raise DataError(f"--split: {data_dir} has parts already; leave it out")
    return _class_folders(data_dir)


def has_part(data_dir: Path, train: bool) -> bool:
    """Whether there is a folder of training (or test) images."""
    try:
        _part_folder(data_dir, PARTS[train])
    except DataError:
        return False
    return True


def _part_folder(data_dir: Path, names: Sequence[str]) -> Path:
    try:
        there = {entry.name.lower(): entry.name for entry in os.scandir(data_dir) if entry.is_dir()}
    except OSError as error:
        raise DataError(f"{data_dir}: can't be read ({error.strerror})") from None
    for name in names:
        if os.path.isdir(data_dir / name):
            return data_dir / name
        if name in there:  # Train, TEST, …
            return data_dir / there[name]
    parts = {name for either in PARTS.values() for name in either}
    inside = [name for name in there.values() if any(os.path.isdir(data_dir / name / part) for part in names)]
    meant = data_dir.parent if data_dir.name.lower() in parts else data_dir / inside[0] if inside else None
    hint = "" if meant is None else f"; --data_dir {meant} may be meant"
    shown = sorted(name for name in there.values() if not name.startswith("."))
    if meant is None and shown:
        hint = "; --split 0.2 keeps a fifth of the images of class folders for tests"
    found = ", ".join(shown[:LISTED]) or "no folder"
    wanted = "train" if "train" in names else " or ".join(names[:2])
    raise DataError(
        f"{data_dir}: no {wanted} folder (found {found}); expected train/<class>/… and "
        f"test/<class>/… (or val/), or archives train/*.tar and test/*.tar{hint}"
    )


def _class_folders(folder: Path) -> list[str]:
    try:
        folders = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError as error:
        raise DataError(f"{folder}: can't be read ({error.strerror})") from None
    classes = sorted(name for name in folders if not _is_litter(name))
    if not classes:
        raise DataError(f"{folder}: no class folders in it; expected {folder.name}/<class>/<image>")
    return classes


def open_tree(root: Path, classes: Sequence[str], cache: Cache, some: bool = False) -> ImageTree:
    """The images of the class folders and the folders in them.

    Args:
        some: whether classes may have no folder.

    Names come from the index that an earlier run left in the cache. It holds every folder's last change, which is
    compared: adding, removing or renaming a file is one. Class folders in which one differs are read again.

    Raises:
        DataError: a folder that can't be read, a class without images.
    """
    every = classes
    if some:
        classes = [name for name in classes if os.path.isdir(root / name)]
    with cache.entry(f"{root.name}-tree-3.npz") as entry:
        known: dict[str, list[Folder]] = entry.load(SCHEMA, _by_class) or {}
        stale = [name for name in classes if name not in known or not _unchanged(root, known[name])]
        others: Counter[str] = Counter()
        for name in progress(stale, f"listing {root.name}", len(stale), "folders") if stale else ():
            known[name] = _list_class(root, name, others)
        if others:
            most = sorted(others.items(), key=lambda item: (-item[1], item[0] or "~"))
            endings = ", ".join(f"{count:,} {ending or 'without one'}" for ending, count in most[:LISTED])
            files = f"{others.total():,} {'file' if others.total() == 1 else 'files'}"
            print(f"note: {root}: {files} left out, not named like images ({endings})")
        empty = [name for name in classes if not any(len(folder.names) for folder in known[name])]
        if empty:
            _refuse(root, empty)
        folders = [folder for name in classes for folder in known[name]]
        if stale or len(known) > len(classes):
            entry.save(
                folders=_joined(pack_names([folder.path for folder in folders])),
                changes=np.array([folder.change for folder in folders]),
                lengths=np.array([len(folder.names) for folder in folders]),
                names=np.concatenate([folder.names for folder in folders]),
            )
    return ImageTree(root, every, folders)


def _by_class(arrays: Arrays) -> dict[str, list[Folder]]:
    lengths, names = arrays["lengths"], arrays["names"]
    if not in_range(lengths, len(names)):  # else their sum may wrap
        raise ValueError("lengths that there can't be")
    ends = np.cumsum(lengths)
    if ends[-1] != len(names) or np.any(names[ends - 1]):
        raise ValueError("names don't fit their folders")
    paths = list(Names(arrays["folders"]))
    if len(set(paths)) != len(paths) or not all(map(_is_inside, paths)) or np.any(names == ord(os.sep)):
        raise ValueError("folders or files that no tree has")
    columns = paths, itertools.starmap(Change, arrays["changes"].tolist()), np.split(names, ends[:-1])
    folders = itertools.starmap(Folder, zip(*columns, strict=True))
    return {name: list(group) for name, group in itertools.groupby(folders, _class_of)}


def _is_inside(path: str) -> bool:
    """Whether a path from the root leads down alone, as those do that are listed."""
    return not {"", os.curdir, os.pardir} & set(path.split(os.sep))


def _class_of(folder: Folder) -> str:
    return folder.path.split(os.sep, 1)[0]


def _unchanged(root: Path, folders: Sequence[Folder]) -> bool:
    try:
        return all(last_change(os.stat(os.path.join(root, path))) == change for path, change, _ in folders)
    except OSError:
        return False


def _is_litter(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden, or what systems leave."""
    return name.startswith(".") or name in LITTER


def _list_class(root: Path, name: str, others: Counter[str]) -> list[Folder]:
    """
    Args:
        others: gets the endings of the files that aren't images.
    """
    started = time.time_ns()
    folders, visited = [], {}
    try:
        for path, below, files in os.walk(root / name, followlinks=True, onerror=_raise):
            below[:] = [folder for folder in below if not _is_litter(folder)]
            files = [file for file in files if not _is_litter(file)]
            visited[path] = status = os.stat(path)
            _check_no_way_back(path, visited)
            images = sorted(file for file in files if file.lower().endswith(ENDINGS))
            others.update(Path(file).suffix.lower() for file in files if not file.lower().endswith(ENDINGS))
            change = last_change(status, started)
            folders.append(Folder(os.path.relpath(path, root), change, _joined(pack_names(images))))
    except OSError as error:
        raise DataError(f"{error.filename}: can't be read ({error.strerror}); mend or remove it") from None
    return sorted(folders, key=lambda folder: folder.path)


def _check_no_way_back(path: str, visited: Mapping[str, os.stat_result]) -> None:
    above = path
    while (above := os.path.dirname(above)) in visited:
        if os.path.samestat(visited[above], visited[path]):
            raise DataError(f"{path}: a link back to {above}; remove it")


def _raise(error: OSError) -> NoReturn:
    raise error


def _refuse(root: Path, empty: Sequence[str]) -> NoReturn:
    listed = ", ".join(empty[:LISTED]) + (f" and {len(empty) - LISTED} more" if len(empty) > LISTED else "")
    expected = ", ".join(ENDINGS)
    raise DataError(f"{root}: no image in class folder {listed}; expected files that end in {expected}")


def _joined(names: bytes) -> np.ndarray:
    return np.frombuffer(names, np.uint8)
