"""A folder of evaluations: what is read from it, what is left out and why, and whose clock is whose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockdrop.errors import UserError
from blockdrop.studies.evaluations import ABOUT_TIMES, read_folder, to_be_timed, valid_times


def numbers(right: str, /, **changes: Any) -> dict[str, Any]:
    """What evaluate writes, as far as it is read."""
    return {
        "model": "R8_C10", "variant": {}, "images": len(right), "images_digest": f"of {len(right)}",
        "checkpoints": ["c.t7"], "accuracy": right.count("1") / len(right), "block_usage_mean": 2.0,
        "num_blocks": 3, "flops_mean": 5e6, "full_flops": 9e6, "policy_network_flops": 0, "unique_policies": 1,
        "threshold": 0.5, "policy": None, "policy_net": None, "curve": [], "right": right, "config": {}, **changes,
    }  # fmt: skip


def write(folder: Path, name: str, right: str = "1101", **changes: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(numbers(right, **changes)))


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
        ("\xff\xfe", "damaged, no JSON"),
        ("[" * 100_000, "damaged, no JSON"),
        ("[1]", "not what evaluate --json writes"),
        ('{"accuracy": 0.5}', "not what evaluate --json writes"),
        (numbers("01", right=None), "damaged in its right"),
        (numbers("01", images=3), "damaged in its right"),
        (numbers("01", right="0x"), "damaged in its right"),
        (numbers("01", right="é1"), "damaged in its right"),
        (numbers("01", right="\ud800"), "damaged in its right"),
        (numbers("01", accuracy=0.9), "damaged in its right, which isn't the accuracy"),
        (numbers("01", accuracy=float("nan")), "damaged in its accuracy"),
        (numbers("01", flops_mean="many"), "damaged in its flops_mean"),
        (numbers("01", flops_mean=-1), "damaged in its flops_mean"),
        (numbers("01", threshold=2), "damaged in its threshold"),
        (numbers("01", model="R9_C10"), "damaged in its model"),
        (numbers("01", checkpoints=[1]), "damaged in its checkpoints"),
        (numbers("01", curve=[{"threshold": 0.5}]), "damaged in its curve"),
        (numbers("01", policy=3), "damaged in its policy"),
        ({k: v for k, v in numbers("01").items() if k != "right"}, "of an older evaluate, which didn't record"),
        ({"about": ABOUT_TIMES, "runs": [1]}, "damaged in its runs"),
        ({"about": ABOUT_TIMES, "runs": {"a": {"seconds": 0, "curve": []}}}, "damaged in its runs"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_what_can_not_be_used_is_left_out_in_a_line(tmp_path: Path, content: Any, reason: str) -> None:
    write(tmp_path, "whole")
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "odd.json").write_bytes(text.encode("latin-1" if text.startswith("\xff") else "utf-8"))
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
    with pytest.raises(UserError, match="none: can't be read"):
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


def test_times_count_for_the_file_that_was_measured(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path, f"fast-s{seed}", policy_net="stem")
        write(tmp_path, f"kd-s{seed}")
    write(tmp_path, "r8-s1")
    write(tmp_path, "r8-s0", policy="first_k:2")
    write(tmp_path, "r20-s0", model="R20_C10")
    results = read_folder(tmp_path).results
    assert [result.name for result in results] == ["fast-s0", "fast-s1", "kd-s0", "kd-s1", "r20-s0", "r8-s0"]
    assert [result.name for result in to_be_timed(results)] == ["fast-s0", "fast-s1", "kd-s0", "r20-s0", "r8-s0"]
    runs = {result.name: {"seconds": 0.5, "curve": [], "digest": result.digest} for result in results}
    times = {
        "about": ABOUT_TIMES, "engine": "torch", "compute": "cpu", "threads": 1, "batch_size": 2, "images": 4,
        "runs": runs,
    }  # fmt: skip
    (tmp_path / "times.json").write_text(json.dumps(times))
    write(tmp_path, "fast-s1", "0101", policy_net="stem")
    found = read_folder(tmp_path)
    assert found.times == times
    assert set(valid_times(found.results, found.times)) == {"fast-s0", "kd-s0", "kd-s1", "r20-s0", "r8-s0"}
    assert valid_times(found.results, None) == {}
    write(tmp_path, "kd-s0", "0101")
    found = read_folder(tmp_path)
    assert "kd-s0" in valid_times(found.results, found.times), "kd-s1 has its clock, and was measured"
