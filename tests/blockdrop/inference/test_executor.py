from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnext50_32x4d

import blockdrop
from agents.policy_network import PolicyNetwork
from blockdrop.errors import BlockdropError
from blockdrop.inference import openvino_engine
from blockdrop.inference.torch_engine import PackedConv, copy_to_run
from blockdrop.models.backbone import Backbone
from blockdrop.models.conversion import convert
from blockdrop.models.policy_networks import build_policy_network
from blockdrop.models.resnet import DroppableResNet
from blockdrop.models.resnet import make_resnet as resnet_of
from blockdrop.models.shift import ShiftBranch
from blockdrop.models.specs import Variant
from tests.blockdrop.models.brought import BY_NAME, MapNet, TokenNet
from tests.blockdrop.models.brought import make as make_brought
from tests.conftest import randomise_statistics

needs_openvino = pytest.mark.skipif(not openvino_engine.is_installed(), reason="openvino is not installed")
ENGINES = ["torch", pytest.param("openvino", marks=needs_openvino)]


def make_policy_network(num_blocks: int, policy_net: str = "reference") -> PolicyNetwork:
    network = build_policy_network(num_blocks, policy_net=policy_net)
    randomise_statistics(network)
    nn.init.normal_(network.logit.weight, std=0.5)
    return network.eval()


def assert_same_logits(logits: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def some_policies(images: int, blocks: int) -> Tensor:
    """None, all, all but the first of each stage of R14, the first alone, and random ones; two thirds alike."""
    policy = torch.rand(images, blocks) < 0.5
    policy[images // 3 :] = policy[0]
    for row, pattern in enumerate(([0], [1], [0, 1], [1, 0])[:images]):
        policy[row] = torch.tensor(pattern).repeat(blocks)[:blocks].bool()
    return policy


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "shortcut"),
    [
        ("R14_C10", "pad_avgpool"),
        ("R14_C10", "pad_stride"),
        ("R14_C10", "projection"),
        ("R18_C10", "pad_avgpool"),
        ("R50_C10", "projection"),
    ],
)
def test_the_executor_gives_the_logits_of_masked_execution(
    make_resnet: Callable[..., DroppableResNet], name: str, shortcut: str, engine: Any
) -> None:
    narrow = (
        Variant() if name.startswith("R14") else Variant(reduction=16, reduction_mode="net")
    )  # a quarter as wide
    resnet = make_resnet(name, shortcut=shortcut, variant=narrow)
    run = blockdrop.compile(resnet, engine=engine, compile_after=4)
    for count in (1, 3, 13):
        images, policy = torch.randn(count, 3, 32, 32), some_policies(count, resnet.num_blocks)
        with torch.no_grad():
            expected = resnet(images, policy, execution="masked")
        for _ in range(6):  # first through the torch engine, then more and more through programs
            logits, ran = run(images, policy=policy)
            assert_same_logits(logits, expected)
            assert ran.equal(policy)


def test_bfloat16_goes_without_packed_weights_where_the_processor_cannot_pack_them(
    make_resnet: Callable[..., DroppableResNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    def packed(dtype: torch.dtype) -> bool:
        run = copy_to_run(make_resnet("R8_C10").folded(), dtype)
        return any(isinstance(module, PackedConv) for module in run.modules())

    assert packed(torch.float32)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert packed(torch.bfloat16)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not packed(torch.bfloat16)
    assert packed(torch.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain14_C10", {}),
        ("plain14_C10", {"reduction": 2, "reduction_mode": "depthwise"}),
        ("resnet14_C10", {"reduction_mode": "shuffle"}),
        ("resnet14_C10", {"reduction": 3, "reduction_mode": "mobile"}),
        ("exactplain14_C10", {}),
        ("dsplain14_C10", {}),
        ("dsplain14_C10", {"shortcut": "pad_avgpool"}),
        ("shiftresnet14_C10", {"expansion": 2.5}),
        ("resnet14_C10", {"reduction": 2.8, "reduction_mode": "net"}),
    ],
    ids=str,
)
def test_static_nets_give_their_eager_logits(
    make_static: Callable[..., Backbone], name: str, options: dict[str, Any], engine: Any
) -> None:
    net = make_static(name, **options)
    run = blockdrop.compile(net, engine=engine, compile_after=4)
    assert run.engine == engine
    for count in (1, 7):
        images = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            expected = net(images)
        for _ in range(4):  # first through the torch engine, then through programs
            logits, ran = run(images)
            assert_same_logits(logits, expected)
            assert ran.shape == (count, 6)
            assert ran.all()


@needs_openvino
def test_programs_take_as_many_rows_as_was_measured_to_pay(
    make_resnet: Callable[..., DroppableResNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(seconds: Callable[[int], float], most: int) -> tuple[int, ...]:
        assert seconds(1) > 0
        assert most >= 16
        return (1, 4, 16)

    monkeypatch.setattr("blockdrop.inference.programs.worthwhile", measured)
    resnet = make_resnet("R14_C10")
    run = blockdrop.compile(resnet, make_policy_network(resnet.num_blocks), engine="openvino")
    images, policy = torch.randn(99, 3, 32, 32), some_policies(99, resnet.num_blocks)
    run.warm(policy, 32, batch_size=99)
    with torch.no_grad():
        assert_same_logits(run(images, policy=policy)[0], resnet(images, policy))
    assert run._programs is not None
    assert {key.batch for key in run._programs.cache.programs} == {1, 4, 16}
    assert {batch for _, batch, _ in run._programs.of_policy_network} == {16, 4}
    assert run.account.images["by the torch engine"] == 0
    logits, decided = run(images)
    with torch.no_grad():
        assert_same_logits(logits, resnet(images, decided))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("count", [1, 5])
def test_images_that_are_not_finite_are_refused_by_their_number(
    make_resnet: Callable[..., DroppableResNet], count: int, value: float, engine: Any
) -> None:
    run = blockdrop.compile(make_resnet("R8_C10"), engine=engine)
    images = torch.randn(count, 3, 32, 32)
    images[-1, 2, 5, 5] = value
    with pytest.raises(BlockdropError, match=f"images: number {count - 1} holds values that aren't finite"):
        run(images)
    assert run(torch.full((count, 3, 32, 32), 1e38))[0].shape == (count, 10), "large, but finite"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("expansion", [0.5, 3])
def test_shift_nets_drop_blocks_as_masked_execution_does(
    make_resnet: Callable[..., DroppableResNet], expansion: float, engine: Any
) -> None:
    resnet = make_resnet("shiftresnet14_C10", variant=Variant(expansion=expansion))
    run = blockdrop.compile(resnet, engine=engine, compile_after=4)
    for count in (1, 13):
        images, policy = torch.randn(count, 3, 32, 32), some_policies(count, resnet.num_blocks)
        with torch.no_grad():
            expected = resnet(images, policy, execution="masked")
            assert_same_logits(resnet(images, policy), expected)
        for _ in range(4):
            logits, ran = run(images, policy=policy)
            assert_same_logits(logits, expected)
            assert ran.equal(policy)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("relu_after_sum", [False, True])
@pytest.mark.parametrize("branch", [None, lambda inputs, width, stride: ShiftBranch(inputs, width, 20, stride)])
def test_a_block_ends_as_its_network_says_whatever_its_branch(
    branch: Any, relu_after_sum: bool, engine: Any
) -> None:
    resnet = resnet_of((1, 2), (8, 12), 5, "projection", branch=branch, relu_after_sum=relu_after_sum)
    randomise_statistics(resnet)
    images, policy = torch.randn(7, 3, 16, 16), some_policies(7, 3)
    run = blockdrop.compile(resnet.eval(), engine=engine, compile_after=4)
    with torch.no_grad():
        expected = resnet(images, policy, execution="masked")
    for _ in range(3):
        assert_same_logits(run(images, policy=policy)[0], expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["plain14_C10", "dsplain14_C10"])
def test_a_policy_that_drops_a_plain_nets_block_is_refused(
    make_static: Callable[..., Backbone], name: str, engine: Any
) -> None:
    net, images = make_static(name), torch.randn(5, 3, 32, 32)
    run = blockdrop.compile(net, engine=engine, compile_after=1)
    every_block = torch.ones(5, 6, dtype=torch.bool)
    with torch.no_grad():
        assert_same_logits(run(images, policy=every_block)[0], net(images))
    for dropped in range(6):
        policy = every_block.clone()
        policy[3, dropped] = False
        for policies in (policy, torch.stack([every_block, policy])):
            with pytest.raises(ValueError, match="drops blocks, but the blocks of a PlainNet have no shortcuts"):
                run(images, policy=policies)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", [resnet18, resnext50_32x4d])
def test_torchvisions_networks_for_large_images_run_too(make: Callable[[], nn.Module], engine: Any) -> None:
    model = make()
    randomise_statistics(model)
    resnet = blockdrop.from_torchvision(model.eval())
    images, policy = torch.randn(2, 3, 96, 64), some_policies(2, resnet.num_blocks)
    run = blockdrop.compile(resnet, engine=engine, compile_after=1)
    with torch.no_grad():
        assert_same_logits(run(images, policy=policy)[0], resnet(images, policy, execution="masked"))
        assert_same_logits(run(images)[0], model(images))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["resnet26d", "seresnet18", "ecaresnet26t"])
def test_timms_resnets_run_with_deep_stems_pooled_shortcuts_and_attention_to_channels(
    name: str, engine: Any
) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model(name)
    randomise_statistics(model)
    resnet, _ = convert(model.eval(), image_size=70)
    images, policy = torch.randn(9, 3, 70, 70), some_policies(9, resnet.num_blocks)  # odd maps
    if name == "ecaresnet26t" and engine == "openvino":
        with pytest.raises(BlockdropError, match="can't run EcaModule at the end of a branch; choose torch"):
            blockdrop.compile(resnet, engine=engine)
        return
    policy_network = build_policy_network(resnet.num_blocks, policy_net="stem", backbone=resnet)
    nn.init.normal_(policy_network.logit.weight, std=0.5)
    run = blockdrop.compile(resnet, policy_network.eval(), engine=engine, compile_after=1)
    with torch.no_grad():
        expected, keep_probs = resnet(images, policy, execution="masked"), policy_network(images)[0]
    for _ in range(2):
        assert_same_logits(run(images, policy=policy)[0], expected)
    torch.testing.assert_close(run.keep_probs(images), keep_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [MapNet, TokenNet])
def test_networks_by_their_parts_run_in_the_torch_engine(kind: type[nn.Module], dtype: torch.dtype) -> None:
    network, _ = convert(make_brought(kind), **BY_NAME[kind], image_size=16)
    policy_network = build_policy_network(network.num_blocks, policy_net="stem", backbone=network)
    nn.init.normal_(policy_network.logit.weight, std=0.5)
    run = blockdrop.compile(network, policy_network.eval(), dtype=dtype)
    assert run.engine_name == "torch"
    for count in (0, 1, 3, 70):
        images = torch.randn(count, 3, 16, 16)
        policy = some_policies(count, network.num_blocks) if count else torch.ones(0, 3, dtype=torch.bool)
        logits, ran = run(images, policy=policy)
        assert logits.dtype == torch.float32
        with torch.no_grad():
            expected, keep_probs = network(images, policy, "masked"), policy_network(images)[0]
        assert ran.equal(policy)
        if dtype == torch.float32:
            assert_same_logits(logits, expected) if count else None
            assert run(images)[1].equal(keep_probs >= 0.5)
            several = torch.stack([policy, ~policy])
            with torch.no_grad():
                torch.testing.assert_close(run(images, policy=several)[0], network(images, several))
        elif count:
            assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


@needs_openvino
def test_openvino_says_that_it_takes_no_parts() -> None:
    network, _ = convert(make_brought(TokenNet), **BY_NAME[TokenNet], image_size=16)
    assert blockdrop.compile(network).engine == "torch (OpenVINO can't run a network that is given by its parts)"
    with pytest.raises(BlockdropError, match="can't run a network that is given by its parts; choose torch"):
        blockdrop.compile(network, engine="openvino")


@pytest.mark.parametrize("part", ["stem_part", "head_part", "blocks.1.0", "transitions.1"])
def test_the_executor_follows_every_part_even_for_one_image(part: str) -> None:
    network, _ = convert(make_brought(MapNet), **BY_NAME[MapNet], image_size=16)
    run, image = blockdrop.compile(network, engine="torch"), torch.randn(1, 3, 16, 16)
    before, _ = run(image)
    with torch.no_grad():
        for parameter in network.get_submodule(part).parameters():
            parameter.mul_(2)
        assert_same_logits(run(image)[0], network(image))
    assert not run(image)[0].allclose(before)


class DoubledConv(nn.Conv2d):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class DoubledPool(nn.AvgPool2d):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("change", ["conv", "hook", "pool"])
def test_layers_with_a_forward_of_their_own_are_run_by_it(
    make_resnet: Callable[..., DroppableResNet], change: str, engine: Any
) -> None:
    resnet = make_resnet("R8_C10", shortcut="projection")
    branch = resnet.get_submodule("blocks.0.0")
    conv = branch.get_submodule("conv1")
    if change == "conv":
        branch.add_module("conv1", DoubledConv(16, 16, 3, padding=1, bias=False))
    elif change == "pool":
        resnet.ds[1] = nn.Sequential(DoubledPool(2), nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32))
    else:
        conv.register_forward_pre_hook(lambda _module, args: (2 * args[0],))
    resnet.eval()
    images, policy = torch.randn(5, 3, 32, 32), some_policies(5, 3)
    with torch.no_grad():
        expected = resnet(images, policy)
        assert_same_logits(resnet.folded()(images, policy), expected)
    assert_same_logits(
        blockdrop.compile(resnet, engine=engine, compile_after=1)(images, policy=policy)[0], expected
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("policy_net", ["reference", "pooled4"])
def test_the_policy_network_decides_unless_the_call_does(
    make_resnet: Callable[..., DroppableResNet], engine: Any, policy_net: str
) -> None:
    resnet = make_resnet("R14_C10")
    policy_network = make_policy_network(resnet.num_blocks, policy_net)
    run = blockdrop.compile(resnet, policy_network, engine=engine, threshold=0.4)
    for count in (1, 19):
        images = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            expected, _ = policy_network(images)
        torch.testing.assert_close(run.keep_probs(images), expected, rtol=1e-4, atol=1e-5)
        assert run(images)[1].equal(expected >= 0.4)
        assert run(images, threshold=0.7)[1].equal(expected >= 0.7)
        nothing = torch.zeros(count, resnet.num_blocks, dtype=torch.bool)
        assert run(images, policy=nothing)[1].equal(nothing)


@pytest.mark.parametrize("engine", ENGINES)
def test_several_policies_of_an_image_at_once_give_what_each_gives_alone(
    make_resnet: Callable[..., DroppableResNet], engine: Any
) -> None:
    resnet, images = make_resnet("R14_C10"), torch.randn(5, 3, 32, 32)
    run = blockdrop.compile(resnet, engine=engine, compile_after=1)
    policies = torch.stack([some_policies(5, 6), torch.rand(5, 6) < 0.5, torch.ones(5, 6, dtype=torch.bool)])
    logits, _ = run(images, policy=policies)
    assert logits.shape == (3, 5, 10)
    for alone, policy in zip(logits, policies, strict=True):
        assert_same_logits(alone, run(images, policy=policy)[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_stays_near_float32(make_resnet: Callable[..., DroppableResNet], engine: Any) -> None:
    resnet, images = make_resnet("R14_C10"), torch.randn(9, 3, 32, 32)
    policy = some_policies(9, resnet.num_blocks)
    run = blockdrop.compile(resnet, engine=engine, dtype=torch.bfloat16, compile_after=1)
    logits, _ = run(images, policy=policy)
    assert logits.dtype == torch.float32
    with torch.no_grad():
        expected = resnet(images, policy)
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_executor_follows_the_networks_that_it_was_made_from(
    make_resnet: Callable[..., DroppableResNet], engine: Any
) -> None:
    resnet, images = make_resnet("R8_C10"), torch.randn(4, 3, 32, 32)
    policy_network = make_policy_network(resnet.num_blocks)
    run = blockdrop.compile(resnet, policy_network, engine=engine, compile_after=1)
    before, _ = run(images)
    optimizer = torch.optim.Adam([*resnet.parameters(), *policy_network.parameters()], lr=0.05)
    resnet.train()
    (resnet(images).square().sum() + policy_network(images)[0].sum()).backward()
    optimizer.step()
    resnet.eval()
    logits, policy = run(images)
    assert not logits.allclose(before)
    with torch.no_grad():
        assert policy.equal(policy_network(images)[0] >= 0.5)
        assert_same_logits(logits, resnet(images, policy))
        resnet.load_state_dict(make_resnet("R8_C10").state_dict())
        assert_same_logits(run(images, policy=policy)[0], resnet(images, policy))


@pytest.mark.parametrize("engine", ENGINES)
def test_empty_non_contiguous_and_channels_last_batches(
    make_resnet: Callable[..., DroppableResNet], engine: Any
) -> None:
    resnet = make_resnet("R8_C10")
    run = blockdrop.compile(resnet, make_policy_network(resnet.num_blocks), engine=engine)
    logits, policy = run(torch.zeros(0, 3, 32, 32))
    assert logits.shape == (0, 10)
    assert policy.shape == (0, resnet.num_blocks)
    images = torch.randn(7, 3, 32, 32)
    expected, _ = run(images)
    assert_same_logits(run(images.to(memory_format=torch.channels_last))[0], expected)
    apart = torch.randn(14, 3, 32, 64)
    apart[::2, :, :, ::2] = images
    assert_same_logits(run(apart[::2, :, :, ::2])[0], expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_networks_are_left_as_they_are(make_resnet: Callable[..., DroppableResNet], engine: Any) -> None:
    resnet = make_resnet("R8_C10").train()
    policy_network = make_policy_network(resnet.num_blocks).train()
    before = copy.deepcopy((resnet.state_dict(), policy_network.state_dict()))
    blockdrop.compile(resnet, policy_network, engine=engine, dtype=torch.bfloat16)(torch.randn(5, 3, 32, 32))
    for network, state in zip((resnet, policy_network), before, strict=True):
        assert network.training
        assert all(value.equal(state[key]) for key, value in network.state_dict().items())
        assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("engine", ENGINES)
def test_it_may_be_made_and_called_in_inference_mode(
    make_resnet: Callable[..., DroppableResNet], engine: Any
) -> None:
    resnet = make_resnet("R8_C10")
    policy_network = make_policy_network(resnet.num_blocks)
    plain = blockdrop.compile(resnet, policy_network, engine=engine, compile_after=8)
    images = torch.randn(40, 3, 32, 32)
    expected, policy = plain(images)
    with torch.inference_mode():
        made_inside = blockdrop.compile(resnet, policy_network, engine=engine, compile_after=8)
        for run in (plain, made_inside):
            for batch in (images.clone(), images[:1].clone()):
                logits, ran = run(batch)
                assert_same_logits(logits, expected[: len(batch)])
                assert ran.equal(policy[: len(batch)])


@pytest.mark.parametrize("engine", ENGINES)
def test_the_input_is_left_as_it_is(make_resnet: Callable[..., DroppableResNet], engine: Any) -> None:
    run = blockdrop.compile(make_resnet("R8_C10"), engine=engine, compile_after=1)
    for count in (1, 20):
        images = torch.randn(count, 3, 32, 32).to(memory_format=torch.channels_last)
        before = images.clone()
        run(images)
        assert images.equal(before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"images": torch.zeros(2, 3, 32, 32, dtype=torch.float64)}, "expected float32 \\(N, 3, H, W\\)"),
        ({"images": torch.zeros(3, 32, 32)}, "expected float32 \\(N, 3, H, W\\)"),
        ({"images": torch.zeros(2, 3, 32, 32), "policy": torch.ones(2, 4, dtype=torch.bool)}, "\\(2, 3\\)"),
        ({"images": torch.zeros(2, 3, 32, 32), "policy": torch.ones(2, 3)}, "torch.bool"),
        ({"images": torch.zeros(2, 3, 32, 32), "threshold": 1.0}, "above 0 and below 1"),
        (
            {"images": torch.zeros(2, 3, 32, 32), "threshold": 0.5, "policy": torch.ones(2, 3, dtype=torch.bool)},
            "pass one of the two",
        ),
    ],
)
def test_wrong_input_is_named(
    make_resnet: Callable[..., DroppableResNet], call: dict[str, Any], message: str
) -> None:
    run = blockdrop.compile(make_resnet("R8_C10"), engine="torch")
    with pytest.raises(ValueError, match=message):
        run(call.pop("images"), **call)


def test_wrong_settings_are_named(make_resnet: Callable[..., DroppableResNet]) -> None:
    resnet: Any = make_resnet("R8_C10")
    with pytest.raises(ValueError, match=r"torch\.float16"):
        blockdrop.compile(resnet, dtype=torch.float16)
    with pytest.raises(BlockdropError, match="choose auto, torch or openvino"):
        blockdrop.compile(resnet, engine="tensorrt")  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_plain_net_can_not_be_warmed_for_a_policy_that_drops_a_block(engine: Any) -> None:
    run = blockdrop.compile(blockdrop.build_static("plain8_C10"), engine=engine)
    with pytest.raises(ValueError, match="drops blocks"):
        run.warm(torch.zeros(4, 3, dtype=torch.bool))


def test_a_plain_net_takes_no_policy_network() -> None:
    with pytest.raises(BlockdropError, match="PlainNet has no blocks that a policy network could drop"):
        blockdrop.compile(blockdrop.build_static("plain8_C10"), blockdrop.build("R8_C10")[1])


@needs_openvino
def test_a_network_that_openvino_cannot_express_runs_in_torch(make_resnet: Callable[..., DroppableResNet]) -> None:
    resnet, images = make_resnet("R8_C10"), torch.randn(3, 3, 32, 32)
    resnet.fc = nn.Sequential(nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 10))
    run = blockdrop.compile(resnet)
    assert "GELU" in run.engine
    with torch.no_grad():
        assert_same_logits(run(images)[0], resnet(images))
    with pytest.raises(BlockdropError, match="GELU"):
        blockdrop.compile(resnet, engine="openvino")


@needs_openvino
def test_programs_stay_within_their_memory(make_resnet: Callable[..., DroppableResNet]) -> None:
    resnet, images = make_resnet("R20_C10"), torch.randn(64, 3, 32, 32)
    run = blockdrop.compile(resnet, engine="openvino", compile_after=1, cache_bytes=6_000_000)
    programs = run._programs
    assert programs is not None
    for _ in range(4):
        policy = torch.rand(64, resnet.num_blocks) < 0.5
        logits, _ = run(images, policy=policy)
        assert 0 < programs.num_bytes <= 6_000_000
    with torch.no_grad():
        assert_same_logits(logits, resnet(images, policy))


@needs_openvino
@pytest.mark.parametrize("batch", [1, 9])
def test_warming_compiles_before_the_first_batch(make_resnet: Callable[..., DroppableResNet], batch: int) -> None:
    resnet = make_resnet("R14_C10")
    run = blockdrop.compile(resnet, make_policy_network(resnet.num_blocks), engine="openvino", compile_after=1000)
    policy = some_policies(9, resnet.num_blocks)
    run.warm(policy, batch_size=batch)
    for images, own in zip(torch.randn(9, 3, 32, 32).split(batch), policy.split(batch), strict=True):
        run(images, policy=lambda _, own=own: own)  # type: ignore[misc]
    assert run.account.images["by a program of their policy"] == pytest.approx(9)
    assert run._programs is not None
    assert run._programs.of_policy_network


@pytest.mark.parametrize("engine", ENGINES)
def test_executors_in_two_threads_give_what_they_give_in_one(
    make_resnet: Callable[..., DroppableResNet], engine: Any
) -> None:
    resnets = [make_resnet("R14_C10"), make_resnet("R14_C10")]
    executors = [blockdrop.compile(resnet, engine=engine, compile_after=8) for resnet in resnets]
    images, policy = torch.randn(24, 3, 32, 32), some_policies(24, 6)
    with torch.no_grad():
        expected = [resnet(images, policy) for resnet in resnets]
    failures: list[BaseException] = []

    def use(which: int, other: int) -> None:
        try:
            for turn in range(6):  # both threads use both executors
                index = which if turn % 2 else other
                assert_same_logits(executors[index](images, policy=policy)[0], expected[index])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=pair) for pair in ((0, 1), (1, 0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_making_an_executor_leaves_torchs_thread_count_alone(make_resnet: Callable[..., DroppableResNet]) -> None:
    before = torch.get_num_threads()
    blockdrop.compile(make_resnet("R8_C10"), engine="torch")(torch.randn(40, 3, 32, 32))
    assert torch.get_num_threads() == before
