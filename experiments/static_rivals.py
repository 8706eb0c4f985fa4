"""Static ways to make a ResNet cheaper, trained and measured by the same ruler, on CIFAR-10 or another data set.

Trains what is missing, one run after the other, then compares: test accuracy of every seed, FLOPs, parameters, and
seconds over the test set, all networks in turns. A run that has its last checkpoint isn't repeated; one that was
cut off is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch

from blockdrop.console import run_command
from blockdrop.data import DATASETS, NORMALISATIONS, DataSource
from blockdrop.errors import CheckpointError, require
from blockdrop.flops import count_flops
from blockdrop.measure import measure_passes
from blockdrop.models.checkpoints.filling import load_network
from blockdrop.models.specs import parse_model_name
from blockdrop.output import check_writable, write_json
from blockdrop.studies.runs import finished_metrics, train
from blockdrop.tables import table
from blockdrop.training.compute import choose_compute
from blockdrop.training.run_directory import check_same_run, read_flags
from experiments.methods import RIVALS, Conditions, of_kinds, plan

BATCH_SIZE = 1024


@dataclass(kw_only=True)
class RivalsConfig:
    """Flags of `python -m experiments.static_rivals`."""

    dataset: str = "C10"
    """Data set of all networks: C10, C100, Digits, Folder."""
    data_dir: str = "data/"
    """Image tree or torchvision's CIFAR files; Digits need none."""
    init: str | None = None
    """Weights that ResNet-20, the teacher of plain-20, is fine-tuned from; default: from scratch."""
    teacher32: str | None = None
    """Checkpoint of ResNet-32, the teacher of ResNet-8."""
    cv_dir: str = "cv/static"
    """Folder of the run directories, <name>-s<seed>."""
    seeds: tuple[int, ...] = (0, 1)
    """A run of each rival for each seed."""
    epochs: int = 15
    """Of every run."""
    only: tuple[str, ...] = ()
    """Names of the rivals to train; default: all that are missing."""
    train: bool = True
    """Whether to train what is missing; --no_train compares what there is."""
    engines: tuple[Literal["openvino", "torch", "eager"], ...] = ("openvino", "torch", "eager")
    """What measures the seconds; see evaluate's --engine, and eager torch."""
    timed_images: int = 2048
    """Test images that the clock runs on; seconds are scaled to all of them."""
    json: str | None = None
    """Write all numbers to this file."""
    overwrite: bool = False
    """Replace the file of --json if there is one."""


METHODS = of_kinds(*RIVALS)
"""The rows of the table."""


def main(config: RivalsConfig) -> list[dict[str, Any]]:
    """Trains what is missing and compares; returns the rows."""
    if config.json is not None:
        check_writable("--json", config.json, config.overwrite)
    require(config.timed_images >= 1, f"--timed_images {config.timed_images}: must be at least 1")
    require(len(config.seeds) > 0, "--seeds: name at least one")
    require(config.dataset in DATASETS, f"--dataset {config.dataset}: choose {', '.join(DATASETS)}")
    names = [rival.name for rival in METHODS]
    for name in config.only:
        require(name in names, f"--only {name}: choose {', '.join(names)}")
    if config.train:
        for seed in config.seeds:
            for rival in METHODS:
                folder = Path(config.cv_dir, f"{rival.name}-s{seed}")
                if rival.name in (config.only or names) and finished(folder, config.epochs) is None:
                    check_same_run(folder, {"max_epochs": config.epochs})
                    print(f"\n{rival.title}, seed {seed}")
                    train(*plan(rival, [str(folder)], conditions(config), seed=seed))
    rows = collect(config)
    require(len(rows) > 0, f"--cv_dir {config.cv_dir}: no finished run in it")
    print(markdown(rows, config.engines))
    if config.json is not None:
        write_json("--json", config.json, rows)
    return rows


def conditions(config: RivalsConfig) -> Conditions:
    """What the flags say about all runs."""
    return Conditions(
        model=f"R20_{config.dataset}",
        starts={
            "weights": config.init,
            "r20": str(Path(config.cv_dir, f"r20-s{config.seeds[0]}")),
            "resnet32": config.teacher32,
        },
        epochs={"rival": config.epochs},
        flags={"data_dir": config.data_dir, "test_every": 5, "resume": True},
    )


def finished(folder: Path, epochs: int) -> dict[str, Any] | None:
    """The last test's metrics and the minutes of training, of a run that came to its end."""
    lines = finished_metrics(folder)
    if lines is None or read_flags(folder)["max_epochs"] != epochs:
        return None
    tests = [line for line in lines if line["phase"] == "test" and line["epoch"] == epochs - 1]
    times = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return {"accuracy": tests[-1]["accuracy"], "images_per_second": times}


def collect(config: RivalsConfig) -> list[dict[str, Any]]:
    """A row per rival that has a finished run: accuracies, sizes, and seconds of its first seed's network."""
    rows, networks = [], []
    normalisation = NORMALISATIONS["cifar"]
    size = parse_model_name(f"R20_{config.dataset}").image_size
    source = DataSource(config.dataset, config.data_dir, size, cache_dir=config.cv_dir)
    for rival in METHODS:
        folders = [Path(config.cv_dir, f"{rival.name}-s{seed}") for seed in config.seeds]
        runs = [(folder, found) for folder in folders if (found := finished(folder, config.epochs)) is not None]
        if not runs:
            continue
        try:
            network, checkpoint = load_network(runs[0][0])
        except CheckpointError as error:
            print(f"left out: {error}")
            continue
        accuracies = [found["accuracy"] for _, found in runs]
        minutes = [sum(len(source.train) / 60 / speed for speed in f["images_per_second"]) for _, f in runs]
        rows.append(
            {
                "name": rival.name,
                "title": rival.title,
                "accuracies": accuracies,
                "accuracy": mean(accuracies),
                "spread": max(accuracies) - min(accuracies),
                "minutes": mean(minutes),
                "parameters": sum(p.numel() for p in network.parameters()),
                "flops": count_flops(network, image_size=size).full,
                "seconds": {},
            }
        )
        networks.append(network)
        normalisation = checkpoint.normalisation or normalisation  # no matter to the clock
    if networks:
        compute = choose_compute("cpu", "float32")
        passes = measure_passes(
            networks, source.test, normalisation, compute,
            batch_size=BATCH_SIZE, engines=config.engines, timed_images=config.timed_images,
        )  # fmt: skip
        for row, seconds in zip(rows, passes, strict=True):
            row["seconds"] = seconds
    return rows


def markdown(rows: list[dict[str, Any]], engines: tuple[str, ...]) -> str:
    """The rows as a table for people."""
    first = rows[0]["seconds"]
    note = (
        f"seconds: all test images at batch {BATCH_SIZE}, float32, {torch.get_num_threads()} threads, BatchNorm "
        "folded, all networks in turns; × of the first row"
    )
    cells = [
        {
            "network": row["title"],
            "accuracy %, each seed": ", ".join(f"{100 * accuracy:.2f}" for accuracy in row["accuracies"]),
            "mean": f"{100 * row['accuracy']:.2f}",
            "spread": f"{100 * row['spread']:.2f}" if len(row["accuracies"]) > 1 else "one seed",
            "parameters": f"{row['parameters']:,}",
            "MFLOPs": f"{row['flops'] / 1e6:.1f}",
            **{
                f"s ({engine})": f"{row['seconds'][engine]:.3f} ({row['seconds'][engine] / first[engine]:.2f} ×)"
                for engine in engines
            },
            "minutes": f"{row['minutes']:.0f}",
        }
        for row in rows
    ]
    return f"{note}\n\n{table(cells, words=2)}"


if __name__ == "__main__":
    run_command(main, RivalsConfig, __doc__)
