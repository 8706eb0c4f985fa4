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
from blockdrop.callbacks import Callback, MlflowCallback, WandbCallback


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

    return Module()


def test_weights_and_biases_gets_flags_metrics_and_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "wandb", recorder(calls))
    callback = WandbCallback(project="photos")
    callback.begin(tmp_path / "run", {"lr": 0.1})
    callback.log(3, "test", {"accuracy": 0.5})
    callback.end(False)
    name, _, options = calls[0]
    assert (name, options["project"], options["name"]) == ("init", "photos", "run")
    assert (options["config"], options["resume"]) == ({"lr": 0.1}, "allow")
    assert calls[1] == ("log", ({"epoch": 3, "test/accuracy": 0.5},), {})
    assert calls[2] == ("finish", (), {"exit_code": 1})


def test_mlflow_gets_flags_metrics_and_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "mlflow", recorder(calls))
    callback = MlflowCallback()
    callback.begin(tmp_path / "run", {"load": ("a",)})
    callback.log(3, "test", {"accuracy": 0.5})
    callback.end(True)
    assert calls == [
        ("start_run", (), {"run_name": "run"}),
        ("log_params", ({"load": "('a',)"},), {}),
        ("log_metrics", ({"test/accuracy": 0.5},), {"step": 3}),
        ("end_run", ("FINISHED",), {}),
    ]
