"""What training and tests ask of data, wherever these come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from blockdrop.data.batching import Augment
    from blockdrop.data.sets import Normalisation


class Images(Protocol):
    """Labelled images of one part of a data set: `MemoryImages`, `StreamedImages`, `OwnImages`."""

    def __len__(self) -> int:
        """M."""

    @property
    def image_size(self) -> int:
        """Side in pixels."""

    @property
    def labels(self) -> Tensor:
        """int64 (M,), in the order of `batches` without `augment`."""

    def subset(self, rows: Tensor) -> Images:
        """The images of these rows, int64 (S,)."""

    def count_batches(self, batch_size: int) -> int:
        """Training batches of an epoch."""

    def smallest_batch(self, batch_size: int) -> int:
        """Images of the smallest of them; more processes can't share it."""

    def batches(
        self,
        batch_size: int,
        normalisation: Normalisation,
        device: torch.device | str = "cpu",
        augment: Augment | None = None,
        channels_last: bool = True,
        start: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields normalised images, float32 (N, 3, H, W), and labels, int64 (N,).

        Args:
            augment: shuffle and change images at random, as these numbers say; None: all in order, as they are.
            start, share: leave out the first so many batches, and of the others what belongs to other processes;
                N is 0 where a process has no share of the last batch.
        Raises:
            DataError: an image or label that can't be used.
        """


class Data(Protocol):
    """What a run learns from and is tested on: `DataSource`, `OwnData`."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def classes(self) -> Sequence[str]:
        """Names in label order."""

    @property
    def num_classes(self) -> int:
        """How many."""

    @property
    def train(self) -> Images:
        """Training images."""

    @property
    def test(self) -> Images:
        """Test images."""

    @property
    def bad_images(self) -> list[tuple[str, str]]:
        """Names of the images left out so far, in order, and what was wrong with them."""

    @property
    def left_out(self) -> str | None:
        """One line that counts and names them; None if there is none."""
