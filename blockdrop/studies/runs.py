"""Runs of the commands: which are finished, what makes two the same, and the command line of each."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from blockdrop.cl_train import CurriculumConfig
from blockdrop.distill import METHODS
from blockdrop.errors import BlockdropError, require
from blockdrop.evaluate import EvaluateConfig
from blockdrop.finetune import FinetuneConfig
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.pretrain import PretrainConfig
from blockdrop.training.config import ModelConfig, TrainingConfig
from blockdrop.training.run_directory import (
    FLAGS_THAT_MAY_DIFFER,
    check_same_run,
    digest,
    read_flags,
    read_metrics,
)

COMMANDS: dict[type[ModelConfig], str] = {
    PretrainConfig: "blockdrop.pretrain",
    CurriculumConfig: "blockdrop.cl_train",
    FinetuneConfig: "blockdrop.finetune",
    **dict.fromkeys(METHODS.values(), "blockdrop.distill"),
    EvaluateConfig: "blockdrop.evaluate",
}
"""The module of each command, by its flags."""
STARTS = ("init", "load", "pretrained")
"""Flags that name the checkpoints or run directories that a command starts from."""
FOR_LOOKING = ("test_every",)
"""Flags in which two finished runs may differ and be comparable."""


def finished_metrics(folder: Path) -> list[dict[str, Any]] | None:
    """What a run logged, if it came to its end."""
    lines = read_metrics(folder)
    epochs = read_flags(folder).get("max_epochs")
    done = isinstance(epochs, int) and any(
        line["phase"] == "test" and line["epoch"] == epochs - 1 for line in lines
    )
    return lines if done else None


def starts_of(config: ModelConfig) -> tuple[str, ...]:
    """The checkpoints and run directories that a command starts from, as its flags name them."""
    return tuple(path for flag in STARTS for path in getattr(config, flag, ()))


def what_computes(config: ModelConfig) -> dict[str, Any]:
    """The flags in which two runs of the same weights can't differ and be the same run, as JSON has them."""
    left_out = (*STARTS, *FOR_LOOKING, *FLAGS_THAT_MAY_DIFFER)
    return json.loads(json.dumps({flag: value for flag, value in asdict(config).items() if flag not in left_out}))


def check_finished(config: TrainingConfig, mend: str) -> bool:
    """Whether the run is there and finished.

    A finished run may have been tested at other epochs and, if it was copied, have started from the same weights
    under another name; one that is to be gone on with must have all flags alike.

    Args:
        mend: what to do instead, for the error.
    Raises:
        BlockdropError: the folder holds another run.
    """
    folder = Path(config.cv_dir)
    if finished_metrics(folder) is None:
        check_same_run(folder, asdict(config), mend)
        return False
    recorded = read_flags(folder)
    wanted = what_computes(config)
    for one in fields(config):  # what is a default now was None once, and the method set it
        if one.name in recorded and recorded[one.name] is None and getattr(config, one.name) == one.default:
            wanted.pop(one.name, None)
    check_same_run(folder, wanted, mend)
    for flag in STARTS:
        before, now = recorded.get(flag, []), list(getattr(config, flag, ()))
        if before != now and flag in recorded:
            known = recorded.get("inputs", {})
            same = len(before) == len(now) and all(map(_same_weights, before, now, [known] * len(now)))
            require(
                same,
                f"--cv_dir {folder}: holds a run of --{flag} {' '.join(map(str, before))}, not {' '.join(now)}, "
                f"or not of the same weights; name another folder, or {mend}",
            )
    return True


def _same_weights(before: object, now: str, known: Mapping[str, str]) -> bool:
    """Whether a checkpoint is the one that a run recorded under another name.

    Args:
        before: file or run directory.
        known: hashes by file, as the run recorded them.
    """
    try:
        wanted = digest(read_checkpoint(now).path)
        folder = Path(str(before))
        recorded = {value for file, value in known.items() if folder in (Path(file), *Path(file).parents)}
        return wanted in (recorded or {digest(read_checkpoint(folder).path)})
    except (OSError, BlockdropError):
        return False


def train(config: TrainingConfig) -> None:
    """Runs a command in this process, unless it has been."""
    if finished_metrics(Path(config.cv_dir)) is not None:
        return
    print(f"\n=== {config.cv_dir}")
    main_of(config)(config)


def main_of(config: ModelConfig) -> Callable[[ModelConfig], object]:
    """The command that takes such flags."""
    return importlib.import_module(COMMANDS[type(config)]).main


def command_line(config: ModelConfig) -> list[str]:
    """The arguments after `python` by which somebody at a terminal would start this very command.

    >>> config = FinetuneConfig.of_recipe("fast", model="R8_Digits", pretrained=("a", "b"), resume=True)
    >>> " ".join(command_line(config))
    '-m blockdrop.finetune --model R8_Digits --resume --recipe fast --pretrained a b'
    """
    usual = {one.name: one.default for one in fields(config)}
    usual |= getattr(config, "RECIPES", {}).get(getattr(config, "recipe", None), {})
    usual |= {"recipe": "reference", "method": None}  # distill takes no method by default
    flags: list[str] = []
    for one in fields(config):
        value = getattr(config, one.name)
        if usual[one.name] is not MISSING and value == usual[one.name]:
            continue
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no_'}{one.name}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            flags += [f"--{one.name}", *map(str, values)]
    return ["-m", COMMANDS[type(config)], *flags]
