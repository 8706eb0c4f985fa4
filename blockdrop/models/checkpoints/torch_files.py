"""The files that torch.save writes, read as data: zip archives, and the serialisation of before torch 1.6.

torch.load isn't asked, also not for `weights_only`: it takes the memory that a file claims before looking what the
file has, and calls more functions than weights need. Here every claim is held against the file's size first, so
reading takes time and memory in proportion to that.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from blockdrop.errors import CheckpointError
from blockdrop.models.checkpoints.tensor_pickle import LARGEST_PICKLE, one_line, read_pickle

LARGEST_FILE = 16 * 2**30
"""Bytes; a ResNet-152 with the state of its optimiser has a twentieth of that."""
MOST_SHARING = 8
"""Tensors may share their storages, but not have so many times what the file has."""
PIECE = 2**20
ZIP_START = b"PK\x03\x04"
PRE_16_START = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
"""Pickle header and magic number with which torch.save began its files before version 1.6."""
PRE_16_PROTOCOL = 1001


def read_torch_file(path: str | Path) -> Any:
    """What torch.save wrote, if it is plain: None, numbers, text, lists, tuples, dicts and tensors (on the CPU).

    Ordered dicts and counters come back as dicts, devices and dtypes by their names. Zip archives carry checksums,
    which are compared; older files don't, unless their name ends in their hash (`resnet18-f37072fd.pth`).

    Raises:
        CheckpointError: it can't be read, is damaged or foreign, or would run code if torch's or Python's own
            functions read it.
    """
    try:
        with _InPieces(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_FILE:
                raise CheckpointError(f"has {size} bytes; no checkpoint has more than {LARGEST_FILE}")
            _check_hash(file, Path(path).name)
            is_zip = file.read(len(ZIP_START)) == ZIP_START
            file.seek(0)
            return _read_zip(file, size) if is_zip else _read_pre_16(file, size)
    except CheckpointError as error:
        reason = str(error)
    except OSError as error:
        reason = f"can't be read ({error.strerror or error})"
    except MemoryError:
        reason = "takes more memory than there is"
    except zipfile.BadZipFile as error:
        reason = f"damaged ({one_line(error)})"
    except Exception as error:  # whatever a malformed pickle may lead to
        reason = f"damaged, or not a torch checkpoint ({one_line(error)})"
    raise CheckpointError(f"{path}: {reason}")


class _InPieces(io.FileIO):
    """A file that takes no more memory at once than a piece of it may, whatever length it claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > LARGEST_PICKLE:
            raise CheckpointError(f"damaged (an index of {size} bytes)")
        return super().read(size) or b""


def _empty(num_bytes: int) -> Tensor:
    """uint8 (num_bytes,). Raises `MemoryError`."""
    return torch.from_numpy(np.empty(num_bytes, np.uint8)).as_strided((num_bytes,), (1,))


def _fill(storage: Tensor, source: IO[bytes] | io.FileIO) -> None:
    """Reads a storage's bytes, to the last."""
    left = storage.view(torch.uint8).numpy().data
    while left:
        piece = source.read(min(len(left), PIECE))
        if not piece:
            raise EOFError("the file ends within a tensor")
        left[: len(piece)] = piece
        left = left[len(piece) :]


def _check_hash(file: io.FileIO, name: str) -> None:
    named = re.search(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.(?:th|pth|pt|t7)$", name)  # a hash and no date
    if named and not hashlib.file_digest(file, "sha256").hexdigest().startswith(named[1]):
        raise CheckpointError("damaged (its content doesn't have the hash that its name promises)")
    file.seek(0)


# ---- zip archives


def _read_zip(file: io.FileIO, size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise CheckpointError("refused: a TorchScript program, which is code; save the state dict alone")
        entries = _checked_entries(archive)
        if "data.pkl" not in entries:
            raise CheckpointError("damaged, or not a torch checkpoint (an archive without data.pkl)")
        if "byteorder" in entries and archive.read(entries["byteorder"]).decode() != sys.byteorder:
            raise CheckpointError("written by a machine of another byte order; save it on one like this")
        storages: dict[str, Tensor] = {}  # of bytes

        def load_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in storages:
                entry = entries[f"data/{key}"]
                storage = _empty(entry.file_size)
                with archive.open(entry) as source:
                    _fill(storage, source)
                storages[key] = storage
            stored = len(storages[key]) // dtype.itemsize
            if count != stored:
                raise CheckpointError(f"damaged (storage {one_line(key)} claims {count} values and has {stored})")
            return storages[key][: count * dtype.itemsize].view(dtype)

        index = io.BytesIO(archive.read(entries["data.pkl"]))
        return read_pickle(index, load_storage, MOST_SHARING * size)


def _checked_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """An archive's entries by their name within its one folder, each stored as it is and apart from the others."""
    entries: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        folder, _, name = entry.filename.partition("/")
        shown = one_line(entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError("a compressed archive, not a torch checkpoint")
        if {"", ".", ".."} & {folder, *name.split("/")} or "\\" in entry.filename:
            raise CheckpointError(f"refused: an archive with an entry called {shown}, not a torch checkpoint")
        if name in entries:
            raise CheckpointError(f"refused: an archive with two entries called {shown}")
        if entry.header_offset < end:
            raise CheckpointError(f"refused: an archive with overlapping entries ({shown})")
        end = entry.header_offset + entry.compress_size
        entries[name] = entry
    if end > archive.start_dir:
        raise CheckpointError("damaged (entries that reach into the archive's directory)")
    return entries


# ---- before torch 1.6


def _read_pre_16(file: io.FileIO, size: int) -> Any:
    """Five pickles (magic number, protocol, system, content, keys of the storages), then the storages."""
    index = io.BytesIO(file.read(min(size, LARGEST_PICKLE)))
    _check_start(index.getvalue()[:512])
    storages: dict[str, Tensor] = {}
    free = size

    def load_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        """Its memory, to be filled: the storages come after the pickles."""
        nonlocal free
        if key not in storages:
            free -= count * dtype.itemsize
            if free < 0:
                raise CheckpointError(f"damaged (storage {one_line(key)} claims {count} values, too many)")
            storages[key] = _empty(count * dtype.itemsize).view(dtype)
        if (storages[key].dtype, len(storages[key])) != (dtype, count):
            raise CheckpointError(f"damaged (storage {one_line(key)} is described in two ways)")
        return storages[key]

    _, protocol, _ = (read_pickle(index, _no_storage) for _ in range(3))
    if protocol != PRE_16_PROTOCOL:
        raise CheckpointError(f"damaged (serialisation protocol {one_line(protocol)})")
    content = read_pickle(index, load_storage, MOST_SHARING * size)
    keys = read_pickle(index, _no_storage)
    file.seek(index.tell())
    for key in keys:
        storage = storages.pop(key)
        (count,) = struct.unpack("<q", file.read(8))
        if count != len(storage):
            raise CheckpointError(f"damaged (storage {one_line(key)} has {count} values, not {len(storage)})")
        _fill(storage, file)
    if storages:
        raise CheckpointError(f"damaged (storage {one_line(next(iter(storages)))} is missing)")
    return content


def _check_start(start: bytes) -> None:
    if start[2 : len(PRE_16_START)] == PRE_16_START[2:]:
        return
    if start.startswith(b"\x80"):
        raise CheckpointError("refused: a bare pickle, which would run code; not made by torch.save")
    if start[257:262] == b"ustar":
        raise CheckpointError("refused: a tar archive, as torch 0.1 wrote them; save it again with a newer torch")
    raise CheckpointError("damaged, or not a torch checkpoint")


def _no_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
    raise ValueError("a tensor in the file's header")
