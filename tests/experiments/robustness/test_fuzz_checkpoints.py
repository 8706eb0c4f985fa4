"""The fuzzer: what it makes, and that it notices what it looks for."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blockdrop.errors import BlockdropError
from blockdrop.models.checkpoints.torch_files import read_torch_file
from experiments.robustness import fuzz_checkpoints
from experiments.robustness.fuzz_checkpoints import Result, Task, attempt, measure
from experiments.robustness.mutants import TRACE, make_mutant
from experiments.robustness.samples import DIALECTS, file_name, samples


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_mutants_are_made_of_is_sound(tmp_path: Path, dialect: str) -> None:
    for sample in samples(dialect):
        path = tmp_path / file_name(dialect)
        path.write_bytes(sample.file)
        assert attempt(str(path)) == ("loaded", "")


def test_torch_reads_the_old_serialisation_as_it_is_written_here(tmp_path: Path) -> None:
    sample = samples("reference-pre16")[0]
    (tmp_path / "c.t7").write_bytes(sample.file)
    ours, theirs = read_torch_file(tmp_path / "c.t7"), torch.load(io.BytesIO(sample.file), weights_only=True)
    assert list(ours) == list(theirs) == list(sample.content)
    for part in ("agent", "resnet"):
        for key, value in sample.content[part].items():
            assert ours[part][key].equal(value)
            assert theirs[part][key].equal(value)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_seed_and_a_number_make_one_mutant(dialect: str) -> None:
    mutants = [make_mutant(dialect, 0, number) for number in range(8)]
    assert mutants == [make_mutant(dialect, 0, number) for number in range(8)]
    assert len(set(mutants)) >= 7  # a change may leave all as it was
    assert mutants[0] != make_mutant(dialect, 1, 0)


def test_every_mutant_loads_or_is_refused(tmp_path: Path, command: Callable[..., Any]) -> None:
    code, out, _ = command(fuzz_checkpoints, "--count", 12, "--json", tmp_path / "rows.json")
    assert code == 0, out
    numbers = json.loads((tmp_path / "rows.json").read_text())
    assert [row["dialect"] for row in numbers["rows"]] == list(DIALECTS)
    for row in numbers["rows"]:
        assert row["loaded"] + row["refused"] == row["mutants"] == 12
        assert row["dialect"] in out
    assert all(sum(row[outcome] for row in numbers["rows"]) > 0 for outcome in ("loaded", "refused"))
    assert numbers["findings"] == []


def touch(_path: str) -> None:
    Path(TRACE).touch()


def take_memory(_path: str) -> None:
    torch.ones(100, 2**20, dtype=torch.uint8)


def fail(error: BaseException) -> Callable[[str], None]:
    def open_checkpoint(_path: str) -> None:
        raise error

    return open_checkpoint


@pytest.mark.parametrize(
    ("open_checkpoint", "outcome"),
    [
        (lambda _: None, "loaded"),
        (fail(BlockdropError("c.t7: damaged")), "refused"),
        (fail(BlockdropError("c.t7:\ndamaged")), "unclear"),
        (fail(BlockdropError("x" * 1000)), "unclear"),
        (fail(BlockdropError("c.t7: takes more memory than there is")), "memory"),
        (fail(MemoryError()), "memory"),
        (fail(RuntimeError("bad")), "RuntimeError"),
        (fail(SystemExit()), "SystemExit"),
        (touch, "ran code from the file"),
        (take_memory, "memory"),
    ],
)
def test_what_is_neither_loaded_nor_refused_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_checkpoint: Callable[[str], None], outcome: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz_checkpoints, "open_checkpoint", open_checkpoint)
    result = measure(Task("reference-zip", 7), memory=64 * 2**20, seconds=60.0)
    assert result.outcome == outcome
    assert not (tmp_path / TRACE).exists()


def test_findings_are_listed_and_fail_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    outcomes = ["loaded", "killed by exit code -11", "refused"]

    def run_tasks(tasks: list[Task], _config: object) -> list[Result]:
        return [Result(task, outcome) for task, outcome in zip(tasks, outcomes, strict=True)]

    monkeypatch.setattr(fuzz_checkpoints, "run_tasks", run_tasks)
    flags = ("--count", 3, "--dialects", "reference-zip", "--json", tmp_path / "rows.json")
    code, out, error = command(fuzz_checkpoints, *flags)
    assert code == 2
    assert "reference-zip:1  killed by exit code -11" in out
    assert error.endswith("1 mutants neither loaded nor were refused; --only reference-zip:1 makes the first")
    numbers = json.loads((tmp_path / "rows.json").read_text())
    assert [numbers["rows"][0][name] for name in ("loaded", "refused", "other")] == [1, 1, 1]
    assert [finding["task"] for finding in numbers["findings"]] == ["reference-zip:1"]


def test_one_mutant_can_be_had_as_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    monkeypatch.setattr(fuzz_checkpoints, "run_tasks", lambda tasks, _: [Result(tasks[0], "refused", "damaged")])
    flags = ("--only", "torchvision-pre16:17", "--seed", 3, "--output", tmp_path / "mutant.t7")
    code, out, _ = command(fuzz_checkpoints, *flags)
    assert code == 0
    assert out.startswith("torchvision-pre16:17  refused")
    assert (tmp_path / "mutant.t7").read_bytes() == make_mutant("torchvision-pre16", 3, 17)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--count", 0), "--count 0: must be at least 1"),
        (("--dialects", "onnx"), "--dialects onnx: choose among blockdrop-zip, blockdrop-pre16, reference-zip, "),
        (("--dialects",), "--dialects: name at least one"),
        (("--memory", 1), "--memory 1: must be at least 64"),
        (("--seconds", 0), "--seconds 0.0: must be above 0"),
        (("--output", "mutant.t7"), "--output: goes with --only"),
        (
            ("--only", "reference-zip"),
            "--only reference-zip: has the form DIALECT:NUMBER, such as blockdrop-zip:17",
        ),
        (("--only", "onnx:1"), "--only onnx:1: has the form DIALECT:NUMBER, such as blockdrop-zip:17"),
    ],
)
def test_flags_out_of_range_are_named(
    command: Callable[..., Any], flags: tuple[object, ...], message: str
) -> None:
    code, _, error = command(fuzz_checkpoints, *flags)
    assert code == 2
    assert error.startswith(f"error: {message}")
