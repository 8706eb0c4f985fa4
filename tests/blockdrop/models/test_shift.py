"""The shift is nine slices; a shift net is what its paper says, and its blocks can be dropped."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blockdrop.models.backbone import Backbone
from blockdrop.models.resnet import DroppableResNet
from blockdrop.models.shift import Shift, ShiftBranch
from blockdrop.models.specs import Variant
from blockdrop.models.zoo import build_static

FORMATS = [torch.contiguous_format, torch.channels_last]


def nine_slices(x: Tensor) -> Tensor:
    """The shift, written out: a ninth of the channels from each place of a 3×3 window, the rest as they are."""
    height, width = x.shape[2:]
    ninth = x.shape[1] // 9
    padded = F.pad(x, (1, 1, 1, 1))
    parts = [
        padded[:, ninth * 0 : ninth * 1, 0:height, 0:width],  # from above, on the left
        padded[:, ninth * 1 : ninth * 2, 0:height, 1 : 1 + width],
        padded[:, ninth * 2 : ninth * 3, 0:height, 2 : 2 + width],
        padded[:, ninth * 3 : ninth * 4, 1 : 1 + height, 0:width],
        padded[:, ninth * 4 : ninth * 5, 1 : 1 + height, 1 : 1 + width],  # in place
        padded[:, ninth * 5 : ninth * 6, 1 : 1 + height, 2 : 2 + width],
        padded[:, ninth * 6 : ninth * 7, 2 : 2 + height, 0:width],
        padded[:, ninth * 7 : ninth * 8, 2 : 2 + height, 1 : 1 + width],
        padded[:, ninth * 8 : ninth * 9, 2 : 2 + height, 2 : 2 + width],  # from below, on the right
        x[:, ninth * 9 :],
    ]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", [(5, 7), (2, 2), (1, 4), (3, 1), (1, 1)])
@pytest.mark.parametrize("channels", [1, 8, 9, 16, 18, 48])
def test_shift_is_nine_slices(channels: int, size: tuple[int, int], memory_format: torch.memory_format) -> None:
    x = torch.randn(3, channels, *size)
    shifted = Shift(channels)(x.to(memory_format=memory_format))
    assert shifted.equal(nine_slices(x))


def test_a_single_pixel_goes_to_nine_places() -> None:
    x = torch.zeros(1, 10, 3, 3)
    x[:, :, 1, 1] = 1
    places = Shift(10)(x)[0].flatten(1).argmax(1).tolist()
    assert places == [8, 7, 6, 5, 4, 3, 2, 1, 0, 4], "the tenth channel is left over and stays"


def test_fewer_than_nine_channels_stay_in_place() -> None:
    x = torch.randn(2, 8, 4, 4)
    assert Shift(8)(x).equal(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_both_memory_formats_agree_keep_the_format_and_leave_the_input(dtype: torch.dtype) -> None:
    x, shift = torch.randn(2, 20, 4, 5).to(dtype), Shift(20)
    before = x.clone()
    results = [shift(x.to(memory_format=memory_format)) for memory_format in FORMATS]
    assert results[0].equal(results[1])
    assert results[0].dtype == results[1].dtype == dtype
    assert results[0].is_contiguous()
    assert results[1].is_contiguous(memory_format=torch.channels_last)
    assert x.equal(before)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [4, 9, 11])
def test_the_gradient_is_the_derivative(channels: int, memory_format: torch.memory_format) -> None:
    x = torch.randn(2, channels, 3, 2, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(Shift(channels), (x,))


def test_both_memory_formats_have_the_same_gradient() -> None:
    x, weights = torch.randn(2, 20, 4, 5, requires_grad=True), torch.randn(2, 20, 4, 5)
    gradients = []
    for memory_format in FORMATS:
        total = (Shift(20)(x.to(memory_format=memory_format)) * weights).sum()
        gradients += torch.autograd.grad(total, x)
    assert gradients[0].equal(gradients[1])


def test_a_shift_has_no_parameters_and_leaves_nothing_in_checkpoints() -> None:
    assert list(Shift(18).parameters()) == []
    assert Shift(18).state_dict() == {}


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def test_the_kernel_is_converted_once_for_each_number_format(monkeypatch: pytest.MonkeyPatch) -> None:
    shift, conversions = Shift(20), []
    x = channels_last(torch.randn(2, 20, 4, 5))

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten._to_copy.default:
                conversions.append(kwargs["dtype"])
            return func(*args, **(kwargs or {}))

    inputs = [x.to(dtype) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
    with Counting():
        results = [shift(value) for value in inputs * 2]
    assert conversions == [torch.bfloat16, torch.float64], "float32 it has"
    for value, result in zip(inputs * 2, results, strict=True):
        assert result.dtype == value.dtype
        assert result.equal(nine_slices(value))


def test_a_used_shift_can_be_copied_and_moved() -> None:
    shift, x = Shift(20), channels_last(torch.randn(2, 20, 4, 5).bfloat16())
    expected = shift(x)
    assert shift.state_dict() == {}
    assert pickle.loads(pickle.dumps(shift))(x).equal(expected)
    twin = copy.deepcopy(shift)
    away = twin.to("meta")(x.to("meta"))
    assert (away.device.type, away.dtype, away.shape) == ("meta", torch.bfloat16, x.shape)
    back = twin.to_empty(device="cpu")
    back.kernels.zero_()
    assert not back(x).any(), "nothing is left of the kernel from before"
    assert shift(x).equal(expected), "the copy is one"
    assert shift.double()(x).equal(expected)
    assert shift(x.double()).equal(expected.double())


def test_a_kernel_first_used_in_inference_mode_takes_gradients_later() -> None:
    shift, x = Shift(20), channels_last(torch.randn(2, 20, 4, 5).bfloat16())
    with torch.inference_mode():
        shift(x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(shift(x).sum(), x)
    assert gradient.shape == x.shape


def test_the_convolution_that_stands_for_a_shift_does_the_same() -> None:
    x = torch.randn(2, 20, 4, 5)
    conv = Shift(20).as_convolution()
    assert conv.groups == 20
    assert conv(x).equal(nine_slices(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_branch_is_conv_shift_conv_and_ends_with_its_relu(stride: int) -> None:
    branch = ShiftBranch(4, 6, 20, stride).eval()
    x = torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        inner = nine_slices(F.relu(branch.bn1(F.conv2d(x, branch.conv1.weight))))
        expected = F.relu(branch.bn2(F.conv2d(inner, branch.conv2.weight, stride=stride)))
        torch.testing.assert_close(branch(x), expected, rtol=1e-4, atol=1e-5)
    assert branch(x).shape == {1: (2, 6, 7, 7), 2: (2, 6, 4, 4)}[stride]


def test_no_relu_follows_the_sum_of_a_shift_nets_block(make_static: Callable[..., Backbone]) -> None:
    net, images = make_static("shiftresnet8_C10", expansion=2.5), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        x = F.relu(net.bn1(net.conv1(images)))
        for stage, (branch,) in enumerate(net.blocks):
            x = net.ds[stage](x) + branch(x)
        expected = net.fc(x.mean((2, 3)))
        assert x.min() < 0, "maps may be negative"
        torch.testing.assert_close(net(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("expansion", [1, 2.5])
def test_sparse_and_masked_execution_of_a_shift_net_agree(
    make_resnet: Callable[..., DroppableResNet], expansion: float, channels_last: bool
) -> None:
    resnet = make_resnet("shiftresnet14_C10", variant=Variant(expansion=expansion))
    images = torch.randn(5, 3, 32, 32)
    if channels_last:
        resnet, images = (x.to(memory_format=torch.channels_last) for x in (resnet, images))
    policies = [torch.rand(5, 6) < share for share in (0.2, 0.5, 0.8)]
    policies += [torch.zeros(5, 6).bool(), torch.ones(5, 6).bool()]
    with torch.no_grad():
        for policy in policies:
            masked = resnet(images, policy, execution="masked")
            torch.testing.assert_close(resnet(images, policy), masked, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(resnet(images), masked, rtol=1e-4, atol=1e-4)


def test_folding_batchnorm_keeps_a_shift_nets_logits(make_static: Callable[..., Backbone]) -> None:
    net, images = make_static("shiftresnet8_C10", expansion=2.5), torch.randn(3, 3, 32, 32)
    folded = net.folded()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), net(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("expansion", "inner"), [(None, (16, 32, 64)), (3, (48, 96, 192)), (2.55, (40, 81, 163)), (0.1, (1, 3, 6))]
)
def test_inner_widths_are_truncated(expansion: float | None, inner: tuple[int, ...]) -> None:
    net = build_static("shiftresnet14_C10", expansion=expansion)
    for stage, channels in zip(net.blocks, inner, strict=True):
        assert [branch.shift.channels for branch in stage] == [channels] * 2
        assert [branch.conv1.out_channels for branch in stage] == [channels] * 2
