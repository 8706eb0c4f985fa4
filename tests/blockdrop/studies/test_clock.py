"""The clock: whose seconds count for whom, and which networks aren't opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockdrop.errors import BlockdropError
from blockdrop.studies.clock import Clock, to_be_timed, valid_times
from blockdrop.studies.evaluations import read_folder
from blockdrop.studies.times import Times
from blockdrop.training.compute import choose_compute
from tests.blockdrop.studies.test_evaluations import TIMES, write


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
    times = {**TIMES, "runs": runs}
    (tmp_path / "times.json").write_text(json.dumps(times))
    write(tmp_path, "fast-s1", "0101", policy_net="stem")
    found = read_folder(tmp_path)
    assert found.times == Times.from_json(times)
    assert set(valid_times(found.results, found.times)) == {"fast-s0", "kd-s0", "kd-s1", "r20-s0", "r8-s0"}
    assert valid_times(found.results, None) == {}
    write(tmp_path, "kd-s0", "0101")
    found = read_folder(tmp_path)
    assert "kd-s0" in valid_times(found.results, found.times), "kd-s1 has its clock, and was measured"


def test_no_function_is_called_because_a_file_says_so(tmp_path: Path) -> None:
    write(tmp_path, "odd", model="os:getcwd", dataset="Folder")
    (result,) = read_folder(tmp_path).results
    clock = Clock("data/", str(tmp_path), choose_compute("cpu", "float32"))
    message = "its network os:getcwd is built by a function, which isn't called because a file says so"
    with pytest.raises(BlockdropError, match=message):
        clock.open(result)
    assert clock.measure([result], tmp_path) == (None, {"odd.json": f"not timed: {message}"})
