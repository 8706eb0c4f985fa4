"""The learning curve: what its runs are, what is read from them, and what its tables say."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from agents.rewards import blockdrop_reward
from blockdrop import cl_train, finetune
from blockdrop.errors import BlockdropError
from blockdrop.studies.runs import what_computes
from experiments import learning_curve
from experiments.learning_curve import (
    LearningCurveConfig,
    plan,
    read_reports,
    read_tests,
    reference_target,
    summary,
    work_to_target,
)
from experiments.learning_curve_tables import markdown


def config(cv_dir: Path, tree: Path, **flags: Any) -> LearningCurveConfig:
    common: dict[str, Any] = {
        "model": "R8_Folder", "data_dir": str(tree), "cv_dir": str(cv_dir), "arms": ("reference", "fast", "fixed"),
        "seeds": (0,), "pretrain_epochs": 1, "curriculum_epochs": 2, "finetune_epochs": 1, "fast_epochs": 3,
        "batch_size": 4,
    }  # fmt: skip
    return LearningCurveConfig(**{**common, **flags})


@pytest.mark.long
def test_from_nothing_to_table_chart_and_numbers(
    tmp_path: Path, image_tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"json": str(tmp_path / "curve.json"), "figure": str(tmp_path / "curve.png")}
    report = learning_curve.main(config(tmp_path / "cv", image_tree, **files))
    out = capsys.readouterr().out
    assert "| reference | 0 | cl_train, 2 epochs |" in out
    assert "| reference | 0 | finetune, 1 epochs |" in out
    assert re.search(r"fixed, seed 0 \([12] of 3 blocks\): one policy for all images", out)
    assert json.loads((tmp_path / "curve.json").read_text()) == json.loads(json.dumps(report))
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (1200, 500)

    reference, fast, fixed = report["runs"]
    assert [(test["command"], test["epochs"]) for test in reference["tests"]] == [
        ("cl_train", 1), ("cl_train", 2), ("finetune", 1),
    ]  # fmt: skip
    assert len(fast["tests"]) == len(fixed["tests"]) == 3
    for run in report["runs"]:
        works = [test["work"] for test in run["tests"]]
        assert works == sorted(works), "work adds up over a run's commands"
        assert run["end"]["accuracy"] == run["tests"][-1]["accuracy"], "the checkpoint is the one that was tested"
        assert run["end"]["unique_policies"] == run["tests"][-1]["unique_policies"]
    assert fixed["end"]["dealt_accuracies"] == [fixed["end"]["accuracy"]] * 5, (
        "one policy, whomever it is dealt to"
    )

    for command in (cl_train, finetune):
        monkeypatch.setattr(command, "main", lambda config: pytest.fail("trained again"))
    again = learning_curve.main(config(tmp_path / "cv", image_tree))
    assert [run["tests"] for run in again["runs"]] == [run["tests"] for run in report["runs"]]
    shutil.rmtree(tmp_path / "cv")
    elsewhere = config(tmp_path / "cv", image_tree, arms=("fixed", "fast"), reports=(files["json"],))
    assert learning_curve.main(elsewhere)["runs"] == [fixed, fast], "nothing of the runs is needed any more"
    monkeypatch.undo()
    more = config(tmp_path / "cv", image_tree, arms=("fast",), seeds=(0, 1), reports=(files["json"],))
    both = learning_curve.main(more)
    assert both["runs"][0] == fast
    assert [run["seed"] for run in both["runs"]] == [0, 1]
    assert not (tmp_path / "cv" / "fast-s0").exists()
    with pytest.raises(
        BlockdropError, match=r"fast-s1: holds a run of --max_epochs 3, not 4; name another folder"
    ):
        learning_curve.main(dataclasses.replace(more, fast_epochs=4, seeds=(1,)))


@pytest.mark.long
def test_a_run_in_a_process_of_its_own_is_the_same_run(
    tmp_path: Path, image_tree: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (
        config(tmp_path / name, image_tree, arms=("fixed",), fast_epochs=1, processes=processes)
        for name, processes in (("one", 1), ("two", 2))
    )
    (expected,) = learning_curve.main(one)["runs"]
    shutil.copytree(tmp_path / "one" / "backbone", tmp_path / "two" / "backbone")
    (found,) = learning_curve.main(two)["runs"]
    assert "1 commands to run, 2 at a time" in capfd.readouterr().out
    assert (tmp_path / "two" / "logs" / "fixed-s0.log").is_file()
    for run in (expected, found):
        del run["tests"][0]["minutes"]
    assert found == expected

    names: list[str] = []

    def fail(jobs: list[Any], *_: Any) -> dict[str, str]:
        names.extend(job.name for job in jobs)
        return dict.fromkeys(names, "no luck")

    monkeypatch.setattr(learning_curve, "run_jobs", fail)
    with pytest.raises(
        BlockdropError, match=r"^failed: reference-s0-cl_train, reference-s0-finetune; once that is "
    ):
        learning_curve.main(dataclasses.replace(two, arms=("reference", "fixed")))
    assert names == ["reference-s0-cl_train", "reference-s0-finetune"], "the finished run isn't begun again"
    out, error = capfd.readouterr()
    assert "reference-s0-finetune failed: no luck; log: " in error
    assert "left out: reference, seed 0 is not finished" in out
    assert "| fixed | 0 |" in out, "the others are compared all the same"


def test_a_report_that_is_none_or_of_another_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    flags = LearningCurveConfig(model="R8_Digits", cv_dir=str(tmp_path), reports=(str(file),))
    with pytest.raises(BlockdropError, match=r"--reports .*report.json: can't be read \(No such file"):
        learning_curve.main(flags)
    whole = {"config": {"model": "R8_Digits"}, "backbone": {"accuracy": 0.9, "flops": 1, "blocks": 3}, "runs": []}
    for content, message in (
        ("no JSON", r"damaged, no JSON \(Expecting value"),
        ("[" * 100_000, "damaged, no JSON"),
        ("[]", "not what learning_curve --json writes"),
        ('{"config": {"model": "R8_Digits"}}', "not what learning_curve --json writes"),
        ({**whole, "config": {}}, "damaged in its config.model, which is missing"),
        ({**whole, "backbone": {}}, "damaged in its backbone.accuracy, which is missing"),
        ({**whole, "runs": [{**run_of("fast", [0.1]), "seed": "one"}]}, r"damaged in its runs\[0\].seed \('one'"),
        ({**whole, "config": {"model": "R32_C10"}}, "runs of R32_C10, not of R8_Digits"),
    ):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(BlockdropError, match=rf"^--reports .*report.json: {message}"):
            learning_curve.main(flags)


@pytest.mark.parametrize("name", ["learning", "learning-r110"])
def test_reports_that_results_cite_are_accepted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(learning_curve.__file__).parent / "results" / f"{name}.json"
    model = json.loads(path.read_text())["config"]["model"]
    flags = LearningCurveConfig(model=model, arms=("fast", "fixed"), seeds=(0,), train=False, reports=(str(path),))
    report = learning_curve.main(flags)
    assert [(run["arm"], run["seed"]) for run in report["runs"]] == [("fast", 0), ("fixed", 0)]
    assert "| fast | 0 | finetune, " in capsys.readouterr().out


def test_a_report_s_run_must_be_the_one_to_compare(tmp_path: Path) -> None:
    flags = LearningCurveConfig(
        model="R8_Digits", cv_dir=str(tmp_path), arms=("fast",), seeds=(0,), load="backbone"
    )
    (step,) = plan(flags, "fast", seed=0)
    run = {**run_of("fast", [0.1]), "flags": [what_computes(step)]}
    backbone = {"accuracy": 0.9, "flops": 1000, "blocks": 3}

    def reports(*written: dict[str, Any]) -> LearningCurveConfig:
        for number, changes in enumerate(written):
            report = {"config": {"model": "R8_Digits"}, "backbone": backbone, "runs": [run]} | changes
            (tmp_path / f"{number}.json").write_text(json.dumps(report))
        files = tuple(str(tmp_path / f"{number}.json") for number in range(len(written)))
        return dataclasses.replace(flags, reports=files)

    known, start = read_reports(reports({}, {}))
    assert (known, start) == ({("fast", 0): run}, backbone)
    with pytest.raises(
        BlockdropError, match=r"1.json: its runs started from another full network than the others"
    ):
        read_reports(reports({}, {"backbone": backbone | {"accuracy": 0.8}}))
    with pytest.raises(
        BlockdropError, match=r"0.json: fast, seed 0 was run with --target_flops 0.\d+, not 0.35; leave"
    ):
        read_reports(dataclasses.replace(reports({}), target_flops=0.35))
    assert read_reports(dataclasses.replace(reports({}), target_flops=0.35, seeds=(1,)))[0], "it isn't asked for"
    old = {name: value for name, value in run.items() if name != "flags"}
    assert read_reports(dataclasses.replace(reports({"runs": [old]}), target_flops=0.35))[0]


def test_the_reference_is_the_curriculum_and_then_its_fine_tuning(tmp_path: Path) -> None:
    flags = LearningCurveConfig(load="backbone", cv_dir=str(tmp_path))
    curriculum, tuning = plan(flags, "reference", seed=3)
    assert isinstance(curriculum, cl_train.CurriculumConfig)
    assert curriculum.load == ("backbone",)
    assert isinstance(tuning, finetune.FinetuneConfig)
    assert tuning.pretrained == (curriculum.cv_dir,)
    defaults = (cl_train.CurriculumConfig(), finetune.FinetuneConfig())
    ours = {"model", "cv_dir", "load", "pretrained", "seed", "max_epochs", "test_every", "resume"}
    for step, default in zip((curriculum, tuning), defaults, strict=True):
        for flag, value in dataclasses.asdict(default).items():
            assert flag in ours or getattr(step, flag) == value, flag


def test_the_fixed_policy_is_learned_by_the_means_of_fast(tmp_path: Path) -> None:
    flags = LearningCurveConfig(load="backbone", cv_dir=str(tmp_path))
    ((fast,), (fixed,)) = (tuple(plan(flags, arm, seed=0)) for arm in ("fast", "fixed"))
    recipe = finetune.FinetuneConfig.RECIPES["fast"]
    assert fast.max_epochs == fixed.max_epochs == recipe["max_epochs"]
    for flag, value in recipe.items():
        assert getattr(fast, flag) == (1 if flag == "test_every" else value)
    differing = {
        flag for flag, value in dataclasses.asdict(fast).items() if dataclasses.asdict(fixed)[flag] != value
    }
    assert differing == {"cv_dir", "policy_net"}


def test_a_budget_is_the_fast_recipe_s_alone(tmp_path: Path) -> None:
    flags = LearningCurveConfig(load="backbone", cv_dir=str(tmp_path), target_flops=0.35)
    for arm, expected in (("fast", [0.35]), ("fixed", [0.35]), ("reference", [None, None])):
        assert [step.target_flops for step in plan(flags, arm, seed=0)] == expected  # type: ignore[attr-defined]


def write_run(folder: Path, command: str, lines: list[dict[str, Any]], **flags: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"command": command, **flags}))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_work_and_minutes_go_on_over_the_commands_and_rewards_are_at_one_penalty(tmp_path: Path) -> None:
    policy = torch.tensor([[True, False], [True, True], [False, False], [True, False]])
    correct = torch.tensor([True, True, True, False])
    for folder, command, penalty in ((tmp_path / "c", "cl_train", -1.0), (tmp_path / "f", "finetune", -5.0)):
        train = {"epoch": 0, "phase": "train", "block_executions": 100, "images_per_second": 2.0}
        reward = blockdrop_reward(correct, policy, penalty).mean().item()
        test = {"accuracy": 0.75, "reward": reward, "flops": 30, "blocks": 1.0, "unique_policies": 3}
        write_run(folder, command, [train, {"epoch": 0, "phase": "test", **test}], max_epochs=1, penalty=penalty)
    found = read_tests([tmp_path / "c", tmp_path / "f"], images=240, full_flops=40)
    assert found is not None
    assert [test["work"] for test in found] == [100, 200]
    assert [test["minutes"] for test in found] == [2, 4]
    assert [test["flops"] for test in found] == [0.75, 0.75]
    expected = blockdrop_reward(correct, policy, penalty=-1.0).mean().item()
    assert [test["reward"] for test in found] == pytest.approx([expected, expected])

    (tmp_path / "f" / "config.json").write_text(json.dumps({"command": "finetune", "max_epochs": 2}))
    assert read_tests([tmp_path / "c", tmp_path / "f"], images=240, full_flops=40) is None, "cut off"


def test_a_run_of_other_flags_is_another_run(tmp_path: Path) -> None:
    how = {"model": "R8_Digits", "load": "nowhere", "cv_dir": str(tmp_path)}
    config = LearningCurveConfig(arms=("fast",), seeds=(0,), **how)  # type: ignore[arg-type]
    (step,) = plan(config, "fast", seed=0)
    write_run(Path(step.cv_dir), "finetune", [], **{**dataclasses.asdict(step), "target_flops": 0.9})
    with pytest.raises(
        BlockdropError, match=r"holds a run of --target_flops 0.9, not 0.\d+; .* compare what there is"
    ):
        learning_curve.main(config)


def run_of(arm: str, rewards: list[float], curriculum: int = 0, policies: int = 2) -> dict[str, Any]:
    tests = [
        {
            "command": "cl_train" if number < curriculum else "finetune", "epochs": number + 1,
            "work": 1e6 * (number + 1), "minutes": 2.0, "accuracy": 0.75, "flops": 0.5, "blocks": 2.0,
            "reward": reward, "unique_policies": policies,
        }
        for number, reward in enumerate(rewards)
    ]  # fmt: skip
    end = {
        "accuracy": 0.75, "dealt_accuracy": 0.7, "unique_policies": policies, "full_accuracy": 0.8,
        "change": -0.05,
        "frequent_policy": "101", "frequent_accuracy": 0.74, "frequent_flops": 0.45, "routed_accuracy": 0.78,
        "dealt_accuracies": [0.7],
    }  # fmt: skip
    return {"arm": arm, "seed": 0, "tests": tests, "end": end}


def test_work_to_the_reference_s_reward_is_that_of_the_first_test_that_has_it() -> None:
    reference = run_of("reference", [0.1, 0.3, 0.2, 0.2, 0.5], curriculum=4)
    target = reference_target([reference])
    assert target == {"reward": 0.2, "work": 4e6}
    assert work_to_target(run_of("fast", [0.19, 0.2, 0.1]), target)["share"] == 0.5
    assert work_to_target(run_of("fast", [0.19]), target)["work"] is None


def test_the_tables_say_what_was_found() -> None:
    runs = [
        run_of("reference", [0.25, 0.5], curriculum=1),
        run_of("fast", [0.3]),
        run_of("fixed", [0.2], policies=1),
    ]
    target = reference_target(runs)
    assert target is not None
    report = {
        "backbone": {"accuracy": 0.85, "flops": 1000, "blocks": 3},
        "runs": runs,
        "arms": {run["arm"]: summary([run]) for run in runs},
        "target": target,
        "to_target": [work_to_target(run, target) for run in runs],
    }
    lines = markdown(report).splitlines()
    assert "| reference | 0 | cl_train, 1 epochs | 1.00 | 2.0 | 75.00 | 50.0 | 2.00 | 0.2500 | 2 |" in lines
    assert "| fast | 0 | 1.00 | 1.000 |" in lines
    assert "| fixed | 0 | not reached |  |" in lines
    assert "| fast | 0 | 80.00 | -5.00 | 75.00 | 70.00 | +5.00 | 2 | +0.00 | +0.0 |" in lines
    assert "| fast | 0 | 101 | 45.0 | 74.00 | 75.00 | 78.00 | 80.00 |" in lines
    assert lines[-1] == (
        "fixed, seed 0 (2 of 3 blocks): one policy for all images: a pruned network, not a dynamic one."
    )


def test_unknown_arms_are_named(tmp_path: Path) -> None:
    with pytest.raises(BlockdropError, match="--arms slow: choose reference, fast"):
        learning_curve.main(LearningCurveConfig(arms=("slow",), cv_dir=str(tmp_path)))
    with pytest.raises(BlockdropError, match=r"--figure curve.gif: must end in .png"):
        learning_curve.main(LearningCurveConfig(figure="curve.gif", cv_dir=str(tmp_path)))


def test_the_arm_glance_has_epochs_of_its_own_and_its_recipes_target() -> None:
    flags = LearningCurveConfig(load="cv/full", fast_epochs=3, glance_epochs=4, target_flops=0.7)
    (step,) = plan(flags, "glance", seed=0)
    (own,) = plan(LearningCurveConfig(load="cv/full"), "glance", seed=0)
    recipe = finetune.FinetuneConfig.RECIPES["glance"]
    assert isinstance(step, finetune.FinetuneConfig)
    assert (step.max_epochs, step.target_flops, step.recipe) == (4, recipe["target_flops"], "glance")
    assert own.max_epochs == recipe["max_epochs"]
