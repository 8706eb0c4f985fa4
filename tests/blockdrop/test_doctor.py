"""What the doctor says of machines, data, runs and checkpoints, in health and sickness."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torchvision

import blockdrop
import blockdrop.data.files
import blockdrop.data.source
import blockdrop.data.tree
from blockdrop import build, doctor, evaluate, pretrain, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.training.run_directory import RunDirectory
from tests.conftest import write_image_tree

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
    (image_tree / "test" / "dog" / "0002.png").write_bytes(b"no image")
    code, printed, _ = command(doctor, "--data_dir", image_tree)
    assert code == 1
    assert fact(printed, "test images").startswith("12;"), "all that can be said is said"
    assert "2 of 24 images tried can't be read, the first " in fact(printed, "PROBLEM")
    assert f"{image_tree}/train/cat/0001.png (" in fact(printed, "PROBLEM")
    assert "--skip_bad_images" in fact(printed, "PROBLEM")
    for path in image_tree.rglob("*.png"):
        path.write_bytes(b"no image")
    printed = command(doctor, "--data_dir", image_tree)[1]
    assert "24 of 24 images tried can't be read" in fact(printed, "PROBLEM")
    assert "--skip_bad_images" not in printed, "nothing would be left"


def test_of_many_images_some_are_read_and_none_is_kept(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image_tree(tmp_path, count=50, size=8)
    original, names = blockdrop.data.tree.read_image, []
    monkeypatch.setattr(blockdrop.data.tree, "read_image", lambda name: names.append(name) or original(name))
    code, printed, _ = command(doctor, "--data_dir", tmp_path)
    assert code == 0
    assert fact(printed, "images tried") == "64, all readable"
    assert len(names) == 64
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            assert sum(f"/{part}/{name}/" in path for path in names) == 16, "spread evenly"
    kept = sorted(path.name for path in (tmp_path / ".blockdrop-cache").glob("*.npz"))
    assert kept == ["test-tree-3.npz", "train-tree-3.npz"]


def test_class_names_cannot_command_the_terminal(tmp_path: Path, command: Command) -> None:
    write_image_tree(tmp_path, classes=("\x1b[31mcat", "b\udcffd"), count=1)
    code, printed, _ = command(doctor, "--data_dir", tmp_path)
    assert code == 0
    assert r"\x1b[31mcat" in fact(printed, "classes")
    assert "\x1b" not in printed


def test_torchvisions_cifar_folders_are_recognised(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_cifar(classes: int) -> Callable[..., Any]:
        labels, names = list(range(classes)) * 2, tuple(map(str, range(classes)))
        data = np.zeros((2 * classes, 32, 32, 3), np.uint8)
        return lambda root, train, download: SimpleNamespace(classes=names, data=data, targets=labels)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fake_cifar(10))
    monkeypatch.setattr("torchvision.datasets.CIFAR100", fake_cifar(100))
    (tmp_path / "cifar-100-python").mkdir()
    code, printed, _ = command(doctor, "--data_dir", tmp_path)
    assert code == 0
    assert fact(printed, "data set").startswith("torchvision's CIFAR-100")
    assert fact(printed, "training images") == "200; 2 to 2 of a class"
    (tmp_path / "cifar-10-batches-py").mkdir()
    printed = command(doctor, "--data_dir", tmp_path)[1]
    assert "torchvision's CIFAR-100" in printed
    assert "torchvision's CIFAR-10," in printed
    code, printed, _ = command(doctor, "--data_dir", tmp_path / "cifar-10-batches-py")
    assert code == 1
    assert "--data_dir is the folder that it lies in" in fact(printed, "PROBLEM")


def test_a_run_says_whether_it_can_go_on(tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    assert "no run in it" in command(doctor, "--cv_dir", run)[1]
    config = pretrain.PretrainConfig(model="R8_Digits")
    with RunDirectory(run, "pretrain", config) as opened:
        opened.log(2, "test", {"accuracy": 0.75})
        opened.state.epoch, opened.state.batch = 3, 7
        opened.state.save()
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
def run(tmp_path: Path) -> Path:
    """Interrupted after epoch 2."""
    with RunDirectory(tmp_path / "run", "pretrain", pretrain.PretrainConfig(model="R8_Digits")) as opened:
        opened.log(2, "test", {"accuracy": 0.75})
        opened.state.epoch = 3
        opened.state.save()
    return tmp_path / "run"


def test_what_a_resumption_cuts_off_is_passed_over(run: Path, command: Command) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "phase": "test", "accuracy": 0.9}\n{"epoch": 4, "pha')
    code, printed, _ = command(doctor, "--cv_dir", run)
    assert code == 0
    assert fact(printed, "last test") == "epoch 2, accuracy 0.7500"


def test_a_line_that_is_being_written_is_passed_over(run: Path, command: Command) -> None:
    with RunDirectory(run, "pretrain", pretrain.PretrainConfig(model="R8_Digits"), resume=True) as opened:
        opened.log(3, "test", {"accuracy": 0.9})
        with open(run / "metrics.jsonl", "a") as file:
            file.write('{"epoch": 4, "pha')
        code, printed, _ = command(doctor, "--cv_dir", run)
    assert code == 0
    assert fact(printed, "last test") == "epoch 3, accuracy 0.9000"


def test_metrics_that_were_cut_are_missed(run: Path, command: Command) -> None:
    (run / "metrics.jsonl").write_bytes(b"")
    code, printed, _ = command(doctor, "--cv_dir", run)
    assert code == 1
    assert "metrics.jsonl: shorter than it was" in fact(printed, "PROBLEM")


@pytest.mark.parametrize("accuracy", [{}, {"accuracy": "\x1b[2J"}, {"accuracy": None}, {"accuracy": 10**400}])
def test_a_test_may_lack_an_accuracy(run: Path, command: Command, accuracy: dict[str, object]) -> None:
    (run / "state.pt").unlink()
    line = {"epoch": "\x1b[2J", "phase": "test", **accuracy}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    code, printed, _ = command(doctor, "--cv_dir", run)
    assert code == 0
    assert fact(printed, "last test") == r"epoch \x1b[2J, without an accuracy"


def test_flags_cannot_command_the_terminal(run: Path, command: Command) -> None:
    flags = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(flags | {"model": "\x1b[2J", "max_epochs": ["\n", "x" * 9999]}))
    printed = command(doctor, "--cv_dir", run)[1]
    assert fact(printed, "command").startswith(r"pretrain \x1b[2J, ")
    assert len(fact(printed, "command")) < 200


def test_a_lock_that_cannot_be_opened_is_named(run: Path, command: Command) -> None:
    (run / "run.lock").unlink()
    (run / "run.lock").mkdir()
    code, printed, _ = command(doctor, "--cv_dir", run)
    assert code == 1
    assert "run.lock: can't be locked" in fact(printed, "PROBLEM")


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
    assert "operating point" not in printed


def test_a_checkpoints_classes_are_compared_with_the_datas(
    tmp_path: Path, image_tree: Path, checkpoint: Path, command: Command
) -> None:
    names = sorted(path.name for path in (image_tree / "train").iterdir())
    resnet, _ = build("R8_Folder", num_classes=2)
    for file, classes, code, expected in (
        ("same", names, 0, "those of the data, in the same order"),
        ("other", [names[1], names[0]], 1, f"{names[1]} is now {names[0]}"),
        ("unnamed", None, 0, "as many as the data have; the file doesn't name its own"),
    ):
        save_checkpoint(
            tmp_path / file, model="R8_Folder", resnet=resnet, classes=classes,
            normalisation=NORMALISATIONS["half"],
        )  # fmt: skip
        found, printed, _ = command(doctor, "--load", tmp_path / file, "--data_dir", image_tree)
        assert found == code
        assert expected in fact(printed.partition("\ncheckpoint\n")[2], "PROBLEM" if code else "classes")
    shutil.rmtree(image_tree / "train")
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--no_speed")
    assert command(evaluate, *flags, "--load", tmp_path / "unnamed")[0] == 0, "in the order of test/, says a note"
    printed = command(doctor, "--load", tmp_path / "unnamed", "--data_dir", image_tree)[1]
    assert "classes are counted in the order of the test folder's names" in printed
    printed = command(doctor, "--load", tmp_path / "same", "--data_dir", tmp_path / "missing")[1]
    assert fact(printed, "classes") == "not compared: the data can't be opened"


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ({"threshold": 0.25}, "threshold 0.25"),
        (
            {"threshold": 0.25, "budget": 0.59, "flops_fraction": 0.58},
            "threshold 0.25, for 59 % of the full network's FLOPs",
        ),
    ],
)
def test_the_stored_operating_point_is_shown(
    point: dict[str, float], expected: str, tmp_path: Path, command: Command
) -> None:
    resnet, policy_network = build("R8_Digits")
    how = {"model": "R8_Digits", "normalisation": NORMALISATIONS["none"], "operating_point": point}
    save_checkpoint(tmp_path / "c.t7", resnet=resnet, policy_network=policy_network, **how)  # type: ignore[arg-type]
    code, printed, _ = command(doctor, "--load", tmp_path / "c.t7")
    assert (code, fact(printed, "operating point")) == (0, expected)


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


def test_networks_of_others_are_sound_too(tmp_path: Path, command: Command) -> None:
    for name, model, fits in (
        ("library", "torchvision:resnet18", "every tensor has its place"),
        ("own", torchvision.models.resnet18(num_classes=3), "not tried: only its owner's code builds a ResNet"),
    ):
        path = tmp_path / f"{name}.t7"
        blockdrop.make_dynamic(model, image_size=32).save(path)
        code, out, _ = command(doctor, "--load", path)
        assert code == 0, out
        assert fits in out
