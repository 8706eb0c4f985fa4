"""The count command: known answers, sums, files, and one clear line for every bad input."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blockdrop import build, count, flops_per_image, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.flops import count_flops
from blockdrop.models.specs import Variant
from blockdrop.models.zoo import build_static

Command = Callable[..., tuple[int, str, str]]
SHIFT = ("--arch", "shiftresnet20", "--expansion", 3)
BLOCK = ("--arch", "resnet20", "--reduction", 2.8, "--reduction_mode", "block")
REFERENCE = ("--convention", "reference")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (SHIFT, "Parameters: (new) 95642 (original) 272474 (reduction) 2.85"),
        (BLOCK, "Parameters: (new) 96206 (original) 272474 (reduction) 2.83"),
        (SHIFT, "MACs: (new) 16433792 (original) 40813184 (reduction) 2.48"),
        (("--arch", "resnet20"), "MACs: (new) 40813184 (original) 40813184 (reduction) 1.00"),
        ((*SHIFT, *REFERENCE), "MACs: (new) 16581248 (original) 40960640 (reduction) 2.47"),
        ((*BLOCK, *REFERENCE), "MACs: (new) 14197376 (original) 40960640 (reduction) 2.89"),
        (("--model", "R50_ImgNet", "--num_classes", 10), "Parameters: (new) 23528522 (original) 23528522"),
        (("--model", "R18_ImgNet", "--num_classes", 10), "Parameters: (new) 11181642 (original) 11181642"),
        (("--model", "R110_C10"), "FLOPs: (new) 505775360 (original) 505775360 (reduction) 1.00"),
        (("--model", "R32_C10"), "Parameters: (new) 464154 (original) 464154"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_known_answers(command: Command, flags: tuple[object, ...], line: str) -> None:
    code, out, _ = command(count, *flags)
    assert code == 0
    assert any(printed.startswith(line) for printed in out.splitlines()), out


def test_the_first_line_says_what_is_counted(command: Command) -> None:
    _, out, _ = command(count, "--arch", "plain18", "--model", "R50_ImgNet")
    assert out.splitlines()[0] == "plain18_ImgNet, 8 blocks, 224 × 224 px"
    _, out, _ = command(count, *SHIFT, *REFERENCE, "--image_size", 64)
    assert out.splitlines()[0] == "shiftresnet20_C10, 9 blocks, 64 × 64 px, MACs by the reference's convention"


@pytest.mark.parametrize(
    ("flags", "original"),
    [
        (("--arch", "plain20"), ("R20_C10", "pad_avgpool")),
        (("--arch", "exactplain20"), ("R20_C10", "pad_avgpool")),
        (("--arch", "dsplain20"), ("resnet20_C10", "projection")),
        (("--arch", "dsplain20", "--shortcut", "pad_stride"), ("resnet20_C10", "pad_stride")),
        (("--arch", "R20", "--reduction", 2, "--reduction_mode", "net"), ("R20_C10", "pad_avgpool")),
        (("--arch", "shiftresnet20", "--shortcut", "pad_stride"), ("R20_C10", "pad_stride")),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_the_original_is_the_resnet_of_that_depth_and_kind_of_shortcuts(
    command: Command, flags: tuple[object, ...], original: tuple[str, Any]
) -> None:
    resnet = build_static(original[0], shortcut=original[1])
    parameters, macs = sum(p.numel() for p in resnet.parameters()), count_flops(resnet).full // 2
    _, out, _ = command(count, *flags)
    assert re.search(rf"^Parameters: \(new\) \d+ \(original\) {parameters} ", out, re.MULTILINE)
    assert re.search(rf"^MACs: \(new\) \d+ \(original\) {macs} ", out, re.MULTILINE)


@pytest.mark.parametrize("flags", [SHIFT, ("--arch", "dsplain14")], ids=str)
def test_the_layers_add_up_to_the_totals(command: Command, flags: tuple[object, ...]) -> None:
    _, out, _ = command(count, *flags, "--layers")
    before, table = out.split("layer ", 1)
    *rows, total = [[int(n.replace(",", "")) for n in line.split()[-2:]] for line in table.splitlines()[1:]]
    assert [sum(column) for column in zip(*rows, strict=True)] == total
    printed = dict(re.findall(r"^(\w+): \(new\) (\d+)", before, re.MULTILINE))
    assert total == [int(printed["Parameters"]), int(printed["MACs"])]
    assert int(printed["FLOPs"]) == 2 * total[1]


def test_json_holds_what_is_printed(tmp_path: Path, command: Command) -> None:
    code, out, _ = command(count, *SHIFT, *REFERENCE, "--layers", "--json", tmp_path / "c.json")
    assert code == 0
    assert out.splitlines()[-1] == f"numbers: {tmp_path / 'c.json'}"
    numbers = json.loads((tmp_path / "c.json").read_text())
    layers = numbers.pop("layers")
    assert numbers == {
        "model": "shiftresnet20_C10",
        "image_size": 32,
        "convention": "reference",
        "parameters": {"new": 95_642, "original": 272_474},
        "macs": {"new": 16_581_248, "original": 40_960_640},
        "flops": {"new": 33_162_496, "original": 81_921_280},
    }
    assert layers[0] == {
        "name": "conv1", "kind": "Conv2d", "output": [16, 32, 32], "parameters": 432, "macs": 442_368,
    }  # fmt: skip
    assert sum(layer["parameters"] for layer in layers) == 95_642
    assert sum(layer["macs"] for layer in layers) == 16_433_792, "the layers' own counts are the true ones"


def write_static(path: Path, model: str, variant: Variant = Variant()) -> Path:
    net = build_static(model, num_classes=3, **variant.numbers())
    save_checkpoint(path, model=model, variant=variant, resnet=net, normalisation=NORMALISATIONS["none"])
    return path


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        ("plain8_C10", Variant()),
        ("exactplain8_C10", Variant()),
        ("shiftresnet8_C10", Variant(expansion=2.5)),
        ("resnet8_C10", Variant(reduction=2.8, reduction_mode="depthwise")),
    ],
    ids=str,
)
def test_a_checkpoint_says_what_to_count(tmp_path: Path, model: str, variant: Variant) -> None:
    path = write_static(tmp_path / "c.t7", model, variant)
    numbers = count.main(count.CountConfig(load=str(path)))
    net = build_static(model, num_classes=3, **variant.numbers())
    assert numbers["model"] == model
    assert numbers["parameters"]["new"] == sum(p.numel() for p in net.parameters())
    assert numbers["flops"]["new"] == count_flops(net).full
    assert "policy_network" not in numbers


def test_a_checkpoints_policy_network_is_counted_beside_it(tmp_path: Path, command: Command) -> None:
    resnet, policy_network = build("R14_C10", shortcut="pad_stride", policy_net="pooled")
    save_checkpoint(
        tmp_path / "c.t7",
        model="R14_C10",
        resnet=resnet,
        policy_network=policy_network,
        policy_net="pooled",
        normalisation=NORMALISATIONS["none"],
    )
    code, out, _ = command(count, "--load", tmp_path / "c.t7", "--json", tmp_path / "c.json")
    assert code == 0
    every_block = torch.ones(1, 6, dtype=torch.bool)
    with_policy, without = (
        int(flops_per_image(resnet, network, every_block)) for network in (policy_network, None)
    )
    parameters = sum(p.numel() for p in policy_network.parameters())
    assert f"Policy network (pooled): {parameters} parameters, {with_policy - without} FLOPs" in out
    numbers = json.loads((tmp_path / "c.json").read_text())
    assert numbers["policy_network"] == {"parameters": parameters, "flops": with_policy - without}
    assert numbers["flops"]["new"] == without


def test_a_foreign_checkpoint_needs_the_models_name_alone(tmp_path: Path) -> None:
    torch.save(build_static("resnet14_C10", num_classes=7).state_dict(), tmp_path / "c.pth")
    numbers = count.main(count.CountConfig(model="R14_C10", load=str(tmp_path / "c.pth")))
    parameters = sum(p.numel() for p in build_static("resnet14_C10", num_classes=7).parameters())
    assert numbers["parameters"] == {"new": parameters, "original": parameters}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--arch", "vgg16"), "vgg16_C10: unknown architecture vgg; choose R, resnet, plain"),
        (("--arch", "shiftresnet18"), "shift nets have 3 stages"),
        (
            ("--arch", "resnet20", "--expansion", "3"),
            "expansion 3.0: for shift nets; resnet20 takes a reduction",
        ),
        (
            ("--arch", "shiftresnet20", "--reduction", "3"),
            "reduction 3.0: for ResNets and plain nets; shiftresnet20 takes an",
        ),
        (("--arch", "plain20", "--shortcut", "projection"), "shortcut projection: plain20 has no shortcuts"),
        (("--arch", "resnet20", "--reduction", "17"), "reduction 17.0: leaves nothing of a width of 16"),
        (("--arch", "shiftresnet20", "--expansion", "0.01"), "leaves blocks of 16 channels no inner channel"),
        (("--expansion", "0"), "expansion 0.0: must be between 0.01 and 100"),
        (("--reduction", "nan"), "reduction nan: must be between"),
        (("--reduction_mode", "wide"), "invalid choice 'wide' for argument '--reduction_mode'"),
        (("--image_size", "0"), "--image_size 0: must be between 1 and 100,000"),
        (("--num_classes", "-1"), "--num_classes -1: must be between 1 and 100,000"),
        (("--model", "R8_Folder"), "a Folder has no class count of its own"),
        (("--json", "{tmp}/none/c.json"), "no folder {tmp}/none"),
        (("--json", "{tmp}/plain.t7"), "plain.t7: exists; "),
        (("--load", "{tmp}/missing.t7"), "missing.t7: no such checkpoint file"),
        (("--load", "{tmp}/text.t7"), "text.t7: damaged, or not a torch checkpoint"),
        (("--load", "{tmp}/policy.t7"), "policy.t7: holds no backbone to count"),
        (("--load", "{tmp}/plain.t7", "--arch", "R8"), "plain.t7: holds plain8, .* pass --arch plain8"),
        (("--load", "{tmp}/plain.t7", "--num_classes", "5"), "plain.t7: made for 3 classes, the model has 5"),
        (
            ("--load", "{tmp}/plain.t7", "--reduction", "2"),
            r"plain.t7: blocks.0.0.conv1.weight has shape \(16, 16",
        ),
        (("--load", "{tmp}/bare.pth"), r"bare.pth: holds a ResNet-8 \(3 blocks\), the model is a ResNet-110"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_ends_with_one_line_and_exit_code_2(
    tmp_path: Path, command: Command, flags: tuple[str, ...], message: str
) -> None:
    write_static(tmp_path / "plain.t7", "plain8_C10")
    (tmp_path / "text.t7").write_text("hello")
    torch.save({"agent": build("R8_C10")[1].state_dict()}, tmp_path / "policy.t7")
    torch.save(build("R8_C10")[0].state_dict(), tmp_path / "bare.pth")
    code, out, error = command(count, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags))
    assert code == 2
    assert out == "", "nothing is counted that isn't counted whole"
    assert re.match(f"error: .*{message.replace('{tmp}', str(tmp_path))}", error), error
