"""A run's folder: its config, metrics, TensorBoard events and checkpoints, never silently another run's."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from blockdrop.callbacks import WANDB_ID, Callback, callbacks_for
from blockdrop.errors import BlockdropError, NumericalError, require
from blockdrop.output import check_folder, open_own, sync, write_whole
from blockdrop.processes import ALONE, Processes
from blockdrop.training.keeping import best_test, drop_checkpoints, stalled
from blockdrop.training.state import EVENTS, STATE_FILE, TrainingState, read_state
from blockdrop.version import project_version

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOCK_FILE = "run.lock"
OWN_FILES = (
    STATE_FILE, f"{STATE_FILE}.tmp", "metrics.jsonl", EVENTS, "ckpt_E_*.t7", "ckpt_E_*.t7.tmp", "config.json.tmp",
    "config.json", WANDB_ID,
)  # fmt: skip
"""In the order in which they are deleted: at no moment is there a state without the flags that it belongs to."""
REPORT_FILES = ("report.json", "profile.txt")
"""Ours only beside a run's config.json: others may call their files so."""
Lines = dict[str, tuple[int, dict[str, float]]]
"""By phase: epoch and metrics."""
FLAGS_THAT_MAY_DIFFER = (
    "cv_dir",
    "data_dir",
    "download",
    "overwrite",
    "workers",
    "device",
    "resume",
    "save_minutes",
    "keep_checkpoints",
    "report_to",
)
"""Flags in which two runs may differ and be the same."""

TAGS = {
    "answered": "answered_share_of_images",
    "answered_accuracy": "accuracy_of_answered_images",
    "answers": "answered_share_of_images",
    "blocks": "blocks_per_image",
    "blocks_std": "blocks_per_image_deviation",
    "entropy": "entropy_of_keep_probabilities",
    "flops": "FLOPs_per_image",
    "flops_share": "FLOPs_share_of_full_network",
    "lr": "learning_rate",
    "policy_steps": "steps_of_policy_learning",
    "price": "price_of_computation",
    "rest_accuracy": "accuracy_of_other_images",
    "spent": "FLOPs_share_of_full_network_in_batches",
    "unique_policies": "different_policies",
}
"""What TensorBoard calls a metric, where its own name says little to a stranger."""


class RunDirectory:
    """`--cv_dir`, opened for one run.

    Files: `config.json` (command, flags, versions, the hashes of the checkpoints it starts from), `metrics.jsonl`
    (one object per epoch and phase), TensorBoard events, `ckpt_E_<epoch>_….t7`, `state.pt` (to go on from); of
    `distill` also `report.json` and `profile.txt`.

    A context manager: leaving it closes the files, whatever happened. In it, SIGINT and SIGTERM save the state
    first (`TrainingState`).

    Args:
        path: created if missing.
        command: the command's name, for config.json.
        config: the command's dataclass.
        overwrite: delete the files of an earlier run in this folder first.
        resume: go on with the run in this folder, if there is one.
        inputs: checkpoint files that the run starts from.
        processes: which train together; the first one alone reads and writes.
        data: what tells the run's images from others, as plain values.
        callbacks: are told what is logged, beside those of the flag report_to.
    Raises:
        BlockdropError: not writable, in use, an earlier run's and not `overwrite`, or another run's than `resume`
            could go on with.
    """

    def __init__(
        self,
        path: str | Path,
        command: str,
        config: Any,
        *,
        overwrite: bool = False,
        resume: bool = False,
        inputs: Sequence[str | Path] = (),
        processes: Processes = ALONE,
        data: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
    ):
        self.path, self.processes = Path(path), processes
        self.flags = dataclasses.asdict(config)
        self.most_flops: float | None = None
        """Mean FLOPs of an image that the best checkpoint may spend; None: any."""
        record = {
            "command": command,
            **self.flags,
            "blockdrop": project_version(),
            "torch": torch.__version__,
            "inputs": {str(file): digest(file) for file in inputs},
            **({} if data is None else {"data": dict(data)}),
        }
        self.callbacks: list[Callback] = []
        processes.from_first(lambda: self.callbacks.extend(callbacks_for(self.flags.get("report_to", ()))))
        if processes.first:
            self.callbacks += callbacks
        self._lock = FileLock(self.path / LOCK_FILE, blocking=False)
        saved, self._last = processes.from_first(lambda: self._claim(record, overwrite, resume))
        self.state = TrainingState(
            self,
            save_minutes=self.flags.get("save_minutes", math.inf),
            saved=saved,
            accumulate=self.flags.get("accumulate", 1),
            processes=processes,
        )
        processes.from_first(lambda: self._tell_callbacks(record))
        if saved is None and processes.first:
            flags = "\n".join(f"| {key} | {value} |" for key, value in record.items())
            self.writer.add_text("hyperparameters", f"| flag | value |\n| --- | --- |\n{flags}")

    def _tell_callbacks(self, record: dict[str, Any]) -> None:
        """That the run begins. If one fails, the folder is given up."""
        begun = []
        try:
            for callback in self.callbacks:
                callback.begin(self.path, record)
                begun.append(callback)
        except BaseException:
            self.callbacks = begun
            self._close(failing=True)
            raise

    def _claim(self, record: dict[str, Any], overwrite: bool, resume: bool) -> tuple[Any, Lines]:
        """Takes the folder's lock and makes it ready; returns the state to go on from and what was logged last."""
        try:
            check_usable(self.path, overwrite, resume=resume)
            self.path.mkdir(parents=True, exist_ok=True)
            sync(self.path.parent)
            self._lock.acquire()
            place = os.stat(self.path / LOCK_FILE)
            self._place = place.st_dev, place.st_ino
            return self._open(record, overwrite, resume)
        except Timeout:
            raise BlockdropError(
                f"--cv_dir {self.path}: another process trains there; name another folder"
            ) from None
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise BlockdropError(f"--cv_dir {self.path}: not writable ({error.strerror or error})") from None
            raise

    def _open(self, record: dict[str, Any], overwrite: bool, resume: bool) -> tuple[Any, Lines]:
        check_usable(self.path, overwrite, resume=resume)  # again: another run may have ended since
        saved = None
        if resume:
            check_same_run(self.path, record)
            saved = read_state(self.path)
            strangers = [file.name for file in own_files(self.path) if file.name != "config.json.tmp"]
            require(
                not strangers or bool(read_flags(self.path)),
                f"--cv_dir {self.path}: holds {', '.join(strangers[:1])}, but no whole config.json that says of "
                "which run; name another folder, or begin anew with --overwrite",
            )
        if saved is not None:
            for file in self.path.glob(EVENTS):
                if file.name not in saved["logs"]:
                    file.unlink()
            for name, size in saved["logs"].items():
                cut(self.path / name, size)
        else:
            for file in own_files(self.path):
                file.unlink()
                if file.name == STATE_FILE:
                    sync(self.path)  # before the flags go that it belongs to
            content = json.dumps(record, indent=2) + "\n"
            write_whole(self.path / "config.json", lambda file: file.write(content.encode()))
        metrics = open_own(self.path / "metrics.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._metrics = os.fdopen(metrics, "a", encoding="utf-8")
        last: Lines = {}
        for line in read_metrics(self.path):
            epoch, phase = line.pop("epoch"), line.pop("phase")
            line.pop("time", None)
            last[phase] = epoch, line
        wait_for_a_later_name(self.path.glob(EVENTS))
        self.writer = SummaryWriter(str(self.path))
        return saved, last

    @property
    def resumed(self) -> str | None:
        """Says where a run goes on that had been cut off."""
        state = self.state.saved
        if state is None:
            return None
        if state["finished"]:
            return "this run is finished: nothing is left to train; its checkpoint can begin a new run"
        return f"going on at epoch {state['epoch']}" + (f", batch {state['batch']}" if state["batch"] else "")

    def log(self, epoch: int, phase: str, metrics: Mapping[str, float]) -> None:
        """Appends to metrics.jsonl, and to TensorBoard under `phase/name`, some names longer (`TAGS`)."""
        line = {"epoch": epoch, "phase": phase, "time": round(time.time(), 3), **metrics}
        self._last[phase] = epoch, dict(metrics)
        if self.processes.first:
            with self._writing():
                print(json.dumps(line), file=self._metrics, flush=True)
                for name, value in metrics.items():
                    self.writer.add_scalar(f"{phase}/{TAGS.get(name, name)}", value, epoch)
            for callback in self.callbacks:
                callback.log(epoch, phase, metrics)

    def last(self, phase: str) -> tuple[int, dict[str, float]]:
        """Epoch and metrics of the phase's last line, before a resumption or after.

        Raises:
            BlockdropError: metrics.jsonl holds none.
        """
        require(phase in self._last, f"{self.path / 'metrics.jsonl'}: holds no {phase}; lines of it are gone")
        return self._last[phase]

    def last_or_none(self, phase: str) -> dict[str, float] | None:
        """Metrics of the phase's last line, if there is one."""
        return self._last[phase][1] if phase in self._last else None

    def log_figure(self, epoch: int, tag: str, figure: Figure) -> None:
        """A matplotlib figure for TensorBoard's image page."""
        if self.processes.first:
            with self._writing():
                self.writer.add_figure(tag, figure, epoch)

    def checkpoint_path(self, epoch: int, metrics: Mapping[str, float]) -> Path:
        """`ckpt_E_<epoch>_A_<acc>_R_<reward>_S_<blocks>_#_<unique policies>.t7`, as the reference names them.

        Without a policy (pretraining) only epoch and accuracy stand in the name.
        """
        name = f"ckpt_E_{epoch}_A_{metrics['accuracy']:.3f}"
        if "reward" in metrics:
            name += f"_R_{metrics['reward']:.2E}_S_{metrics['blocks']:.2f}_#_{metrics['unique_policies']:.0f}"
        return self.path / f"{name}.t7"

    def check_finite(self, values: Tensor, what: str, epoch: int, batch: int) -> None:
        """Raises `NumericalError` for values that are NaN or infinite."""
        finite = torch.isfinite(values)
        if bool(finite.all()):
            return
        found = sorted(self.path.glob("ckpt_E_*.t7"), key=lambda file: file.stat().st_mtime)
        kept = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been written yet"
        raise NumericalError(
            f"{what} is {values[~finite][0].item()} in epoch {epoch}, batch {batch}; try a smaller --lr; {kept}"
        )

    def sync(self) -> dict[str, int]:
        """Returns when the disk holds all that was logged; what the log files' sizes are then."""
        self._check_place()
        with self._writing():
            self.writer.flush()
            files = [self.path / "metrics.jsonl", *self.path.glob(EVENTS)]
            for file in files:
                sync(file)
            return {file.name: file.stat().st_size for file in files}

    def _check_place(self) -> None:
        """Raises `BlockdropError` if the folder isn't the one any more whose lock this run holds."""
        try:
            now = os.stat(self.path / LOCK_FILE)
            same = (now.st_dev, now.st_ino) == self._place
        except OSError:
            same = False
        require(same, f"{self.path}: deleted or replaced while this run was training; its state isn't saved")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BlockdropError(
                f"{self.path}: logs can't be written ({error.strerror or error}); mend that, then --resume"
            ) from None

    def __enter__(self) -> RunDirectory:
        self.state.signals.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self.state.signals.__exit__()
        if self.processes.first:
            self._close(failing=kind is not None)

    def _close(self, failing: bool) -> None:
        """Closes the files, gives the folder free and tells the callbacks; what these raise counts only if nothing
        else is `failing`."""
        with contextlib.suppress(OSError):
            self.writer.close()
            self._metrics.close()
        self._lock.release()
        errors = []
        for callback in self.callbacks:
            try:
                callback.end(self.state.finished)
            except Exception as error:
                errors.append(error)
        if errors and not failing:
            raise errors[0]

    def finish_with_test(self) -> dict[str, float]:
        """Finishes a run that ended with a test: says where its checkpoint is, and returns the test's metrics."""
        epoch, metrics = self.last("test")
        self.finish(metrics)
        print(f"checkpoint: {self.checkpoint_path(epoch, metrics)}")
        best = best_test(self.tests(), self.most_flops)
        if best is not None and best["epoch"] != epoch and best["accuracy"] > metrics["accuracy"]:
            print(f"best of its tests: {self.checkpoint_path(best['epoch'], best)}")
        return metrics

    def tests(self) -> list[dict[str, Any]]:
        """What was logged of tests."""
        return [line for line in read_metrics(self.path) if line["phase"] == "test"]

    def stalled(self, patience: int | None, since: int = 0) -> bool:
        """Whether so many tests in a row, from epoch `since` on, were no better than the best one; says so. None:
        never."""
        if patience is None:
            return False
        enough = self.processes.from_first(lambda: stalled(self.tests(), patience, since, self.most_flops))
        if enough:
            print(f"stopped early: no better test among the last {patience} (--patience)")
        return enough

    def keep_checkpoints(self, newest: int | None) -> None:
        """Deletes all but so many of the newest checkpoints and the best one; None: none."""
        if newest is not None:
            tests = self.tests()
            paths = {test["epoch"]: self.checkpoint_path(test["epoch"], test) for test in tests}
            best = best_test(tests, self.most_flops)
            drop_checkpoints(paths, newest, None if best is None else best["epoch"])

    def finish(self, final_metrics: Mapping[str, float]) -> None:
        """Records flags beside final metrics in TensorBoard's table of runs, and that the run is finished."""
        if self.state.finished:
            return
        flags = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.flags.items()}
        finite = {f"final/{k}": v for k, v in final_metrics.items() if math.isfinite(v)}
        if self.processes.first:
            with self._writing():
                self.writer.add_hparams(flags, finite, run_name=".")
        self.state.finish()


def digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cut(path: Path, size: int) -> None:
    """Takes away what was written to a log after it had this size; one that is gone stays so."""
    if path.exists():
        require(path.stat().st_size >= size, f"{path}: shorter than it was; the run can't go on with it")
        descriptor = open_own(path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)


def wait_for_a_later_name(events: Iterable[Path]) -> None:
    """TensorBoard reads event files in the order of their names, which say in what second they were begun."""
    newest = max((_second(file) for file in events), default=0)
    while int(time.time()) <= newest < time.time() + 2:
        time.sleep(0.05)


def _second(events: Path) -> int:
    stamp = events.name.split(".")[3]
    return int(stamp) if stamp.isdecimal() else 0


def read_metrics(folder: Path, size: int | None = None) -> list[dict[str, Any]]:
    """What a run has logged; empty where there is no run.

    Args:
        size: bytes of metrics.jsonl that count; default: all whole lines, as a last one may be being written.
    Raises:
        BlockdropError: a damaged file.
    """
    path = folder / "metrics.jsonl"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BlockdropError(f"{path}: can't be read ({error.strerror})") from None
    lines = []
    texts = content[:size].splitlines(keepends=True)
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            if size is None and number == len(texts) and not text.endswith(b"\n"):
                break
            raise BlockdropError(f"{path}: damaged (line {number}: {error})") from None
        whole = isinstance(line, dict) and line.keys() >= {"epoch", "phase"}
        require(whole, f"{path}: damaged (line {number} names no epoch and phase)")
        lines.append(line)
    return lines


def read_flags(folder: Path) -> dict[str, Any]:
    """config.json of the run in a folder; empty where there is no run, or one whose config.json is damaged."""
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def check_same_run(folder: Path, record: Mapping[str, Any], mend: str = "pass what it began with") -> None:
    """Raises `BlockdropError` unless the run in a folder has these flags, or none that differ in what it
    computes."""
    recorded = read_flags(folder)
    for flag, value in json.loads(json.dumps(record)).items():
        found = recorded.get(flag, value)
        if flag == "inputs":
            for (name, before), now in zip(found.items(), value.values(), strict=False):
                require(before == now, f"--cv_dir {folder}: {name}, which the run started from, has changed since")
        elif flag == "data":
            before, now = (
                {name: fact for name, fact in data.items() if name != "network"} for data in (found, value)
            )
            others = [] if found.get("network") == value.get("network") else ["another network"]
            others += [] if before == now else [f"other data: {before}, now {now}"]
            require(
                not others,
                f"--cv_dir {folder}: the run began with {' and '.join(others)}; name another folder, or {mend}",
            )
        elif flag not in (*FLAGS_THAT_MAY_DIFFER, "blockdrop", "torch"):
            more = "" if flag != "max_epochs" else "; more epochs need a new run that starts from its checkpoint"
            what = flag if flag == "command" else f"--{flag}"
            require(
                found == value,
                f"--cv_dir {folder}: holds a run of {what} {found}, not {value}; name another folder, or "
                f"{mend}{more}",
            )


def holds_a_strangers_config(folder: Path) -> bool:
    """Whether the config.json in a folder is whole and not empty, but no run's: every run's names its command."""
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return record != {} and not (isinstance(record, dict) and "command" in record)


def own_files(path: Path) -> list[Path]:
    """The files of a run in this folder; none if there is no such folder."""
    reports = REPORT_FILES if "command" in read_flags(path) else ()
    return [file for pattern in (*OWN_FILES, *reports) for file in path.glob(pattern)]


def _failed_at_once(folder: Path, files: Sequence[Path]) -> bool:
    """Whether a folder's run, if there is one, ended before its first epoch did and left nothing to go on from."""
    if any(
        file.name == STATE_FILE or file.name.startswith("ckpt_E_") or file.name in REPORT_FILES for file in files
    ):
        return False
    try:
        known = not files or "command" in read_flags(folder)
        return known and all(line["phase"] == "brought" for line in read_metrics(folder))
    except BlockdropError:  # damaged, so there was something
        return False


def check_usable(path: str | Path, overwrite: bool, inputs: Sequence[str] = (), resume: bool = False) -> None:
    """Raises `BlockdropError` if the folder can't be written, holds a run that may be neither deleted nor gone on
    with, another program's config.json, or one of the checkpoints (`inputs`) that the new run starts from. Changes
    nothing."""
    check_folder("--cv_dir", path)
    folder = Path(path).resolve()
    require(
        not holds_a_strangers_config(folder),
        f"--cv_dir {path}: holds a config.json that is no run's of blockdrop; name another folder",
    )
    earlier = own_files(folder)
    if resume and earlier and not (folder / STATE_FILE).exists():
        # cut off before its first state: nothing is lost by beginning again
        begun = [file for file in earlier if file.name.startswith("ckpt_E_") or file.name in REPORT_FILES]
        require(not begun, f"--cv_dir {path}: holds a run without {STATE_FILE} to go on from; name another folder")
    elif not overwrite and not resume and not _failed_at_once(folder, earlier):
        raise BlockdropError(
            f"--cv_dir {path}: already holds a run ({earlier[0].name}); name another folder, pass --resume to go "
            "on with it, or --overwrite to delete it"
        )
    for name in inputs:
        if earlier and folder in (Path(name).resolve(), *Path(name).resolve().parents):
            raise BlockdropError(f"--cv_dir {path}: holds {name}, which this run starts from; name another folder")
