"""Things as text within an HTML file: arrays, thumbnails."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from typing import Any

import numpy as np
from PIL import Image

SHEET_SIDE = 1024
"""Pixels, at most: phones refuse or shrink very large images."""
LOSSLESS_SHEETS = 3_000_000
"""Bytes of all sheets up to which they stay lossless."""


def as_text(text: str) -> str:
    """Any text as HTML that shows it. Halves of surrogate pairs, as in names of undecodable files, become "?"."""
    return html.escape(text.encode("utf-8", "replace").decode())


def as_json(data: Any) -> str:
    """JSON that may stand in a script element: no text in it can end the element or begin a comment.

    >>> as_json(["</script>"])
    '["\\\\u003c/script>"]'
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def packed(array: np.ndarray) -> dict[str, str]:
    """An array's bytes, little-endian, row after row; the reader knows the shape."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {"type": array.dtype.name, "base64": base64.b64encode(little.tobytes()).decode()}


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def sprite_sheets(thumbnails: np.ndarray) -> tuple[list[str], dict[str, int]]:
    """Small images side by side on few large ones, PNG if that is small, else JPEG.

    Args:
        thumbnails: uint8 (N, 3, S, S).
    Returns:
        The sheets as data URIs, and where an image stands: `size` S, `cell` the distance of neighbours in pixels,
        `columns` of a sheet, `perSheet` images on each but the last.
    """
    images, _, size, _ = thumbnails.shape
    cell = -(-size // 8) * 8  # JPEG codes squares of 8 pixels: so none holds parts of two images
    columns = min(images, SHEET_SIDE // cell)
    margin = (0, cell - size)
    cells = np.pad(thumbnails, ((0, 0), (0, 0), margin, margin), mode="edge").transpose(0, 2, 3, 1)  # (N, c, c, 3)
    parts = [cells[start : start + columns**2] for start in range(0, images, columns**2)]
    sheets = [_sheet(part, columns) for part in parts]
    kind, contents = "image/png", [_encoded(sheet, "PNG") for sheet in sheets]
    if sum(map(len, contents)) > LOSSLESS_SHEETS:
        kind, contents = "image/jpeg", [_encoded(sheet, "JPEG", quality=90, subsampling=0) for sheet in sheets]
    place = {"size": size, "cell": cell, "columns": columns, "perSheet": columns**2}
    return [data_uri(kind, content) for content in contents], place


def _sheet(cells: np.ndarray, columns: int) -> Image.Image:
    count, cell = cells.shape[:2]
    rows = -(-count // columns)
    filled = np.zeros((rows * columns, cell, cell, 3), dtype=np.uint8)
    filled[:count] = cells
    grid = filled.reshape(rows, columns, cell, cell, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(grid.reshape(rows * cell, columns * cell, 3))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def content_hash(text: str) -> str:
    """How a Content-Security-Policy names an inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
