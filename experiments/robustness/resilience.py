"""Kills training runs at random moments, goes on with them, and compares with the run that nobody disturbed.

Every command that trains runs a few tiny epochs on handwritten digits. SIGKILL ends it again and again, after a
random time each; then it may come to its end. Weights, metrics and TensorBoard's curves must be the same, bit for
bit, without a gap and without a point twice.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blockdrop import cl_train, distill, finetune, pretrain
from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.output import check_writable, write_json
from blockdrop.studies.runs import main_of
from blockdrop.training.config import TrainingConfig
from blockdrop.training.run_directory import read_metrics
from blockdrop.training.state import read_state

MODEL = "R8_Digits"
OF_THE_CLOCK = ("time", "images_per_second", "seconds")
"""What a clock said, in metrics.jsonl and in the table of runs."""
RUNS: dict[str, Callable[[Path], TrainingConfig]] = {
    "pretrain": lambda folder: pretrain.PretrainConfig(max_epochs=4, **tiny(folder / "pretrain")),
    "cl_train": lambda folder: cl_train.CurriculumConfig(
        load=(str(folder / "pretrain"),), max_epochs=4, **tiny(folder / "cl_train")
    ),
    "finetune": lambda folder: finetune.FinetuneConfig(
        pretrained=(str(folder / "cl_train"),), max_epochs=3, **tiny(folder / "finetune")
    ),
    "finetune --recipe fast": lambda folder: finetune.FinetuneConfig.of_recipe(
        "fast", pretrained=(str(folder / "pretrain"),), **tiny(folder / "fast"), **{"max_epochs": 4}
    ),
    "distill --method stagewise": lambda folder: distill.StagewiseConfig(
        load=(str(folder / "pretrain"),), max_epochs=5, stage_epochs=1,
        **tiny(folder / "stagewise"),
    ),
    "distill --method kd --with_baseline": lambda folder: distill.KdConfig(
        student="R8", load=(str(folder / "pretrain"),), with_baseline=True, max_epochs=2,
        **tiny(folder / "kd"),
    ),
    "distill --method jointrd": lambda folder: distill.JointConfig(
        load=(str(folder / "pretrain"),), max_epochs=3, **tiny(folder / "jointrd")
    ),
}  # fmt: skip
"""By name, from the folder of all runs to a command's flags; each may start from what those before it left."""


def tiny(folder: Path) -> dict[str, Any]:
    """Flags that all runs share; the state is saved after every batch."""
    return {
        "model": MODEL, "cv_dir": str(folder), "batch_size": 128, "test_every": 2, "save_minutes": 1e-6,
        "precision": "float32",
    }  # fmt: skip


@dataclass(kw_only=True)
class ResilienceConfig:
    """Flags of `python -m experiments.robustness.resilience`."""

    kills: int = 100
    """How often a run is killed, all commands together."""
    seed: int = 0
    """Of the moments."""
    json: str | None = None
    """Write the rows to this file."""
    overwrite: bool = False
    """Replace the file of --json if there is one."""


def main(config: ResilienceConfig) -> list[dict[str, Any]]:
    """Prints a row for each command; returns them.

    Raises:
        BlockdropError: a run differs.
    """
    require(
        config.kills >= len(RUNS), f"--kills {config.kills}: must be at least {len(RUNS)}, one for each command"
    )
    if config.json is not None:
        check_writable("--json", config.json, config.overwrite)
    context = multiprocessing.get_context(
        "forkserver"
    )  # its children have imported everything: kills hit the work
    imported_late = ("opening", "supervised", "joint", "policy_epoch", "batchnorm")
    context.set_forkserver_preload(
        [*(f"blockdrop.training.{name}" for name in imported_late), "blockdrop.distillation.report", __name__]
    )
    moments = random.Random(config.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, make) in enumerate(RUNS.items()):
            kills = config.kills // len(RUNS) + (number < config.kills % len(RUNS))
            rows.append(try_command(context, name, make(Path(folder)), kills, moments))
    print(f"\n{table(rows)}")
    for difference in (difference for row in rows for difference in row["differences"]):
        print(difference)
    if config.json is not None:
        write_json("--json", config.json, rows)
    different = [row["command"] for row in rows if row["differences"]]
    require(not different, f"not the same after being resumed: {', '.join(different)}")
    return rows


def try_command(
    context: multiprocessing.context.ForkServerContext,
    name: str,
    config: TrainingConfig,
    kills: int,
    moments: random.Random,
) -> dict[str, Any]:
    """One command undisturbed, then killed so often, then compared."""
    start = time.monotonic()
    run_process(context, config)
    seconds = time.monotonic() - start
    differences: list[str] = []
    positions: list[object] = []
    runs = 0

    def disturbed() -> TrainingConfig:
        return replace(config, cv_dir=f"{config.cv_dir}-disturbed{runs}", resume=True)

    while len(positions) < kills:
        if run_process(context, disturbed(), moments.uniform(0, seconds)):
            positions.append(position(Path(disturbed().cv_dir)))
        else:  # it had come to its end: another one
            differences += compare(Path(config.cv_dir), Path(disturbed().cv_dir))
            runs += 1
    run_process(context, disturbed())
    differences += compare(Path(config.cv_dir), Path(disturbed().cv_dir))
    row = {
        "command": name,
        "kills": kills,
        "positions": len(set(positions)),
        "runs": runs + 1,
        "differences": differences,
    }
    print(line(row))
    return row


def run_process(
    context: multiprocessing.context.ForkServerContext, config: TrainingConfig, seconds: float | None = None
) -> bool:
    """Runs a command in a process of its own; returns whether it had to be killed after so many seconds.

    Raises:
        BlockdropError: it failed.
    """
    process = context.Process(target=run_quietly, args=(config,))
    process.start()
    process.join(seconds)
    killed = process.is_alive()
    process.kill()
    process.join()
    require(killed or process.exitcode == 0, f"{config.cv_dir}: ended with exit code {process.exitcode}")
    return killed


def run_quietly(config: TrainingConfig) -> None:
    """What the process does: the command without what it prints."""
    torch.set_num_threads(1)
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        main_of(config)(config)


# ---- what is compared


def position(folder: Path) -> tuple[str, int, int, int] | None:
    """Where the run would be resumed: folder, stage, epoch, batch; None before the first save."""
    for part in (folder, folder / "baseline"):
        if (state := read_state(part)) is not None:
            return part.name, state["stage"], state["epoch"], state["batch"]
    return None


def compare(expected: Path, found: Path) -> list[str]:
    """What differs between two run directories, in a few words each."""
    folders = [folder.relative_to(expected) for folder in (expected, *expected.glob("*/"))]
    differences = []
    for folder in folders:
        for what, read in (("weights", weights), ("metrics", metrics), ("curves", curves)):
            if not equal(read(expected / folder), read(found / folder)):
                differences.append(f"{found / folder}: other {what}")
    return differences


def weights(folder: Path) -> dict[str, Any]:
    """Every tensor of every checkpoint."""
    return {
        f"{file.name}/{part}/{key}": tensor
        for file in folder.glob("ckpt_E_*.t7")
        for part, state in (
            ("resnet", read_checkpoint(file).resnet),
            ("agent", read_checkpoint(file).policy_network),
        )
        for key, tensor in (state or {}).items()
    }


def metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock said."""
    return [
        {key: value for key, value in line.items() if key not in OF_THE_CLOCK} for line in read_metrics(folder)
    ]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars, in the order in which it reads them, none hidden."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.endswith(OF_THE_CLOCK)
    }


def equal(expected: Any, found: Any) -> bool:
    """Bit for bit, NaN equal to NaN."""
    if isinstance(expected, dict):
        return expected.keys() == found.keys() and all(equal(value, found[key]) for key, value in expected.items())
    if isinstance(expected, torch.Tensor):
        return expected.dtype == found.dtype and expected.numpy().tobytes() == found.numpy().tobytes()
    return repr(expected) == repr(found)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    head = [
        "| command | kills | at different places | runs | resumed = undisturbed |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    return "\n".join(head + [line(row) for row in rows])


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    same = "yes" if not row["differences"] else "NO"
    return f"| {row['command']} | {row['kills']} | {row['positions']} | {row['runs']} | {same} |"


if __name__ == "__main__":
    run_command(main, ResilienceConfig, __doc__)
