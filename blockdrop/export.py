"""A network as a file for other runtimes: ONNX, AOTInductor (C++ without Python), or safetensors.

onnx and aoti hold one graph, BatchNorm folded, for one normalised image and a threshold; the blocks it drops are
not computed. Without a policy network the graph runs all blocks, and there is no threshold. The file is run and
compared with torch before it appears under its name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from blockdrop.console import run_command
from blockdrop.errors import CheckpointError, UserError, require
from blockdrop.inference.formats import PACKAGES, SUFFIXES, Format, optional_package
from blockdrop.models.specs import parse_model_name
from blockdrop.names import DEFAULT_THRESHOLD, PolicyNet, Shortcut
from blockdrop.ranges import CheckpointName, Probability, check_ranges

if TYPE_CHECKING:
    from blockdrop.inference.exported import Networks


@dataclass(kw_only=True)
class ExportConfig:
    """Flags of `python -m blockdrop.export`."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "model", "load", "format", "output", "threshold", "shortcut", "policy_net", "overwrite",
    )  # fmt: skip

    model: str = "R110_C10"
    """Name of the network and its data set, R<depth>_<dataset>: R20_Digits, R110_C10, R50_ImgNet, …. The README
    lists depths and data sets."""
    load: tuple[CheckpointName, ...] = ()
    """Checkpoints of any dialect, or run directories: backbone and policy network, in one or in two, or a backbone
    alone."""
    format: Format
    """Format of the file: onnx (a graph with a condition for each block that a policy may drop), aoti (compiled
    for this machine's kind of CPU) or safetensors (weights)."""
    output: str
    """File to write: *.onnx, *.pt2 (aoti) or *.safetensors."""
    threshold: Probability | None = None
    """Threshold that is recorded in the file, and at which latency is measured. Default: the checkpoint's, else
    0.5."""
    shortcut: Shortcut | None = None
    """Kind of the ResNet's downsampling shortcuts. Default: the checkpoint's."""
    policy_net: PolicyNet | None = None
    """Policy network that the checkpoint holds. Default: what the checkpoint says."""
    overwrite: bool = False
    """Replace the output file if it exists."""

    def check(self) -> None:
        """Raises `UserError` for a value out of range, an output that can't be written, a missing package."""
        check_ranges(self)
        parse_model_name(self.model)
        require(bool(self.load), "--load: name a checkpoint, or two: backbone and policy network")
        path, suffix = Path(self.output), SUFFIXES[self.format]
        require(
            path.suffix == suffix and len(path.name) < 240,
            f"--output {path}: not a file name that ends in {suffix}, as --format {self.format} wants it",
        )
        require(not os.path.isdir(path), f"--output {path}: a folder; name a file")
        require(
            self.overwrite or not os.path.lexists(path),
            f"--output {path}: exists; pass --overwrite to replace it",
        )
        require(os.path.isdir(path.parent), f"--output {path}: no folder {path.parent}")
        require(os.access(path.parent, os.W_OK), f"--output {path}: {path.parent} is not writable")
        for package in PACKAGES[self.format]:
            optional_package(package)


def main(config: ExportConfig) -> Path:
    """Writes the file, checks it, reports its latency, and returns its path."""
    config.check()
    import torch  # here, as --help does without

    from blockdrop.inference.exported import write_checked

    networks = open_networks(config)
    output = Path(config.output)
    parts = "backbone" if networks.policy_network is None else f"backbone and {networks.policy_net} policy network"
    print(
        f"export {config.model} ({parts}, {networks.resnet.num_blocks} blocks, {networks.resnet.shortcut or 'no'} "
        f"shortcuts) to {config.format}"
    )
    print(f"weights from: {', '.join(config.load)}")
    if networks.policy_network is None and networks.resnet.droppable:
        print("note: no policy network, so every block runs; blockdrop.cl_train trains one")
    try:
        with TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
            temporary = Path(folder, output.name)
            write_checked(networks, config.format, temporary)
            os.replace(temporary, output)
    except OSError as error:
        raise UserError(f"--output {output}: not writable ({error.strerror or error})") from None
    except RuntimeError as error:  # torch's and the runtimes' own, a missing C++ compiler among them
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"--format {config.format}: torch {torch.__version__} can't do it ({reason})") from error
    print(f"{config.format} file: {output}, {output.stat().st_size / 1e6:.2f} MB")
    return output


def open_networks(config: ExportConfig) -> Networks:
    """Builds the networks and fills them from the checkpoints; later ones win.

    Raises:
        UserError: no backbone, a flag for a policy network that isn't there; anything damaged or not fitting.
    """
    from blockdrop.data import DATASETS  # torch, which --help does without
    from blockdrop.inference.exported import Networks
    from blockdrop.models.checkpoints.dialects import read_checkpoint
    from blockdrop.models.checkpoints.filling import load_checkpoint, network_from
    from blockdrop.models.policy_networks import build_policy_network

    files = " ".join(config.load)
    checkpoints = [read_checkpoint(path) for path in config.load]
    backbone = next((c for c in reversed(checkpoints) if c.resnet is not None), None)
    policy = next((c for c in reversed(checkpoints) if c.policy_network is not None), None)
    if backbone is None:
        raise UserError(f"--load {files}: a policy network without its backbone; name that checkpoint too")
    for flag in ("threshold", "policy_net"):
        require(
            policy is not None or getattr(config, flag) is None,
            f"--{flag}: --load {files} holds no policy network; name its checkpoint too",
        )
    if backbone.num_classes is None:
        raise CheckpointError(f"{backbone.path}: its head isn't a linear layer (fc.weight)")
    policy_net = config.policy_net or (policy.policy_net if policy else "reference")
    spec = parse_model_name(config.model)
    resnet = network_from(backbone, spec, shortcut=config.shortcut)
    if policy is not None and not spec.droppable:
        raise UserError(f"{policy.path}: holds a policy network, but {spec.architecture} has no blocks to drop")
    policy_network = None
    if policy is not None:
        policy_network = build_policy_network(
            resnet.num_blocks, spec.large_images, policy_net, backbone=resnet
        ).eval()
        load_checkpoint(policy, policy_network=policy_network)
        decided = policy.metrics.get("decided", resnet.num_blocks)
        if decided < resnet.num_blocks:
            print(f"note: the policy network's curriculum had reached {decided:.0f} of {resnet.num_blocks} blocks")
    recorded = DEFAULT_THRESHOLD if policy is None else policy.threshold
    return Networks(
        config.model,
        backbone.variant,
        resnet.eval(),
        policy_network,
        policy_net,
        backbone.normalisation or DATASETS[parse_model_name(config.model).dataset].normalisation,
        backbone.classes,
        recorded if config.threshold is None else config.threshold,
    )


if __name__ == "__main__":
    run_command(main, ExportConfig, __doc__)
