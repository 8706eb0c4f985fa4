"""The best checkpoint, and which ones stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockdrop import pretrain
from blockdrop.training.keeping import best_test, drop_checkpoints, stalled


def test_the_best_is_the_most_accurate_within_the_budget_and_the_later_of_equals() -> None:
    tests: list[dict[str, Any]] = [
        {"epoch": 0, "accuracy": 0.9, "flops": 100},
        {"epoch": 1, "accuracy": 0.8, "flops": 60},
        {"epoch": 2, "accuracy": 0.8, "flops": 59},
        {"epoch": 3, "accuracy": 0.7, "flops": 50},
    ]
    assert best_test(tests) == tests[0]
    assert best_test(tests, most_flops=60) == tests[2]
    assert best_test(tests, most_flops=10) == tests[0], "none is within it"
    assert best_test([]) is None


def test_training_stalls_when_so_many_tests_are_no_better_than_the_best_one() -> None:
    tests: list[dict[str, Any]] = [
        {"epoch": epoch, "accuracy": accuracy, "flops": flops}
        for epoch, accuracy, flops in [(0, 0.95, 100), (1, 0.8, 60), (2, 0.7, 60), (3, 0.8, 60), (4, 0.9, 90)]
    ]
    assert stalled(tests, 4)
    assert not stalled(tests, 5)
    assert not stalled(tests, 1, since=1), "the last one is the best from there on"
    assert stalled(tests, 3, most_flops=60), "the last one spends too much, and the one before is no better"
    assert not stalled(tests, 4, most_flops=60)
    assert not stalled([], 1)
    assert not stalled(tests, 1, most_flops=10), "none is within the budget yet"


def test_a_run_without_better_tests_stops_early_and_stays_so(
    tmp_path: Path, image_tree: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--max_epochs", 30, "--test_every", 1, "--lr", 1e-9)
    flags = (*flags, "--patience", 2, "--cv_dir", tmp_path / "p", "--resume")
    code, out, _ = command(pretrain, *flags)
    assert code == 0
    assert "stopped early: no better test among the last 2 (--patience)" in out
    epochs = len(list((tmp_path / "p").glob("ckpt_*")))
    assert 3 <= epochs < 30
    assert command(pretrain, *flags)[0] == 0
    assert len(list((tmp_path / "p").glob("ckpt_*"))) == epochs


@pytest.mark.parametrize(("newest", "best", "left"), [(1, 2, {2, 9}), (2, None, {5, 9}), (9, 0, {0, 2, 5, 9})])
def test_the_newest_and_the_best_stay(tmp_path: Path, newest: int, best: int | None, left: set[int]) -> None:
    paths = {epoch: tmp_path / str(epoch) for epoch in (0, 2, 5, 9)}
    for path in paths.values():
        path.touch()
    drop_checkpoints(paths, newest, best)
    drop_checkpoints(paths, newest, best)
    assert {int(path.name) for path in tmp_path.iterdir()} == left


def test_a_run_keeps_as_many_checkpoints_as_it_was_told_to(
    tmp_path: Path, image_tree: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--max_epochs", 5, "--test_every", 1)
    code, out, _ = command(pretrain, *flags, "--keep_checkpoints", 1, "--cv_dir", tmp_path / "p")
    assert code == 0
    kept = sorted(path.name for path in (tmp_path / "p").glob("ckpt_*"))
    assert len(kept) in (1, 2)
    assert kept[-1].startswith("ckpt_E_4_")
    if len(kept) == 2:
        assert f"best of its tests: {tmp_path / 'p' / kept[0]}" in out
