"""What model names say."""

import pytest

from blockdrop.errors import BlockdropError
from blockdrop.models.specs import IMAGENET_LAYERS, Variant, parse_model_name


@pytest.mark.parametrize("depth", IMAGENET_LAYERS)
def test_imagenet_depth_counts_its_convolutions(depth: int) -> None:
    spec = parse_model_name(f"R{depth}_C100")
    assert sum(spec.layers) * (3 if spec.bottleneck else 2) + 2 == depth


def test_image_size_follows_data_set_and_depth() -> None:
    assert parse_model_name("R18_C10").image_size == 32
    assert parse_model_name("R18_ImgNet").image_size == 224
    assert parse_model_name("R18_Folder").image_size == 224
    assert parse_model_name("R20_Folder").image_size == 32


def test_architecture_is_the_name_without_the_data_set() -> None:
    assert parse_model_name("dsplain18_ImgNet").architecture == "dsplain18"
    assert parse_model_name("R110_C10").architecture == "R110"


def test_a_variant_records_what_is_not_as_usual() -> None:
    assert Variant().numbers() == {}
    assert Variant(expansion=2.5).numbers() == {"expansion": 2.5}
    assert Variant(None, 2.8, "net").numbers() == {"reduction": 2.8, "reduction_mode": "net"}
    assert str(Variant(None, 2.8, "net")) == "reduction 2.8, by net"


def test_a_name_that_is_none_of_ours_says_which_there_are() -> None:
    with pytest.raises(BlockdropError, match="networks of others timm:<name>, torchvision:<name>"):
        parse_model_name("resnet18")
    with pytest.raises(BlockdropError, match="timm:resnet18: a network of others; here a name R<depth>_<dataset>"):
        parse_model_name("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "meant"), [("r32_c10", "R32_C10"), ("R50_imgnet", "R50_ImgNet"), ("Plain20_c10", "plain20_C10")]
)
def test_a_name_in_another_case_is_told_the_right_one(name: str, meant: str) -> None:
    with pytest.raises(BlockdropError, match=rf"{name}: did you mean {meant}\?"):
        parse_model_name(name)
