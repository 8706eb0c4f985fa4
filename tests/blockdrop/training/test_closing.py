"""What is said at the end of learning policies when something looks wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockdrop import finetune, pretrain, visualize
from blockdrop.flops import FlopTable
from blockdrop.training.closing import beside, learning_warnings, warn_of_few_steps

FLOPS = FlopTable(fixed=10, blocks=(20, 20, 20, 30), policy_network=10)  # full: 100
GOOD = {"blocks": 2.4, "flops": 60.0, "unique_policies": 7, "policy_steps": 2000}


def warned(metrics: dict[str, float] = GOOD, **more: Any) -> list[str]:
    usual = {"target": 0.6, "threshold": 0.4, "same_for_all": False}
    return list(learning_warnings(metrics, FLOPS, **(usual | more)))


def test_nothing_is_said_where_all_is_well() -> None:
    assert warned() == []
    assert warned({**GOOD, "flops": 62.9}) == []
    assert warned({**GOOD, "unique_policies": 1}, same_for_all=True) == []
    assert warned(target=None) == []


@pytest.mark.parametrize(
    ("metrics", "more", "says"),
    [
        ({"policy_steps": 15}, {}, "policies were learned for 15 steps"),
        ({"blocks": 0, "flops": 20.0}, {"target": None}, "every block is dropped for every image"),
        ({"blocks": 4}, {}, "no block is dropped for any image"),
        ({"unique_policies": 1}, {}, "one policy serves all images"),
        ({"flops": 40.0}, {}, "40.0% of the full network's FLOPs are spent, 60.0% were aimed for"),
        ({}, {"threshold": 1.0}, "the threshold that was chosen, 1, is at an end of its range"),
    ],
)
def test_each_thing_that_looks_wrong_is_said(metrics: dict[str, float], more: dict[str, Any], says: str) -> None:
    (line,) = warned({**GOOD, **metrics}, **more)
    assert says in line


def test_a_recipe_on_a_handful_of_images_warns_and_says_what_was_brought(
    tmp_path: Path, image_tree: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    flags = ("--data_dir", image_tree, "--max_epochs", 1, "--model", "R8_Folder")
    assert command(pretrain, *flags, "--cv_dir", tmp_path / "p")[0] == 0
    code, out, error = command(
        finetune, *flags, "--recipe", "fast", "--pretrained", tmp_path / "p", "--cv_dir", tmp_path / "f"
    )
    assert code == 0
    assert "network as brought: accuracy 0." in out
    assert error.startswith("warning: ")
    shown = ("--load", tmp_path / "f", "--data_dir", image_tree, "--cv_dir", tmp_path / "v", "--no_speed")
    assert command(visualize, *shown)[0] == 0
    assert "Note: policies were learned for 1 step, " in (tmp_path / "v" / "report.html").read_text()


@pytest.mark.parametrize(
    ("folder", "expected"), [("cv/r32/", "cv/r32-ft"), (".", "{here}-ft"), ("..", "{above}-ft"), ("a b", "a b-ft")]
)
def test_the_next_folder_lies_beside_the_last_one(folder: str, expected: str) -> None:
    here = Path.cwd()
    assert beside(folder, "ft") == expected.format(here=here, above=here.parent)


def test_too_few_steps_are_said_before_training_begins(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_few_steps(steps=5, batches=1, epochs=15)
    error = capsys.readouterr().err
    assert "learned for 5 steps" in error
    assert "--max_epochs 300 " in error, "a third of 300 epochs of one step is 100 steps"
    warn_of_few_steps(steps=0, batches=1, epochs=15)
    warn_of_few_steps(steps=100, batches=10, epochs=30)
    assert capsys.readouterr().err == ""


def test_the_last_lines_compare_with_what_was_brought_and_name_the_next_command(
    tmp_path: Path, image_tree: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    data = ("--data_dir", image_tree, "--max_epochs", 1)
    code, out, _ = command(pretrain, *data, "--model", "R8_Folder", "--cv_dir", tmp_path / "p")
    assert code == 0
    last = out.splitlines()[-1]
    assert last == (
        f"next: python -m blockdrop.finetune --model R8_Folder --recipe answers --pretrained {tmp_path / 'p'} "
        f"--cv_dir {tmp_path / 'p-answers'} --data_dir {image_tree}"
    )
    flags = (
        "--recipe",
        "fast",
        "--pretrained",
        tmp_path / "p",
        "--cv_dir",
        tmp_path / "f",
        "--model",
        "R8_Folder",
    )
    code, out, _ = command(finetune, *data, *flags)
    assert code == 0
    brought = float(re.search(r"network as brought: accuracy ([\d.]+)", out)[1])
    outcome, last = out.splitlines()[-2:]
    assert f"the network as brought ({brought:.4f}), at " in outcome
    assert outcome.endswith("% of its FLOPs")
    assert last == f"next: python -m blockdrop.evaluate --load {tmp_path / 'f'} --stats --data_dir {image_tree}"


def test_weights_that_are_brought_are_trained_gently() -> None:
    assert (pretrain.PretrainConfig().lr, pretrain.PretrainConfig(init=("x",)).lr) == (0.1, 0.01)
    assert pretrain.PretrainConfig(init=("x",), lr=0.3).lr == 0.3
