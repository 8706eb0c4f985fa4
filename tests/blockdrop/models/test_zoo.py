"""Model names."""

import pytest

from blockdrop.errors import UserError
from blockdrop.models.zoo import CIFAR_DEPTHS, IMAGENET_LAYERS, build, parse_model_name


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


@pytest.mark.parametrize("depth", CIFAR_DEPTHS)
def test_cifar_depth_counts_its_convolutions(depth: int) -> None:
    resnet, policy_network = build(f"R{depth}_C10")
    assert 2 * resnet.num_blocks + 2 == depth
    assert policy_network.num_blocks == resnet.num_blocks


@pytest.mark.parametrize("depth", IMAGENET_LAYERS)
def test_imagenet_depth_counts_its_convolutions(depth: int) -> None:
    spec = parse_model_name(f"R{depth}_C100")
    assert sum(spec.layers) * (3 if spec.bottleneck else 2) + 2 == depth


def test_image_size_follows_data_set_and_depth() -> None:
    assert parse_model_name("R18_C10").image_size == 32
    assert parse_model_name("R18_ImgNet").image_size == 224
    assert parse_model_name("R18_Folder").image_size == 224
    assert parse_model_name("R20_Folder").image_size == 32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "R<depth>_<dataset>"),
        ("R33_C10", "no ResNet has depth 33; choose 8, 14, 20"),
        ("R32_C11", "unknown data set C11; choose C10, C100"),
        ("R32_ImgNet", "for 224 px choose 18, 34"),
    ],
)
def test_unknown_names_say_what_would_be_right(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name)


def test_a_folder_needs_its_class_count() -> None:
    with pytest.raises(UserError, match="num_classes"):
        build("R8_Folder")
    assert build("R8_Folder", num_classes=3)[0].fc.out_features == 3


@pytest.mark.parametrize(("option", "value"), [("shortcut", "long"), ("policy_net", "big")])
def test_unknown_options_are_named(option: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{value}; choose"):
        build("R8_C10", **{option: value})
