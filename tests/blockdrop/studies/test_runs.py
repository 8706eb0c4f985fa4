"""Runs: which are finished, what their commands are, and how several of them are kept going."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from blockdrop.console import run_command
from blockdrop.errors import UserError
from blockdrop.evaluate import EvaluateConfig
from blockdrop.finetune import FinetuneConfig
from blockdrop.pretrain import PretrainConfig
from blockdrop.studies import runs
from blockdrop.studies.runs import Job, check_finished, command_line, run_jobs
from blockdrop.training.config import ModelConfig
from experiments.tradeoff import METHODS, TradeoffConfig, plan_method


def commands() -> list[ModelConfig]:
    config = TradeoffConfig(load="cv/r32", seeds=(0,))
    plans = [plan_method(config, method, 0) for method in METHODS]
    return [one for plan in plans for one in (*plan.trainings, plan.evaluation)] + [
        PretrainConfig(model="R20_C10", channels_last=False, init=("a b", "c"), clip_grad=0.5),
        FinetuneConfig.of_recipe("fast", pretrained=("a",), target_flops=None, anneal=0.0),
        EvaluateConfig(load=("a",), threshold=0.25),
    ]


def test_a_command_line_is_parsed_to_the_flags_it_was_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for config in commands():
        seen: list[ModelConfig] = []
        _, module, *flags = command_line(config)
        monkeypatch.setattr(sys, "argv", [module, *flags])
        run_command(seen.append, type(config), None)
        assert seen == [config], flags


# ---- finished runs


def write_run(config: Any, weights: float | None = None, **changes: Any) -> None:
    folder = Path(config.cv_dir)
    folder.mkdir(parents=True)
    record = {**dataclasses.asdict(config), **changes}
    (folder / "config.json").write_text(json.dumps(record))
    line = {"epoch": record["max_epochs"] - 1, "phase": "test", "accuracy": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    if weights is not None:
        write_weights(folder, weights)


def write_weights(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"blocks.0.0.conv1.weight": torch.full((1,), value)}
    torch.save({"resnet": state}, folder / "ckpt_E_1_A_0.500.t7")
    return folder


def test_a_finished_run_is_known_by_its_flags(tmp_path: Path) -> None:
    def config(folder: str, **flags: Any) -> PretrainConfig:
        return PretrainConfig(cv_dir=str(tmp_path / folder), max_epochs=3, **flags)

    assert not check_finished(config("none"), "mend")
    write_run(config("done", test_every=1))
    assert check_finished(config("done", test_every=5), "mend")
    with pytest.raises(UserError, match=r"holds a run of --lr 0.1, not 0.2; name another folder, or mend"):
        check_finished(config("done", lr=0.2), "mend")
    write_run(config("cut off"), max_epochs=3)
    (tmp_path / "cut off" / "metrics.jsonl").write_text("")
    assert not check_finished(config("cut off"), "mend")
    with pytest.raises(UserError, match="holds a run of --test_every 10, not 5"):
        check_finished(config("cut off", test_every=5), "mend")


def test_a_copied_run_may_have_started_from_the_same_weights_elsewhere(tmp_path: Path) -> None:
    here, there, other = (
        write_weights(tmp_path / name, value) for name, value in (("here", 1.0), ("there", 1.0), ("other", 2.0))
    )

    def config(start: Path) -> FinetuneConfig:
        return FinetuneConfig(cv_dir=str(tmp_path / "run"), pretrained=(str(start),), max_epochs=1)

    write_run(config(here))
    assert check_finished(config(here), "mend")
    assert check_finished(config(there), "mend")
    with pytest.raises(UserError, match=r"holds a run of --pretrained .*here, not .*other, or not of the same"):
        check_finished(config(other), "mend")
    with pytest.raises(UserError, match="not of the same weights"):
        check_finished(config(tmp_path / "gone"), "mend")

    recorded = {str(here / "ckpt_E_1_A_0.500.t7"): runs.digest(there / "ckpt_E_1_A_0.500.t7")}
    (tmp_path / "run" / "config.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run").rmdir()
    write_run(config(here), inputs=recorded)
    write_weights(here, 3.0)
    assert check_finished(config(there), "mend"), "what it started from is gone, but its hash is known"


# ---- several at once

BEGIN = "import pathlib, sys, time; pathlib.Path({made!r}).write_text('x'); "


def job(folder: Path, name: str, code: str = "", needs: tuple[str, ...] = ()) -> Job:
    """Makes a file of its name."""
    made = str(folder / name)
    script: Any = BEGIN.format(made=made) + code
    return Job(name, script, made, frozenset(str(folder / need) for need in needs))


@pytest.fixture(autouse=True)
def _scripts_for_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    real = command_line
    monkeypatch.setattr(
        runs, "command_line", lambda config: ["-c", config] if isinstance(config, str) else real(config)
    )


def test_jobs_wait_for_what_they_need_and_one_that_fails_stops_only_those(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        job(tmp_path, "late", f"assert pathlib.Path({str(tmp_path / 'early')!r}).exists()", needs=("early",)),
        job(tmp_path, "lost", needs=("broken", "elsewhere")),
        job(tmp_path, "lost too", needs=("lost",)),
        job(tmp_path, "early", "time.sleep(0.3)"),
        job(tmp_path, "broken", "print('error: no such data', file=sys.stderr); sys.exit(2)"),
    ]
    failures = run_jobs(jobs, 2, tmp_path / "logs")
    assert failures == {
        "broken": "error: no such data (exit code 2)",
        "lost": "not begun, for it needs broken",
        "lost too": "not begun, for it needs lost",
    }
    assert (tmp_path / "late").exists()
    assert not (tmp_path / "lost").exists()
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [
        f"5 commands to run, 2 at a time; their output: {tmp_path / 'logs'}",
        "early: begun, 1 running, 4 waiting",
    ]
    done = [line.split(" in ")[0] for line in out if ": done in " in line]
    assert done == ["early: done", "late: done"]
    assert "error: no such data" in (tmp_path / "logs" / "broken.log").read_text()


def test_a_job_that_makes_nothing_has_failed(tmp_path: Path) -> None:
    silent: Any = "print('nothing to do')"
    failures = run_jobs([Job("silent", silent, str(tmp_path / "made"))], 1, tmp_path)
    assert failures == {"silent": "nothing to do (exit code 0)"}


def test_as_many_run_at_a_time_as_asked_and_no_more(tmp_path: Path) -> None:
    """The first two wait for each other; one after the other they would wait in vain."""

    def code(number: int) -> str:
        other = tmp_path / f"{1 - number if number < 2 else number}.begun"
        return (
            f"here = pathlib.Path({str(tmp_path)!r}); now = here / '{number}.now'; now.write_text('')\n"
            f"(here / '{number}.begun').write_text(''); end = time.monotonic() + 60\n"
            f"while not pathlib.Path({str(other)!r}).exists(): assert time.monotonic() < end; time.sleep(0.01)\n"
            "assert len(list(here.glob('*.now'))) <= 2; now.unlink()"
        )

    jobs = [job(tmp_path, str(number), code(number)) for number in range(5)]
    assert run_jobs(jobs, 2, tmp_path / "logs") == {}


def test_an_interrupt_reaches_all_and_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "\ntry:\n    pathlib.Path({ready!r}).write_text(''); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    pathlib.Path({saved!r}).write_text('')"
    )
    jobs = [
        job(
            tmp_path,
            name,
            code.format(ready=str(tmp_path / f"{name} ready"), saved=str(tmp_path / f"{name} saved")),
        )
        for name in ("one", "two")
    ]
    sleep = time.sleep

    def interrupt(seconds: float) -> None:
        sleep(0.01)
        if len(list(tmp_path.glob("* ready"))) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 2, tmp_path / "logs")
    assert {path.name for path in tmp_path.glob("* saved")} == {"one saved", "two saved"}
