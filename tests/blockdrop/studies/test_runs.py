"""Runs: which are finished, and what their commands are."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from blockdrop import distill
from blockdrop.console import run_command
from blockdrop.distillation.kd import KdConfig
from blockdrop.errors import BlockdropError
from blockdrop.evaluate import EvaluateConfig
from blockdrop.finetune import FinetuneConfig
from blockdrop.pretrain import PretrainConfig
from blockdrop.studies import runs
from blockdrop.studies.runs import check_finished, command_line
from blockdrop.training.config import ModelConfig
from experiments.methods import METHODS
from experiments.tradeoff import TradeoffConfig, plan_method


def commands() -> list[ModelConfig]:
    config = TradeoffConfig(load="cv/r32", seeds=(0,))
    plans = [plan_method(config, method, 0) for method in METHODS if method.kind != "cascade"]
    return [one for plan in plans for one in (*plan.trainings, plan.evaluation)] + [
        PretrainConfig(model="R20_C10", channels_last=False, init=("a b", "c"), clip_grad=0.5),
        FinetuneConfig.of_recipe("fast", pretrained=("a",), target_flops=None, anneal=0.0),
        EvaluateConfig(load=("a",), threshold=0.25),
    ]


def test_a_command_line_is_parsed_to_the_flags_it_was_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for config in commands():
        seen: list[ModelConfig] = []
        _, module, *flags = command_line(config)
        monkeypatch.setattr(sys, "argv", [module, *flags])
        run_command(seen.append, distill.METHODS if module == "blockdrop.distill" else type(config), None)
        assert seen == [config], flags


# ---- finished runs


def write_run(config: Any, weights: float | None = None, **changes: Any) -> None:
    folder = Path(config.cv_dir)
    folder.mkdir(parents=True)
    record = {**dataclasses.asdict(config), **changes}
    (folder / "config.json").write_text(json.dumps(record))
    line = {"epoch": record["max_epochs"] - 1, "phase": "test", "accuracy": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    if weights is not None:
        write_weights(folder, weights)


def write_weights(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"blocks.0.0.conv1.weight": torch.full((1,), value)}
    torch.save({"resnet": state}, folder / "ckpt_E_1_A_0.500.t7")
    return folder


def test_a_finished_run_is_known_by_its_flags(tmp_path: Path) -> None:
    def config(folder: str, **flags: Any) -> PretrainConfig:
        return PretrainConfig(cv_dir=str(tmp_path / folder), max_epochs=3, **flags)

    assert not check_finished(config("none"), "mend")
    write_run(config("done", test_every=1))
    assert check_finished(config("done", test_every=5), "mend")
    with pytest.raises(BlockdropError, match=r"holds a run of --lr 0.1, not 0.2; name another folder, or mend"):
        check_finished(config("done", lr=0.2), "mend")
    write_run(config("cut off"), max_epochs=3)
    (tmp_path / "cut off" / "metrics.jsonl").write_text("")
    assert not check_finished(config("cut off"), "mend")
    with pytest.raises(BlockdropError, match="holds a run of --test_every 10, not 5"):
        check_finished(config("cut off", test_every=5), "mend")


def test_a_run_whose_method_set_what_is_now_a_default_is_still_the_same_run(tmp_path: Path) -> None:
    def config(**flags: Any) -> KdConfig:
        return KdConfig(cv_dir=str(tmp_path / "kd"), load=("t",), student="R8", temperature=4.0, **flags)

    write_run(config(), alpha=None, beta=None)
    assert check_finished(config(), "mend")
    with pytest.raises(BlockdropError, match=r"holds a run of --alpha None, not 0.5"):
        check_finished(config(alpha=0.5), "mend")


def test_a_copied_run_may_have_started_from_the_same_weights_elsewhere(tmp_path: Path) -> None:
    here, there, other = (
        write_weights(tmp_path / name, value) for name, value in (("here", 1.0), ("there", 1.0), ("other", 2.0))
    )

    def config(start: Path) -> FinetuneConfig:
        return FinetuneConfig(cv_dir=str(tmp_path / "run"), pretrained=(str(start),), max_epochs=1)

    write_run(config(here))
    assert check_finished(config(here), "mend")
    assert check_finished(config(there), "mend")
    with pytest.raises(
        BlockdropError, match=r"holds a run of --pretrained .*here, not .*other, or not of the same"
    ):
        check_finished(config(other), "mend")
    with pytest.raises(BlockdropError, match="not of the same weights"):
        check_finished(config(tmp_path / "gone"), "mend")

    recorded = {str(here / "ckpt_E_1_A_0.500.t7"): runs.digest(there / "ckpt_E_1_A_0.500.t7")}
    (tmp_path / "run" / "config.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run").rmdir()
    write_run(config(here), inputs=recorded)
    write_weights(here, 3.0)
    assert check_finished(config(there), "mend"), "what it started from is gone, but its hash is known"
