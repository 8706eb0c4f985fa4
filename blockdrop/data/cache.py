"""What was worked out from a data folder and is kept for the next run: plain arrays, never code."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from filelock import FileLock

from blockdrop.output import write_whole

Arrays = Mapping[str, np.ndarray]
Schema = Mapping[str, tuple[type, int]]
"""The arrays of a file: type and number of dimensions by name."""
Parsed = TypeVar("Parsed")
CHUNK = 16 << 20
SETTLED = 2_000_000_000
"""Nanoseconds. File systems stamp changes by clocks that tick up to this slowly, so of what changed so shortly
before it was looked at, a later change may bear the same stamp."""
UNSETTLED = -1
INT64_MAX = (1 << 63) - 1


class Cache:
    """Files in `<data_dir>/.blockdrop-cache`, or in a folder of the run's if that can't be written.

    Args:
        data_dir: what the files are about.
        run_folder: where they are written if they can't be written there.
    """

    def __init__(self, data_dir: Path, run_folder: Path | None = None):
        self.places = [(data_dir / ".blockdrop-cache", "")]
        if run_folder is not None:
            about = hashlib.sha256(os.fsencode(os.path.abspath(data_dir))).hexdigest()[:8]
            self.places.append((run_folder, f"{about}-"))  # the run may go on with data that lie elsewhere

    @contextlib.contextmanager
    def entry(self, name: str) -> Iterator[Entry]:
        """A file of the cache, locked, so that of processes that start together one does the work."""
        writable = (place for place in self.places if _is_writable(*place))
        own = next((folder / f"{prefix}{name}" for folder, prefix in writable), None)
        there = [folder / f"{prefix}{name}" for folder, prefix in self.places]
        with _locked(own) if own else contextlib.nullcontext():
            yield Entry(own, [own, *(path for path in there if path != own)] if own else there)


class Entry:
    """A file of the cache.

    Args:
        own: where it can be written, if anywhere.
        readable: where it may be found, best first.
    """

    def __init__(self, own: Path | None, readable: list[Path]):
        self.own, self.readable = own, readable

    def load(self, schema: Schema, parse: Callable[[Arrays], Parsed]) -> Parsed | None:
        """What `parse` makes of the arrays; None if there are none, or (with a warning) if they are damaged.

        Args:
            parse: raises ValueError if the arrays don't fit together.
        """
        for path in self.readable:
            try:
                return parse(load_arrays(path, schema))
            except OSError:
                continue  # not there, or not ours to read
            except Exception as error:
                warnings.warn(f"{path}: damaged cache, made anew ({error})", stacklevel=3)
        return None

    def save(self, **arrays: np.ndarray) -> None:
        """Keeps the arrays, if they can be written."""
        if self.own is None:
            return
        try:
            write_whole(self.own, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        except OSError as error:
            warnings.warn(f"{self.own}: not kept for the next run ({error})", stacklevel=3)


def load_arrays(path: Path, schema: Schema) -> Arrays:
    """An uncompressed .npz file. Takes no more memory than the file has bytes, and runs no code from it.

    Raises:
        OSError: as it is.
        ValueError, zipfile.BadZipFile: damaged, or other arrays than those of the schema.
    """
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members.values())
        if not stored or sum(member.file_size for member in members.values()) > os.path.getsize(path):
            raise ValueError("not stored plainly")
        if members.keys() != schema.keys():
            raise ValueError(f"holds {', '.join(members)} instead of {', '.join(schema)}")
        return {name: _load_array(archive, members[name], *kind) for name, kind in schema.items()}


def _load_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, wanted: type, dimensions: int) -> np.ndarray:
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{member.filename}: of a later format")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype != np.dtype(wanted) or len(shape) != dimensions or fortran_order:
            raise ValueError(f"{member.filename}: {dtype} {shape}")
        if size != member.file_size - file.tell():
            raise ValueError(f"{member.filename}: {shape} doesn't fit {member.file_size} bytes")
        array = np.empty(shape, dtype)
        content = array.reshape(-1).view(np.uint8)
        for start in range(0, size, CHUNK):  # the last one also compares the checksum
            content[start : start + CHUNK] = np.frombuffer(file.read(min(CHUNK, size - start)), np.uint8)
        return array


class Change(NamedTuple):
    """By what a file or folder that has changed differs from what it was.

    Programs that copy and unpack set the time of change to that of the original, so it alone says too little.
    """

    mtime_ns: int
    """`UNSETTLED` if a later change may bear the same time."""
    ctime_ns: int
    """When anything of it last changed, its times included; no program sets this."""
    inode: int


def last_change(status: os.stat_result, looked_at_ns: int | None = None) -> Change:
    """The last change of a file or folder.

    Args:
        looked_at_ns: when it was looked at, if what it held then is to be kept.
    """
    recent = looked_at_ns is not None and status.st_mtime_ns >= looked_at_ns - SETTLED
    inode = status.st_ino & INT64_MAX  # some file systems use all 64 bits
    return Change(UNSETTLED if recent else status.st_mtime_ns, status.st_ctime_ns, inode)


def in_range(numbers: np.ndarray, most: int) -> bool:
    """Whether all are from 0 to `most`: of counts in a file to be asked before they are added or counted by."""
    return bool(np.all((numbers >= 0) & (numbers <= most)))


def _is_writable(folder: Path, prefix: str) -> bool:
    run_folder = bool(prefix)  # else data that have vanished would come back as an empty folder
    try:
        folder.mkdir(parents=run_folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire()
    except (OSError, NotImplementedError):  # a file system without locks: at worst the work is done twice
        yield
        return
    try:
        yield
    finally:
        lock.release()
