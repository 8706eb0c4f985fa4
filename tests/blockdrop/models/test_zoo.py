"""Model names."""

from typing import Any

import pytest
import torch

from blockdrop.errors import BlockdropError
from blockdrop.models.plain import PlainNet
from blockdrop.models.resnet import DroppableResNet
from blockdrop.models.specs import CIFAR_DEPTHS
from blockdrop.models.zoo import build, build_static


@pytest.mark.parametrize(
    ("name", "resnet_parameters", "policy_parameters"),
    [
        ("R32_C10", 464_154, 75_680),
        ("R110_C10", 1_727_962, 78_215),
        ("R101_ImgNet", 44_549_160, 4_923_234),
    ],
)
def test_parameter_counts_of_the_reference(name: str, resnet_parameters: int, policy_parameters: int) -> None:
    resnet, policy_network = build(name)
    assert sum(p.numel() for p in resnet.parameters()) == resnet_parameters
    assert sum(p.numel() for p in policy_network.parameters()) == policy_parameters


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("R50_ImgNet", {"num_classes": 10}, 23_528_522),
        ("R18_ImgNet", {"num_classes": 10}, 11_181_642),
        ("resnet18_Folder", {"num_classes": 10}, 11_181_642),
        ("resnet20_C10", {}, 272_474),
        ("shiftresnet20_C10", {"expansion": 3}, 95_642),
        ("resnet20_C10", {"reduction": 2.8, "reduction_mode": "block"}, 96_206),
    ],
)
def test_parameter_counts_of_published_static_nets(name: str, options: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        net = build_static(name, **options)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("depth", CIFAR_DEPTHS)
def test_cifar_depth_counts_its_convolutions(depth: int) -> None:
    resnet, policy_network = build(f"R{depth}_C10")
    assert 2 * resnet.num_blocks + 2 == depth
    assert policy_network.num_blocks == resnet.num_blocks


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "R<depth>_<dataset>"),
        ("R33_C10", "no ResNet has depth 33; choose 8, 14, 20"),
        ("R32_C11", "unknown data set C11; choose C10, C100"),
        ("R32_ImgNet", "for 224 px choose 18, 34"),
        (
            "vgg16_C10",
            "vgg16_C10: unknown architecture vgg; choose R, resnet, plain, dsplain, exactplain, shiftres",
        ),
        ("Planar20_C10", "unknown architecture Planar; choose"),
        ("plain33_C10", "plain33_C10: no ResNet has depth 33"),
        ("plain20_ImgNet", "plain20_ImgNet: depth 20 is .* for 224 px choose 18, 34"),
        ("shiftresnet18_C10", "shiftresnet18_C10: shift nets have 3 stages; choose depth 8, 14, 20"),
        ("shiftresnet50_ImgNet", "shift nets have 3 stages"),
    ],
)
def test_unknown_names_say_what_would_be_right(name: str, message: str) -> None:
    with pytest.raises(BlockdropError, match=message):
        build(name)
    with pytest.raises(BlockdropError, match=message):
        build_static(name)


def test_a_folder_needs_its_class_count() -> None:
    with pytest.raises(BlockdropError, match="num_classes"):
        build("R8_Folder")
    assert build("R8_Folder", num_classes=3)[0].fc.out_features == 3


@pytest.mark.parametrize(("option", "value"), [("shortcut", "long"), ("policy_net", "big")])
def test_unknown_options_are_named(option: str, value: str) -> None:
    with pytest.raises(BlockdropError, match=f"{value}; choose"):
        build("R8_C10", **{option: value})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet8_C10", {"expansion": 3}, "expansion 3: for shift nets; resnet8 takes a reduction"),
        ("plain8_C10", {"expansion": 2.5}, "expansion 2.5: for shift nets; plain8 takes a reduction"),
        ("shiftresnet8_C10", {"reduction": 2}, "reduction 2: for ResNets and plain nets; shiftresnet8 takes"),
        ("shiftresnet8_C10", {"reduction_mode": "net"}, "reduction mode net: for ResNets and plain nets"),
        (
            "shiftresnet8_C10",
            {"expansion": 0.06},
            "expansion 0.06: leaves blocks of 16 channels no inner channel; choose a larger one",
        ),
        ("plain8_C10", {"shortcut": "projection"}, "shortcut projection: plain8 has no shortcuts"),
        ("exactplain8_C10", {"shortcut": "pad_avgpool"}, "shortcut pad_avgpool: exactplain8 has no shortcuts"),
        ("dsplain8_C10", {"shortcut": "long"}, "unknown shortcut long; choose pad_avgpool"),
        (
            "resnet8_C10",
            {"reduction": 2, "reduction_mode": "wide"},
            "reduction mode wide: choose block, net",
        ),
        ("resnet8_C10", {"reduction": 0}, "reduction 0: must be between 0.01 and 100"),
        ("resnet8_C10", {"reduction": 1000}, "reduction 1000: must be between 0.01 and 100"),
        ("resnet8_C10", {"reduction": float("nan")}, "reduction nan: must be between"),
        ("shiftresnet8_C10", {"expansion": -3}, "expansion -3: must be between 0.01 and 100"),
        ("plain8_Folder", {}, "plain8_Folder: a Folder has no class count of its own; pass num_classes"),
    ],
)
def test_an_option_that_does_not_suit_the_family_is_named(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BlockdropError, match=message):
        build_static(name, **options)


@pytest.mark.parametrize("family", ["plain", "dsplain", "exactplain"])
def test_nets_without_shortcuts_have_no_policy_network(family: str) -> None:
    assert isinstance(build_static(f"{family}8_C10"), PlainNet)
    with pytest.raises(BlockdropError, match=f"{family}8_C10: .* no blocks to drop; build_static makes it"):
        build(f"{family}8_C10")


@pytest.mark.parametrize("name", ["resnet14_C10", "shiftresnet14_C10"])
def test_nets_with_shortcuts_come_with_a_policy_network(name: str) -> None:
    net, policy_network = build(name)
    assert isinstance(net, DroppableResNet)
    assert policy_network.num_blocks == net.num_blocks == 6
    assert net.shortcut == "projection"
