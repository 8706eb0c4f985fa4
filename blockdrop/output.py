"""Files that a command writes where a flag says: checked before the work, written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from blockdrop.errors import BlockdropError, require

UNABLE = (
    errno.EACCES, errno.EPERM, errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP,
    errno.EISDIR,
)  # fmt: skip
"""What systems say that can't sync a folder."""


def check_writable(flag: str, path: str | Path, overwrite: bool) -> None:
    """Raises `BlockdropError` if the file can't be written, or exists and may not be replaced."""
    path = Path(path)
    require(not os.path.isdir(path) and 0 < len(path.name) < 250, f"{flag} {path}: not a file name")
    require(overwrite or not os.path.exists(path), f"{flag} {path}: exists; pass --overwrite to replace it")
    require(os.path.isdir(path.parent), f"{flag} {path}: no folder {path.parent}")
    require(os.access(path.parent, os.W_OK), f"{flag} {path}: {path.parent} is not writable")


def check_folder(flag: str, path: str | Path) -> None:
    """Raises `BlockdropError` if the folder is none, or can't be made or written into."""
    folder = Path(path).resolve()
    there = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    if not (os.path.isdir(there) and os.access(there, os.W_OK) and len(folder.name) < 256):
        raise BlockdropError(f"{flag} {path}: not writable ({there}); name another folder")


def write_json(flag: str, path: str | Path, numbers: Any) -> None:
    """Writes the numbers.

    Raises:
        BlockdropError: the disk is full, the folder gone, ….
    """
    write_text(flag, path, json.dumps(numbers, indent=2) + "\n")


def write_text(flag: str, path: str | Path, text: str) -> None:
    """Writes a text, see `write_bytes`."""
    write_bytes(flag, path, text.encode())


def write_bytes(flag: str, path: str | Path, content: bytes) -> None:
    """Writes a file's content.

    Raises:
        BlockdropError: the disk is full, the folder gone, ….
    """
    try:
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise BlockdropError(f"{flag} {path}: not writable ({error.strerror})") from None


def write_whole(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file such that, whenever the process or the power dies, the path holds what it held before or all
    of the new content. A link under that name is replaced, never followed.

    Args:
        write: gets the file, open for bytes.
    Raises:
        OSError: and nothing has changed.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # what a crash left, or a link to somebody's file
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch.save hides a full disk behind a RuntimeError of its own
        raise
    sync(path.parent)


def open_own(path: str | Path, flags: int) -> int:
    """A descriptor of a file that isn't a link to another one.

    Raises:
        OSError: it is, or anything else; the message names the file.
    """
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def sync(path: str | Path) -> None:
    """Returns when the disk holds what was written to the file, or which files the folder has; of a folder on a
    system that can't say so, at once."""
    if os.path.isdir(path):
        try:
            _sync(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in UNABLE:
                raise
    else:
        _sync(path, os.O_RDWR)  # Windows wants a file that may be written


def _sync(path: str | Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
