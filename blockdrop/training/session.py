"""A session: the flags of a run, what it computes on, and where it writes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from blockdrop.data import Augment, Data, Images, Normalisation, left_out
from blockdrop.dynamic import DynamicNetwork
from blockdrop.processes import Processes
from blockdrop.progress import progress
from blockdrop.training.compute import Compute
from blockdrop.training.config import RunConfig
from blockdrop.training.run_directory import RunDirectory

Config = TypeVar("Config", bound=RunConfig, covariant=True)


@dataclass(frozen=True)
class Session(Generic[Config]):
    """What the loop of every command works with, beside the network and the data."""

    config: Config
    compute: Compute
    run: RunDirectory
    brought: dict[str, float] = field(default_factory=dict)
    """What the network did before it was trained, for the metrics of all checkpoints."""

    @property
    def processes(self) -> Processes:
        """Which train together."""
        return self.compute.processes

    def batches(
        self, images: Images, normalisation: Normalisation, epoch: int, start: int = 0, view: int | None = None
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """The epoch's shuffled, augmented, normalised batches from number `start` on, images (N, 3, H, W) and
        labels (N,), with a progress bar; of several processes each gets its share. Another epoch of the same
        `view` gets the same ones; default: no other does."""
        config, compute = self.config, self.compute
        batches = images.batches(
            config.batch_size,
            normalisation,
            compute.device,
            Augment(config.seed, epoch if view is None else view),
            compute.channels_last,
            start,
            compute.processes.share,
        )
        return progress(batches, f"epoch {epoch}", self.count_batches(images), start=start)

    def some_batches(
        self, images: Images, normalisation: Normalisation, count: int, epoch: int
    ) -> Iterator[Tensor]:
        """Batches (N, 3, H, W) of `count` training images, augmented as in an epoch."""
        config, compute = self.config, self.compute
        batches = images.batches(
            config.batch_size,
            normalisation,
            compute.device,
            Augment(config.seed, epoch),
            compute.channels_last,
        )
        count = min(count, len(images))
        return (batch[:count] for batch, _ in itertools.islice(batches, max(1, count // config.batch_size)))

    def count_batches(self, images: Images) -> int:
        """Training batches of an epoch."""
        return images.count_batches(self.config.batch_size)

    def report_bad_images(self, data: Data) -> None:
        """Prints which images were left out so far, if any were."""
        found = {image for part in self.processes.each(data.bad_images) for image in part}
        if line := left_out(sorted(found)):
            print(line)

    def save(
        self,
        dynamic: DynamicNetwork,
        epoch: int,
        metrics: Mapping[str, float],
        operating_point: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes a checkpoint into the run directory and returns its path."""
        path = self.run.checkpoint_path(epoch, metrics)
        if self.processes.first:
            dynamic.epoch, dynamic.metrics, dynamic.config = (
                epoch,
                {**metrics, **self.brought},
                dict(self.run.flags),
            )
            dynamic.operating_point = operating_point
            dynamic.save(path, overwrite=True)
            self.run.keep_checkpoints(self.config.keep_checkpoints)
        return path

    def announce(
        self, command: str, dynamic: DynamicNetwork, data: Data, origins: Iterable[str], policy: str | None = None
    ) -> None:
        """A command's first lines: what runs on what, from where, to where.

        Args:
            command: as it is to be called, for example `finetune`.
            origins: checkpoints that the weights come from.
            policy: name of a static policy that takes the policy network's place.
        """
        network, policy_network = dynamic.network, dynamic.policy_network
        parameters = f"{sum(p.numel() for p in network.parameters()):,} parameters"
        if policy_network is not None:
            count = sum(p.numel() for p in policy_network.own_parameters())
            parameters += f" + {count:,} of the {dynamic.policy_net} policy network"
        elif policy is not None:
            parameters += f", under the policy {policy}"
        shortcuts = f"{network.shortcut or 'no'} shortcuts"
        widths = f", {dynamic.variant}" if dynamic.variant.numbers() else ""
        print(f"{command} {dynamic.model} ({parameters}, {shortcuts}{widths}) on {self.compute}")
        print(f"data: {data.name}, {len(data.train):,} training, {len(data.test):,} test images")
        print(f"weights from: {', '.join(origins) or 'scratch'}")
        print(f"run directory: {self.run.path}")
        if self.run.resumed:
            print(self.run.resumed)
        if note := undecided_note(dynamic):
            print(note)


def undecided_note(dynamic: DynamicNetwork) -> str | None:
    """A warning, if the policy network comes from a curriculum that had not yet reached every block."""
    decided = dynamic.metrics.get("decided", dynamic.num_blocks)
    if dynamic.policy_network is None or decided >= dynamic.num_blocks:
        return None
    return (
        f"note: the policy network's curriculum had reached {decided:.0f} of {dynamic.num_blocks} blocks; "
        "its outputs for the others are untrained"
    )
