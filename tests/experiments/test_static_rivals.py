"""The comparison of static rivals: which runs count, and what its table says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockdrop import distill, pretrain
from blockdrop.errors import BlockdropError
from experiments import static_rivals
from experiments.static_rivals import RivalsConfig, finished, markdown


def write_run(folder: Path, epochs: int, last_epoch: int) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_epochs": epochs}))
    lines = [
        {"epoch": 0, "phase": "train", "images_per_second": 100.0},
        {"epoch": 0, "phase": "test", "accuracy": 0.5},
        {"epoch": last_epoch, "phase": "train", "images_per_second": 200.0},
        {"epoch": last_epoch, "phase": "test", "accuracy": 0.75},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_a_run_counts_once_its_last_epoch_is_tested(tmp_path: Path) -> None:
    write_run(tmp_path / "done", epochs=3, last_epoch=2)
    write_run(tmp_path / "cut off", epochs=3, last_epoch=1)
    assert finished(tmp_path / "done", 3) == {"accuracy": 0.75, "images_per_second": [100.0, 200.0]}
    assert finished(tmp_path / "cut off", 3) is None
    assert finished(tmp_path / "nothing", 3) is None
    assert finished(tmp_path / "done", 2) is None, "a run of more epochs is another run"


def test_a_run_of_other_epochs_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "plain20-s0", epochs=3, last_epoch=2)
    monkeypatch.setattr(pretrain, "main", lambda config: pytest.fail("trained"))
    with pytest.raises(
        BlockdropError, match="plain20-s0: holds a run of --max_epochs 3, not 2; name another folder"
    ):
        static_rivals.main(RivalsConfig(cv_dir=str(tmp_path), epochs=2, seeds=(0,), only=("plain20",)))


def test_joint_distillation_runs_as_its_results_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(distill, "main", seen.append)
    monkeypatch.setattr(static_rivals, "collect", lambda config: [])
    with pytest.raises(BlockdropError, match="no finished run"):
        static_rivals.main(RivalsConfig(cv_dir=str(tmp_path), seeds=(0,), only=("jointrd",)))
    (config,) = seen
    config.check()
    assert (config.method, config.schedule, config.max_epochs) == ("jointrd", "one_cycle", 15)
    text = (Path(static_rivals.__file__).parent / "results" / "static-rivals.md").read_text()
    assert "--side_epochs 5 --schedule one_cycle --cv_dir cv/static/jointrd-s0" in text


def test_the_table_has_mean_spread_and_times_of_the_first_row() -> None:
    common: dict[str, Any] = {"parameters": 269722, "flops": 81102080, "minutes": 20.4}
    rows = [
        {"title": "A", "accuracies": [0.8, 0.82], "accuracy": 0.81, "spread": 0.02, "seconds": {"torch": 2.0}},
        {"title": "B", "accuracies": [0.9], "accuracy": 0.9, "spread": 0.0, "seconds": {"torch": 1.5}},
    ]
    table = markdown([{**row, **common} for row in rows], ("torch",)).splitlines()
    assert table[-2] == "| A | 80.00, 82.00 | 81.00 | 2.00 | 269,722 | 81.1 | 2.000 (1.00 ×) | 20 |"
    assert table[-1] == "| B | 90.00 | 90.00 | one seed | 269,722 | 81.1 | 1.500 (0.75 ×) | 20 |"


def test_unknown_rivals_are_named() -> None:
    with pytest.raises(BlockdropError, match="--only plain21: choose r20, plain20"):
        static_rivals.main(RivalsConfig(only=("plain21",)))
