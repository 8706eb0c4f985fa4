"""What the doctor says of machines, data, runs and checkpoints, in health and sickness."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blockdrop import build, doctor, pretrain, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.training.run_directory import RunDirectory

Command = Callable[..., tuple[int, str, str]]


def fact(printed: str, name: str) -> str:
    (line,) = (line for line in printed.splitlines() if line.startswith(f"  {name} "))
    return line.removeprefix(f"  {name}").strip()


def test_a_machine_can_always_be_described(command: Command) -> None:
    code, printed, _ = command(doctor)
    assert code == 0
    assert fact(printed, "torch").endswith("threads")
    assert "PROBLEM" not in printed


def test_data_are_counted_by_class(image_tree: Path, command: Command) -> None:
    code, printed, _ = command(doctor, "--data_dir", image_tree)
    assert code == 0
    assert fact(printed, "classes") == "2 (cat, dog)"
    assert fact(printed, "training images") == "12; 6 to 6 of a class"


def test_what_is_wrong_with_the_data_is_named(image_tree: Path, command: Command) -> None:
    (image_tree / "train" / "cat" / "0001.png").write_bytes(b"no image")
    code, printed, _ = command(doctor, "--data_dir", image_tree)
    assert code == 1
    assert "0001.png: not a readable image" in fact(printed, "PROBLEM")


def test_a_run_says_whether_it_can_go_on(tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    assert "no run in it" in command(doctor, "--cv_dir", run)[1]
    config = pretrain.PretrainConfig(model="R8_Digits")
    with RunDirectory(run, "pretrain", config) as opened:
        opened.state.epoch, opened.state.batch = 3, 7
        opened.state.save()
        opened.log(2, "test", {"accuracy": 0.75})
        assert fact(command(doctor, "--cv_dir", run)[1], "resume") == "a process trains there now"
    code, printed, _ = command(doctor, "--cv_dir", run)
    assert code == 0
    assert fact(printed, "resume") == "the same command with --resume goes on at epoch 3, batch 7"
    assert fact(printed, "last test") == "epoch 2, accuracy 0.7500"
    with RunDirectory(run, "pretrain", config, resume=True) as opened:
        opened.state.finish()
    assert fact(command(doctor, "--cv_dir", run)[1], "resume") == "the run is finished"
    (run / "state.pt").write_bytes(b"damaged")
    code, printed, _ = command(doctor, "--cv_dir", run)
    assert code == 1
    assert "state.pt" in fact(printed, "PROBLEM")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "both.t7"
    resnet, policy_network = build("R8_Folder", num_classes=2)
    how = {"model": "R8_Folder", "normalisation": NORMALISATIONS["half"], "metrics": {"accuracy": 0.5}}
    save_checkpoint(path, resnet=resnet, policy_network=policy_network, **how)  # type: ignore[arg-type]
    return path


def test_a_checkpoint_is_described_and_tried(checkpoint: Path, command: Command) -> None:
    code, printed, _ = command(doctor, "--load", checkpoint)
    assert code == 0
    assert fact(printed, "dialect").startswith("ours")
    assert fact(printed, "backbone").startswith("R8_Folder, ")
    assert fact(printed, "fits") == "R8_Folder: every tensor has its place"


@pytest.mark.parametrize(
    ("damage", "flags", "problem"),
    [
        (None, ["--model", "R14_Folder"], "holds a ResNet-8"),
        (b"PK\x03\x04", [], "damaged"),
        (b"\x80\x02.", [], ""),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_named(
    damage: bytes | None, flags: list[str], problem: str, checkpoint: Path, command: Command
) -> None:
    if damage is not None:
        checkpoint.write_bytes(damage)
    code, printed, _ = command(doctor, "--load", checkpoint, *flags)
    assert code == 1
    assert problem in fact(printed, "PROBLEM")
    assert str(checkpoint) in fact(printed, "PROBLEM")


def test_an_unknown_model_is_named(command: Command) -> None:
    code, _, error = command(doctor, "--model", "R33_C10")
    assert (code, error.startswith("error: R33_C10")) == (2, True)
