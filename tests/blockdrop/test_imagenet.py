"""ImageNet's ResNet-50 through every command, on a made tree of 18 images.

Its widths are an eighth of the real ones, which saves most of the time and nothing of the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from blockdrop import cl_train, count, distill, evaluate, export, finetune, pretrain
from blockdrop.errors import BlockdropError
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.checkpoints.filling import network_from
from blockdrop.models.specs import Variant, parse_model_name
from blockdrop.models.zoo import build_backbone
from blockdrop.training.update import Update
from experiments.robustness.samples import as_torchvision

MODEL = "R50_ImgNet"
EIGHTH = Variant(reduction=64, reduction_mode="net")
CLASSES, TRAINING, TEST = 2, 6, 3
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ of JPEGs, wide and high ones; each class has a colour of its own."""
    root = tmp_path_factory.mktemp("imagenet")
    generator = np.random.default_rng(0)
    for part, images in (("train", TRAINING), ("val", TEST)):
        for number in range(CLASSES):
            (folder := root / part / f"n{number:08}").mkdir(parents=True)
            for index in range(images):
                pixels = generator.integers(0, 100, (8, 8, 3), dtype=np.uint8)
                pixels[..., 0] += np.uint8(number * 150)
                size = (256 + index, 230) if index % 2 else (230, 256 + index)
                Image.fromarray(pixels).resize(size).save(folder / f"{index:04}.JPEG")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone under torchvision's names, of 1000 classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    resnet = build_backbone(parse_model_name(MODEL), variant=EIGHTH)
    torch.save(as_torchvision(resnet.state_dict()), path)
    return path


def test_torchvisions_names_are_those_of_the_made_file(weights: Path) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet50().state_dict()
    found = torch.load(weights, weights_only=True)
    assert found.keys() == theirs.keys()
    narrowed = [key for key, value in found.items() if value.dim() == 1 and not key.startswith("fc")]
    assert all(8 * len(found[key]) == len(theirs[key]) for key in narrowed)


def test_every_command_runs(tmp_path: Path, tree: Path, weights: Path, command: Command) -> None:
    def folder(name: str) -> Path:
        return tmp_path / name

    def run(module: Any, name: str, *flags: object) -> str:
        common = ("--model", MODEL, "--data_dir", tree, "--cv_dir", folder(name), "--max_epochs", 1)
        code, out, error = command(module, *common, "--workers", 0, "--precision", "float32", *flags)
        assert code == 0, error
        return out

    reduced = ("--reduction", 64, "--reduction_mode", "net")
    run(pretrain, "pretrain", "--init", weights, "--new_head", "--batch_size", 6, "--accumulate", 2, *reduced)
    learned = ("--clip_grad", 1, "--batch_size", 6)
    start = ("--load", folder("pretrain"), "--policy_net", "pooled4")
    out = run(cl_train, "curriculum", *start, "--cl_step", 8, *learned)
    assert "8 of 16 blocks decided" in out
    run(finetune, "finetune", "--pretrained", folder("curriculum"), *learned)
    fast = ("--recipe", "fast", "--target_flops", 0.7, "--recalibrate", 12, "--no_channels_last")
    run(finetune, "fast", "--pretrained", folder("pretrain"), *fast, "--batch_size", 6)
    student = ("--method", "kd", "--student", "R18", "--student_reduction", 64, "--student_reduction_mode", "net")
    run(distill, "kd", "--load", folder("pretrain"), *student, "--batch_size", 6, "--timed_images", 4)

    common = ("--model", MODEL, "--load", folder("fast"))
    more = ("--workers", 0, "--no_speed", "--engine", "torch")
    code, out, error = command(evaluate, *common, "--data_dir", tree, "--json", tmp_path / "r.json", *more)
    assert code == 0, error
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert numbers["images"] == CLASSES * TEST
    assert command(count, *common)[0] == 0
    pytest.importorskip("safetensors")
    output = tmp_path / "r.safetensors"
    assert command(export, *common, "--format", "safetensors", "--output", output)[0] == 0
    found = network_from(read_checkpoint(output), parse_model_name(MODEL))
    assert (found.num_blocks, found.fc.out_features) == (16, CLASSES)


def test_a_run_on_streamed_images_goes_on_with_the_same_bits(
    tmp_path: Path, tree: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in the middle of its second epoch, whose crops are drawn by number, not by what was read before."""
    small = ("--reduction", 64, "--reduction_mode", "net", "--workers", 2, "--batch_size", 4, "--max_epochs", 2)
    flags = ("--model", "R18_ImgNet", "--data_dir", tree, "--precision", "float32", "--save_minutes", 1e-6, *small)
    assert command(pretrain, *flags, "--cv_dir", tmp_path / "undisturbed")[0] == 0
    step = Update.__call__

    def cut_off(self: Update, loss: torch.Tensor, epoch: int, batch: int) -> Any:
        if (epoch, batch) == (1, 2):
            raise BlockdropError("cut off")
        return step(self, loss, epoch, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Update, "__call__", cut_off)
        assert command(pretrain, *flags, "--cv_dir", tmp_path / "cut")[0] == 2
    code, out, _ = command(pretrain, *flags, "--cv_dir", tmp_path / "cut", "--resume")
    assert code == 0
    assert "epoch 0:" not in out
    expected, found = (read_checkpoint(tmp_path / name).resnet for name in ("undisturbed", "cut"))
    assert expected is not None
    assert found is not None
    assert all(value.equal(found[key]) for key, value in expected.items())
