"""What is told of a run's metrics, beside metrics.jsonl and TensorBoard: Weights & Biases, MLflow, code of yours.

    blockdrop.train(dynamic, train_data, test_data, run_dir="cv/run", callbacks=[WandbCallback(project="photos")])

From the command line: `--report_to wandb`.
"""

from __future__ import annotations

import importlib
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blockdrop.errors import BlockdropError
from blockdrop.names import ServiceName

WANDB_ID = "wandb.id"
"""A file of the run directory, which a run that goes on reads."""


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


class Service(Callback):
    """A callback of a service, which may be out of reach for a while: that is said once, and training goes on.

    Args:
        package: of the service.
    Raises:
        BlockdropError: it isn't installed.
    """

    def __init__(self, package: str):
        self.package = package
        self.service = _import(package)
        self.warned = False

    def log(self, epoch: int, phase: str, metrics: Mapping[str, float]) -> None:
        """Sends the metrics under `phase/name`."""
        try:
            self.send(epoch, {f"{phase}/{name}": value for name, value in metrics.items()})
        except Exception as error:  # whatever the service's client raises
            if not self.warned:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                print(f"warning: {self.package}: metrics couldn't be sent ({reason})", file=sys.stderr)
            self.warned = True

    def send(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """What `log` does if all is well."""


class WandbCallback(Service):
    """Sends metrics to Weights & Biases. A run that goes on after a kill goes on there, too.

    Args:
        options: of `wandb.init`, for example project.
    """

    def __init__(self, **options: Any):
        super().__init__("wandb")
        self.options = options
        self.run: Any = None

    def begin(self, folder: Path, flags: Mapping[str, Any]) -> None:
        file = folder / WANDB_ID
        if not file.exists():
            file.write_text(uuid.uuid4().hex[:16])
        usual = {"project": "blockdrop", "name": folder.name, "id": file.read_text(), "resume": "allow"}
        # another run may be open, as of the baseline of distill
        self.run = self.service.init(**{**usual, "reinit": "create_new", "config": dict(flags), **self.options})

    def send(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.run.log({"epoch": epoch, **metrics})

    def end(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MlflowCallback(Service):
    """Sends metrics to MLflow, to the server or folder that `MLFLOW_TRACKING_URI` names.

    Args:
        experiment: its name; made if there is none.
    """

    LONGEST = 500
    """Characters of a flag's value."""

    def __init__(self, experiment: str = "blockdrop"):
        super().__init__("mlflow")
        self.experiment = experiment
        self.client: Any = None
        self.run_id = ""

    def begin(self, folder: Path, flags: Mapping[str, Any]) -> None:
        self.client = self.service.MlflowClient()  # and not the module's run, of which a process has one
        there = self.client.get_experiment_by_name(self.experiment)
        place = self.client.create_experiment(self.experiment) if there is None else there.experiment_id
        self.run_id = self.client.create_run(place, run_name=folder.name).info.run_id
        for name, value in flags.items():
            self.client.log_param(self.run_id, name, str(value)[: self.LONGEST])

    def send(self, epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.client.log_metric(self.run_id, name, value, step=epoch)

    def end(self, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "FAILED")


def callbacks_for(services: Sequence[ServiceName]) -> list[Callback]:
    """Those of --report_to.

    Raises:
        BlockdropError: a service's package isn't installed.
    """
    kinds: dict[ServiceName, Callable[[], Callback]] = {"wandb": WandbCallback, "mlflow": MlflowCallback}
    return [kinds[service]() for service in services]


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise BlockdropError(f"--report_to {package}: {package} isn't installed; pip install {package}") from None
