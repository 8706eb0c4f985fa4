"""Policy networks that share the backbone's stem, and those that look at nothing."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import blockdrop
from agents.policy_network import PolicyNetwork
from blockdrop import DroppableResNet, Variant, build, cl_train, count, evaluate, load_checkpoint, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.data.sets import Preprocessing
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError, CheckpointError
from blockdrop.flops import count_flops
from blockdrop.inference import openvino_engine
from blockdrop.inference.exported import Networks, write_safetensors
from blockdrop.models.checkpoints.dialects import read_checkpoint
from blockdrop.models.checkpoints.filling import load_policy_trunk
from blockdrop.models.policy_networks import (
    Standardise,
    StemFeatures,
    build_policy_network,
    folded_policy_network,
    name_of,
)
from blockdrop.names import POLICY_NETS
from tests.conftest import randomise_statistics

Pair = tuple[DroppableResNet, PolicyNetwork]
ENGINES = ["torch", *(["openvino"] if openvino_engine.is_installed() else [])]


def make_pair(name: str = "R14_C10", policy_net: str = "stem", **options: Any) -> Pair:
    """As if trained: statistics that matter, keep probabilities all over (0, 1), in eval mode."""
    resnet, policy_network = build(name, policy_net=policy_net, **options)
    for network in (resnet, policy_network):
        randomise_statistics(network)
        network.eval()
    nn.init.normal_(policy_network.logit.weight, std=0.5)
    nn.init.normal_(policy_network.logit.bias, std=0.5)
    return resnet, policy_network


def save(path: Path, pair: Pair, policy_net: str = "stem", model: str = "R14_C10", **options: Any) -> Path:
    resnet, policy_network = pair
    normalisation = NORMALISATIONS["cifar"]
    save_checkpoint(
        path,
        model=model,
        resnet=resnet,
        policy_network=policy_network,
        policy_net=policy_net,
        normalisation=normalisation,
        **options,
    )
    return path


def keep_probs_of(policy_network: PolicyNetwork, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return policy_network(images)[0]


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_same_state(module: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert not [key for key in before if not after[key].equal(before[key])]


@pytest.mark.parametrize("policy_net", ["stem", "constant"])
def test_a_copy_a_folded_copy_and_the_executor_decide_alike(policy_net: str) -> None:
    resnet, policy_network = make_pair(policy_net=policy_net)
    images = torch.randn(7, 3, 32, 32)
    expected = keep_probs_of(policy_network, images)
    copies = [copy.deepcopy(policy_network), folded_policy_network(policy_network)]
    found = [keep_probs_of(network, images) for network in copies]
    for engine in ENGINES:
        run = blockdrop.compile(resnet, policy_network, engine=engine)  # type: ignore[arg-type]
        found += [run.keep_probs(images), torch.cat([run.keep_probs(image[None]) for image in images])]
        assert run(images)[1].equal(expected >= 0.5)
    for keep_probs in found:
        torch.testing.assert_close(keep_probs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_training_the_decider_leaves_the_backbone_bit_equal(training: bool) -> None:
    resnet, policy_network = make_pair()
    resnet.train(training)
    before, own = state_of(resnet), policy_network.own_parameters()
    started = [parameter.detach().clone() for parameter in own]
    optimizer = torch.optim.Adam(own, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        policy_network.train()
        keep_probs, value = policy_network(torch.randn(6, 3, 32, 32))
        optimizer.zero_grad()
        (keep_probs.sum() + value.sum()).backward()
        optimizer.step()
    assert_same_state(resnet, before)
    assert all(module.training == training for module in resnet.modules()), "train() leaves the stem's mode alone"
    assert not [start for start, parameter in zip(started, own, strict=True) if start.equal(parameter)]
    assert all(parameter.grad is None for parameter in resnet.parameters())


def test_what_all_images_share_of_the_stem_deciders_logits_is_their_bias() -> None:
    _, policy_network = make_pair()
    policy_network.train()
    keep_probs, _ = policy_network(3 * torch.randn(16, 3, 32, 32))
    torch.testing.assert_close(keep_probs.logit().mean(0), policy_network.logit.bias, atol=1e-5, rtol=0)
    assert keep_probs.logit().std(0).min() > 0.5


def test_features_are_standardised_over_images_a_single_one_by_the_running_statistics() -> None:
    standardise, features = Standardise(4), 3 + 2 * torch.randn(50, 4)
    expected = (features - features.mean(0)) / features.std(0, correction=0)
    torch.testing.assert_close(standardise(features), expected, rtol=1e-4, atol=1e-4)
    assert standardise.running_mean is not None
    assert standardise.running_var is not None
    standardise.running_mean.fill_(3.0)
    standardise.running_var.fill_(4.0)
    torch.testing.assert_close(standardise(features[:1]), (features[:1] - 3) / 2, rtol=1e-4, atol=1e-4)
    assert standardise.running_mean.eq(3.0).all()
    assert not list(standardise.parameters())


def test_a_stem_decider_from_before_features_were_standardised_still_decides_alike(tmp_path: Path) -> None:
    resnet, policy_network = make_pair()
    assert isinstance(policy_network.features, StemFeatures)
    policy_network.features.standardise = nn.Identity()
    images = torch.randn(7, 3, 32, 32)
    expected = keep_probs_of(policy_network, images)
    path = save(tmp_path / "old.t7", (resnet, policy_network))
    newer = build("R14_C10", policy_net="stem")
    load_checkpoint(path, resnet=newer[0], policy_network=newer[1])
    torch.testing.assert_close(keep_probs_of(newer[1].eval(), images), expected, rtol=0, atol=1e-5)


def test_the_decider_sees_the_same_map_whatever_the_backbones_mode() -> None:
    resnet, policy_network = make_pair()
    features, images = policy_network.features, torch.randn(4, 3, 32, 32)
    assert isinstance(features, StemFeatures)
    with torch.no_grad():
        expected = nn.functional.avg_pool2d(resnet.stem(images), 4)
        for training in (False, True):
            resnet.train(training)
            torch.testing.assert_close(features.stem(images), expected)
    assert expected.shape == (4, 16, 8, 8)


def test_eval_is_for_all_so_that_copies_are_ready_for_inference() -> None:
    resnet, policy_network = make_pair()
    resnet.train()
    policy_network.train()
    inference_copy = copy.deepcopy(policy_network).eval()
    assert not any(module.training for module in inference_copy.modules())
    assert all(module.training for module in (*resnet.modules(), *policy_network.modules()))


def test_a_decider_follows_the_stem_that_it_shares() -> None:
    resnet, policy_network = make_pair()
    run = blockdrop.compile(resnet, policy_network, engine="torch")
    images = torch.randn(2, 3, 32, 32)
    before = run.keep_probs(images)
    with torch.no_grad():
        resnet.conv1.weight.mul_(2)  # type: ignore[operator]
    after = run.keep_probs(images)
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, keep_probs_of(policy_network, images))


def test_flops_by_hand() -> None:
    stem = 32**2 * 16 * 3 * 9
    first, second = 8**2 * 32 * 16 * 9, 4**2 * 64 * 32 * 9
    assert count_flops(*build("R32_C10", policy_net="stem")).policy_network == 2 * (
        stem + first + second + 64 * (15 + 1)
    )
    assert count_flops(*build("R32_C10", policy_net="constant")).policy_network == 0


@pytest.mark.parametrize("policy_net", ["stem", "constant"])
def test_torchs_flop_counter_agrees_on_a_real_run(policy_net: str) -> None:
    resnet, policy_network = make_pair("R8_C10", policy_net)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy_network(torch.randn(1, 3, 32, 32))
    assert count_flops(resnet, policy_network).policy_network == counter.get_total_flops()


def test_for_large_images_the_decider_sees_8_by_8_pixels_too() -> None:
    resnet, policy_network = make_pair("R18_ImgNet")
    features, images = policy_network.features, torch.randn(2, 3, 224, 224)
    assert isinstance(features, StemFeatures)
    assert features.stem(images).shape == (2, 64, 8, 8)
    keep_probs = keep_probs_of(policy_network, images)
    assert keep_probs.shape == (2, 8)
    run = blockdrop.compile(resnet, policy_network, engine="torch")
    torch.testing.assert_close(run.keep_probs(images), keep_probs, rtol=0, atol=1e-5)
    flops = 2 * (112**2 * 64 * 3 * 49 + 8**2 * 128 * 64 * 9 + 4**2 * 256 * 128 * 9 + 256 * 9)
    assert count_flops(resnet, policy_network, 224).policy_network == flops


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("R8_C10", {"variant": Variant(reduction=2, reduction_mode="net")}),
        ("shiftresnet8_C10", {}),
        ("R18_C10", {}),
    ],
)
def test_any_droppable_backbone_lends_its_stem(name: str, options: dict[str, Any]) -> None:
    resnet, policy_network = make_pair(name, **options)
    keep_probs = keep_probs_of(policy_network, torch.randn(2, 3, 32, 32))
    assert keep_probs.shape == (2, resnet.num_blocks)
    assert not keep_probs[0].equal(keep_probs[1])


def test_a_torchvision_network_lends_its_stem() -> None:
    resnet = blockdrop.from_torchvision(torchvision.models.resnet18())
    before = state_of(resnet)
    policy_network = build_policy_network(resnet.num_blocks, True, "stem", backbone=resnet)
    assert policy_network.features.get_submodule("conv1") is resnet.conv1
    assert_same_state(resnet, before)


def test_a_constant_decider_has_one_policy_for_all_images_and_can_learn_it() -> None:
    _, policy_network = build("R14_C10", policy_net="constant")
    optimizer = torch.optim.Adam(policy_network.own_parameters(), lr=0.1)
    for _ in range(3):
        keep_probs, value = policy_network(torch.randn(5, 3, 32, 32))
        assert keep_probs.shape == (5, 6)
        assert keep_probs.equal(keep_probs[:1].expand(5, 6))
        optimizer.zero_grad()
        (keep_probs[:, 0].sum() - keep_probs[:, 1].sum() + value.sum()).backward()
        optimizer.step()
    keep_probs, _ = policy_network(torch.randn(1, 3, 32, 32))
    assert keep_probs[0, 0] < keep_probs[0, 2] == 0.5 < keep_probs[0, 1]
    assert sum(parameter.numel() for parameter in policy_network.parameters()) == 6 + 1


@pytest.mark.parametrize("policy_net", POLICY_NETS)
def test_every_image_starts_from_the_initial_keep_probability(policy_net: str) -> None:
    states = []
    for options in ({}, {"initial_keep": 0.9}):
        torch.manual_seed(3)
        resnet, _ = build("R8_C10")
        network = build_policy_network(3, policy_net=policy_net, backbone=resnet, **options)  # type: ignore[arg-type]
        states.append(state_of(network))
    plain, near_all = states
    torch.testing.assert_close(keep_probs_of(network.eval(), torch.randn(5, 3, 32, 32)), torch.full((5, 3), 0.9))
    changed = [key for key in plain if not plain[key].equal(near_all[key])]
    assert changed == [key for key in ("logit.weight", "logit.bias") if near_all[key].numel()]
    assert name_of(network, large_images=False) == policy_net


def test_bad_options_are_named() -> None:
    resnet, _ = build("R8_C10")
    with pytest.raises(BlockdropError, match=r"initial keep probability 1\.0: must be above 0 and below 1"):
        build_policy_network(3, initial_keep=1.0)
    with pytest.raises(ValueError, match="pass backbone="):
        build_policy_network(3, policy_net="stem")
    with pytest.raises(BlockdropError, match="choose reference, pooled, pooled4, stem, constant"):
        build_policy_network(3, policy_net="big", backbone=resnet)


# ---- checkpoints


@pytest.mark.parametrize("both_at_once", [True, False])
def test_loading_fills_the_shared_stem_in_place(tmp_path: Path, both_at_once: bool) -> None:
    trained = make_pair()
    path = save(tmp_path / "c.t7", trained)
    resnet, policy_network = build("R14_C10", policy_net="stem")
    if both_at_once:
        checkpoint = load_checkpoint(path, resnet=resnet, policy_network=policy_network)
        assert checkpoint.policy_net == "stem"
    else:
        load_checkpoint(path, resnet=resnet)
        load_checkpoint(path, policy_network=policy_network)
    assert_same_state(resnet, trained[0].state_dict())
    assert_same_state(policy_network, trained[1].state_dict())
    assert policy_network.features.get_submodule("conv1") is resnet.conv1
    assert policy_network.features.get_submodule("bn1") is resnet.bn1


@pytest.mark.parametrize("with_backbone", [True, False])
def test_a_decider_refuses_another_backbones_stem(tmp_path: Path, with_backbone: bool) -> None:
    path = save(tmp_path / "c.t7", trained := make_pair())
    if not with_backbone:
        torch.save({"agent": trained[1].state_dict()}, path)
    resnet, policy_network = make_pair()
    before, policy_before = state_of(resnet), state_of(policy_network)
    with pytest.raises(CheckpointError, match="the stem of another backbone than this one; load its own backbone"):
        load_checkpoint(path, policy_network=policy_network)
    assert_same_state(resnet, before)
    assert_same_state(policy_network, policy_before)

    other = save(tmp_path / "other.t7", make_pair())
    checkpoint = read_checkpoint(other)
    checkpoint.policy_network = read_checkpoint(path).policy_network
    with pytest.raises(CheckpointError, match="the stem of another backbone"):
        load_checkpoint(checkpoint, resnet=resnet, policy_network=policy_network)
    assert_same_state(resnet, before)


def test_another_kind_of_policy_network_is_named(tmp_path: Path) -> None:
    for policy_net in ("stem", "constant", "pooled4"):
        path = save(tmp_path / policy_net, make_pair("R8_C10", policy_net), policy_net, "R8_C10")
        for other in POLICY_NETS:
            resnet, policy_network = build("R8_C10", policy_net=other)
            if other == policy_net:
                load_checkpoint(path, resnet=resnet, policy_network=policy_network)
                continue
            with pytest.raises(CheckpointError, match=f"policy_net={policy_net} is needed"):
                load_checkpoint(path, resnet=resnet, policy_network=policy_network)


@pytest.mark.parametrize("policy_net", ["stem", "constant"])
def test_these_have_no_trunk_that_could_start_from_a_backbone(tmp_path: Path, policy_net: str) -> None:
    path = save(tmp_path / "c.t7", make_pair())
    resnet, policy_network = make_pair(policy_net=policy_net)
    before = state_of(resnet)
    with pytest.raises(CheckpointError, match=r"no trunk to start from a backbone; reference, pooled and pooled4"):
        load_policy_trunk(path, policy_network)
    assert_same_state(resnet, before)


@pytest.mark.parametrize("policy_net", ["stem", "constant"])
def test_safetensors_hold_and_bring_back_both(tmp_path: Path, policy_net: str) -> None:
    pytest.importorskip("safetensors")
    resnet, policy_network = make_pair(policy_net=policy_net)
    dynamic = DynamicNetwork(
        resnet,
        policy_network,
        model="R14_C10",
        preprocessing=Preprocessing.usual(32, NORMALISATIONS["cifar"]),
        policy_net=policy_net,
    )
    write_safetensors(Networks(dynamic, dynamic.thresholds), tmp_path / "net.safetensors")
    found, found_policy = make_pair(policy_net=policy_net)
    load_checkpoint(tmp_path / "net.safetensors", resnet=found, policy_network=found_policy)
    assert_same_state(found, resnet.state_dict())
    assert_same_state(found_policy, policy_network.state_dict())


# ---- commands


@pytest.mark.parametrize("policy_net", ["stem", "constant"])
def test_a_saved_pair_evaluates_and_counts_as_it_was(
    tmp_path: Path, image_tree: Path, command: Callable[..., tuple[int, str, str]], policy_net: str
) -> None:
    pair = make_pair("R8_Folder", policy_net, num_classes=2)
    nn.init.constant_(pair[1].logit.weight, 0)
    nn.init.constant_(pair[1].logit.bias, 1)
    pair[1].logit.bias.data[1] = -1
    path = save(tmp_path / "c.t7", pair, policy_net, "R8_Folder", classes=["cat", "dog"])
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--load", path, "--json", tmp_path / "e.json")
    assert command(evaluate, *flags, "--policy_net", policy_net)[0] == 0
    numbers = json.loads((tmp_path / "e.json").read_text())
    table = count_flops(*pair)
    assert numbers["usage_per_block"] == [1, 0, 1]
    assert numbers["flops_mean"] == table.full - table.blocks[1] + table.policy_network

    own = sum(parameter.numel() for parameter in pair[1].own_parameters())
    code, out, _ = command(count, "--load", path)
    assert code == 0
    assert f"Policy network ({policy_net}): {own} parameters, {table.policy_network} FLOPs" in out


@pytest.mark.parametrize("policy_net", ["stem", "constant"])
def test_the_curriculum_trains_the_decider_and_leaves_the_backbone_alone(
    tmp_path: Path, image_tree: Path, command: Callable[..., tuple[int, str, str]], policy_net: str
) -> None:
    resnet, _ = make_pair("R8_Folder", "reference", num_classes=2)
    save_checkpoint(
        tmp_path / "p.t7", model="R8_Folder", resnet=resnet, normalisation=NORMALISATIONS["none"],
        classes=["cat", "dog"],
    )  # fmt: skip
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--batch_size", 6, "--max_epochs", 1, "--wd", 0.1)
    run = ("--load", tmp_path / "p.t7", "--policy_net", policy_net, "--cv_dir", tmp_path / "c")
    assert command(cl_train, *flags, *run)[0] == 0
    kept = read_checkpoint(tmp_path / "c")
    assert kept.policy_net == policy_net
    assert kept.resnet is not None
    assert kept.policy_network is not None
    assert not [key for key, value in resnet.state_dict().items() if not kept.resnet[key].equal(value)]
    assert bool(kept.policy_network["logit.bias"].any())
    fresh = build("R8_Folder", num_classes=2, policy_net=policy_net)
    load_checkpoint(tmp_path / "c", *fresh)
