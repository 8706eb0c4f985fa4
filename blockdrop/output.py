"""Files that a command writes where a flag says: checked before the work, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from blockdrop.errors import UserError, require


def check_writable(flag: str, path: str | Path, overwrite: bool) -> None:
    """Raises `UserError` if the file can't be written, or exists and may not be replaced."""
    path = Path(path)
    require(not os.path.isdir(path) and 0 < len(path.name) < 250, f"{flag} {path}: not a file name")
    require(overwrite or not os.path.exists(path), f"{flag} {path}: exists; pass --overwrite to replace it")
    require(os.path.isdir(path.parent), f"{flag} {path}: no folder {path.parent}")
    require(os.access(path.parent, os.W_OK), f"{flag} {path}: {path.parent} is not writable")


def write_json(flag: str, path: str | Path, numbers: Any) -> None:
    """Writes the numbers.

    Raises:
        UserError: the disk is full, the folder gone, ….
    """
    write_text(flag, path, json.dumps(numbers, indent=2) + "\n")


def write_text(flag: str, path: str | Path, text: str) -> None:
    """Writes a text.

    Raises:
        UserError: the disk is full, the folder gone, ….
    """
    try:
        write_whole(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(f"{flag} {path}: not writable ({error.strerror})") from None


def write_whole(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file such that, whenever the process or the power dies, the path holds what it held before or all
    of the new content.

    Args:
        write: gets the file, open for bytes.
    Raises:
        OSError: and nothing has changed.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: str | Path) -> None:
    """Returns when the disk holds what was written to the file, or which files the folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
