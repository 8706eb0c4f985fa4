"""A network as a file for other runtimes: ONNX, AOTInductor (C++ without Python), or safetensors.

onnx and aoti hold one graph, BatchNorm folded, for one normalised image and a threshold; the blocks it drops are
not computed. Of a policy network that answers the graph takes an answer threshold, too, and computes nothing of
the ResNet for an answered image. Without a policy network the graph runs all blocks, and there is no threshold.
The file is run and compared with torch before it appears under its name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from blockdrop.console import run_command
from blockdrop.errors import BlockdropError, require
from blockdrop.inference.formats import PACKAGES, SUFFIXES, Format, optional_package
from blockdrop.models.specs import parse_name
from blockdrop.names import PolicyNet, Shortcut
from blockdrop.ranges import CheckpointName, Positive, Probability, check_ranges

if TYPE_CHECKING:
    from blockdrop.inference.exported import Networks


@dataclass(kw_only=True)
class ExportConfig:
    """Flags of `python -m blockdrop.export`."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "model", "load", "format", "output", "threshold", "answer_threshold", "shortcut", "policy_net",
        "half", "overwrite",
    )  # fmt: skip

    model: str | None = None
    """Name of the network: R<depth>_<dataset>, timm:<name>, torchvision:<name> or <module>:<function>. Default:
    what the checkpoint says, else R110_C10."""
    load: tuple[CheckpointName, ...] = ()
    """Checkpoints of any dialect, or run directories: backbone and policy network, in one or in two, or a backbone
    alone."""
    format: Format
    """Format of the file: onnx (a graph with a condition for each block that a policy may drop), aoti (compiled
    for this machine's kind of CPU) or safetensors (weights)."""
    output: str
    """File to write: *.onnx, *.pt2 (aoti) or *.safetensors."""
    half: bool = False
    """Store the weights of safetensors as float16, in half the space. They are rounded."""
    threshold: Probability | None = None
    """Threshold that is recorded in the file, and at which latency is measured. Default: the checkpoint's, else
    0.5."""
    answer_threshold: Positive | None = None
    """Answer threshold that is recorded in the file of a policy network that answers; above 1 no image is
    answered. Default: the checkpoint's, else no image is."""
    shortcut: Shortcut | None = None
    """Kind of the ResNet's downsampling shortcuts. Default: the checkpoint's."""
    policy_net: PolicyNet | None = None
    """Policy network that the checkpoint holds. Default: what the checkpoint says."""
    overwrite: bool = False
    """Replace the output file if it exists."""

    def check(self) -> None:
        """Raises `BlockdropError` for a value out of range, an output that can't be written, a missing package."""
        check_ranges(self)
        if self.model is not None:
            parse_name(self.model)
        require(bool(self.load), "--load: name a checkpoint, or two: backbone and policy network")
        require(not self.half or self.format == "safetensors", "--half: goes with --format safetensors")
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
    from blockdrop.training.session import undecided_note

    networks = open_networks(config)
    dynamic, output = networks.dynamic, Path(config.output)
    parts = "backbone" if dynamic.policy_network is None else f"backbone and {dynamic.policy_net} policy network"
    print(
        f"export {dynamic.model} ({parts}, {dynamic.num_blocks} blocks, {dynamic.network.shortcut or 'no'} "
        f"shortcuts) to {config.format}"
    )
    print(f"weights from: {', '.join(config.load)}")
    if dynamic.policy_network is None and dynamic.network.droppable:
        print("note: no policy network, so every block runs; blockdrop.cl_train trains one")
    if note := undecided_note(dynamic):
        print(note)
    try:
        with TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
            temporary = Path(folder, output.name)
            write_checked(networks, config.format, temporary, config.half)
            os.replace(temporary, output)
    except OSError as error:
        raise BlockdropError(f"--output {output}: not writable ({error.strerror or error})") from None
    except RuntimeError as error:  # torch's and the runtimes' own, a missing C++ compiler among them
        reason = next(iter(str(error).splitlines()), "")
        raise BlockdropError(
            f"--format {config.format}: torch {torch.__version__} can't do it ({reason})"
        ) from error
    print(f"{config.format} file: {output}, {output.stat().st_size / 1e6:.2f} MB")
    return output


def open_networks(config: ExportConfig) -> Networks:
    """The networks of the checkpoints; later ones win.

    Raises:
        BlockdropError: no backbone, a flag for a policy network that isn't there; anything damaged or not fitting.
    """
    from agents.answers import Thresholds
    from blockdrop.inference.exported import Networks  # torch, which --help does without
    from blockdrop.loading import open_files

    dynamic, checkpoints = open_files(
        config.load, config.model, shortcut=config.shortcut, policy_net=config.policy_net
    )
    for flag in ("threshold", "policy_net"):
        require(
            any(c.policy_network is not None for c in checkpoints) or getattr(config, flag) is None,
            f"--{flag}: --load {' '.join(config.load)} holds no policy network; name its checkpoint too",
        )
    network = dynamic.policy_network
    require(
        config.answer_threshold is None or (network is not None and network.answer is not None),
        f"--answer_threshold: --load {' '.join(config.load)} holds no policy network that answers; "
        "finetune --recipe answers makes one",
    )
    own = dynamic.thresholds
    given = Thresholds(config.threshold or own.keep, config.answer_threshold or own.answer)
    return Networks(dynamic, given)


if __name__ == "__main__":
    run_command(main, ExportConfig, __doc__)
