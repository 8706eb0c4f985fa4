"""Data sets by name or folder: small ones live in memory as uint8 tensors, big ones stream from disk; and the
`Dataset`s and `DataLoader`s of users.

All hand out normalised float batches through `batches` (`Images`). What is drawn at random comes from seed, epoch
and the image, so a run sees the same pixels however often it is repeated, wherever in an epoch it goes on, and
however many processes share it.
"""

from typing import TYPE_CHECKING

from blockdrop.lazy import lazy_names

if TYPE_CHECKING:
    from blockdrop.data.batching import Augment, derived_seed, evenly_spaced, normalise, plan_batches, split_rows
    from blockdrop.data.brought import OwnData, as_data, as_images, identify
    from blockdrop.data.files import UnreadableImageError, left_out, read_image
    from blockdrop.data.images import Data, Images
    from blockdrop.data.memory import MemoryImages, load_digits, random_crop
    from blockdrop.data.own import OwnImages
    from blockdrop.data.sets import (
        DATASETS,
        LARGEST_IN_MEMORY,
        NORMALISATIONS,
        RESIZE_FACTOR,
        DatasetInfo,
        Normalisation,
        Preprocessing,
    )
    from blockdrop.data.source import DataSource
    from blockdrop.data.streamed import StreamedImages
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "batching": ("Augment", "derived_seed", "evenly_spaced", "normalise", "plan_batches", "split_rows"),
            "brought": ("OwnData", "as_data", "as_images", "identify"),
            "files": ("UnreadableImageError", "left_out", "read_image"),
            "images": ("Data", "Images"),
            "memory": ("MemoryImages", "load_digits", "random_crop"),
            "own": ("OwnImages",),
            "sets": (
                "DATASETS",
                "LARGEST_IN_MEMORY",
                "NORMALISATIONS",
                "RESIZE_FACTOR",
                "DatasetInfo",
                "Normalisation",
                "Preprocessing",
            ),
            "source": ("DataSource",),
            "streamed": ("StreamedImages",),
        },
    )

__all__ = [
    "DATASETS",
    "LARGEST_IN_MEMORY",
    "NORMALISATIONS",
    "RESIZE_FACTOR",
    "Augment",
    "Data",
    "DataSource",
    "DatasetInfo",
    "Images",
    "MemoryImages",
    "Normalisation",
    "OwnData",
    "OwnImages",
    "Preprocessing",
    "StreamedImages",
    "UnreadableImageError",
    "as_data",
    "as_images",
    "derived_seed",
    "evenly_spaced",
    "identify",
    "left_out",
    "load_digits",
    "normalise",
    "plan_batches",
    "random_crop",
    "read_image",
    "split_rows",
]
