"""The program `blockdrop`, which finds commands by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blockdrop
from blockdrop import count
from blockdrop.__main__ import COMMANDS, main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/blockdrop", *arguments])
    main()


def test_every_command_is_listed() -> None:
    folder = Path(blockdrop.__file__).parent
    runnable = [file.stem for file in folder.glob("*.py") if "    run_command(main, " in file.read_text()]
    assert sorted(COMMANDS) == sorted(runnable)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    run(monkeypatch, *arguments)
    out = capsys.readouterr().out
    assert out.startswith("usage: blockdrop COMMAND")
    assert [line for line in out.splitlines() if line.startswith("  ")] == [
        f"  {name:<11}{what}" for name, what in COMMANDS.items()
    ]


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "--version")
    assert capsys.readouterr().out == f"blockdrop {blockdrop.__version__}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("finetun", "finetun: no such command; did you mean finetune?"),
        ("cltrain", "cltrain: no such command; did you mean cl_train?"),
        ("__main__", "__main__: no such command; choose pretrain, train, cl_train"),
        ("--flag", "--flag: no such command; choose pretrain, train, cl_train"),
    ],
)
def test_an_unknown_command_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, name, "--model", "R8_C10")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.filterwarnings("ignore:.* found in sys.modules after import of package")
@pytest.mark.parametrize("name", ["cl_train", "cl-train"])
def test_a_commands_help_names_it_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, name, "--help")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: blockdrop {name} ")


@pytest.mark.filterwarnings("ignore:.* found in sys.modules after import of package")
def test_a_command_runs_and_fails_as_its_module_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Callable[..., Any]
) -> None:
    run(monkeypatch, "count", "--arch", "R8")
    assert (0, *capsys.readouterr()) == command(count, "--arch", "R8")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "count", "--arch", "R9")
    captured = capsys.readouterr()
    assert (2, captured.out, captured.err.strip()) == command(count, "--arch", "R9")
    assert stop.value.code == 2
