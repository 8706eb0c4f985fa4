"""From a command's flags to networks, data and session, opened and checked against each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from agents.static_policies import StaticPolicy
from blockdrop.callbacks import Callback
from blockdrop.data import NORMALISATIONS, Data, DataSource, identify
from blockdrop.data.sets import CIFAR10_CLASSES, Normalisation
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import CheckpointError, require
from blockdrop.loading import WhichPolicy, assemble, name_of_network, recorded_size
from blockdrop.models.checkpoints.deepening import deepened
from blockdrop.models.checkpoints.dialects import FORMAT, Checkpoint, read_checkpoint
from blockdrop.models.checkpoints.filling import load_policy_trunk
from blockdrop.models.checkpoints.published import torchvision_checkpoint
from blockdrop.models.sources import Source, open_source
from blockdrop.models.specs import ForeignSpec, Variant, parse_model_name, parse_name
from blockdrop.names import PolicyNet
from blockdrop.processes import Processes, current_processes
from blockdrop.training.compute import Compute
from blockdrop.training.config import ModelConfig, PolicyTrainingConfig, RunConfig
from blockdrop.training.policies import open_static_policy, policy_file
from blockdrop.training.run_directory import RunDirectory, check_usable
from blockdrop.training.session import Session

Config = TypeVar("Config", bound=RunConfig)


@dataclass
class Opened:
    """What a command's flags name."""

    dynamic: DynamicNetwork
    data: Data
    checkpoints: list[Checkpoint]
    """In the order of the flags; later ones win."""
    static: StaticPolicy | None = None
    """Decides in place of a policy network."""

    @property
    def has_backbone(self) -> bool:
        """Whether a checkpoint filled the network; otherwise its weights are fresh."""
        return any(checkpoint.resnet is not None for checkpoint in self.checkpoints)

    @property
    def has_policy(self) -> bool:
        """Whether a checkpoint held a policy network."""
        return any(checkpoint.policy_network is not None for checkpoint in self.checkpoints)

    @property
    def decides(self) -> bool:
        """Whether blocks may be dropped: by the policy network, or a static policy."""
        return self.dynamic.policy_network is not None or self.static is not None

    @property
    def origins(self) -> list[str]:
        """The files that weights come from."""
        return [checkpoint.path for checkpoint in self.checkpoints]


def open_networks(
    config: ModelConfig,
    paths: Sequence[str],
    *,
    policy: WhichPolicy = "loaded",
    usual_net: PolicyNet = "reference",
    new_head: bool = False,
    deepen: bool = False,
    initial_keep: float | None = None,
) -> Opened:
    """Builds the networks, fills them from the checkpoints in order, and opens the data.

    Args:
        config: checked flags.
        paths: checkpoints of any dialect, or the word torchvision; each fills what it holds, later ones win.
        usual_net: kind of policy network where neither flags nor checkpoints name one.
        new_head: keep a fresh classifier head (fine-tuning for other classes).
        deepen: the checkpoints may be of a shallower ResNet, which is deepened.
        initial_keep: keep probability that a fresh policy network starts near.
    Raises:
        BlockdropError: anything missing, damaged or not fitting together.
    """
    checkpoints = [read_checkpoint(path) for path in paths if path != "torchvision"]
    name = config.with_arch(name_of_network(config.model, checkpoints))
    if "torchvision" in paths:
        published = torchvision_checkpoint(parse_model_name(name))
        checkpoints.insert(paths.index("torchvision"), published)
    if deepen:
        checkpoints = [deepened(checkpoint, parse_model_name(name), config.seed) for checkpoint in checkpoints]
    source = open_source(
        parse_name(name),
        shortcut=config.shortcut,
        variant=Variant(config.expansion, config.reduction, config.reduction_mode),
        image_size=config.image_size or recorded_size(checkpoints),
    )
    data = _open_data(config, source, checkpoints)
    backbones = [c for c in checkpoints if c.resnet is not None]
    if backbones and not new_head:
        check_classes(backbones[-1], data)
    torch.manual_seed(config.seed)
    dynamic = assemble(
        source,
        checkpoints,
        num_classes=data.num_classes,
        policy=policy,
        policy_net=config.policy_net,
        usual_net=usual_net,
        new_head=new_head,
        initial_keep=initial_keep,
        normalisation=_normalisation(config),
        classes=data.classes,
    )
    if current_processes().first:
        for note in (*_guesses(config, source, checkpoints), *renamed(checkpoints, data)):
            print(f"note: {note}", file=sys.stderr)
    return Opened(dynamic, data, checkpoints)


def _normalisation(config: ModelConfig) -> Normalisation | None:
    """What the flags ask for, if they do."""
    if config.mean is not None and config.std is not None:
        return Normalisation(config.mean, config.std)
    return NORMALISATIONS[config.normalisation] if config.normalisation else None


def _guesses(config: ModelConfig, source: Source, checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    """What files of other people's don't say, and was assumed."""
    for checkpoint in checkpoints:
        if checkpoint.passed_over is not None:
            yield f"{checkpoint.path}: averaged weights ({checkpoint.passed_over}) are left aside"
        if checkpoint.dialect == FORMAT or checkpoint.resnet is None or isinstance(source.spec, ForeignSpec):
            continue
        assumed = []
        if _normalisation(config) is None:
            names = [name for name, value in NORMALISATIONS.items() if value == checkpoint.normalisation]
            assumed.append(f"--normalisation {names[0]}")
        if config.shortcut is None and checkpoint.shortcut not in (None, "projection"):
            assumed.append(f"--shortcut {checkpoint.shortcut}")
        if assumed:
            yield f"{checkpoint.path} doesn't say all; assumed: {' '.join(assumed)}"


def renamed(checkpoints: Sequence[Checkpoint], data: DataSource) -> Iterator[str]:
    """Weights without class names whose classes may be in another order than the data's: those of a CIFAR-10 tree
    with other names, or of a test folder alone."""
    unnamed = [c.path for c in checkpoints if c.resnet is not None and c.classes is None]
    if not unnamed:
        return
    if data.name != "Digits" and data.cifar is None and data.files(train=True) is None:
        yield (
            f"{data.data_dir}: no train folder; classes are counted in the order of the test folder's names, as "
            f"{unnamed[-1]} names none"
        )
    if data.name == "C10" and data.classes != list(CIFAR10_CLASSES):
        was, now = next((a, b) for a, b in zip(CIFAR10_CLASSES, data.classes, strict=True) if a != b)
        yield (
            f"{data.data_dir}: class names other than CIFAR-10's, {now} in the place of {was}; {unnamed[-1]} may "
            "count its classes in another order"
        )


def _open_data(config: ModelConfig, source: Source, checkpoints: Sequence[Checkpoint]) -> DataSource:
    known = [checkpoint.classes for checkpoint in checkpoints if checkpoint.classes is not None]

    def opened(download: bool) -> DataSource:
        return DataSource(
            source.spec.dataset,
            config.data_dir,
            download=download,
            cache_dir=config.cv_dir,
            workers=config.workers,
            skip_bad_images=config.skip_bad_images,
            preprocessing=source.preprocessing(),
            split=config.split,
            classes=None if isinstance(config, RunConfig) else known[-1] if known else (),
        )

    processes = current_processes()
    if not config.download or processes.size == 1:
        return opened(config.download)
    processes.from_first(lambda: bool(opened(True)))
    return opened(False)


def open_training(
    config: Config,
    command: str,
    paths: tuple[str, ...],
    *,
    policy: WhichPolicy = "fresh",
    new_head: bool = False,
    deepen: bool = False,
    needs_backbone: bool = False,
    needs_policy: bool = False,
    policy_init: str | None = None,
    initial_keep: float | None = None,
    static: str | None = None,
) -> tuple[Opened, Session[Config]]:
    """Networks, data and session of a command that trains.

    All that can fail is read before the run directory is begun, so that a run that can't start leaves no trace,
    and deletes nothing under --overwrite.

    Args:
        paths, policy, new_head, deepen, initial_keep: as for `open_networks`.
        needs_backbone, needs_policy: whether the checkpoints must hold them.
        policy_init: backbone whose first blocks start the policy network's trunk.
        static: policy that takes the policy network's place; see `open_static_policy`.
    Raises:
        BlockdropError: see `open_networks` and `RunDirectory`.
    """
    inputs = (*paths, *([policy_init] if policy_init else []))
    compute = config.compute()
    processes = compute.processes
    processes.from_first(lambda: check_usable(config.cv_dir, config.overwrite, inputs, config.resume))
    as_loaded = config if static is None else replace(config, policy_net=None)  # a recipe's isn't asked for
    which: WhichPolicy = "loaded" if static is not None else policy
    opened = open_networks(
        as_loaded, paths, policy=which, new_head=new_head, deepen=deepen, initial_keep=initial_keep
    )
    files = ", ".join(paths)
    require(
        opened.has_backbone or not needs_backbone,
        f"{files}: no trained backbone in it; add a checkpoint that has one",
    )
    require(
        opened.has_policy or not needs_policy,
        f"{files}: no policy network in it; run blockdrop.cl_train first, "
        "or start a fresh one with --recipe fast or --initial_keep",
    )
    dynamic = opened.dynamic
    if policy_init:
        require(not opened.has_policy, f"--policy_init {policy_init}: {files} already holds a policy network")
        assert dynamic.policy_network is not None
        load_policy_trunk(policy_init, dynamic.policy_network)
    if static is not None:
        require(dynamic.network.droppable, f"--policy {static}: {dynamic.model} has no blocks that it could drop")
        opened.static = open_static_policy(static, dynamic, opened.data, compute)
        require(
            opened.static.images is None, f"--policy {static}: holds a policy for each of some images; give one"
        )
        dynamic.policy_network = None
    files_read = [*opened.origins, *([read_checkpoint(policy_init).path] if policy_init else [])]
    files_read += [file] if static and (file := policy_file(static)) else []
    return opened, open_session(config, command, dynamic, opened.data, compute, files_read)


def open_session(
    config: Config,
    command: str,
    dynamic: DynamicNetwork,
    data: Data,
    compute: Compute,
    inputs: Sequence[str] = (),
    *,
    network: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Session[Config]:
    """Checks that networks, data and flags fit, and begins the run directory, or goes on with it.

    Args:
        inputs: files that the run starts from.
        network: what tells the networks that it starts from, where they come from no file.
        callbacks: are told what is logged.
    Raises:
        BlockdropError: see `RunDirectory`; a target that can't be reached; too few images for so many processes.
    """
    _check_target(config, dynamic)
    check_shares(config, data, compute.processes)
    run = RunDirectory(
        config.cv_dir,
        command,
        config,
        overwrite=config.overwrite,
        resume=config.resume,
        inputs=inputs,
        processes=compute.processes,
        data=identify(data) | ({} if network is None else {"network": network}),
        callbacks=callbacks,
    )
    return Session(config, compute, run)


def _check_target(config: RunConfig, dynamic: DynamicNetwork) -> None:
    if (
        dynamic.policy_network is not None
        and isinstance(config, PolicyTrainingConfig)
        and config.target_flops is not None
    ):
        table = dynamic.flop_table()
        answers = getattr(config, "answer_epochs", 0) > 0 or dynamic.policy_network.answer is not None
        least = table.policy_network / table.full if answers else table.least_share()
        doing = "all images answered" if answers else "all blocks dropped"
        require(
            config.target_flops > least,
            f"--target_flops {config.target_flops}: with {doing} the {dynamic.policy_net} policy "
            f"network and the rest cost {least:.3f} of the full network's FLOPs; choose more, or a cheaper "
            "--policy_net",
        )


def check_shares(config: RunConfig, data: Data, processes: Processes) -> None:
    """Reads the data; raises `BlockdropError` if a process would get nothing of a batch."""
    smallest = data.train.smallest_batch(config.batch_size)
    require(
        smallest >= processes.size and len(data.test) > 0,
        f"--batch_size {config.batch_size}: one of the batches would be of {smallest} images, "
        f"too few for {processes.size} processes; choose another",
    )


def check_classes(checkpoint: Checkpoint, data: DataSource) -> None:
    """Raises `CheckpointError` unless a checkpoint's classes, as far as it names them, are the data's."""
    if checkpoint.num_classes not in (None, data.num_classes):
        raise CheckpointError(
            f"{checkpoint.path}: made for {checkpoint.num_classes} classes, the data has {data.num_classes}; "
            "point --data_dir at the data it was made for, or fine-tune it: pretrain --init CKPT --new_head"
        )
    made_for = checkpoint.classes
    if made_for is not None and data.classes != made_for:
        pairs = list(zip(made_for, data.classes, strict=False))
        was, now = next(((a, b) for a, b in pairs if a != b), (f"{len(made_for)} classes", len(data.classes)))
        raise CheckpointError(
            f"{checkpoint.path}: made for other class names than those in {data.data_dir}: {was} is now {now}; "
            "rename the folders, or start with a fresh head (pretrain --new_head)"
        )
