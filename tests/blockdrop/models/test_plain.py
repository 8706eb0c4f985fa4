"""Plain nets: no shortcut is left in them; Dirac convolutions fold; exact removal keeps a ResNet's logits."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import BasicBlock, Bottleneck

import blockdrop
from blockdrop import from_torchvision
from blockdrop.errors import BlockdropError
from blockdrop.models.backbone import Backbone, Branch, DiracConv2d, conv2d
from blockdrop.models.plain import PlainNet, fold_dirac, remove_shortcuts, use_dirac
from blockdrop.models.resnet import DroppableResNet, make_resnet
from blockdrop.models.zoo import build_static
from blockdrop.names import SHORTCUTS
from tests.conftest import randomise_statistics


def images_of(size: int = 32, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size)


class Operations(TorchDispatchMode):
    """Counts torch's operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "additions"),
    [("R20_C10", 9), ("plain20_C10", 0), ("exactplain20_C10", 0), ("dsplain20_C10", 2), ("dsplain18_C10", 3)],
)
def test_a_plain_net_truly_has_no_addition_of_a_shortcut(name: str, additions: int) -> None:
    net, images = build_static(name).eval(), images_of(count=1)
    with Operations() as operations, torch.no_grad():
        net(images)
    assert operations.counts["add"] + operations.counts["add_"] == additions, operations.counts
    projections = sum(isinstance(ds, nn.Sequential) for ds in net.ds)
    assert operations.counts["convolution"] == 2 * net.num_blocks + 1 + projections, "it is the whole network"


def test_a_plain_block_is_relu_of_its_branch(make_static: Callable[..., Backbone]) -> None:
    net, images = make_static("plain14_C10"), images_of()
    with torch.no_grad():
        x = F.relu(net.bn1(net.conv1(images)))
        for stage in net.blocks:
            for block in stage:
                x = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))
        torch.testing.assert_close(net(images), net.fc(x.mean((2, 3))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_dsplain_keeps_the_downsampling_shortcuts_alone(
    make_static: Callable[..., Backbone], shortcut: str
) -> None:
    net, images = make_static("dsplain14_C10", shortcut=shortcut), images_of()
    with torch.no_grad():
        x = F.relu(net.bn1(net.conv1(images)))
        for number, stage in enumerate(net.blocks):
            for i, block in enumerate(stage):
                branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
                x = F.relu(net.ds[number](x) + branch if number > 0 and i == 0 else branch)
        torch.testing.assert_close(net(images), net.fc(x.mean((2, 3))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["plain14_C10", "dsplain14_C10", "plain18_C10", "dsplain50_C10"])
def test_a_plain_net_has_the_branches_of_its_resnet(name: str) -> None:
    with torch.device("meta"):
        plain, resnet = build_static(name), build_static("resnet" + name.partition("plain")[2])
    shapes = [
        {key: value.shape for key, value in net.state_dict().items() if not key.startswith("ds.")}
        for net in (plain, resnet)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["plain14_C10", "dsplain14_C10"])
def test_folding_batchnorm_keeps_a_plain_nets_logits(make_static: Callable[..., Backbone], name: str) -> None:
    net, images = make_static(name), images_of()
    folded = net.folded()
    assert isinstance(folded, PlainNet)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), net(images), rtol=1e-4, atol=1e-5)


# ---- Dirac convolutions


def test_the_effective_weight_worked_by_hand() -> None:
    conv = nn.Conv2d(2, 3, 3, bias=False)
    nn.init.constant_(conv.weight, 10.0)
    dirac = DiracConv2d(conv)
    torch.testing.assert_close(
        dirac.effective_weight()[0, 0].flatten(), torch.tensor([1.0] * 4 + [2.0] + [1.0] * 4)
    )
    with torch.no_grad():
        dirac.alpha.copy_(torch.tensor([1.0, 2.0, 3.0]))
        dirac.beta.copy_(torch.tensor([0.1, 0.5, 1.0]))
    # β · 10 everywhere, and α more at the centre of the input channel of the same number, where there is one
    expected = torch.tensor([1.0, 5.0, 10.0]).view(3, 1, 1, 1).repeat(1, 2, 3, 3)
    expected[0, 0, 1, 1] = 2.0
    expected[1, 1, 1, 1] = 7.0
    torch.testing.assert_close(dirac.effective_weight(), expected)


def test_with_weights_of_zero_a_dirac_convolution_is_the_identity() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    nn.init.zeros_(conv.weight)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(DiracConv2d(conv)(x), x)


def test_dirac_starts_at_one_and_a_tenth_with_the_convolutions_weight() -> None:
    net = build_static("plain8_C10")
    before = copy.deepcopy(net)
    use_dirac(net)
    for (branch, _), (old, _) in zip(net.branches(), before.branches(), strict=True):
        for name in ("conv1", "conv2"):
            dirac, conv = branch.get_submodule(name), old.get_submodule(name)
            assert isinstance(dirac, DiracConv2d)
            assert dirac.alpha.eq(1.0).all()
            assert dirac.beta.eq(0.1).all()
            assert len(dirac.alpha) == len(dirac.beta) == dirac.out_channels
            assert dirac.weight.equal(conv.weight)
            assert (dirac.stride, dirac.padding) == (conv.stride, conv.padding)
    assert type(net.conv1) is nn.Conv2d, "the stem isn't part of a branch"


@pytest.mark.parametrize(
    "options", [{}, {"reduction": 2, "reduction_mode": "depthwise"}], ids=["usual", "depthwise"]
)
@pytest.mark.parametrize("changed", [False, True])
def test_folding_dirac_convolutions_keeps_the_logits(changed: bool, options: dict[str, Any]) -> None:
    net, images = build_static("plain14_C10", **options), images_of()
    assert isinstance(net, PlainNet)
    use_dirac(net)
    randomise_statistics(net)
    net.eval()
    if changed:
        for module in net.modules():
            if isinstance(module, DiracConv2d):
                nn.init.normal_(module.alpha)
                nn.init.normal_(module.beta)
    folded = fold_dirac(net)
    assert not any(isinstance(module, DiracConv2d) for module in folded.modules())
    assert any(isinstance(module, DiracConv2d) for module in net.modules()), "the net handed in stays as it is"
    with torch.no_grad():
        torch.testing.assert_close(folded(images), net(images), rtol=1e-5, atol=1e-5)
    build_static("plain14_C10", **options).load_state_dict(folded.state_dict())


def test_a_folded_dirac_convolution_has_its_geometry_and_bias() -> None:
    dirac = DiracConv2d(nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), alpha=-0.5, beta=2.0)
    conv, x = dirac.folded(), torch.randn(2, 4, 9, 9)
    assert type(conv) is nn.Conv2d
    torch.testing.assert_close(conv(x), dirac(x))


def test_alpha_beta_and_weight_are_trained_and_the_identity_is_not() -> None:
    dirac = DiracConv2d(nn.Conv2d(3, 3, 3, padding=1))
    dirac(torch.randn(2, 3, 5, 5)).square().sum().backward()
    assert {name for name, p in dirac.named_parameters() if p.grad is not None and p.grad.any()} == {
        "weight", "bias", "alpha", "beta",
    }  # fmt: skip
    assert "delta" not in dirac.state_dict()


# ---- exact removal


def assert_same_logits(plain: nn.Module, resnet: nn.Module, images: Tensor) -> None:
    """Far closer than the promised 1e-3: float32's rounding, relative to the largest logit."""
    with torch.no_grad():
        expected, logits = resnet(images), plain(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_exact_removal_keeps_the_logits_and_loads_into_the_zoos_net(
    make_resnet: Callable[..., DroppableResNet], shortcut: str
) -> None:
    resnet, images = make_resnet("R20_C10", shortcut=shortcut), images_of()
    plain = remove_shortcuts(resnet)
    assert isinstance(plain, PlainNet)
    assert plain.shortcut is None
    assert_same_logits(plain, resnet, images)
    fresh = build_static("exactplain20_C10").eval()
    fresh.load_state_dict(plain.state_dict())
    assert_same_logits(fresh, resnet, images)


@pytest.mark.parametrize("large_images", [False, True], ids=["3×3 stem", "7×7 stem"])
@pytest.mark.parametrize("bottleneck", [False, True], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_exact_removal_from_every_kind_of_block(shortcut: Any, bottleneck: bool, large_images: bool) -> None:
    resnet = make_resnet(
        (2, 1, 2, 1), (4, 6, 8, 12), 5, shortcut, bottleneck=bottleneck, large_images=large_images
    )
    randomise_statistics(resnet)
    for bn in (module for module in resnet.modules() if isinstance(module, nn.BatchNorm2d)):
        bn.weight.data[::3] *= -1  # training may turn a channel's sign
    size = 64 if large_images else 16
    plain = remove_shortcuts(resnet, size)
    assert_same_logits(plain, resnet.eval(), images_of(size))


@pytest.mark.parametrize("mode", ["block", "net"])
def test_exact_removal_from_a_reduced_resnet(make_static: Callable[..., Backbone], mode: str) -> None:
    reduction = {"reduction": 2.8, "reduction_mode": mode}
    resnet = make_static("resnet14_C10", **reduction)
    plain = remove_shortcuts(resnet)
    assert_same_logits(plain, resnet, images_of())
    build_static("exactplain14_C10", **reduction).load_state_dict(plain.state_dict())


@pytest.mark.parametrize("name", ["dsplain14_C10", "plain14_C10"])
def test_exact_removal_from_what_is_plain_already(make_static: Callable[..., Backbone], name: str) -> None:
    net = make_static(name)
    assert_same_logits(remove_shortcuts(net), net, images_of())


@pytest.mark.parametrize("shortcut", ["pad_stride", "projection"])
def test_odd_maps_convert_where_the_shortcut_subsamples(
    make_resnet: Callable[..., DroppableResNet], shortcut: str
) -> None:
    resnet = make_resnet("R8_C10", shortcut=shortcut)
    assert_same_logits(remove_shortcuts(resnet, 29), resnet, images_of(29))


def test_torchvisions_dilated_resnets_convert() -> None:
    model = torchvision.models.ResNet(
        Bottleneck, [1, 1, 2, 1], width_per_group=8, replace_stride_with_dilation=[False, True, True]
    )
    resnet = from_torchvision(model.eval())
    randomise_statistics(resnet)
    assert_same_logits(remove_shortcuts(resnet, 64), resnet, images_of(64, 2))


@pytest.mark.parametrize("training", [False, True])
def test_exact_removal_leaves_the_resnet_as_it_is(
    make_resnet: Callable[..., DroppableResNet], training: bool
) -> None:
    resnet = make_resnet("R8_C10").train(training)
    before = copy.deepcopy(resnet.state_dict())
    plain = remove_shortcuts(resnet)
    for parameter in plain.parameters():
        parameter.fill_(7.0)
    assert resnet.training == training
    assert all(parameter.requires_grad for parameter in resnet.parameters())
    assert all(value.equal(before[key]) for key, value in resnet.state_dict().items())


def with_branch(make: Callable[[int, int, int], list[nn.Conv2d]], shortcut: Any) -> DroppableResNet:
    """A ResNet of 3 blocks whose branches are of the convolutions that (inputs, width, stride) gives."""

    def branch(in_channels: int, width: int, stride: int) -> Branch:
        convs = make(in_channels, width, stride)
        return Branch(convs, [nn.BatchNorm2d(conv.out_channels) for conv in convs])

    return make_resnet((1, 1, 1), (4, 8, 8), 5, shortcut, branch=branch)


def late_stride(in_channels: int, width: int, stride: int) -> list[nn.Conv2d]:
    return [conv2d(in_channels, width, 3), conv2d(width, width, 3, stride)]


def test_a_stride_in_the_last_convolution_converts_where_the_shortcut_subsamples() -> None:
    resnet = with_branch(late_stride, "projection")
    randomise_statistics(resnet)
    assert_same_logits(remove_shortcuts(resnet), resnet.eval(), images_of())


def torchvision_resnet(block: Any, **options: Any) -> DroppableResNet:
    return from_torchvision(torchvision.models.ResNet(block, [1, 1, 1, 1], **options))


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [
        (
            lambda: torchvision_resnet(Bottleneck, groups=4, width_per_group=4),
            64,
            "block 0 can't be converted: a grouped convolution",
        ),
        (
            lambda: build_static("resnet8_C10", reduction=2, reduction_mode="depthwise"),
            32,
            "block 0 can't be converted: a grouped convolution",
        ),
        (lambda: build_static("shiftresnet8_C10"), 32, "end without a ReLU, so their maps may be negative"),
        (
            lambda: build_static("R20_C10"),
            30,
            "block 6 can't be converted: its shortcut averages over the border of a map of 15×15",
        ),
        (
            lambda: torchvision_resnet(BasicBlock, norm_layer=lambda width: nn.GroupNorm(8, width)),
            64,
            r"block 0 can't be converted: GroupNorm\(8, 64",
        ),
        (
            lambda: with_branch(lambda inputs, width, stride: [conv2d(inputs, width, 3, stride)], "projection"),
            32,
            "block 0 can't be converted: a single convolution",
        ),
        (
            lambda: with_branch(late_stride, "pad_avgpool"),
            32,
            "block 1 can't be converted: no inner convolution has the stride of its average-pooling shortcut",
        ),
        (
            lambda: with_branch(lambda i, w, stride: [conv2d(i, w, 1, stride), conv2d(w, w, 3)], "pad_avgpool"),
            32,
            "block 1 can't be converted: its strided convolution can't average windows",
        ),
    ],
    ids=["resnext", "depthwise", "shift", "odd map", "groupnorm", "single", "late stride", "strided 1×1"],
)
def test_what_cannot_be_converted_says_why(make: Callable[[], Backbone], size: int, message: str) -> None:
    with pytest.raises(BlockdropError, match=f"^exact removal: .*{message}"):
        remove_shortcuts(make(), size)


def test_batchnorm_folds_into_a_dirac_convolutions_effective_weight(make_static: Callable[..., Backbone]) -> None:
    net = make_static("plain8_C10")
    use_dirac(net)
    net.eval()
    images = torch.randn(2, 3, 32, 32)
    expected = net(images)
    torch.testing.assert_close(net.folded()(images), expected, rtol=1e-4, atol=1e-5)
    run = blockdrop.compile(net, engine="torch")
    torch.testing.assert_close(run(images)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_dirac_convolution_stays_on_its_convolutions_device() -> None:
    conv = DiracConv2d(nn.Conv2d(3, 3, 3, device="meta"))
    assert {tensor.device.type for tensor in (*conv.parameters(), *conv.buffers())} == {"meta"}
