"""What every command shares with its terminal: flags from a dataclass, one-line errors."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from blockdrop.command_line import choose_class, flag_words, parse_flags
from blockdrop.errors import BlockdropError, Interrupted

Config = TypeVar("Config")


def run_command(
    main: Callable[[Config], object],
    config_class: type[Config] | Mapping[str, type[Config]],
    description: str | None,
    choice: str = "method",
) -> None:
    """Parses the flags, runs `main`, and turns a `BlockdropError` into one line on stderr and its exit code.

    Args:
        config_class: the command's flags; or, of a command that has several sets of them, by the values of
            --`choice`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # lines in order with the progress bar's, and "?" for what the console's encoding lacks
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    config = _parse(config_class, description, choice)
    import torch.distributed as dist  # not before the flags are understood: --help needn't wait for torch

    from blockdrop.processes import joined

    try:
        with joined(getattr(config, "device", "auto")) as processes, _output_of(processes.first):
            main(config)
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        sys.exit(0)
    except BlockdropError as error:
        rank = os.environ.get("RANK", "0")
        sys.exit(_fail(str(error) if rank == "0" else f"process {rank}: {error}", error.exit_code))
    except Interrupted as stop:
        print(f"{stop}; the same command with --resume goes on", file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        line = next(iter(str(error).splitlines()), "")  # what the others meet when one has left
        sys.exit(_fail(f"process {os.environ.get('RANK', '0')}: another process has ended ({line})", 1))


def _parse(
    config_class: type[Config] | Mapping[str, type[Config]], description: str | None, choice: str
) -> Config:
    started = sys.modules["__main__"]
    module = getattr(started.__spec__, "name", None)
    prog = getattr(started, "PROGRAM", module and f"python -m {module}")  # PROGRAM: of `blockdrop.__main__`
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            chosen, arguments = choose_class(config_class, sys.argv[1:], choice)
            choices = {choice: [*config_class]} if isinstance(config_class, Mapping) else {}
            return parse_flags(chosen, arguments, prog, description, choices)
    except BrokenPipeError:  # --help | head
        _stdout_is_closed()
        sys.exit(0)
    except BlockdropError as error:
        sys.exit(_fail(f"{error}; --help lists the flags", error.exit_code))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        sys.exit(_fail(_unboxed(complaint.getvalue(), _likely(chosen, sys.argv[1:])), 2))


def _likely(config_class: type, arguments: Sequence[str]) -> str:
    """What misspelt flags may have meant, or nothing."""
    names = [field.name for field in dataclasses.fields(config_class)]
    known = {form for name in names for form in (name, f"no_{name}")}
    found = [
        f"did you mean --{likely[0]}?"
        for word in flag_words(arguments)
        if word not in known and (likely := difflib.get_close_matches(word, names, 1))
    ]
    return " ".join(found)


def _stdout_is_closed() -> bool:
    """Whether nobody reads what is printed any more (`| head`); it then goes nowhere from here on, without a
    traceback when Python ends."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _output_of(first: bool) -> contextlib.AbstractContextManager[object]:
    """Of several processes one speaks for all."""
    return contextlib.nullcontext() if first else contextlib.redirect_stdout(io.StringIO())


def _unboxed(text: str, hint: str = "") -> str:
    """The first paragraph of the box that tyro draws around what it has to say, as one line."""

    def is_rule(line: str) -> bool:
        return set(line) <= set("─-╰╯")

    inside = filter(None, (line.strip("│ ") for line in text.splitlines()[1:]))  # after the box's title
    paragraph = itertools.takewhile(lambda line: not is_rule(line), itertools.dropwhile(is_rule, inside))
    return f"{' '.join(paragraph).rstrip('.')}; {f'{hint} ' if hint else ''}--help lists the flags"


def _fail(message: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return exit_code
