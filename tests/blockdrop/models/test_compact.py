"""Reduced networks: which widths shrink, by how much, and that they are truncated."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from blockdrop import Variant, load_network, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Backbone
from blockdrop.models.compact import reduced_branch, reduced_widths
from blockdrop.models.zoo import build_static
from blockdrop.names import ReductionMode

Convolution = tuple[int, int, int, int, int]


def first_branches(net: Backbone) -> list[list[Convolution]]:
    """(inputs, outputs, kernel, stride, groups) of the convolutions of each stage's first block."""

    def geometry(conv: nn.Conv2d) -> Convolution:
        return conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.groups

    return [[geometry(m) for m in stage[0].modules() if isinstance(m, nn.Conv2d)] for stage in net.blocks]


def test_block_mode_shrinks_inner_widths_alone() -> None:
    # 16, 32 and 64 divided by 2.8 are 5.71, 11.43 and 22.86
    assert first_branches(build_static("resnet20_C10", reduction=2.8, reduction_mode="block")) == [
        [(16, 5, 3, 1, 1), (5, 16, 3, 1, 1)],
        [(16, 11, 3, 2, 1), (11, 32, 3, 1, 1)],
        [(32, 22, 3, 2, 1), (22, 64, 3, 1, 1)],
    ]


def test_net_mode_shrinks_all_widths_by_the_root() -> None:
    # divided by √2.8 = 1.673: 9.56, 19.12 and 38.25
    net = build_static("resnet20_C10", reduction=2.8, reduction_mode="net")
    assert first_branches(net) == [
        [(9, 9, 3, 1, 1), (9, 9, 3, 1, 1)],
        [(9, 19, 3, 2, 1), (19, 19, 3, 1, 1)],
        [(19, 38, 3, 2, 1), (38, 38, 3, 1, 1)],
    ]
    assert (net.conv1.out_channels, net.fc.in_features) == (9, 38)


def test_depthwise_mode_puts_a_depthwise_convolution_between_two_pointwise_ones() -> None:
    assert first_branches(build_static("resnet20_C10", reduction=2.8, reduction_mode="depthwise")) == [
        [(16, 5, 1, 1, 1), (5, 5, 3, 1, 5), (5, 16, 1, 1, 1)],
        [(16, 11, 1, 1, 1), (11, 11, 3, 2, 11), (11, 32, 1, 1, 1)],
        [(32, 22, 1, 1, 1), (22, 22, 3, 2, 22), (22, 64, 1, 1, 1)],
    ]


def test_shuffle_mode_groups_the_pointwise_convolutions() -> None:
    # 16, 32 and 64 divided by 1.5 are 10.7, 21.3 and 42.7; the next multiples of 4 below are 8, 20 and 40
    assert first_branches(build_static("resnet20_C10", reduction=1.5, reduction_mode="shuffle")) == [
        [(16, 8, 1, 1, 4), (8, 8, 3, 1, 8), (8, 16, 1, 1, 4)],
        [(16, 20, 1, 1, 4), (20, 20, 3, 2, 20), (20, 32, 1, 1, 4)],
        [(32, 40, 1, 1, 4), (40, 40, 3, 2, 40), (40, 64, 1, 1, 4)],
    ]


def test_a_shuffle_lets_each_output_group_see_every_input_group() -> None:
    branch = build_static("resnet8_C10", reduction_mode="shuffle").eval().blocks[0][0]
    images = torch.randn(16, 16, 4, 4, requires_grad=True)
    branch(images)[:, :4].sum().backward()  # the first of four groups of the last convolution
    assert bool((images.grad.abs().sum((0, 2, 3)) > 0).all())


def test_mobile_mode_inverts_the_bottleneck_and_ends_without_a_relu() -> None:
    net = build_static("resnet20_C10", reduction=2, reduction_mode="mobile")
    assert first_branches(net) == [
        [(16, 48, 1, 1, 1), (48, 48, 3, 1, 48), (48, 16, 1, 1, 1)],
        [(16, 48, 1, 1, 1), (48, 48, 3, 2, 48), (48, 32, 1, 1, 1)],
        [(32, 96, 1, 1, 1), (96, 96, 3, 2, 96), (96, 64, 1, 1, 1)],
    ]
    assert not net.relu_after_sum


@pytest.mark.parametrize("mode", ["shuffle", "mobile"])
@pytest.mark.parametrize("family", ["resnet", "plain", "dsplain"])
def test_what_is_saved_is_read_back(tmp_path: Path, mode: ReductionMode, family: str) -> None:
    name = f"{family}8_C10"
    net = build_static(name, reduction=2, reduction_mode=mode)
    save_checkpoint(
        tmp_path / "c.t7", model=name, resnet=net, variant=Variant(reduction=2, reduction_mode=mode),
        normalisation=NORMALISATIONS["cifar"],
    )  # fmt: skip
    again, _ = load_network(tmp_path / "c.t7")
    images = torch.randn(2, 3, 32, 32)
    assert again.eval()(images).equal(net.eval()(images))


@pytest.mark.parametrize(
    ("mode", "second_stage"),
    [
        ("block", [(256, 51, 1, 1, 1), (51, 51, 3, 2, 1), (51, 512, 1, 1, 1)]),  # 128 / 2.5 = 51.2
        (
            "net",
            [(160, 80, 1, 1, 1), (80, 80, 3, 2, 1), (80, 320, 1, 1, 1)],
        ),  # 64 / √2.5 = 40.5, 128 / √2.5 = 80.95
        ("depthwise", [(256, 51, 1, 1, 1), (51, 51, 3, 2, 51), (51, 512, 1, 1, 1)]),
    ],
)
def test_bottlenecks_shrink_too(mode: str, second_stage: list[Convolution]) -> None:
    branch = reduced_branch(mode, 2.5, bottleneck=True)
    width, inputs = (80, 160) if mode == "net" else (128, 256)
    convs = [m for m in branch(inputs, width, 2).modules() if isinstance(m, nn.Conv2d)]
    found = [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.groups) for c in convs]
    assert found == second_stage


@given(st.lists(st.integers(16, 2048), min_size=1, max_size=4), st.floats(0.5, 100))
def test_reduced_widths_are_the_whole_part(widths: list[int], reduction: float) -> None:
    for width, reduced in zip(widths, reduced_widths(widths, reduction), strict=True):
        assert isinstance(reduced, int)
        assert 0 <= width / math.sqrt(reduction) - reduced < 1


@pytest.mark.parametrize("mode", ["block", "depthwise"])
def test_plain_nets_are_reduced_as_their_resnets_are(mode: str) -> None:
    nets = [build_static(f"{family}20_C10", reduction=2.8, reduction_mode=mode) for family in ("resnet", "plain")]
    assert first_branches(nets[0]) == first_branches(nets[1])


def test_a_mode_alone_reduces_by_one_and_a_reduction_alone_reduces_blocks() -> None:
    usual = first_branches(build_static("resnet8_C10"))
    assert first_branches(build_static("resnet8_C10", reduction_mode="net")) == usual
    by_two = first_branches(build_static("resnet8_C10", reduction=2))
    assert by_two == first_branches(build_static("resnet8_C10", reduction=2, reduction_mode="block"))
    assert by_two != usual


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": 16.5}, "reduction 16.5: leaves nothing of a width of 16"),
        ({"reduction": 17, "reduction_mode": "depthwise"}, "reduction 17: leaves nothing of a width of 16"),
        ({"reduction": 97, "reduction_mode": "mobile"}, "reduction 97: leaves nothing of a width of 96"),
    ],
    ids=["block", "depthwise", "mobile"],
)
def test_a_reduction_that_leaves_no_channel_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(BlockdropError, match=message):
        build_static("resnet8_C10", **options)
    most = build_static("resnet8_C10", **(options | {"reduction": 96 if options["reduction"] == 97 else 16}))
    assert most.blocks[0][0].conv1.out_channels == 1


def test_a_reduction_that_leaves_a_group_empty_is_named() -> None:
    with pytest.raises(BlockdropError, match="reduction 5: leaves nothing of a width of 3"):
        build_static("resnet8_C10", reduction=5, reduction_mode="shuffle")


def test_net_mode_that_leaves_no_channel_is_named() -> None:
    with pytest.raises(
        BlockdropError, match="reduction 300: leaves nothing of a width of 16; choose a smaller one"
    ):
        reduced_widths((64, 16), 300)
