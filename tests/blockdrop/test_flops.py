"""FLOPs: known answers, and torch's own counter on real runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blockdrop import build, flops_per_image, from_torchvision
from blockdrop.flops import count_flops


@pytest.mark.parametrize(
    ("name", "policy_network", "full", "none", "blocks"),
    [
        ("R32_C10", 24_479_744, 137_725_184, 886_016, {7_077_888, 9_437_184}),
        ("R110_C10", 24_484_736, 505_775_360, 886_016, {7_077_888, 9_437_184}),
        ("R110_C100", 24_484_736, 505_786_880, 897_536, {7_077_888, 9_437_184}),
        ("R101_ImgNet", 471_918_592, 15_602_810_880, 959_447_040, {359_661_568, 436_731_904, 539_492_352}),
    ],
)
def test_known_answers(name: str, policy_network: int, full: int, none: int, blocks: set[int]) -> None:
    table = count_flops(*build(name), image_size=224 if "ImgNet" in name else 32)
    assert (table.policy_network, table.full, table.fixed, set(table.blocks)) == (
        policy_network,
        full,
        none,
        blocks,
    )


@pytest.mark.parametrize(
    ("name", "shortcut", "size"),
    [
        ("R8_C10", "pad_avgpool", 32),
        ("R14_C100", "pad_stride", 32),
        ("R20_Digits", "projection", 32),
        ("R18_C10", "pad_avgpool", 32),
        ("R34_C10", "projection", 32),
        ("R50_C10", "pad_stride", 32),
        ("R18_ImgNet", "projection", 64),
        ("R50_ImgNet", "projection", 97),
    ],
)
@pytest.mark.parametrize("policy_net", ["reference", "pooled"])
def test_torchs_counter_agrees_on_a_real_run(name: str, shortcut: str, size: int, policy_net: str) -> None:
    resnet, policy_network = build(name, shortcut=shortcut, policy_net=policy_net)
    resnet.eval()
    policy_network.eval()
    for share in (0.0, 0.4, 0.7, 1.0):
        policy = torch.rand(1, resnet.num_blocks) < share
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            image = torch.randn(1, 3, size, size)
            policy_network(image)
            resnet(image, policy)
        assert flops_per_image(resnet, policy_network, policy, size).tolist() == [counter.get_total_flops()]


def test_grouped_convolutions_count_their_own_inputs_alone() -> None:
    import torchvision

    resnet = from_torchvision(torchvision.models.resnext50_32x4d()).eval()
    policy = torch.rand(1, 16) < 0.5
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        resnet(torch.randn(1, 3, 64, 64), policy)
    assert flops_per_image(resnet, None, policy, 64).tolist() == [counter.get_total_flops()]


def test_one_number_per_image_and_none_without_a_policy_network() -> None:
    resnet, policy_network = build("R8_C10")
    policy = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 1]]).bool()
    table = count_flops(resnet, policy_network)
    without = flops_per_image(resnet, None, policy)
    assert without.dtype == torch.int64
    assert without.tolist() == [table.fixed, table.fixed + table.blocks[0], table.full]
    assert (flops_per_image(resnet, policy_network, policy) - without).tolist() == [table.policy_network] * 3
