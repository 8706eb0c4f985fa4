"""Data sets by name or folder: small ones live in memory as uint8 tensors, big ones stream from disk.

Both kinds hand out normalised float batches through `batches`; random crops and flips are drawn per image
from (seed, epoch), so a run sees the same pixels however often it is repeated, wherever in an epoch it goes on,
and however many processes share it.
"""

from typing import TYPE_CHECKING

from blockdrop.lazy import lazy_names

if TYPE_CHECKING:
    from blockdrop.data.batching import Augment, derived_seed, evenly_spaced, normalise, plan_batches, split_rows
    from blockdrop.data.files import UnreadableImageError, left_out, read_image
    from blockdrop.data.memory import MemoryImages, load_digits, random_crop
    from blockdrop.data.sets import DATASETS, NORMALISATIONS, DatasetInfo, Normalisation
    from blockdrop.data.source import LARGEST_IN_MEMORY, DataSource, Images
    from blockdrop.data.streamed import RESIZE_FACTOR, StreamedImages
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "batching": ("Augment", "derived_seed", "evenly_spaced", "normalise", "plan_batches", "split_rows"),
            "files": ("UnreadableImageError", "left_out", "read_image"),
            "memory": ("MemoryImages", "load_digits", "random_crop"),
            "sets": ("DATASETS", "NORMALISATIONS", "DatasetInfo", "Normalisation"),
            "source": ("LARGEST_IN_MEMORY", "DataSource", "Images"),
            "streamed": ("RESIZE_FACTOR", "StreamedImages"),
        },
    )

__all__ = [
    "DATASETS",
    "LARGEST_IN_MEMORY",
    "NORMALISATIONS",
    "RESIZE_FACTOR",
    "Augment",
    "DataSource",
    "DatasetInfo",
    "Images",
    "MemoryImages",
    "Normalisation",
    "StreamedImages",
    "UnreadableImageError",
    "derived_seed",
    "evenly_spaced",
    "left_out",
    "load_digits",
    "normalise",
    "plan_batches",
    "random_crop",
    "read_image",
    "split_rows",
]
