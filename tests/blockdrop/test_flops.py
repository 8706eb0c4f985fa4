"""FLOPs: known answers, and torch's own counter on real runs."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from blockdrop import build, flops_per_image, from_torchvision
from blockdrop.flops import count_flops, count_layers, reference_stem_surplus
from blockdrop.models.conversion import convert
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.models.zoo import build_static
from tests.blockdrop.models.brought import BY_NAME, MapNet, TokenNet, make


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


STATIC_NETS: list[tuple[str, dict[str, Any]]] = [
    ("R20_C10", {}),
    ("resnet20_C10", {}),
    ("plain20_C10", {}),
    ("dsplain20_C10", {}),
    ("exactplain20_C10", {}),
    ("shiftresnet20_C10", {"expansion": 3}),
    ("shiftresnet20_C10", {"expansion": 2.5}),
    ("resnet20_C10", {"reduction": 2.8, "reduction_mode": "block"}),
    ("resnet20_C10", {"reduction": 2.8, "reduction_mode": "net"}),
    ("resnet20_C10", {"reduction": 2.8, "reduction_mode": "depthwise"}),
    ("resnet20_C10", {"reduction": 1.5, "reduction_mode": "shuffle"}),
    ("resnet20_C10", {"reduction": 2, "reduction_mode": "mobile"}),
    ("R18_C10", {}),
    ("plain50_C10", {}),
]


@pytest.mark.parametrize(("name", "options"), STATIC_NETS, ids=str)
def test_torchs_counter_agrees_on_every_family_and_its_layers_add_up(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        net, image = build_static(name, **options).eval(), torch.empty(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    layers = count_layers(net)
    assert count_flops(net).full == counter.get_total_flops()
    assert 2 * sum(layer.macs for layer in layers) == counter.get_total_flops()
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in net.parameters())


def test_layers_come_in_running_order_with_the_shapes_of_a_real_run() -> None:
    net = build_static("shiftresnet8_C10", expansion=2.5)
    rows = {layer.name: layer for layer in count_layers(net)}
    ours = [name for name in rows if name.startswith("blocks.1.0")]
    assert ours == [f"blocks.1.0.{part}" for part in ("conv1", "bn1", "shift", "conv2", "bn2")]
    assert (*rows,)[:: len(rows) - 1] == ("conv1", "fc")
    shift = rows["blocks.1.0.shift"]
    assert (shift.kind, shift.output, shift.parameters, shift.macs) == ("Shift", (80, 32, 32), 0, 0)
    conv = rows["blocks.1.0.conv2"]
    assert (conv.kind, conv.output, conv.parameters, conv.macs) == ("Conv2d", (32, 16, 16), 2560, 2560 * 256)
    assert rows["fc"].output == (10,)


def test_counting_leaves_the_network_as_it_is() -> None:
    net = build_static("plain8_C10").train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    count_layers(net)
    assert net.training
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "true", "reference"),
    [
        ("resnet20_C10", {}, 40_813_184, 40_960_640),
        ("shiftresnet20_C10", {"expansion": 3}, 16_433_792, 16_581_248),
        ("resnet20_C10", {"reduction": 2.8, "reduction_mode": "block"}, 14_049_920, 14_197_376),
    ],
)
def test_macs_as_they_are_and_as_published_with_shiftresnet(
    name: str, options: dict[str, Any], true: int, reference: int
) -> None:
    net = build_static(name, **options)
    assert count_flops(net).full == 2 * true
    # the stem: 3·16 planes of 3×3 in truth, 1·64 in the published counts, on 32×32 pixels
    assert reference_stem_surplus(net) == (64 - 48) * 9 * 1024
    assert true + reference_stem_surplus(net) == reference


def flops_of_layers(network: nn.Module, *inputs: torch.Tensor) -> int:
    """Torch's own count of convolutions and linear layers on a real run; products of two maps are left out."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    layers = {torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm}
    return sum(flops for layer, flops in counter.get_flop_counts()["Global"].items() if layer in layers)


@pytest.mark.parametrize("name", ["resnet50d", "seresnet50", "convnext_atto", "vit_tiny_patch16_224"])
def test_torchs_counter_agrees_on_networks_that_people_bring(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    options = {"img_size": 64} if "vit" in name else {}
    network, _ = convert(timm.create_model(name, **options).eval(), image_size=64)
    policy_network = build_policy_network(network.num_blocks, policy_net="stem", backbone=network).eval()
    image = torch.randn(1, 3, 64, 64)
    table = count_flops(network, policy_network, 64)
    assert table.policy_network == flops_of_layers(policy_network, image)
    for share in (0.0, 0.5, 1.0):
        policy = torch.rand(1, network.num_blocks) < share
        counted = flops_per_image(network, policy_network, policy, 64).item()
        assert counted == table.policy_network + flops_of_layers(network, image, policy)


@pytest.mark.parametrize("kind", [MapNet, TokenNet])
def test_a_block_costs_what_its_module_costs_and_transitions_are_fixed(kind: type[nn.Module]) -> None:
    network, _ = convert(make(kind), **BY_NAME[kind], image_size=16)
    table = count_flops(network, None, 16)
    if kind is MapNet:
        block, down = 8 * 8 * 6 * 6 * 9, 4 * 4 * 10 * 6 * 4
        assert table.blocks == (2 * block, 2 * block, 2 * 4 * 4 * 10 * 10 * 9)
        assert table.fixed == 2 * (8 * 8 * 6 * 3 * 9 + down + 10 * 5)
    else:  # 16 tokens: queries, keys, values, output, and a perceptron twice as wide
        assert table.blocks == (2 * 16 * (4 * 8 * 8 + 2 * 8 * 16),) * 3
        assert table.fixed == 2 * (16 * 8 * 3 * 16 + 8 * 5)


class Transposed(nn.Module):
    """Layers of one and two dimensions, some transposed, and a number that must be computed."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(4, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(3, 4, 2, 2)
        self.back = nn.ConvTranspose1d(6, 2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.back(self.line(self.up(images).flatten(2)))
        return x * (2 if x.sum().item() > 0 else 1)


def test_layers_of_any_dimension_count_even_where_numbers_decide() -> None:
    net, image = Transposed(), torch.randn(1, 3, 8, 8)
    macs = 64 * 3 * 4 * 4 + 256 * 6 * 2 * 3 + 256 * 6 * 2 * 3
    assert sum(layer.macs for layer in count_layers(net, 8)) == macs
    assert flops_of_layers(net, image) == 2 * macs
