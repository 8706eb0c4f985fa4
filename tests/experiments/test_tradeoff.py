"""The trade-off: what --run would run, what it reports, and what the chart shows."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text
from PIL import Image

from blockdrop import build, evaluate, save_checkpoint
from blockdrop.console import run_command
from blockdrop.data import NORMALISATIONS
from blockdrop.errors import BlockdropError
from blockdrop.finetune import FinetuneConfig
from blockdrop.studies.jobs import Job
from blockdrop.studies.runs import command_line
from experiments import tradeoff
from experiments.methods import RIVALS, of_kinds
from experiments.tradeoff import METHODS, TradeoffConfig, figure, missing, plan_method
from experiments.tradeoff_chart import overlap
from tests.blockdrop.studies.test_evaluations import write
from tests.blockdrop.studies.test_runs import write_run
from tests.conftest import randomise_statistics

FAST = FinetuneConfig.RECIPES["fast"]


def save_r8(path: Path, policy: bool = False) -> Path:
    """An R8 for ten digits."""
    resnet, policy_network = build("R8_Digits", num_classes=10, policy_net="pooled")
    randomise_statistics(resnet)
    torch.nn.init.normal_(policy_network.logit.weight, std=0.5)
    save_checkpoint(
        path, model="R8_Digits", resnet=resnet, normalisation=NORMALISATIONS["half"],
        policy_network=policy_network if policy else None, policy_net="pooled",
        classes=[str(digit) for digit in range(10)], epoch=1, metrics={"accuracy": 0.1},
    )  # fmt: skip
    return path


@pytest.fixture
def config(tmp_path: Path) -> TradeoffConfig:
    """Of an R8 on digits."""
    load = str(save_r8(tmp_path / "full.t7"))
    return TradeoffConfig(model="R8_Digits", load=load, cv_dir=str(tmp_path / "cv"), seeds=(0,), run=True)


def names(jobs: list[Job]) -> list[str]:
    return [job.name for job in jobs]


# ---- what is missing


def test_every_method_of_the_list_has_commands_that_make_sense(config: TradeoffConfig) -> None:
    big = dataclasses.replace(config, model="R32_C10", load="cv/r32", seeds=(3,))
    for method in METHODS:
        if method.kind == "cascade":
            with pytest.raises(BlockdropError, match=r"experiments\.cascade makes its checkpoints"):
                plan_method(big, method, 3)
            continue
        plan = plan_method(big, method, 3)
        for training in plan.trainings:
            training.check()
            assert (training.seed, training.resume) == (3, True)
        last = plan.trainings[-1].cv_dir if plan.trainings else "cv/r32"
        assert plan.evaluation.load == (last,)
        assert plan.evaluation.curve == (method.kind == "dynamic")
        assert Path(plan.evaluation.json or "").stem == (f"{method.name}-s3" if plan.trainings else "full")


def test_static_policies_are_fine_tuned_at_the_cost_of_fast(config: TradeoffConfig) -> None:
    big = dataclasses.replace(config, model="R32_C10", load="cv/r32", batch_size=None)
    plans = {method.name: plan_method(big, method, 0) for method in METHODS if method.kind != "cascade"}
    (fast,) = plans["fast"].trainings
    for name, policy in (
        ("first_k", "first_k:9"),
        ("random_k", "random_k:9"),
        ("dist_k", "dist_k:9:.*fast-s0.json"),
    ):
        (training,) = plans[name].trainings
        mine, theirs = dataclasses.asdict(training), dataclasses.asdict(fast)
        differing = {flag for flag in mine if mine[flag] != theirs[flag]}
        assert differing == {"cv_dir", "policy"}
        assert re.fullmatch(policy, mine["policy"])
        assert plans[name].evaluation.policy == mine["policy"]
    for name, target in (("fast", FAST["target_flops"]), ("fast-45", 0.45), ("fast-75", 0.75)):
        assert plans[name].trainings[0].target_flops == target  # type: ignore[attr-defined]


def test_rivals_follow_the_data_set(config: TradeoffConfig) -> None:
    big = dataclasses.replace(config, teacher32="t")
    plans = {method.name: plan_method(big, method, 0) for method in of_kinds(*RIVALS)}
    models = {name: plan.evaluation.model for name, plan in plans.items()}
    assert models == {
        "r20": "R20_Digits", "plain20": "plain20_Digits", "stagewise": "plain20_Digits",
        "jointrd": "plain20_Digits", "r8": "R8_Digits", "kd": "R8_Digits", "shift": "shiftresnet20_Digits",
        "block": "resnet20_Digits",
    }  # fmt: skip


def test_the_whole_list_runs_what_others_need_first_and_shares_it(
    config: TradeoffConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = missing(dataclasses.replace(config, seeds=(0, 1)))
    found = names(jobs)
    assert len(found) == len(set(found))
    assert found.count("curriculum-s0") == 1
    assert "evaluate-full" in found
    assert "kd-s0" not in found
    assert "left out: kd: --teacher32: name a trained ResNet-32" in capsys.readouterr().out
    made: set[str] = set()
    makers = {job.makes for job in jobs}
    for job in jobs:
        assert job.needs & makers <= made, f"{job.name} comes too early"
        made.add(job.makes)
    needs = {job.name: {Path(need).name for need in job.needs} for job in jobs}
    assert needs["reference-p1-s1"] == needs["reference-p5-s1"] == {"curriculum-s1"}
    assert needs["dist_k-s1"] == {"full.t7", "fast-s1.json"}
    assert needs["stagewise-s1"] == {"r20-s0"}, "one teacher for all seeds"


def test_what_is_asked_for_brings_what_it_starts_from(config: TradeoffConfig) -> None:
    jobs = missing(dataclasses.replace(config, only=("dist_k",)))
    assert names(jobs) == ["fast-s0", "evaluate-fast-s0", "dist_k-s0", "evaluate-dist_k-s0"]
    jobs = missing(dataclasses.replace(config, only=("jointrd",)))
    assert names(jobs)[0] == "r20-s0"
    with pytest.raises(BlockdropError, match="--teacher32: name"):
        missing(dataclasses.replace(config, only=("kd",)))


def finish(config: TradeoffConfig, name: str, seed: int = 0) -> None:
    """Leaves what a method's last command would."""
    (method,) = (method for method in METHODS if method.name == name)
    training = plan_method(config, method, seed).trainings[-1]
    write_run(training)
    save_r8(Path(training.cv_dir, "ckpt_E_1_A_0.500.t7"), policy=True)


def test_what_is_finished_is_not_run_again(config: TradeoffConfig) -> None:
    config = dataclasses.replace(config, only=("reference-p1", "full"))
    finish(config, "reference-p1")
    assert names(missing(config)) == ["evaluate-reference-p1-s0", "evaluate-full"], "nor is its curriculum"
    config.results_folder.mkdir()
    result = config.results_folder / "reference-p1-s0.json"
    checkpoint = Path(config.cv_dir, "reference-p1-s0", "ckpt_E_1_A_0.500.t7")
    result.write_text(json.dumps({"checkpoints": [str(checkpoint)]}))
    assert names(missing(config)) == ["evaluate-full"]
    os.utime(result, (1, 1))
    assert names(missing(config)) == ["evaluate-reference-p1-s0", "evaluate-full"], "older than its checkpoint"
    os.utime(result)
    result.write_text(json.dumps({"checkpoints": [str(checkpoint.with_name("ckpt_E_0_A_0.400.t7"))]}))
    assert names(missing(config)) == ["evaluate-reference-p1-s0", "evaluate-full"], "of an earlier one"
    for other in ('{"checkpoints": ["mine.t7"]}', "my notes"):
        result.write_text(other)
        with pytest.raises(BlockdropError, match=r"reference-p1-s0.json: isn't an evaluation of .*; move it away"):
            missing(config)
    result.unlink()
    with pytest.raises(
        BlockdropError, match=r"holds a run of --max_epochs 10, not 9; .* compare what there is without"
    ):
        missing(dataclasses.replace(config, finetune_epochs=9))


def test_evaluations_alone_train_nothing(config: TradeoffConfig) -> None:
    config = dataclasses.replace(config, run=False, evaluate=True)
    finish(config, "fast")
    assert names(missing(config)) == ["evaluate-full", "evaluate-fast-s0"]


# ---- the report


@pytest.mark.long
def test_from_nothing_to_tables_and_chart_in_two_processes(
    config: TradeoffConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(
        config, only=("full", "r8"), processes=2, epochs=1, engine="torch", timed_images=32,
        timed_batch_size=16, resamples=100, figure=str(tmp_path / "chart.png"), json=str(tmp_path / "report.json"),
    )  # fmt: skip
    report = tradeoff.main(config)
    out = capsys.readouterr().out
    assert out.count(": begun") == 3
    assert "| ResNet-8, all blocks | `full` | full | - |" in out
    assert "| ResNet-8, alone | `r8` | reduced | 0 |" in out
    assert "| `r8` | `full` | McNemar, exact | 1.00 |" in out
    assert report["methods"][0]["seconds"] == report["methods"][1]["seconds"] > 0, "the same network"
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.size == (1640, 720)
    run = Path(config.cv_dir, "r8-s0")
    before = {file.name: file.read_bytes() for file in run.iterdir()}

    write(config.results_folder, "mine-s0")
    (config.results_folder / "broken.json").write_text("{")
    own = json.loads((config.results_folder / "full.json").read_text())
    own["right"] = own["right"].translate({ord("0"): "1", ord("1"): "0"})
    own["accuracy"] = 1 - own["accuracy"]
    (config.results_folder / "mine.json").write_text(json.dumps(own))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("run again"))
    again = tradeoff.main(dataclasses.replace(config, overwrite=True))
    out = capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before
    assert "left out: broken.json: damaged, no JSON" in out
    assert "left out: mine-s0.json: of 4 other images than the 450 that most files are about" in out
    assert "| mine | `mine` | full | - |" in out
    assert [method["name"] for method in again["methods"]] == ["full", "r8", "mine"]
    assert again["methods"][2]["accuracy"] == pytest.approx(1 - again["methods"][0]["accuracy"])


@pytest.mark.long
def test_dynamic_networks_and_static_policies_are_timed_from_what_their_files_say(
    config: TradeoffConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(config, run=False, timed_images=32, timed_batch_size=16, engine="torch")
    config.results_folder.mkdir(parents=True)
    dynamic = str(save_r8(tmp_path / "dynamic.t7", policy=True))
    for name, flags in {
        "full": {"load": (config.load,)},
        "fast-s0": {"load": (dynamic,), "curve": True},
        "fast-s1": {"load": (dynamic,), "curve": True, "threshold": 0.4},
        "random_k-s0": {"load": (dynamic,), "policy": "random_k:2"},
    }.items():
        file = str(config.results_folder / f"{name}.json")
        how: dict[str, Any] = {"model": "R8_Digits", "engine": "torch", "speed": False, **flags}
        evaluate.main(evaluate.EvaluateConfig(json=file, **how))

    report = tradeoff.main(config)
    assert report["times"] is None
    assert "no seconds: --time measures them" in capsys.readouterr().out
    assert all(method["seconds"] is None for method in report["methods"])

    report = tradeoff.main(dataclasses.replace(config, time=True))
    full, fast, random = report["methods"]
    assert report["times"]["images"] == 32
    stored = json.loads((config.results_folder / "times.json").read_text())
    assert list(stored["runs"]) == ["fast-s0", "fast-s1", "full", "random_k-s0"]
    assert stored["runs"]["full"]["seconds"] == full["seconds"]
    assert stored["runs"]["random_k-s0"]["seconds"] == random["seconds"]
    assert all(row["seconds"] > 0 for curve in fast["curves"] for row in curve)
    own = [
        next(row for row in curve if row["threshold"] == t)
        for curve, t in zip(fast["curves"], (0.5, 0.4), strict=True)
    ]
    assert sum(row["seconds"] for row in own) / 2 == pytest.approx(fast["seconds"])
    assert fast["accuracy"] == pytest.approx(sum(row["accuracy"] for row in own) / 2)
    comparisons = {(row["method"], row["against"]): row["test"] for row in report["comparisons"]}
    assert comparisons == {("fast", "full"): "clustered", ("random_k", "fast"): "clustered"}
    again = tradeoff.main(config)
    assert again["times"] == report["times"], "stored"

    (tmp_path / "dynamic.t7").unlink()
    capsys.readouterr()
    report = tradeoff.main(dataclasses.replace(config, time=True))
    assert f"fast-s0.json: not timed: {dynamic}: no such checkpoint file" in capsys.readouterr().out
    assert [method["seconds"] is None for method in report["methods"]] == [False, True, True]
    assert tradeoff.markdown(report)


def test_somebody_s_times_are_not_replaced(config: TradeoffConfig) -> None:
    config = dataclasses.replace(config, run=False, time=True)
    config.results_folder.mkdir(parents=True)
    write(config.results_folder, "a-s0")
    (config.results_folder / "times.json").write_text('{"my": "notes"}')
    with pytest.raises(BlockdropError, match=r"its times.json is damaged or somebody else's; move it away"):
        tradeoff.main(config)
    assert (config.results_folder / "times.json").read_text() == '{"my": "notes"}'


def test_titles_say_what_the_files_are_about_and_any_name_can_be_drawn(
    config: TradeoffConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, run=False, figure=str(tmp_path / "chart.svg"))
    config.results_folder.mkdir(parents=True)
    write(config.results_folder, "first_k-s0", policy="first_k:2")
    write(config.results_folder, "random_k-s0")
    write(config.results_folder, "a$x_{$|b-s0")
    report = tradeoff.main(config)
    assert {method["name"]: method["title"] for method in report["methods"]} == {
        "first_k": "first 2 blocks", "random_k": "random_k", "a$x_{$|b": "a$x_{$|b",
    }  # fmt: skip
    lines = tradeoff.markdown(report).splitlines()
    columns = {
        line.replace(r"\|", "").count("|") for line in lines if line.startswith(("| method | name", "| a$x"))
    }
    assert len(columns) == 1


def test_pairs_are_as_asked(config: TradeoffConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, run=False)
    config.results_folder.mkdir(parents=True)
    write(config.results_folder, "a-s0", "1111111100")
    write(config.results_folder, "b-s0", "0000000011")
    report = tradeoff.main(dataclasses.replace(config, compare=(("a", "b"),)))
    (found,) = report["comparisons"]
    assert found["difference"] == pytest.approx(0.6)
    assert found["p_value"] == found["p_holm"] == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    with pytest.raises(BlockdropError, match="--compare c: choose a, b, which are evaluated on"):
        tradeoff.main(dataclasses.replace(config, compare=(("a", "c"),)))


def test_failures_are_told_at_the_end(
    config: TradeoffConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.results_folder.mkdir(parents=True)
    write(config.results_folder, "a-s0")
    monkeypatch.setattr(tradeoff, "run_jobs", lambda *args: {"fast-s0": "error: disk full (exit code 2)"})
    monkeypatch.setattr(tradeoff, "time_networks", lambda *args: None)
    with pytest.raises(BlockdropError, match="failed: fast-s0; once that is mended, the same command goes on"):
        tradeoff.main(config)
    out, err = capsys.readouterr()
    assert "| a | `a` |" in out
    assert "fast-s0 failed: error: disk full (exit code 2); log: " in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"only": ("slow",)}, "--only slow: choose full, fast, fast-45"),
        ({"figure": "chart.gif"}, "--figure chart.gif: must end in .png"),
        ({"seeds": ()}, "--seeds: name at least one"),
        ({"processes": 0}, "--processes 0: must be at least 1"),
        ({"run": True, "evaluate": True}, "--run, --evaluate: pass one of them"),
        ({"run": True}, "--load: name the trained full network"),
        ({"run": True, "load": "nowhere.t7"}, "nowhere.t7: no such checkpoint file"),
        ({}, "results: can't be read"),
        ({"model": "R9_C10"}, "R9_C10"),
    ],
    ids=str,
)
def test_bad_flags_end_with_one_line(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockdropError, match=re.escape(message)):
        tradeoff.main(TradeoffConfig(cv_dir=str(tmp_path / "cv"), **flags))
    assert not (tmp_path / "cv").exists()


def test_the_command_line_takes_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TradeoffConfig] = []
    monkeypatch.setattr("sys.argv", ["tradeoff", "--compare", "a", "b", "c", "d", "--only", "full", "fast"])
    run_command(seen.append, TradeoffConfig, tradeoff.__doc__)
    assert seen == [TradeoffConfig(compare=(("a", "b"), ("c", "d")), only=("full", "fast"))]


# ---- the chart


def method(name: str, kind: str, flops: float, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "title": name, "kind": kind, "flops": flops, "seconds": flops / 1e11, "accuracy": accuracy,
        "interval": [accuracy - 0.006, accuracy + 0.006], "curves": [], "flops_front": False,
        "seconds_front": False, **more,
    }  # fmt: skip


def crowded_report() -> dict[str, Any]:
    curve = [{"accuracy": 0.1 + share, "flops": 1.2e8 * share, "seconds": None} for share in (0.1, 0.4, 0.8)]
    return {
        "images": 10_000,
        "full": {"flops": 1.4e8, "seconds": 1.4e-3},
        "times": {"batch_size": 256, "engine": "torch"},
        "methods": [
            method("the full network", "full", 1.4e8, 0.895, flops_front=True, seconds_front=True),
            method("dynamic, 59 %", "dynamic", 8.1e7, 0.884, curves=[curve]),
            method("first 9 blocks", "static policy", 8.1e7, 0.881),
            method("plain-20, alone", "plain", 8.1e7, 0.829),
            method("plain-20, distilled", "distilled", 8.1e7, 0.876),
            method("ResNet-20", "reduced", 8.1e7, 0.885, flops_front=True, seconds_front=True),
            method("ShiftResNet-20", "shift", 3.0e7, 0.82, flops_front=True, seconds=None),
        ],
    }


def test_the_chart_names_every_method_once_and_no_name_hides_another() -> None:
    report = crowded_report()
    chart = figure(report)
    flops, seconds = (axes for axes in chart.axes if axes.get_ylabel())
    assert isinstance(chart.canvas, FigureCanvasAgg)
    renderer = chart.canvas.get_renderer()
    for axes, cost in ((flops, "flops"), (seconds, "seconds")):
        labels = [child for child in axes.get_children() if isinstance(child, Annotation) and child.get_text()]
        shown = {one["title"] for one in report["methods"] if one[cost] is not None}
        assert sorted(label.get_text() for label in labels) == sorted(shown)
        boxes = np.stack([Text.get_window_extent(label, renderer).extents for label in labels])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        assert [overlap(box, boxes) for box in boxes] == pytest.approx(areas), "with itself alone"
        frame = axes.get_window_extent(renderer).extents[None]
        assert [overlap(box, frame) for box in boxes] == pytest.approx(areas), "all of it"
    assert flops.get_xlabel() == "FLOPs per image (millions)"
    assert seconds.get_xlabel() == "ms per image (batch 256, torch, all networks in turns)"


def test_overlap_by_hand() -> None:
    box = np.array([0.0, 0.0, 4.0, 2.0])
    others = np.array([[3.0, 1.0, 9.0, 9.0], [1.0, 0.5, 2.0, 1.0], [4.0, 0.0, 5.0, 1.0], [-5.0, -5.0, -1.0, 9.0]])
    assert overlap(box, others) == 1 + 0.5
    assert overlap(box, others[:0]) == 0


def test_the_front_is_drawn_through_its_methods() -> None:
    axes = figure(crowded_report()).axes[0]
    rings = [line for line in axes.lines if line.get_markersize() == 15]
    assert [line.get_xydata().tolist() for line in rings] == [  # type: ignore[union-attr]
        [pytest.approx(point) for point in ((30, 82), (81, 88.5), (140, 89.5))]
    ]


def test_without_a_clock_there_is_one_chart() -> None:
    report = {**crowded_report(), "times": None}
    assert figure(report).get_size_inches()[0] < 10


def test_a_job_s_command_is_one_that_users_know(config: TradeoffConfig) -> None:
    jobs = missing(dataclasses.replace(config, only=("first_k",)))
    flags = command_line(jobs[0].config)
    assert flags[:2] == ["-m", "blockdrop.finetune"]
    assert " ".join(flags).count("--policy first_k:2") == 1
