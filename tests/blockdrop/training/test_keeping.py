"""The best checkpoint, and which ones stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockdrop import pretrain
from blockdrop.training.keeping import best_test, drop_checkpoints


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
