"""Weights as people have them: under many keys, with prefixes, with heads of other names."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnext50_32x4d, wide_resnet50_2

from blockdrop import build, evaluate, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.data.sets import CIFAR10_CLASSES, Normalisation
from blockdrop.errors import CheckpointError
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.checkpoints.filling import load_checkpoint, network_from
from blockdrop.models.specs import parse_model_name
from blockdrop.models.zoo import build_static
from experiments.robustness.samples import Tree, as_torchvision
from tests.conftest import randomise_statistics, write_image_tree

State = dict[str, Tensor]


def with_prefix(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def with_head(name: str) -> Callable[[State], State]:
    return lambda state: {key.replace("fc.", f"{name}."): value for key, value in state.items()}


def averaged(state: State) -> State:
    return {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}


@pytest.mark.parametrize("wrap", [
    lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3, "ema_decay": torch.tensor(0.9)},
    lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    lambda state: {"state_dict": with_prefix("model.")(state), "hyper_parameters": {"lr": 0.1}},
    lambda state: {"model": {"state_dict": state}},
    lambda state: {"state_dict": state, "state_dict_ema": averaged(state)},
    lambda state: {"model_ema": {"n_averaged": torch.tensor(4)} | with_prefix("module.")(state)},
    with_prefix("module._orig_mod."),
    with_prefix("module.module."),
    lambda state: with_head("fc.1")(with_prefix("net.")(state)),
    lambda state: {key if "fc." in key else f"backbone.{key}": value for key, value in state.items()},
    with_head("head"),
    with_head("classifier"),
    with_head("fc.1"),
    with_head("head.fc"),
])  # fmt: skip
def test_weights_are_found(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    source, target = build("R8_C10")[0], build("R8_C10")[0]
    randomise_statistics(source)
    torch.save(wrap(as_torchvision(source.state_dict())), tmp_path / "c.pth")
    load_checkpoint(tmp_path / "c.pth", resnet=target)
    assert all(value.equal(target.state_dict()[key]) for key, value in source.state_dict().items())


def test_averaged_weights_beside_the_others_are_told_of_with_what_was_assumed(
    tmp_path: Path, image_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = as_torchvision(build("R8_Folder", num_classes=2)[0].state_dict())
    torch.save({"model": state, "model_ema": averaged(state)}, tmp_path / "c.pth")
    config = evaluate.EvaluateConfig(
        model="R8_Folder",
        data_dir=str(image_tree),
        load=(str(tmp_path / "c.pth"),),
        cv_dir=str(tmp_path),
        speed=False,
    )
    evaluate.main(config)
    error = capsys.readouterr().err
    assert "c.pth: averaged weights (model_ema) are left aside" in error
    assert "c.pth doesn't say all; assumed: --normalisation none --shortcut pad_avgpool" in error
    evaluate.main(replace(config, normalisation="cifar", shortcut="pad_stride"))
    assert "assumed" not in capsys.readouterr().err
    numbers = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.5, 0.25)}
    found = evaluate.main(replace(config, **numbers, shortcut="pad_stride"))  # type: ignore[arg-type]
    assert found.opened.dynamic.normalisation == Normalisation(**numbers)
    assert "assumed" not in capsys.readouterr().err


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("shiftresnet8", {"expansion": 3}),
        ("shiftresnet8", {}),
        ("resnet8", {"reduction": 2, "reduction_mode": "block"}),
        ("resnet8", {"reduction": 3, "reduction_mode": "net"}),
    ],
)
def test_whole_modules_of_shift_nets_and_reduced_nets_open_by_their_shapes(
    name: str, options: dict[str, Any], legacy: bool, tmp_path: Path, image_tree: Path,
    command: Callable[..., tuple[int, str, str]],
) -> None:  # fmt: skip
    source = build_static(f"{name}_C10", num_classes=2, **options)
    randomise_statistics(source)
    state = {
        key.replace("downsample", "shortcut"): value for key, value in as_torchvision(source.state_dict()).items()
    }
    module = nn.DataParallel(Tree(with_head("linear")(state)))
    content = {"net": module, "acc": 81.5, "epoch": 3}
    torch.save(content, tmp_path / "c.t7", _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(tmp_path / "c.t7")
    assert (checkpoint.metrics, checkpoint.epoch) == ({"acc": 81.5}, 3)
    found = network_from(checkpoint, parse_model_name(f"{name}_C10"))
    assert all(value.equal(found.state_dict()[key]) for key, value in source.state_dict().items())
    code, out, error = command(
        evaluate, "--model", "R8_Folder", "--arch", name, "--data_dir", image_tree, "--load", tmp_path / "c.t7",
        "--no_speed",
    )  # fmt: skip
    assert code == 0, error
    assert f"evaluate {name}_Folder" in out


@pytest.mark.parametrize(
    ("module", "name", "says"),
    [
        (
            resnext50_32x4d,
            "R50_ImgNet",
            "ResNet of 32 groups of 4 channels; pass --model torchvision:resnext50_32x4d",
        ),
        (wide_resnet50_2, "R50_ImgNet", "pass --model torchvision:wide_resnet50_2"),
        (lambda: resnet18(), "R34_ImgNet", "holds a ResNet-18"),
    ],
)
def test_a_network_of_other_widths_is_named_with_the_mend(
    module: Callable[[], nn.Module], name: str, says: str, tmp_path: Path
) -> None:
    with torch.device("meta"):  # of 70 million weights a few say all
        state = module().state_dict()
    few = {
        key: torch.zeros(value.shape)
        for key, value in state.items()
        if "layer1.0." in key or value.numel() < 30_000
    }
    torch.save(few, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=says):
        network_from(read_checkpoint(tmp_path / "c.pth"), parse_model_name(name))


def test_a_wide_cifar_network_is_named(tmp_path: Path) -> None:
    state = build("R8_C10")[0].state_dict()
    for key in ("conv1", "conv2"):
        state[f"blocks.0.0.{key}.weight"] = torch.ones(64, 16, 3, 3)
    torch.save({"resnet": state}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"ResNet-8 .* 4 times as wide as usual; hand the module to"):
        network_from(read_checkpoint(tmp_path / "c.pth"), parse_model_name("R8_C10"))


def test_a_folder_of_other_files_names_them(tmp_path: Path) -> None:
    for name in ("weights.safetensors", "best.pth", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(
        CheckpointError, match=r"in this folder; name a file of it: best\.pth, weights\.safetensors$"
    ):
        read_checkpoint(tmp_path)


def test_what_holds_no_weights_is_refused_with_the_mend(tmp_path: Path) -> None:
    torch.save({"optimizer": {"state": {}}, "epoch": 3}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"found optimizer, epoch\); save the network's state_dict\(\)"):
        read_checkpoint(tmp_path / "c.pth")


def test_a_checkpoint_of_other_class_names_is_refused_whatever_the_data_set(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    tree = write_image_tree(tmp_path / "data", CIFAR10_CLASSES, count=1)
    flags = ("--data_dir", tree, "--no_speed", "--cv_dir", tmp_path / "e")
    file = tmp_path / "c.t7"
    save_checkpoint(
        file, model="R8_C10", resnet=build("R8_C10")[0], normalisation=NORMALISATIONS["none"],
        classes=list(CIFAR10_CLASSES),
    )  # fmt: skip
    assert command(evaluate, "--load", file, *flags)[0] == 0
    for part in ("train", "test"):
        (tree / part / "airplane").rename(tree / part / "plane")
    code, _, error = command(evaluate, "--load", file, *flags)
    assert code == 2
    assert "made for other class names than those in" in error
    assert "airplane is now automobile; rename the folders" in error


def test_a_file_without_class_names_beside_renamed_classes_of_cifar_10_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["plane" if name == "airplane" else name for name in CIFAR10_CLASSES]
    tree = write_image_tree(tmp_path / "data", tuple(names), count=1)
    torch.save(as_torchvision(build("R8_C10")[0].state_dict()), tmp_path / "c.pth")
    evaluate.main(
        evaluate.EvaluateConfig(
            model="R8_C10", data_dir=str(tree), load=(str(tmp_path / "c.pth"),), cv_dir=str(tmp_path), speed=False
        )
    )
    assert "class names other than CIFAR-10's, automobile in the place of airplane" in capsys.readouterr().err
