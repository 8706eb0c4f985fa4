"""What it takes to bring a network of one's own: are its logits kept, and how long does a command take to begin?

Networks of timm and torchvision with fresh weights, and BatchNorm statistics that matter, are made dynamic. Their
logits are compared with all blocks kept (their own module, the converted one), and under random policies (torch,
the fast executor). Then the time until `import blockdrop` and each command's --help are done, each in a process of
its own, one round after the other, beside `import torch`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any

import torch
from torch import Tensor, nn

import blockdrop
from blockdrop.__main__ import COMMANDS
from blockdrop.console import run_command
from blockdrop.ranges import Count, Range, check_ranges
from blockdrop.tables import table

NETWORKS = (
    "torchvision:resnet18", "torchvision:resnet50", "torchvision:resnext50_32x4d", "torchvision:wide_resnet50_2",
    "timm:resnet26", "timm:resnet50d", "timm:resnext50_32x4d", "timm:seresnet50", "timm:convnext_tiny",
    "timm:vit_small_patch16_224",
)  # fmt: skip
HEADS = ("network", "blocks", "px", "converted − own", "executor − torch", "largest logit")


@dataclass(kw_only=True)
class DoorConfig:
    """Flags of `python -m experiments.measurements.door`."""

    networks: tuple[str, ...] = NETWORKS
    """Networks to convert: timm:<name> or torchvision:<name>."""
    images: Count = 4
    """Number of random images that networks are compared on."""
    rounds: Annotated[int, Range(least=0)] = 5
    """Number of times that each command begins; 0 measures none."""
    seed: int = 0
    """Seed of the weights, images and policies."""


def main(config: DoorConfig) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Prints and returns the rows of both tables."""
    check_ranges(config)
    torch.manual_seed(config.seed)
    kept = [compare(name, config.images) for name in config.networks]
    print(table(kept, 1))
    begun = [{"process": name, "seconds (median)": f"{value:.2f}"} for name, value in begin(config.rounds).items()]
    if begun:
        print()
        print(table(begun, 1))
    return kept, begun


@torch.no_grad()
def compare(name: str, count: int) -> dict[str, str]:
    """Name, blocks, image size and largest differences of logits of one network, by column."""
    module = make_module(name)
    dynamic = blockdrop.make_dynamic(module)
    side = dynamic.image_size
    images = torch.randn(count, 3, side, side)
    expected = module(images)
    everything = torch.ones(count, dynamic.num_blocks, dtype=torch.bool)
    logits, _ = dynamic(images, everything)
    policy = torch.rand(count, dynamic.num_blocks) < 0.5
    dropped, _ = dynamic(images, policy)
    run, _ = dynamic.compile()(images, policy=policy)
    cells = (
        name, str(dynamic.num_blocks), str(side), f"{largest(logits - expected):.1e}",
        f"{largest(run - dropped):.1e}", f"{largest(expected):.1f}",
    )  # fmt: skip
    return dict(zip(HEADS, cells, strict=True))


def make_module(name: str) -> nn.Module:
    """A network of a library in eval mode, its BatchNorm statistics other than at the beginning."""
    library, _, architecture = name.partition(":")
    module: Any
    if library == "timm":
        import timm

        module = timm.create_model(architecture)
    else:
        import torchvision

        module = torchvision.models.get_model(architecture)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return module.eval()


def largest(values: Tensor) -> float:
    """Largest absolute value."""
    return values.abs().max().item()


def begin(rounds: int) -> dict[str, float]:
    """Median seconds until processes are done, started in turn."""
    programs = {"python -c pass": ["-c", "pass"]}
    programs |= {name: ["-c", name] for name in ("import torch", "import blockdrop")}
    programs |= {f"blockdrop {name} --help": ["-m", "blockdrop", name, "--help"] for name in COMMANDS}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, flags in programs.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *flags], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items() if values}


if __name__ == "__main__":
    run_command(main, DoorConfig, __doc__)
