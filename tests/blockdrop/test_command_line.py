"""Command lines: every old one, --help for a newcomer, and one line for each number out of range."""

import dataclasses
import itertools
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from blockdrop import count, distill, doctor, evaluate, export, finetune, pretrain, train, visualize
from blockdrop.cl_train import CurriculumConfig
from blockdrop.command_line import boxes, choose_class, help_texts, parse_flags
from blockdrop.errors import BlockdropError
from blockdrop.ranges import declared_rules

COMMANDS: dict[str, Any] = {
    "pretrain": pretrain.PretrainConfig,
    "train": train.TrainConfig,
    "cl_train": CurriculumConfig,
    "finetune": finetune.FinetuneConfig,
    "evaluate": evaluate.EvaluateConfig,
    "visualize": visualize.VisualizeConfig,
    "export": export.ExportConfig,
    "count": count.CountConfig,
    "doctor": doctor.DoctorConfig,
    "distill": distill.METHODS,
}
CLASSES = [*(c for name, c in COMMANDS.items() if name != "distill"), *distill.METHODS.values()]
REQUIRED: dict[Any, dict[str, Any]] = {export.ExportConfig: {"format": "onnx", "output": "net.onnx"}}
HEAVY = {"torch", "torchvision", "numpy", "scipy", "sklearn", "matplotlib", "tensorboard", "openvino"}
ROOT = Path(__file__).parents[2]
PROGRAM = r"(?:blockdrop |(?:python|torchrun)[^`…]* -m blockdrop\.)"
"""What a command's name follows."""


# ---- every old command line


def written_command_lines() -> Iterator[tuple[str, str, list[str]]]:
    """File, command and flags of each command line of ours in README, pages and results, shell variables
    replaced."""
    results = (ROOT / "experiments" / "results").glob("*.md")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(results)):
        text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
        variables: dict[str, str] = {}
        for line in text.splitlines():
            if found := re.match(r'^([A-Z]+)="(.*)"$', line):
                variables[found[1]] = substituted(found[2], variables)
            inline = re.findall(rf"`({PROGRAM}[^`…]*)`", line)
            own = [line] if re.match(rf"^\s*{PROGRAM}", line) else []
            for words in (*own, *inline):
                found = re.match(rf"\s*{PROGRAM}(\w+) ?(.*)", substituted(words, variables))
                assert found, words
                command, flags = found.groups()
                yield path.name, command, shlex.split(flags, comments=True)


def substituted(words: str, variables: dict[str, str]) -> str:
    """What a shell makes of $NAME."""
    return re.sub(r"\$([A-Z]+)", lambda found: variables[found[1]], words)


def parsed(command: str, flags: list[str]) -> Any:
    config_class, flags = choose_class(COMMANDS[command], flags, "method")
    return parse_flags(config_class, flags)


def test_every_command_line_that_we_have_written_is_understood() -> None:
    found = list(written_command_lines())
    assert len(found) > 40
    assert {command for _, command, _ in found} == COMMANDS.keys()
    for file, command, flags in found:
        assert not any("$" in flag for flag in flags), f"{file}: {flags}"
        config = parsed(command, flags)
        for flag, value in itertools.pairwise([*flags, "--"]):
            name = flag[2:].removeprefix("no_")
            if flag.startswith("--") and not value.startswith("--"):
                given = getattr(config, name)
                one = given[0] if isinstance(given, tuple) else given
                assert one == type(one)(value), f"{file}: {command} {flag}"
            elif flag.startswith("--"):
                assert getattr(config, name) == (not flag.startswith("--no_"))


def test_the_flat_spelling_and_the_subcommand_are_the_same() -> None:
    flags = ["--student", "R8", "--temperature", "4", "--load", "a"]
    assert parsed("distill", ["--method", "kd", *flags]) == parsed("distill", ["kd", *flags])
    assert parsed("distill", ["--method=kd", *flags]) == distill.KdConfig(
        student="R8", temperature=4.0, load=("a",)
    )


def test_what_is_parsed_of_the_named_flags_alone_is_what_is_parsed_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {
        "finetune": "--recipe fast --load a b --penalty -3 --no_rewind --batch-size=32 --seed 1 --seed 2 --resume",
        "evaluate": "--load ~/a --threshold 0.25 --mean 0.5 0.5 0.5 --std 1 1 1 --no-speed",
        "distill": "kd --student R8 --load a --temperature 4",
    }
    asked: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr("blockdrop.command_line.boxes", lambda _: pytest.fail("tyro was to see all flags"))
        alone = {command: parsed(command, flags.split()) for command, flags in lines.items()}
    monkeypatch.setattr("blockdrop.command_line._parsed_alone", lambda *given: asked.append(given))
    assert {command: parsed(command, flags.split()) for command, flags in lines.items()} == alone
    assert len(asked) == 3
    assert alone["finetune"].load == ("a", "b")


@pytest.mark.parametrize("config_class", CLASSES)
def test_without_flags_a_command_has_its_defaults(config_class: Any) -> None:
    flags = [f"--{name}={value}" for name, value in REQUIRED.get(config_class, {}).items()]
    assert parse_flags(config_class, flags) == config_class(**REQUIRED.get(config_class, {}))


# ---- help


@pytest.mark.parametrize("command", [*COMMANDS, *(f"distill {method}" for method in distill.METHODS)])
def test_help_needs_no_torch_and_begins_with_what_a_newcomer_needs(command: str) -> None:
    name, *method = command.split()
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{name}', *{method}, '--help']\n"
        "try:\n"
        f"    runpy.run_module('blockdrop.{name}', run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        f"    print('loaded:', *sorted({HEAVY} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"
    first = done.stdout[done.stdout.index("─ options ─") :]
    first = first[: first.index("╰")]
    for flag in {"distill": ("method", "model", "load"), "doctor": ("data_dir",), "count": ("model", "load")}.get(
        name, ("model", "load") if name != "pretrain" else ("model", "init", "lr", "max_epochs")
    ):
        assert f"│ --{flag} " in first
    assert len(re.findall(r"│ --\w+", first)) <= 12


@pytest.mark.parametrize("config_class", CLASSES)
def test_every_flag_is_in_one_box_with_a_phrase_of_its_own(config_class: Any) -> None:
    names = [field.name for field in dataclasses.fields(config_class)]
    shown = boxes(config_class)
    assert sorted(itertools.chain(*shown.values())) == sorted(names)
    assert "other" not in shown
    texts = help_texts(config_class)
    for name in names:
        assert re.match(r"[A-Z].* .*\.$", texts[name]), f"{name}: {texts[name]}"
        assert not re.match(r"(Of|That|See|As|This|It)\b", texts[name]), f"{name}: {texts[name]}"


def test_a_flag_of_another_method_is_refused() -> None:
    for flags in (["exact", "--student", "R8"], ["--method", "kd", "--dirac"], ["stagewise", "--no-scale-kl"]):
        with pytest.raises(BlockdropError, match=r"--\w+: means nothing to \w+, only to"):
            parsed("distill", flags)
    with pytest.raises(BlockdropError, match="--method: choose stagewise, kd, jointrd, exact"):
        parsed("distill", ["--load", "a"])


# ---- ranges


def numeric_flags(config_class: Any) -> Iterator[str]:
    """The flags that are numbers."""
    for name, hint in get_type_hints(config_class).items():
        kinds = {hint, *get_args(hint)}
        if name in {field.name for field in dataclasses.fields(config_class)} and kinds & {int, float}:
            yield name


@pytest.mark.parametrize("config_class", CLASSES)
def test_every_number_has_a_range_and_refuses_what_lies_outside(config_class: Any) -> None:
    usual = config_class(**REQUIRED.get(config_class, {}))
    for name in numeric_flags(config_class):
        if name == "milestones":
            continue  # a rule about all of them together
        assert name in declared_rules(config_class), f"--{name}: no range"
        for value in (math.nan, math.inf, -math.inf, *(() if name == "penalty" else (-1,))):
            several = isinstance(getattr(usual, name), tuple)
            with pytest.raises(BlockdropError) as caught:
                dataclasses.replace(usual, **{name: (value,) if several else value}).check()
            assert str(caught.value).startswith(f"--{name} {value}: must be "), caught.value


# ---- mistakes


@pytest.mark.parametrize(
    ("module", "flags", "says"),
    [
        (evaluate, ("--lod", "x"), "did you mean --load? --help lists the flags"),
        (pretrain, ("--max-epoch", "3"), "did you mean --max_epochs?"),
        (evaluate, ("--mean", "0.5", "0.5", "0.5"), "--mean, --std: pass both of them"),
        (
            evaluate,
            ("--mean", "0.5", "0.5", "0.5", "--std", "1", "1", "0"),
            "--std 0.0: must be a positive number",
        ),
        (
            evaluate,
            ("--budget", "60"),
            "--budget 60.0: must be above 0 and at most 2, a fraction",
        ),
        (
            finetune,
            ("--target_flops", "45", "--pretrained", "x"),
            "45.0: must be above 0 and at most 2, a",
        ),
        (
            pretrain,
            ("--policy_net", "stem"),
            "--policy_net: pretrain trains no policy network",
        ),
    ],
)
def test_a_mistake_is_named_with_its_mend(
    module: Any, flags: tuple[str, ...], says: str, command: Any, tmp_path: Path
) -> None:
    code, _, error = command(module, *flags, "--cv_dir", tmp_path / "run")
    assert code == 2
    assert says in error
    assert not (tmp_path / "run").exists()


def test_several_processes_without_their_numbers_are_refused(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    code, _, error = command(evaluate, "--model", "R8_Digits", "--cv_dir", tmp_path)
    assert (code, error) == (
        2,
        "error: WORLD_SIZE is set but not RANK, MASTER_ADDR, MASTER_PORT; start several processes by torchrun",
    )


def test_a_reader_that_has_gone_ends_a_command_quietly() -> None:
    script = f"{sys.executable} -W error -m blockdrop.doctor | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=100)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"


def test_home_is_understood_in_every_path() -> None:
    config = parse_flags(evaluate.EvaluateConfig, ["--data_dir=~/photos", "--load", "~/a.t7", "b~.t7"])
    assert config.data_dir == str(Path.home() / "photos")
    assert config.load == (str(Path.home() / "a.t7"), "b~.t7")


def test_help_can_be_written_in_any_encoding(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "blockdrop.evaluate", "--help"]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, timeout=100)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--data_dir" in done.stdout
