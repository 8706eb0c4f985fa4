"""Commands in processes of their own: in which order, how many at a time, and how they end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from blockdrop.studies import jobs
from blockdrop.studies.jobs import Job, run_jobs

BEGIN = "import pathlib, sys, time; pathlib.Path({made!r}).write_text('x'); "


def job(folder: Path, name: str, code: str = "", needs: tuple[str, ...] = ()) -> Job:
    """Makes a file of its name."""
    made = str(folder / name)
    script: Any = BEGIN.format(made=made) + code
    return Job(name, script, made, frozenset(str(folder / need) for need in needs))


@pytest.fixture(autouse=True)
def _scripts_for_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "command_line", lambda script: ["-c", script])


def test_jobs_wait_for_what_they_need_and_one_that_fails_stops_only_those(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [
        job(tmp_path, "late", f"assert pathlib.Path({str(tmp_path / 'early')!r}).exists()", needs=("early",)),
        job(tmp_path, "lost", needs=("broken", "elsewhere")),
        job(tmp_path, "lost too", needs=("lost",)),
        job(tmp_path, "early", "time.sleep(0.3)"),
        job(tmp_path, "broken", "print('error: no such data', file=sys.stderr); sys.exit(2)"),
    ]
    failures = run_jobs(wanted, 2, tmp_path / "logs")
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

    wanted = [job(tmp_path, str(number), code(number)) for number in range(5)]
    assert run_jobs(wanted, 2, tmp_path / "logs") == {}


def test_an_interrupt_reaches_all_and_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "\ntry:\n    pathlib.Path({ready!r}).write_text(''); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    pathlib.Path({saved!r}).write_text('')"
    )
    wanted = [
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

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(wanted, 2, tmp_path / "logs")
    assert {path.name for path in tmp_path.glob("* saved")} == {"one saved", "two saved"}
