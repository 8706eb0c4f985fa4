"""What is told of a run's metrics, beside metrics.jsonl and TensorBoard: Weights & Biases, MLflow, code of yours.

    blockdrop.train(dynamic, train_data, test_data, run_dir="cv/run", callbacks=[WandbCallback(project="photos")])

From the command line: `--report_to wandb`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockdrop.errors import BlockdropError
from blockdrop.names import Service


class Callback:
    """Is told of a run. Derive from it and write what you need; only the first of several processes calls.

    >>> class Printed(Callback):
    ...     def log(self, epoch, phase, metrics):
    ...         print(epoch, phase, metrics["accuracy"])
    >>> Printed().log(3, "test", {"accuracy": 0.9})
    3 test 0.9
    """

    def begin(self, folder: Path, flags: Mapping[str, Any]) -> None:
        """A run begins, or goes on.

        Args:
            folder: the run directory.
            flags: the command, its flags by name, and versions, as in config.json.
        """

    def log(self, epoch: int, phase: str, metrics: Mapping[str, float]) -> None:
        """What metrics.jsonl gets a line of.

        Args:
            epoch: from 0.
            phase: `train`, `test`, `brought`, or a method's own.
            metrics: by name.
        """

    def end(self, finished: bool) -> None:
        """The run ends; `finished` is whether all its epochs are over."""


class WandbCallback(Callback):
    """Sends metrics to Weights & Biases. A run that goes on after a kill goes on there, too.

    Args:
        options: of `wandb.init`, for example project.
    Raises:
        BlockdropError: wandb isn't installed.
    """

    def __init__(self, **options: Any):
        self.wandb, self.options = _import("wandb"), options
        self.run: Any = None

    def begin(self, folder: Path, flags: Mapping[str, Any]) -> None:
        usual = {"project": "blockdrop", "name": folder.name, "id": _run_id(folder), "resume": "allow"}
        self.run = self.wandb.init(**{**usual, "config": dict(flags), **self.options})

    def log(self, epoch: int, phase: str, metrics: Mapping[str, float]) -> None:
        self.run.log({"epoch": epoch, **{f"{phase}/{name}": value for name, value in metrics.items()}})

    def end(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MlflowCallback(Callback):
    """Sends metrics to MLflow, to the server or folder that `MLFLOW_TRACKING_URI` names.

    Args:
        options: of `mlflow.start_run`.
    Raises:
        BlockdropError: mlflow isn't installed.
    """

    LONGEST = 500
    """Characters of a flag's value."""

    def __init__(self, **options: Any):
        self.mlflow, self.options = _import("mlflow"), options

    def begin(self, folder: Path, flags: Mapping[str, Any]) -> None:
        self.mlflow.start_run(**{"run_name": folder.name, **self.options})
        self.mlflow.log_params({name: str(value)[: self.LONGEST] for name, value in flags.items()})

    def log(self, epoch: int, phase: str, metrics: Mapping[str, float]) -> None:
        self.mlflow.log_metrics({f"{phase}/{name}": value for name, value in metrics.items()}, step=epoch)

    def end(self, finished: bool) -> None:
        self.mlflow.end_run("FINISHED" if finished else "FAILED")


def callbacks_for(services: Sequence[Service]) -> list[Callback]:
    """Those of --report_to.

    Raises:
        BlockdropError: a service's package isn't installed.
    """
    kinds = {"wandb": WandbCallback, "mlflow": MlflowCallback}
    return [kinds[service]() for service in services]


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise BlockdropError(f"--report_to {package}: {package} isn't installed; pip install {package}") from None


def _run_id(folder: Path) -> str:
    """The same for the same folder."""
    import hashlib

    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
