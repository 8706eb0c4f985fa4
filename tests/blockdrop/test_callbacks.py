"""What else is told of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import blockdrop
from blockdrop import pretrain
from blockdrop.callbacks import Callback, MlflowCallback, Service, WandbCallback
from blockdrop.training.run_directory import RunDirectory


class Noted(Callback):
    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.lines: list[dict[str, Any]] = []
        self.ended: list[bool] = []

    def begin(self, folder: Path, flags: Any) -> None:
        self.begun.append((folder.name, flags["command"]))

    def log(self, epoch: int, phase: str, metrics: Any) -> None:
        self.lines.append({"epoch": epoch, "phase": phase, **metrics})

    def end(self, finished: bool) -> None:
        self.ended.append(finished)


def test_a_callback_is_told_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    data = torch.utils.data.TensorDataset(images, labels)
    noted = Noted()
    dynamic = blockdrop.make_dynamic("R8_C10", num_classes=2)
    blockdrop.train(dynamic, data, data, epochs=2, run_dir=tmp_path / "run", speed=False, callbacks=[noted])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert noted.lines == [{k: v for k, v in line.items() if k != "time"} for line in lines]
    assert (noted.begun, noted.ended) == ([("run", "finetune")], [True])


def test_a_service_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    flags = ("--model", "R8_Digits", "--report_to", "wandb", "--cv_dir", tmp_path / "run")
    code, _, error = command(pretrain, *flags)
    assert (code, error) == (2, "error: --report_to wandb: wandb isn't installed; pip install wandb")


def recorder(calls: list[tuple[Any, ...]]) -> SimpleNamespace:
    """A module whose functions note their calls."""

    class Module(SimpleNamespace):
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                calls.append((name, args, options))
                return self

            return call

    return Module(info=SimpleNamespace(run_id="r"), experiment_id="e")


def test_weights_and_biases_gets_flags_metrics_and_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "wandb", recorder(calls))
    callback = WandbCallback(project="photos")
    callback.begin(tmp_path, {"lr": 0.1})
    callback.log(3, "test", {"accuracy": 0.5})
    callback.end(False)
    name, _, options = calls[0]
    assert (name, options["project"], options["name"]) == ("init", "photos", tmp_path.name)
    assert (options["config"], options["resume"]) == ({"lr": 0.1}, "allow")
    assert calls[1] == ("log", ({"epoch": 3, "test/accuracy": 0.5},), {})
    assert calls[2] == ("finish", (), {"exit_code": 1})
    WandbCallback().begin(tmp_path, {})
    assert calls[3][2]["id"] == options["id"], "a run that goes on"
    (tmp_path / "wandb.id").unlink()
    WandbCallback().begin(tmp_path, {})
    assert calls[4][2]["id"] != options["id"], "another run in the same folder"


def test_mlflow_gets_flags_metrics_and_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "mlflow", recorder(calls))
    callback = MlflowCallback()
    callback.begin(tmp_path / "run", {"load": ("a",)})
    callback.log(3, "test", {"accuracy": 0.5})
    callback.end(True)
    assert [name for name, *_ in calls[:3]] == ["MlflowClient", "get_experiment_by_name", "create_run"]
    assert [(name, args[1:], options) for name, args, options in calls[3:]] == [
        ("log_param", ("load", "('a',)"), {}),
        ("log_metric", ("test/accuracy", 0.5), {"step": 3}),
        ("set_terminated", ("FINISHED",), {}),
    ]


def test_a_service_out_of_reach_is_said_once_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    class Unreachable(Service):
        def send(self, epoch: int, metrics: Any) -> None:
            raise TimeoutError("no answer\nmore")

    service = Unreachable("json")
    for epoch in range(3):
        service.log(epoch, "test", {})
    assert capsys.readouterr().err == "warning: json: metrics couldn't be sent (no answer)\n"


class Refuses(Noted):
    def begin(self, folder: Path, flags: Any) -> None:
        raise ValueError("not logged in")


def test_a_callback_that_cannot_begin_leaves_the_folder_free(tmp_path: Path) -> None:
    noted = Noted()
    config = pretrain.PretrainConfig(cv_dir=str(tmp_path))
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="not logged in"):
            RunDirectory(tmp_path, "pretrain", config, overwrite=overwrite, callbacks=[noted, Refuses()])
    assert noted.ended == [False, False], "what had begun ends"
    with RunDirectory(tmp_path, "pretrain", config, overwrite=True):
        pass


def test_an_error_at_the_end_hides_no_error_of_the_run(tmp_path: Path) -> None:
    class Stumbles(Noted):
        def end(self, finished: bool) -> None:
            raise OSError("gone")

    config, noted = pretrain.PretrainConfig(cv_dir=str(tmp_path)), Noted()
    with (
        pytest.raises(KeyError, match="the run's own"),
        RunDirectory(tmp_path, "pretrain", config, callbacks=[Stumbles(), noted]),
    ):
        raise KeyError("the run's own")
    assert noted.ended == [False]
    with (
        pytest.raises(OSError, match="gone"),
        RunDirectory(tmp_path, "pretrain", config, overwrite=True, callbacks=[Stumbles()]),
    ):
        pass
