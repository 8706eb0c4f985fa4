"""Dropping blocks: sparse = masked = networks built by hand."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockdrop.models.backbone import NarrowProjection, conv2d
from blockdrop.models.droppable import block_executions
from blockdrop.models.resnet import DroppableResNet, make_shortcut
from blockdrop.models.specs import Variant

# every family (3 and 4 stages, basic and bottleneck, small and large stem) with every shortcut kind
MODELS = [
    (name, shortcut)
    for name in ("R14_C10", "R18_C10", "R50_C100", "R18_ImgNet")
    for shortcut in ("pad_avgpool", "pad_stride", "projection")
]
NARROW = Variant(reduction=16, reduction_mode="net")
"""A quarter of the widths, which changes nothing of the way that images take."""


def images_for(name: str, count: int = 5) -> Tensor:
    return torch.randn(count, 3, *((64, 64) if "ImgNet" in name else (32, 32)))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "shortcut"), MODELS)
def test_sparse_and_masked_execution_agree(
    make_resnet: Callable[..., DroppableResNet], name: str, shortcut: str, channels_last: bool
) -> None:
    variant = Variant() if name.startswith("R14") else NARROW
    resnet, images = make_resnet(name, shortcut=shortcut, variant=variant), images_for(name)
    if channels_last:
        resnet, images = (x.to(memory_format=torch.channels_last) for x in (resnet, images))
    size, blocks = (len(images), resnet.num_blocks)
    policies = [torch.rand(size, blocks) < share for share in (0.2, 0.5, 0.8)]
    policies += [torch.zeros(size, blocks).bool(), torch.ones(size, blocks).bool()]
    with torch.no_grad():
        masked = [resnet(images, policy, execution="masked") for policy in policies]
        for policy, expected in zip(policies, masked, strict=True):
            torch.testing.assert_close(resnet(images, policy), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(resnet(images), masked[-1], rtol=1e-4, atol=1e-5)
        stacked = resnet(images, torch.stack(policies))  # (S, N, classes)
        torch.testing.assert_close(stacked, torch.stack(masked), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", range(6))
def test_dropping_all_but_one_block_equals_a_network_built_by_hand(
    make_resnet: Callable[..., DroppableResNet], kept: int
) -> None:
    resnet, images = make_resnet("R14_C10"), images_for("R14_C10")
    policy = torch.zeros(5, 6, dtype=torch.bool)
    policy[:, kept] = True

    def halve(x: Tensor) -> Tensor:  # the reference's shortcut: average 2 × 2 pixels, append zero channels
        return torch.cat([F.avg_pool2d(x, 2), torch.zeros_like(F.avg_pool2d(x, 2))], 1)

    with torch.no_grad():
        x = F.relu(resnet.bn1(resnet.conv1(images)))
        for t in range(6):
            shortcut = halve(x) if t in (2, 4) else x
            block = resnet.blocks[t // 2][t % 2]
            if t == kept:
                inner = F.relu(block.bn1(block.conv1(x)))
                x = F.relu(shortcut + block.bn2(block.conv2(inner)))
            else:
                x = shortcut
        expected = resnet.fc(x.mean((2, 3)))
        torch.testing.assert_close(resnet(images, policy), expected, rtol=1e-4, atol=1e-5)


def test_option_a_shortcut_subsamples_and_pads_on_both_sides() -> None:
    x = torch.randn(2, 4, 6, 6)
    out = make_shortcut(4, 10, 2, "pad_stride")(x)
    torch.testing.assert_close(out[:, 3:7], x[:, :, ::2, ::2])
    assert out[:, :3].eq(0).all()
    assert out[:, 7:].eq(0).all()


@pytest.mark.parametrize("kind", ["pad_avgpool", "pad_stride"])
@pytest.mark.parametrize("size", [6, 7])
def test_padding_shortcuts_keep_values_and_shape_in_both_layouts(kind: str, size: int) -> None:
    x, shortcut = torch.randn(2, 4, size, size), make_shortcut(4, 8, 2, kind)
    out = shortcut(x)
    assert out.shape == nn.Conv2d(4, 8, 3, 2, 1)(x).shape
    torch.testing.assert_close(shortcut(x.to(memory_format=torch.channels_last)), out)


def test_a_block_that_no_image_needs_does_not_run(make_resnet: Callable[..., DroppableResNet]) -> None:
    resnet = make_resnet("R14_C10")
    seen: list[int] = []
    for stage in resnet.blocks:
        for branch in stage:
            branch.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    policy = torch.tensor([[1, 0, 0, 1, 0, 1], [1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    resnet(images_for("R14_C10", 3), policy)
    assert seen == [3, 1, 2, 1], "rows run by blocks 0, 2, 3 and 5; blocks 1 and 4 don't run"


def test_policies_of_an_image_share_work_up_to_their_first_difference(
    make_resnet: Callable[..., DroppableResNet],
) -> None:
    resnet = make_resnet("R14_C10")
    rows: list[int] = []
    for stage in resnet.blocks:
        for branch in stage:
            branch.register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
    first = torch.ones(4, 6, dtype=torch.bool)
    second = first.clone()
    second[:2, 3] = False  # two images differ from block 3 on, two never
    resnet(images_for("R14_C10", 4), torch.stack([first, second]))
    assert rows == [4, 4, 4, 4, 6, 6]


def test_sparse_training_gives_the_gradient_of_masked_training(
    make_resnet: Callable[..., DroppableResNet],
) -> None:
    resnet, images = make_resnet("R14_C10", shortcut="projection"), images_for("R14_C10")
    policy = torch.rand(5, 6) < 0.5
    gradients = []
    for execution in ("sparse", "masked"):
        resnet.zero_grad()
        resnet(images, policy, execution).square().sum().backward()
        gradients.append([torch.zeros(1) if p.grad is None else p.grad.clone() for p in resnet.parameters()])
    for sparse, masked in zip(*gradients, strict=True):
        torch.testing.assert_close(sparse.expand_as(masked), masked, rtol=1e-3, atol=1e-3)


def test_in_train_mode_batchnorm_sees_the_routed_images_alone(make_resnet: Callable[..., DroppableResNet]) -> None:
    resnet, images = make_resnet("R14_C10").train(), images_for("R14_C10")
    resnet.bn1.momentum = None
    for stage in resnet.blocks:
        for branch in stage:
            branch.bn1.momentum = 1.0
    policy = torch.zeros(5, 6, dtype=torch.bool)
    policy[[1, 3], 0] = True
    before = resnet.blocks[0][1].bn1.running_mean.clone()
    with torch.no_grad():
        stem = resnet.stem(images)
        resnet(images, policy)
        block = resnet.blocks[0][0]
        expected = block.conv1(stem[[1, 3]]).mean((0, 2, 3))
    torch.testing.assert_close(block.bn1.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert resnet.blocks[0][1].bn1.running_mean.equal(before), "a dropped block's statistics stay"


@pytest.mark.parametrize("batch", [0, 1])
def test_empty_batch_and_batch_of_one(make_resnet: Callable[..., DroppableResNet], batch: int) -> None:
    resnet = make_resnet("R14_C10")
    policy = torch.rand(batch, 6) < 0.5
    with torch.no_grad():
        assert resnet(images_for("R14_C10", batch), policy).shape == (batch, 10)
        assert resnet(images_for("R14_C10", batch)).shape == (batch, 10)


def test_images_handed_in_stay_as_they_are(make_resnet: Callable[..., DroppableResNet]) -> None:
    resnet, images = make_resnet("R14_C10").folded(), images_for("R14_C10")
    copy = images.clone()
    with torch.inference_mode():
        resnet(images, torch.rand(5, 6) < 0.5)
    assert images.equal(copy)


@pytest.mark.parametrize(
    "policy",
    [torch.ones(5, 6), torch.ones(5, 7).bool(), torch.ones(4, 6).bool(), torch.ones(6).bool()],
    ids=["float", "too many blocks", "too few images", "one dimension"],
)
def test_a_policy_of_wrong_shape_or_dtype_is_named(
    make_resnet: Callable[..., DroppableResNet], policy: Tensor
) -> None:
    with pytest.raises(ValueError, match=r"policy: got torch\.\w+ of shape .*\(5, 6\)"):
        make_resnet("R14_C10")(images_for("R14_C10"), policy)


def test_unknown_execution_is_named(make_resnet: Callable[..., DroppableResNet]) -> None:
    with pytest.raises(ValueError, match="choose"):
        make_resnet("R8_C10")(images_for("R8_C10"), execution="lazy")


@pytest.mark.parametrize(("name", "shortcut"), MODELS)
def test_folding_batchnorm_keeps_the_logits(
    make_resnet: Callable[..., DroppableResNet], name: str, shortcut: str
) -> None:
    resnet, images = make_resnet(name, shortcut=shortcut), images_for(name)
    policy = torch.rand(5, resnet.num_blocks) < 0.5
    folded = resnet.folded()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images, policy), resnet(images, policy), rtol=1e-4, atol=1e-4)


def test_a_narrow_projection_is_the_convolution_that_it_stands_for() -> None:
    projection = conv2d(8, 12, 1, 2).double()
    assert isinstance(projection, NarrowProjection)
    assert type(conv2d(16, 32, 1, 2)) is type(conv2d(8, 8, 1)) is type(conv2d(8, 8, 3, 2)) is nn.Conv2d
    plain = nn.Conv2d(8, 12, 1, 2, bias=False).double()
    plain.load_state_dict(projection.state_dict())
    found = []
    for conv in (projection, plain):
        images = torch.randn(2, 8, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        logits = conv(images.requires_grad_())
        found.append((logits, *torch.autograd.grad(logits.square().sum(), (images, conv.weight))))
    torch.testing.assert_close(*found)


def weighted_logits(
    resnet: DroppableResNet, images: Tensor, policy: Tensor, gates: Tensor, execution: str
) -> Tensor:
    logits = resnet(images, policy, execution, gates)  # type: ignore[arg-type]
    weights = torch.randn(logits.shape, dtype=logits.dtype, generator=torch.Generator().manual_seed(5))
    return (logits * weights).sum()


@pytest.mark.parametrize("shortcut", ["pad_avgpool", "pad_stride", "projection"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gates_leave_the_logits_as_they_are(
    make_resnet: Callable[..., DroppableResNet], shortcut: str, channels_last: bool
) -> None:
    resnet, images = make_resnet("R14_C10", shortcut=shortcut), images_for("R14_C10")
    if channels_last:
        resnet, images = (x.to(memory_format=torch.channels_last) for x in (resnet, images))
    policy = torch.rand(5, 6) < 0.5
    gates = policy.float().requires_grad_()
    for execution in ("sparse", "masked"):
        with torch.no_grad():
            expected = resnet(images, policy, execution)
        torch.testing.assert_close(resnet(images, policy, execution, gates), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shortcut", ["pad_avgpool", "projection"])
def test_the_gradient_of_a_kept_blocks_gate_is_the_same_sparse_and_masked(
    make_resnet: Callable[..., DroppableResNet], shortcut: str
) -> None:
    resnet, images = make_resnet("R14_C10", shortcut=shortcut).double(), images_for("R14_C10").double()
    policy = torch.rand(5, 6) < 0.5
    policy[:, 0], policy[0], policy[:, 3] = True, True, False  # a block for all images, and one for a single one
    policy[0, 3] = True
    found = []
    for execution in ("sparse", "masked"):
        gates = policy.double().requires_grad_()
        weighted_logits(resnet, images, policy, gates, execution).backward()
        found.append(gates.grad)
    sparse, masked = found
    torch.testing.assert_close(sparse[policy], masked[policy], rtol=1e-5, atol=1e-6)
    assert (masked[policy] != 0).all()
    assert (sparse[~policy] == 0).all(), "a dropped block doesn't run, so nothing is known of its gate"
    assert (masked[~policy] != 0).all()


def test_gates_leave_the_gradient_of_the_weights_as_it_is(make_resnet: Callable[..., DroppableResNet]) -> None:
    resnet, images = make_resnet("R14_C10", shortcut="projection").double(), images_for("R14_C10").double()
    policy = torch.rand(5, 6) < 0.5
    for execution in ("sparse", "masked"):
        gradients = []
        for gates in (None, policy.double().requires_grad_()):
            resnet.zero_grad()
            resnet(images, policy, execution, gates).square().sum().backward()
            gradients.append(
                [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in resnet.parameters()]
            )
        for without, gated in zip(*gradients, strict=True):
            torch.testing.assert_close(gated, without)


@pytest.mark.parametrize("shortcut", ["pad_avgpool", "projection"])
@pytest.mark.parametrize("around", [0.0, 1.0])
def test_a_gates_derivative_is_a_finite_difference_of_the_logits(
    make_resnet: Callable[..., DroppableResNet], shortcut: str, around: float
) -> None:
    resnet, images = make_resnet("R14_C10", shortcut=shortcut).double(), images_for("R14_C10", 2).double()
    policy = torch.rand(2, 6) < 0.5
    for k in range(6):
        policy[:, k] = bool(around)
        gates = policy.double().requires_grad_()
        (gradient,) = torch.autograd.grad(weighted_logits(resnet, images, policy, gates, "masked"), gates)
        step = torch.zeros_like(policy, dtype=torch.float64)
        step[0, k] = 1e-6
        with torch.no_grad():
            above, below = (
                weighted_logits(resnet, images, policy, policy + sign * step, "masked") for sign in (1, -1)
            )
        torch.testing.assert_close((above - below) / 2e-6, gradient[0, k], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("policy", "gates"),
    [
        (None, torch.ones(5, 6)),
        (torch.ones(5, 6).bool(), torch.ones(5, 7)),
        (torch.ones(2, 5, 6).bool(), torch.ones(2, 5, 6)),
    ],
    ids=["no policy", "another shape", "several policies"],
)
def test_gates_need_a_policy_of_their_shape(
    make_resnet: Callable[..., DroppableResNet], policy: Tensor | None, gates: Tensor
) -> None:
    with pytest.raises(ValueError, match="gates: "):
        make_resnet("R14_C10")(images_for("R14_C10"), policy, gates=gates)


def test_executions_are_the_rows_that_the_blocks_run(make_resnet: Callable[..., DroppableResNet]) -> None:
    resnet, policies = make_resnet("R14_C10"), torch.rand(3, 4, 6) < 0.6
    rows: list[int] = []
    for stage in resnet.blocks:
        for branch in stage:
            branch.register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
    with torch.no_grad():
        resnet(images_for("R14_C10", 4), policies)
    assert sum(rows) == block_executions(policies)
