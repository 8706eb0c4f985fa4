"""Accuracy, block usage, FLOPs and speed of a dynamic network beside the full one.

Without a policy network (no checkpoint, or a backbone alone) every block is kept and no policy network runs
or is counted.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockdrop.console import run_command
from blockdrop.errors import UserError
from blockdrop.flops import count_flops
from blockdrop.measure import evaluate_images, measure_speed
from blockdrop.models.checkpoints import project_version
from blockdrop.policy_stats import Outcomes
from blockdrop.training.compute import Precision
from blockdrop.training.config import ModelConfig, require
from blockdrop.training.setup import Setup, open_setup


@dataclass(kw_only=True)
class EvaluateConfig(ModelConfig):
    """Flags of `python -m blockdrop.evaluate`."""

    load: tuple[str, ...] = ()
    """Checkpoints of any dialect, or run directories; backbone and policy network in one file or in two."""
    threshold: float = 0.5
    """Run a block where its keep probability is at least this."""
    precision: Precision = "float32"
    """float32, bfloat16, or auto (bfloat16 where the processor has it)."""
    json: str | None = None
    """Write all numbers to this file."""
    overwrite: bool = False
    """Replace the JSON file if there is one."""

    def check(self) -> None:
        super().check()
        require(0 < self.threshold < 1, f"--threshold {self.threshold}: must be above 0 and below 1")
        if self.json is not None:
            path = Path(self.json)
            require(not os.path.isdir(path) and len(path.name) < 250, f"--json {path}: not a file name")
            require(
                self.overwrite or not os.path.exists(path),
                f"--json {path}: exists; pass --overwrite to replace it",
            )
            require(os.path.isdir(path.parent), f"--json {path}: no folder {path.parent}")
            require(os.access(path.parent, os.W_OK), f"--json {path}: {path.parent} is not writable")


@dataclass(frozen=True)
class Evaluation:
    """What `main` found."""

    setup: Setup
    outcomes: Outcomes
    """Of the dynamic network."""
    full: Outcomes
    """Of the full network on the same images."""
    numbers: dict[str, Any]
    """What `--json` writes."""


def main(config: EvaluateConfig) -> Evaluation:
    """Prints the report, and writes its numbers where `--json` says."""
    config.check()
    compute = config.compute()
    setup = open_setup(config, config.load)
    require(
        setup.has_backbone or not config.load,
        f"--load {' '.join(config.load)}: a policy network without its backbone; name that checkpoint too",
    )
    images = setup.data.test
    policy_network = setup.policy_network if setup.has_policy else None
    print(f"evaluate {config.model} on {len(images):,} test images of {setup.data.name}, {compute}")
    print(f"checkpoints: {', '.join(c.path for c in setup.checkpoints) or 'none, fresh weights'}")
    if policy_network is None:
        print("no policy network: every block is kept, and no policy network is counted")

    if setup.undecided:
        print(setup.undecided)

    arguments = (images, setup.normalisation, compute, config.batch_size, setup.image_size)
    outcomes = evaluate_images(setup.resnet, policy_network, *arguments, threshold=config.threshold)
    full = outcomes
    if policy_network is not None:
        full = evaluate_images(setup.resnet, None, *arguments)
    full_speed, speed = measure_speed(
        setup.resnet,
        policy_network,
        images,
        setup.normalisation,
        config.batch_size,
        compute,
        config.threshold,
    )

    table = count_flops(setup.resnet, policy_network, setup.image_size)
    flops, flops_std = outcomes.flops_per_image
    usage = outcomes.usage_per_block.tolist()
    print(outcomes.four_lines())
    print(f"full network: accuracy {full.accuracy:.4f}, {table.full:,} FLOPs/img")
    print(
        f"FLOPs saved: {1 - flops / table.full:.1%} (policy network included: {table.policy_network:,} FLOPs, "
        f"{table.policy_network / table.full:.1%} of the full network)"
    )
    print(
        f"images/s at batch {config.batch_size}: full {full_speed:.0f}, dynamic {speed:.0f} "
        f"({speed / full_speed:.2f} ×)"
    )
    print("usage per block, stage by stage:")
    start = 0
    for stage, size in enumerate(setup.resnet.stage_sizes):
        shares = " ".join(f"{share:.3f}" for share in usage[start : start + size])
        print(f"    stage {stage + 1}: {shares}")
        start += size

    numbers: dict[str, Any] = {
        "model": config.model,
        "dataset": setup.data.name,
        "images": len(images),
        "checkpoints": [c.path for c in setup.checkpoints],
        "accuracy": outcomes.accuracy,
        "block_usage_mean": outcomes.block_usage[0],
        "block_usage_std": outcomes.block_usage[1],
        "num_blocks": setup.resnet.num_blocks,
        "flops_mean": flops,
        "flops_std": flops_std,
        "unique_policies": outcomes.unique_policies,
        "full_accuracy": full.accuracy,
        "full_flops": table.full,
        "policy_network_flops": table.policy_network,
        "flops_saved": 1 - flops / table.full,
        "full_images_per_second": full_speed,
        "images_per_second": speed,
        "batch_size": config.batch_size,
        "usage_per_block": usage,
        "stage_sizes": list(setup.resnet.stage_sizes),
        "threshold": config.threshold,
        "compute": str(compute),
        "version": project_version(),
        "config": asdict(config),
    }
    if config.json is not None:
        temporary = Path(f"{config.json}.tmp")
        try:
            temporary.write_text(json.dumps(numbers, indent=2) + "\n")
            temporary.replace(config.json)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"--json {config.json}: not writable ({error.strerror})") from None
        print(f"numbers: {config.json}")
    return Evaluation(setup, outcomes, full, numbers)


if __name__ == "__main__":
    run_command(main, EvaluateConfig, __doc__)
