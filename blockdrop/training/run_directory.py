"""A run's folder: its config, metrics, TensorBoard events and checkpoints, never silently another run's."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from blockdrop.errors import NumericalError, UserError
from blockdrop.models.checkpoints import project_version

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN_FILES = ("config.json", "metrics.jsonl", "ckpt_E_*.t7", "ckpt_E_*.t7.tmp", "events.out.tfevents.*")
REPORT_FILES = ("report.json", "profile.txt")
"""Ours only beside a config.json: others may call their files so."""


class RunDirectory:
    """`--cv_dir`, opened for one run.

    Files: `config.json` (command, flags, versions), `metrics.jsonl` (one object per epoch and phase),
    TensorBoard events, `ckpt_E_<epoch>_….t7`; of `distill` also `report.json` and `profile.txt`.

    A context manager: leaving it closes the files, whatever happened.

    Args:
        path: created if missing.
        command: the command's name, for config.json.
        config: the command's dataclass.
        overwrite: delete the files of an earlier run in this folder first.
    Raises:
        UserError: not writable, or an earlier run's and not `overwrite`.
    """

    def __init__(self, path: str | Path, command: str, config: Any, overwrite: bool = False):
        self.path = Path(path)
        try:
            check_usable(path, overwrite)
            self.path.mkdir(parents=True, exist_ok=True)
            if overwrite:
                for file in own_files(self.path):
                    file.unlink()
            self.flags = dataclasses.asdict(config)
            record = {
                "command": command,
                **self.flags,
                "blockdrop": project_version(),
                "torch": torch.__version__,
            }
            # "x": of two runs that begin together one gets the folder, and the other touches nothing in it
            with open(self.path / "config.json", "x", encoding="utf-8") as claim:
                claim.write(json.dumps(record, indent=2) + "\n")
            self._metrics = open(self.path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        except FileExistsError:
            raise UserError(f"--cv_dir {path}: another run has just begun there; name another folder") from None
        except OSError as error:
            raise UserError(f"--cv_dir {path}: not writable ({error.strerror or error})") from None
        self.writer = SummaryWriter(str(self.path))
        flags = "\n".join(f"| {key} | {value} |" for key, value in record.items())
        self.writer.add_text("hyperparameters", f"| flag | value |\n| --- | --- |\n{flags}")

    def log(self, epoch: int, phase: str, metrics: Mapping[str, float]) -> None:
        """Appends to metrics.jsonl, and to TensorBoard under `phase/name`."""
        line = {"epoch": epoch, "phase": phase, "time": round(time.time(), 3), **metrics}
        print(json.dumps(line), file=self._metrics, flush=True)
        for name, value in metrics.items():
            self.writer.add_scalar(f"{phase}/{name}", value, epoch)

    def log_figure(self, epoch: int, tag: str, figure: Figure) -> None:
        """A matplotlib figure for TensorBoard's image page."""
        self.writer.add_figure(tag, figure, epoch)

    def checkpoint_path(self, epoch: int, metrics: Mapping[str, float]) -> Path:
        """`ckpt_E_<epoch>_A_<acc>_R_<reward>_S_<blocks>_#_<unique policies>.t7`, as the reference names them.

        Without a policy (pretraining) only epoch and accuracy stand in the name.
        """
        name = f"ckpt_E_{epoch}_A_{metrics['accuracy']:.3f}"
        if "reward" in metrics:
            name += f"_R_{metrics['reward']:.2E}_S_{metrics['blocks']:.2f}_#_{metrics['unique_policies']:.0f}"
        return self.path / f"{name}.t7"

    def check_finite(self, loss: Tensor, epoch: int, batch: int) -> None:
        """Raises `NumericalError` for a loss that is NaN or infinite."""
        if bool(torch.isfinite(loss)):
            return
        found = sorted(self.path.glob("ckpt_E_*.t7"), key=lambda file: file.stat().st_mtime)
        kept = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been written yet"
        raise NumericalError(
            f"the loss is {loss.item()} in epoch {epoch}, batch {batch}; try a smaller --lr; {kept}"
        )

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()
        self._metrics.close()

    def finish(self, final_metrics: Mapping[str, float]) -> None:
        """Records flags beside final metrics in TensorBoard's table of runs."""
        flags = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.flags.items()}
        finite = {f"final/{k}": v for k, v in final_metrics.items() if math.isfinite(v)}
        self.writer.add_hparams(flags, finite, run_name=".")


def own_files(path: Path) -> list[Path]:
    """The files of a run in this folder; none if there is no such folder."""
    reports = REPORT_FILES if (path / "config.json").exists() else ()
    return [file for pattern in (*OWN_FILES, *reports) for file in path.glob(pattern)]


def check_usable(path: str | Path, overwrite: bool, inputs: Sequence[str] = ()) -> None:
    """Raises `UserError` if the folder can't be written, holds a run that may not be deleted, or holds one of the
    checkpoints (`inputs`) that the new run starts from. Changes nothing."""
    folder = Path(path).resolve()
    there = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    if not (os.path.isdir(there) and os.access(there, os.W_OK) and len(folder.name) < 256):
        raise UserError(f"--cv_dir {path}: not writable ({there}); name another folder")
    earlier = own_files(folder)
    if earlier and not overwrite:
        raise UserError(
            f"--cv_dir {path}: already holds a run ({earlier[0].name}); name another folder, or pass "
            "--overwrite to delete that run"
        )
    for name in inputs:
        if earlier and folder in (Path(name).resolve(), *Path(name).resolve().parents):
            raise UserError(f"--cv_dir {path}: holds {name}, which this run starts from; name another folder")
