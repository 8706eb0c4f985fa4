"""The models and data that a command's flags stand for, opened and checked against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.policy_network import PolicyNetwork
from agents.static_policies import StaticPolicy
from blockdrop.data import DATASETS, NORMALISATIONS, Augment, DataSource, Normalisation, left_out, split_rows
from blockdrop.errors import CheckpointError, require
from blockdrop.flops import count_flops
from blockdrop.models.backbone import Backbone
from blockdrop.models.checkpoints.dialects import Checkpoint, read_checkpoint
from blockdrop.models.checkpoints.filling import load_checkpoint, load_policy_trunk, network_from
from blockdrop.models.checkpoints.published import torchvision_checkpoint
from blockdrop.models.checkpoints.saving import save_checkpoint
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.models.specs import ModelSpec, Variant, parse_model_name
from blockdrop.models.zoo import build_backbone
from blockdrop.names import DEFAULT_THRESHOLD
from blockdrop.processes import Processes, current_processes
from blockdrop.progress import progress
from blockdrop.training.compute import Compute
from blockdrop.training.config import ModelConfig, PolicyTrainingConfig, TrainingConfig
from blockdrop.training.policies import open_static_policy, policy_file
from blockdrop.training.run_directory import RunDirectory, check_usable


@dataclass
class Setup:
    """Models and data of a run."""

    model: str
    variant: Variant
    resnet: Backbone
    policy_network: PolicyNetwork
    policy_net: str
    normalisation: Normalisation
    data: DataSource
    image_size: int
    has_backbone: bool
    """Whether a checkpoint filled the backbone (otherwise its weights are fresh)."""
    has_policy: bool
    """Whether the policy network takes part: filled by a checkpoint, or to be trained."""
    checkpoints: list[Checkpoint]
    policy_metrics: dict[str, float]
    """Metrics recorded with the policy network."""
    static: StaticPolicy | None = None
    """Runs in place of the policy network."""

    @property
    def decides(self) -> bool:
        """Whether blocks may be dropped: by the policy network, or a static policy."""
        return self.has_policy or self.static is not None

    @property
    def stored_threshold(self) -> float:
        """The operating point of the policy network's checkpoint, else 0.5."""
        thresholds = [c.threshold for c in self.checkpoints if c.policy_network is not None]
        return thresholds[-1] if thresholds else DEFAULT_THRESHOLD

    @property
    def undecided(self) -> str | None:
        """A warning, if the policy network comes from a curriculum that had not yet reached every block."""
        decided = self.policy_metrics.get("decided", self.resnet.num_blocks)
        if not self.has_policy or decided >= self.resnet.num_blocks:
            return None
        return (
            f"note: the policy network's curriculum had reached {decided:.0f} of {self.resnet.num_blocks} blocks; "
            "its outputs for the others are untrained"
        )

    def announce(self, command: str, compute: Compute, run: RunDirectory) -> None:
        """A command's first lines: what runs on what, from where, to where."""
        parameters = f"{sum(p.numel() for p in self.resnet.parameters()):,} parameters"
        if self.has_policy:
            count = sum(p.numel() for p in self.policy_network.own_parameters())
            parameters += f" + {count:,} of the {self.policy_net} policy network"
        elif self.static is not None:
            parameters += f", under the policy {self.static.name}"
        shortcuts = f"{self.resnet.shortcut or 'no'} shortcuts"
        widths = f", {self.variant}" if self.variant.numbers() else ""
        print(f"{command} {self.model} ({parameters}, {shortcuts}{widths}) on {compute}")
        print(f"data: {self.data.name}, {len(self.data.train):,} training, {len(self.data.test):,} test images")
        print(f"weights from: {', '.join(c.path for c in self.checkpoints) or 'scratch'}")
        print(f"run directory: {run.path}")
        if run.resumed:
            print(run.resumed)
        if self.undecided:
            print(self.undecided)

    def training_batches(
        self, config: TrainingConfig, compute: Compute, epoch: int, start: int = 0
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """The epoch's shuffled, augmented, normalised batches from number `start` on, images (N, 3, H, W) and
        labels (N,), with a progress bar; of several processes each gets its share."""
        batches = self.data.train.batches(
            config.batch_size,
            self.normalisation,
            compute.device,
            Augment(config.seed, epoch),
            compute.channels_last,
            start,
            compute.processes.share,
        )
        return progress(batches, f"epoch {epoch}", self.count_batches(config), start=start)

    def report_bad_images(self, processes: Processes) -> None:
        """Prints which images were left out so far, if any were."""
        found = {image for part in processes.each(self.data.bad_images) for image in part}
        if line := left_out(sorted(found)):
            print(line)

    def identify_data(self) -> dict[str, Any]:
        """What a resumed run must find again."""
        names = hashlib.sha256("\n".join(self.data.classes).encode("utf-8", "surrogatepass")).hexdigest()
        return {"training": len(self.data.train), "test": len(self.data.test), "classes": names[:16]}

    def check_shares(self, config: ModelConfig, processes: Processes) -> None:
        """Reads the data; raises `UserError` if a process would get nothing of a batch."""
        batches = split_rows(torch.arange(len(self.data.train)), config.batch_size, keep_single=False)
        require(
            min(map(len, batches)) >= processes.size and len(self.data.test) > 0,
            f"--batch_size {config.batch_size}: one of the batches would be of {min(map(len, batches))} images, "
            f"too few for {processes.size} processes; choose another",
        )

    def count_batches(self, config: TrainingConfig) -> int:
        """Training batches of an epoch."""
        return len(split_rows(torch.arange(len(self.data.train)), config.batch_size, keep_single=False))

    def save(
        self,
        run: RunDirectory,
        epoch: int,
        metrics: Mapping[str, float],
        operating_point: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes a checkpoint into the run directory and returns its path."""
        path = run.checkpoint_path(epoch, metrics)
        if not run.processes.first:
            return path
        save_checkpoint(
            path,
            model=self.model,
            variant=self.variant,
            resnet=self.resnet,
            normalisation=self.normalisation,
            policy_network=self.policy_network if self.has_policy else None,
            policy_net=self.policy_net,
            classes=self.data.classes,
            epoch=epoch,
            metrics=metrics,
            config=run.flags,
            operating_point=operating_point,
        )
        return path


def open_setup(
    config: ModelConfig, paths: tuple[str, ...], new_head: bool = False, initial_keep: float | None = None
) -> Setup:
    """Builds the models, fills them from the checkpoints in order, and opens the data.

    Args:
        config: checked flags.
        paths: checkpoints of any dialect, or the word torchvision; each fills what it holds, later ones win.
        new_head: keep a fresh classifier head (fine-tuning for other classes).
        initial_keep: keep probability that a fresh policy network starts near.
    Raises:
        UserError: anything missing, damaged or not fitting together.
    """
    spec = parse_model_name(config.network)
    checkpoints = [
        torchvision_checkpoint(spec) if path == "torchvision" else read_checkpoint(path) for path in paths
    ]
    backbones = [c for c in checkpoints if c.resnet is not None]
    policies = [c for c in checkpoints if c.policy_network is not None]
    data = _open_data(config, spec)
    if backbones and not new_head:
        _check_classes(backbones[-1], data)

    torch.manual_seed(config.seed)
    policy_net = config.policy_net or (policies[-1].policy_net if policies else "reference")
    variant = config.variant(backbones[-1].variant if backbones else Variant())
    if backbones:
        resnet = network_from(backbones[-1], spec, data.num_classes, config.shortcut, variant, new_head)
    else:
        resnet = build_backbone(spec, data.num_classes, config.shortcut, variant)
    policy_network = build_policy_network(
        resnet.num_blocks, spec.large_images, policy_net, backbone=resnet, initial_keep=initial_keep
    )
    if policies:
        require(
            spec.droppable,
            f"{policies[-1].path}: holds a policy network, but {spec.architecture} has no blocks to drop",
        )
        load_checkpoint(policies[-1], policy_network=policy_network)
    if config.normalisation:
        normalisation = NORMALISATIONS[config.normalisation]
    else:
        recorded = backbones[-1].normalisation if backbones else None
        normalisation = recorded or DATASETS[spec.dataset].normalisation
    return Setup(
        config.network, variant, resnet, policy_network, policy_net, normalisation, data, spec.image_size,
        bool(backbones), bool(policies), checkpoints,
        policies[-1].metrics if policies else {},
    )  # fmt: skip


def _open_data(config: ModelConfig, spec: ModelSpec) -> DataSource:
    def opened(download: bool) -> DataSource:
        return DataSource(
            spec.dataset, config.data_dir, spec.image_size, download, config.cv_dir, config.workers,
            config.skip_bad_images,
        )  # fmt: skip

    processes = current_processes()
    if not config.download or processes.size == 1:
        return opened(config.download)
    processes.from_first(lambda: bool(opened(True)))
    return opened(False)


def open_training(
    config: TrainingConfig,
    command: str,
    paths: tuple[str, ...],
    new_head: bool = False,
    backbone: bool = False,
    policy: bool = False,
    policy_init: str | None = None,
    initial_keep: float | None = None,
    static: str | None = None,
) -> tuple[Setup, RunDirectory]:
    """Models, data and run directory of a command that trains.

    All that can fail is read before the run directory is begun, so that a run that can't start leaves no trace,
    and deletes nothing under --overwrite.

    Args:
        paths, new_head, initial_keep: as for `open_setup`.
        backbone, policy: whether the checkpoints must hold them.
        policy_init: backbone whose first blocks start the policy network's trunk.
        static: policy that takes the policy network's place; see `open_static_policy`.
    Raises:
        UserError: see `open_setup` and `RunDirectory`.
    """
    inputs = (*paths, *([policy_init] if policy_init else []))
    processes = current_processes()
    processes.from_first(lambda: check_usable(config.cv_dir, config.overwrite, inputs, config.resume))
    as_loaded = config if static is None else replace(config, policy_net=None)  # a recipe's isn't asked for
    setup = open_setup(as_loaded, paths, new_head, initial_keep)
    files = ", ".join(paths)
    require(
        setup.has_backbone or not backbone, f"{files}: no trained backbone in it; add a checkpoint that has one"
    )
    require(
        setup.has_policy or not policy,
        f"{files}: no policy network in it; run blockdrop.cl_train first, "
        "or start a fresh one with --recipe fast or --initial_keep",
    )
    if policy_init:
        require(not setup.has_policy, f"--policy_init {policy_init}: {files} already holds a policy network")
        load_policy_trunk(policy_init, setup.policy_network)
    if static is None:
        setup.has_policy = True
        _check_target(config, setup)
    else:
        setup.static = open_static_policy(static, setup, config.compute())
        require(
            setup.static.images is None, f"--policy {static}: holds a policy for each of some images; give one"
        )
        setup.has_policy = False
    setup.check_shares(config, processes)
    files_read = [checkpoint.path for checkpoint in setup.checkpoints]
    files_read += [read_checkpoint(policy_init).path] if policy_init else []
    files_read += [file] if static and (file := policy_file(static)) else []
    how = (config.overwrite, config.resume, files_read, processes, setup.identify_data())
    return setup, RunDirectory(config.cv_dir, command, config, *how)


def _check_target(config: TrainingConfig, setup: Setup) -> None:
    if isinstance(config, PolicyTrainingConfig) and config.target_flops is not None:
        least = count_flops(setup.resnet, setup.policy_network, setup.image_size).least_share()
        require(
            config.target_flops > least,
            f"--target_flops {config.target_flops}: with all blocks dropped the {setup.policy_net} policy network "
            f"and the rest cost {least:.3f} of the full network's FLOPs; choose more, or a cheaper --policy_net",
        )


def _check_classes(checkpoint: Checkpoint, data: DataSource) -> None:
    if checkpoint.num_classes not in (None, data.num_classes):
        raise CheckpointError(
            f"{checkpoint.path}: made for {checkpoint.num_classes} classes, the data has {data.num_classes}; "
            "point --data_dir at the data it was made for, or fine-tune it: pretrain --init CKPT --new_head"
        )
    if data.name == "Folder" and checkpoint.classes not in (None, data.classes):
        raise CheckpointError(f"{checkpoint.path}: made for other class names than those in {data.data_dir}")
