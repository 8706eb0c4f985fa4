"""Images as they lie on disk: how one is read, what is said about a bad one, how a million are named."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from blockdrop.errors import DataError

ENDINGS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".jpe", ".jfif", ".gif",
)  # fmt: skip
"""Of image files: torchvision's, and others that `FORMATS` can hold."""
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
"""What a file may hold, whatever its name: Pillow would hand PostScript over to an interpreter."""
ORIENTATION = 0x0112
"""The EXIF tag."""
LARGEST_FILE = 256 << 20
"""Bytes of an image file: some formats are read whole."""
LARGEST_RESIZED = 100_000_000
"""Pixels that an image may have after its short side is resized: a thin strip grows without bound."""
FAULTS_OF_A_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP)
"""Other errors of the system may be gone a moment later, so no image is left out for them."""
PARTS = {True: ("train", "training"), False: ("test", "val", "valid", "validation", "testing")}
"""Names of the parts of a data set: training and test."""
LISTED = 10
"""So many bad images are named in a line."""


class ImageFiles(Protocol):
    """Images on disk, by row, with what is needed to find them packed into a few arrays.

    Attributes:
        labels: int64 (M,).
    """

    labels: np.ndarray

    def name(self, row: int) -> str:
        """Where the image lies."""

    def read(self, row: int) -> Image.Image:
        """The image as RGB; raises as `read_image`."""

    def fingerprint(self) -> str:
        """Changes whenever an image comes, goes or is written."""


class UnreadableImageError(DataError):
    """An image whose own file is at fault: missing, damaged, no image. `--skip_bad_images` leaves it out."""

    def __init__(self, name: str, reason: str):
        super().__init__(
            f"{name}: not a readable image ({reason}); remove or replace it, or pass --skip_bad_images"
        )
        self.name, self.reason = name, reason


def none_readable(count: int, whole: str, first: UnreadableImageError) -> DataError:
    """What is said where leaving out bad images would leave nothing.

    Args:
        whole: what the images are all of.
        first: what is wrong with the first of them.
    """
    none = f"none of the {count:,} images of {whole} can" if count > 1 else f"the only image of {whole} can't"
    more = ", …" if count > 1 else ""
    return DataError(f"{none} be read: {first.name} ({first.reason}){more}; see that the data are all there")


def read_image(path: str | Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        UnreadableImageError: it is missing, too large, or can't be decoded.
        DataError: the machine can't read it (now), or its folder is gone.
    """
    name = str(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise _system_error(name, error) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError(name, "not a file")
    if status.st_size > LARGEST_FILE:
        raise UnreadableImageError(name, f"{status.st_size:,} bytes, over {LARGEST_FILE >> 20} MiB")
    return decode_image(path, name)


def decode_image(file: str | Path | IO[bytes], name: str) -> Image.Image:
    """The image in a file as RGB, as a viewer shows it: turned as its EXIF data say, transparent parts on white,
    16 bits a value scaled to 8; the first picture of several.

    Args:
        name: for messages.
    Raises:
        UnreadableImageError, DataError: as `read_image`.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            return _as_shown(image, name)
    except UnidentifiedImageError:
        raise UnreadableImageError(name, f"its content is none of {', '.join(FORMATS)}") from None
    except OSError as error:
        raise _system_error(name, error) from None
    except (MemoryError, UnreadableImageError):
        raise
    except Exception as error:  # on damaged files Pillow's decoders raise errors of any kind
        raise UnreadableImageError(name, _first_line(error)) from None


def _as_shown(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("I", "F") and image.format != "PNG":
        raise UnreadableImageError(name, "32 bits a pixel, whose white nobody knows; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 255
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


def resize_short_side(image: Image.Image, side: int, name: str, interpolation: str = "bilinear") -> Image.Image:
    """The image with its short side of so many pixels.

    Args:
        name: for messages.
        interpolation: bilinear or bicubic.
    Raises:
        UnreadableImageError: it would take too much memory.
    """
    if side * side * max(image.size) > LARGEST_RESIZED * min(image.size):
        raise UnreadableImageError(name, "a strip of {} × {} pixels".format(*image.size))
    from torchvision.transforms.v2 import InterpolationMode, functional  # takes two seconds to import

    return functional.resize(image, [side], InterpolationMode(interpolation))


def _system_error(name: str, error: OSError) -> DataError:
    if error.errno is None:  # Pillow's own
        return UnreadableImageError(name, _first_line(error))
    reason = error.strerror or os.strerror(error.errno)
    if error.errno in FAULTS_OF_A_FILE:
        return _missing_folder(os.path.dirname(name)) or UnreadableImageError(name, reason)
    return DataError(f"{name}: can't be read ({reason}); mend that, and start again")


def _missing_folder(folder: str) -> DataError | None:
    """What is wrong if an image's folder can't be reached, and so none of its images; the topmost such folder is
    named."""
    found: str | None = None
    while reason := _unsearchable(folder):
        found = f"{folder or os.curdir}: the folder can't be reached ({reason}); bring it back, and start again"
        if os.path.dirname(folder) == folder:
            break
        folder = os.path.dirname(folder)
    return None if found is None else DataError(found)


def _unsearchable(folder: str) -> str | None:
    """Why nothing in a folder can be reached."""
    try:
        os.stat(os.path.join(folder, os.curdir))  # "." isn't found without the right to look into the folder
    except OSError as error:
        return error.strerror or str(error)
    return None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def left_out(bad_images: Sequence[tuple[str, str]]) -> str | None:
    """One line that counts and names the images that were left out, given as (name, reason); None without any.

    >>> left_out([("cat/7.jpg", "image file is truncated")])
    'left out 1 unreadable image: cat/7.jpg'
    """
    if not bad_images:
        return None
    names = ", ".join(name for name, _ in bad_images[:LISTED])
    more = f" and {len(bad_images) - LISTED:,} more" if len(bad_images) > LISTED else ""
    plural = "s" if len(bad_images) > 1 else ""
    return f"left out {len(bad_images):,} unreadable image{plural}: {names}{more}"


class Names:
    """File names in one buffer, each ended by a NUL: a million take as many bytes as they have letters, and forked
    processes share them.

    Args:
        buffer: uint8, as `pack_names` makes it.

    >>> Names(np.frombuffer(pack_names(["a.jpg", "é.png"]), np.uint8))[1]
    'é.png'
    """

    def __init__(self, buffer: np.ndarray):
        self.buffer = buffer
        self.ends = np.flatnonzero(buffer == 0)
        if len(buffer) != (self.ends[-1] + 1 if len(self.ends) else 0):
            raise ValueError("a name without an end")

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> str:
        start = self.ends[row - 1] + 1 if row else 0
        return os.fsdecode(self.buffer[start : self.ends[row]].tobytes())


def pack_names(names: Iterable[str]) -> bytes:
    """See `Names`."""
    return b"".join(os.fsencode(name) + b"\0" for name in names)
