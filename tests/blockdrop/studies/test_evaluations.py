"""A folder of evaluations: what is read from it, what is left out and why, and whose clock is whose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockdrop.errors import BlockdropError
from blockdrop.studies.evaluations import read_folder
from blockdrop.studies.times import ABOUT_TIMES
from tests.blockdrop.test_evaluation import evaluation


def write(folder: Path, name: str, right: str = "1101", **changes: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(evaluation(right, **changes)))


TIMES: dict[str, Any] = {
    "about": ABOUT_TIMES, "engine": "torch", "compute": "cpu", "threads": 1, "batch_size": 2, "images": 4,
    "runs": {},
}  # fmt: skip


def test_names_say_method_and_seed(tmp_path: Path) -> None:
    for name in ("full", "fast-s0", "fast-s1", "reference-p5-s10", "my-own-s"):
        write(tmp_path, name)
    (tmp_path / "notes.txt").write_text("not read")
    found = read_folder(tmp_path)
    assert [(result.method, result.seed) for result in found.results] == [
        ("fast", 0), ("fast", 1), ("full", None), ("my-own-s", None), ("reference-p5", 10),
    ]  # fmt: skip
    assert found.results[0].right.tolist() == [True, True, False, True]
    assert (found.left_out, found.times) == ({}, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "damaged, no JSON (Expecting property name"),
        ("[1]", "not what evaluate --json writes"),
        (evaluation("01", threshold=2), "damaged in its threshold (2: must be above 0 and below 1)"),
        ({**TIMES, "runs": [1]}, "damaged in its runs ([1]: must be an object)"),
        (
            {**TIMES, "runs": {"a": {"digest": "", "seconds": 0, "curve": []}}},
            "damaged in its runs.a.seconds (0: must",
        ),
        (
            {**TIMES, "runs": {"a": {"digest": "", "seconds": 1, "curve": [None]}}},
            "damaged in its runs.a.curve[0]",
        ),
        ({"about": ABOUT_TIMES}, "damaged in its engine, which is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_what_can_not_be_used_is_left_out_in_a_line(tmp_path: Path, content: Any, reason: str) -> None:
    write(tmp_path, "whole")
    (tmp_path / "odd.json").write_text(content if isinstance(content, str) else json.dumps(content))
    found = read_folder(tmp_path)
    assert [result.name for result in found.results] == ["whole"]
    assert found.left_out["odd.json"].startswith(reason)
    assert "\n" not in found.left_out["odd.json"]


def test_a_link_to_nothing_and_a_folder_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "whole")
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.json").mkdir()
    found = read_folder(tmp_path)
    assert found.left_out == {
        "folder.json": "can't be read (Is a directory)", "gone.json": "can't be read (No such file or directory)",
    }  # fmt: skip
    with pytest.raises(BlockdropError, match="none: can't be read"):
        read_folder(tmp_path / "none")


def test_other_images_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b")
    write(tmp_path, "half", "10", config={"budget": 0.5})
    write(tmp_path, "others", images_digest="elsewhere")
    found = read_folder(tmp_path)
    assert [result.name for result in found.results] == ["a", "b"]
    assert found.left_out == {
        "half.json": "of 2 other images (--budget reports on a half) than the 4 that most files are about",
        "others.json": "of 4 other images than the 4 that most files are about",
    }


def test_runs_of_one_method_are_of_one_design(tmp_path: Path) -> None:
    write(tmp_path, "fast-s0", policy_net="stem")
    write(tmp_path, "fast-s1", policy_net="constant")
    write(tmp_path, "fast-s2", policy_net="stem", threshold=0.4)
    write(tmp_path, "dist_k-s0", policy="dist_k:9:results/fast-s0.json")
    write(tmp_path, "dist_k-s1", policy="dist_k:9:results/fast-s1.json")
    write(tmp_path, "dist_k-s2", policy="dist_k:8:results/fast-s2.json")
    found = read_folder(tmp_path)
    assert [result.name for result in found.results] == ["dist_k-s0", "dist_k-s1", "fast-s0", "fast-s2"]
    assert found.left_out == {
        "fast-s1.json": "its policy_net is constant, that of fast-s0.json stem; rename one",
        "dist_k-s2.json": "its policy is dist_k:8, that of dist_k-s0.json dist_k:9; rename one",
    }
