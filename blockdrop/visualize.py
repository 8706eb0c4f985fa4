"""Figures of what a policy network does with test images, and a page to explore them.

Writes into --cv_dir: figures/*.png and *.svg, report.html (one file, opens from disk without network), and the
figures for TensorBoard. All show the same images, evenly of all classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.names import EngineName, Precision
from blockdrop.output import check_folder
from blockdrop.ranges import CheckpointName, Count, Folder, Positive, Probability
from blockdrop.training.config import Groups, ModelConfig

if TYPE_CHECKING:
    from blockdrop.findings import Findings


@dataclass(kw_only=True)
class VisualizeConfig(ModelConfig):
    """Flags of `python -m blockdrop.visualize`."""

    FIRST: ClassVar[tuple[str, ...]] = (
        *("model", "data_dir", "load", "cv_dir", "images"),
        *("threshold", "answer_threshold", "overwrite"),
    )
    GROUPS: ClassVar[Groups] = {"device and seed": ("batch_size", "engine", "speed")}

    load: tuple[CheckpointName, ...] = ()
    """Checkpoints of any dialect, or run directories: backbone and policy network, in one or in two."""
    cv_dir: Folder = "cv/visualize"
    """Folder to write the page and the figures into."""
    images: Count = 2000
    """Largest number of test images to show."""
    threshold: Probability | None = None
    """Threshold of the policy: a block runs if its keep probability is at least this. Default: the checkpoint's,
    else 0.5."""
    answer_threshold: Positive | None = None
    """Answer threshold: an image is answered by the policy network alone if its largest probability is at least
    this; above 1 no image is. Default: the checkpoint's."""
    precision: Precision = "float32"
    """Number format of the networks: float32, bfloat16, or auto (bfloat16 where the processor has it)."""
    engine: EngineName = "auto"
    """Engine that runs the networks: torch, openvino, or auto (openvino if it is installed and knows the network's
    layers)."""
    speed: bool = True
    """Measure images per second and the milliseconds of single images, for the head of the page."""
    overwrite: bool = False
    """Replace the page and the figures that the folder holds."""

    def check(self) -> None:
        super().check()
        require(bool(self.load), "--load: name a checkpoint that has a policy network")
        check_folder("--cv_dir", self.cv_dir)
        folder = Path(self.cv_dir)
        for name in ("report.html", "figures"):
            require(
                self.overwrite or not (folder / name).exists(),
                f"--cv_dir {folder}: holds {name}; pass --overwrite to replace it, or name another folder",
            )


def main(config: VisualizeConfig) -> Findings:
    """Writes the figures and the page."""
    from blockdrop.findings import evenly_by_class, look, write
    from blockdrop.policy_stats import policy_statistics, statistics_lines  # torch, which --help does without
    from blockdrop.training.opening import open_networks
    from blockdrop.training.session import undecided_note

    config.check()
    opened = open_networks(config, config.load)
    files = " ".join(config.load)
    require(opened.has_policy, f"--load {files}: holds no policy network; name a checkpoint that has one")
    require(opened.has_backbone, f"--load {files}: holds no backbone; name that checkpoint too")
    dynamic, data = opened.dynamic, opened.data
    images = evenly_by_class(data.test, config.images)
    print(
        f"visualize {dynamic.model} on {len(images):,} of {len(data.test):,} test images of {data.name}, "
        f"{config.compute()}"
    )
    print(f"checkpoints: {', '.join(opened.origins)}")
    if note := undecided_note(dynamic):
        print(note)
    network = dynamic.policy_network
    require(
        config.answer_threshold is None or (network is not None and network.answer is not None),
        "--answer_threshold: needs a policy network that answers; finetune --recipe answers makes one",
    )
    findings = look(
        opened,
        images,
        config.compute(),
        config.batch_size,
        config.engine,
        threshold=config.threshold,
        answer_threshold=config.answer_threshold,
        speed=config.speed,
    )
    statistics = policy_statistics(findings.outcomes, findings.full, data.classes, dynamic.network.stage_sizes)
    print(findings.outcomes.four_lines())
    print(statistics_lines(statistics))
    write(Path(config.cv_dir), findings, statistics)
    return findings


if __name__ == "__main__":
    run_command(main, VisualizeConfig, __doc__)
