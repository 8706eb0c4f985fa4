"""Files that a command writes where a flag says: checked before the work, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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
    temporary = Path(f"{path}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{flag} {path}: not writable ({error.strerror})") from None
