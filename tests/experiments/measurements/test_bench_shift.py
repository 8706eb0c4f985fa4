"""The benchmark of the shift measures both operations in both layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.measurements import bench_shift


def test_nobody_always_comes_second() -> None:
    turns: list[str] = []
    times = bench_shift.milliseconds([lambda: turns.append("a"), lambda: turns.append("b")], rounds=20)
    assert len(times) == 2
    rounds = {tuple(turns[i : i + 2]) for i in range(2, len(turns), 2)}
    assert rounds == {("a", "b"), ("b", "a")}


def test_a_row_for_each_map_format_and_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_shift, "MAPS", ((9, 4), (10, 2)))
    rows = bench_shift.main(bench_shift.BenchShiftConfig(batch_size=2, rounds=1, json=str(tmp_path / "rows.json")))
    assert {(row["channels"], row["side"], row["dtype"], row["layout"]) for row in rows} == {
        (*size, dtype, layout)
        for size in ((9, 4), (10, 2))
        for dtype in ("float32", "bfloat16")
        for layout in ("channels_last", "contiguous")
    }
    assert all(
        row[f"{name}{end}"] > 0
        for row in rows
        for name in ("shift", "depthwise")
        for end in ("", "_with_gradient")
    )
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
