"""The comparison behind the resilience study: what counts as the same run, and what doesn't."""

import json
import shutil
from pathlib import Path

import pytest

from blockdrop import pretrain
from blockdrop.studies.runs import COMMANDS
from experiments.robustness.resilience import RUNS, compare, position, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "undisturbed"
    pretrain.main(pretrain.PretrainConfig(max_epochs=1, **{**tiny(folder), "batch_size": 1347}))
    return folder


def test_a_copy_is_the_same_and_says_where_it_stands(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert compare(run, copy) == []
    assert position(copy) == ("copy", 0, 1, 0)
    assert position(tmp_path) is None


def test_other_weights_metrics_and_curves_are_noticed(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[0]["loss"] += 1e-15
    lines[0]["time"] = lines[0]["images_per_second"] = 0
    (copy / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert compare(run, copy) == [f"{copy}: other metrics"], "but not the clock's"
    for file in copy.glob("ckpt_*"):
        file.unlink()
    for file in copy.glob("events*"):
        file.unlink()
    assert compare(run, copy) == [f"{copy}: other {what}" for what in ("weights", "metrics", "curves")]


def test_every_command_that_trains_takes_part(tmp_path: Path) -> None:
    for name, make in RUNS.items():
        config = make(tmp_path)
        config.check()
        assert COMMANDS[type(config)] == f"blockdrop.{name.split()[0]}"
