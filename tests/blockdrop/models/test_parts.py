"""Networks that are given by their parts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockdrop.models.conversion import convert
from blockdrop.models.parts import DroppableParts
from blockdrop.models.policy_networks import build_policy_network, folded_policy_network, name_of
from tests.blockdrop.models.brought import BY_NAME, MapBlock, MapNet, TokenNet, ToTokens, images_of, make

KINDS = pytest.mark.parametrize("kind", [MapNet, TokenNet])


def parts_of(kind: type[nn.Module]) -> tuple[nn.Module, DroppableParts]:
    """A model, and the network of its parts."""
    model = make(kind)
    network, _ = convert(model, **BY_NAME[kind], image_size=16)
    assert isinstance(network, DroppableParts)
    return model, network


@KINDS
def test_dropping_a_block_equals_removing_it(kind: type[nn.Module]) -> None:
    model, network = parts_of(kind)
    images = images_of()
    for k in range(network.num_blocks):
        without: Any = copy.deepcopy(model)
        stages = [without.first, without.second] if kind is MapNet else [without.blocks]
        for stage in stages:
            if 0 <= (index := k - sum(map(len, stages[: stages.index(stage)]))) < len(stage):
                stage[index] = nn.Identity()
        policy = torch.ones(5, network.num_blocks, dtype=torch.bool)
        policy[:, k] = False
        with torch.no_grad():
            torch.testing.assert_close(network(images, policy), without(images))
            torch.testing.assert_close(network(images, policy, "masked"), without(images))
        assert not network(images, policy).allclose(model(images))


def test_transitions_run_for_every_image_whatever_its_policy() -> None:
    model, network = parts_of(MapNet)
    images = images_of(3)
    nothing = torch.zeros(3, network.num_blocks, dtype=torch.bool)
    assert network.stage_sizes == (2, 1)
    with torch.no_grad():
        torch.testing.assert_close(network(images, nothing), model.head(model.down(model.stem(images))))  # type: ignore[operator]


def test_a_branch_is_added_to_its_input() -> None:
    branches = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)]
    network = DroppableParts(nn.Conv2d(3, 4, 1), [branches], nn.Flatten(), residual="branch").eval()
    images = images_of(3, 4)
    x = network.stem(images)
    first, second = x + branches[0](x), x + branches[1](x)
    policy = torch.tensor([[True, False], [False, True], [False, False]])
    expected = torch.stack([first[0], second[1], x[2]]).flatten(1)
    torch.testing.assert_close(network(images, policy), expected)
    torch.testing.assert_close(network(images, policy, "masked"), expected)


def test_images_handed_in_stay_as_they_are_behind_a_stem_that_gives_them_back() -> None:
    network = DroppableParts(nn.Identity(), [[MapBlock(3), MapBlock(3)]], nn.Flatten()).eval()
    images = images_of(3, 4)
    before = images.clone()
    with torch.no_grad():
        network(images, torch.tensor([[True, False], [False, True], [False, False]]))
    assert images.equal(before)


@KINDS
def test_a_folded_copy_is_ready_for_inference_and_apart(kind: type[nn.Module]) -> None:
    _, network = parts_of(kind)
    images, policy = images_of(), torch.rand(5, network.num_blocks) < 0.5
    folded = network.train().folded()
    assert network.training
    assert not any(module.training for module in folded.modules())
    with torch.no_grad():
        expected = network.eval()(images, policy)
        for parameter in network.parameters():
            parameter.zero_()
        torch.testing.assert_close(folded(images, policy), expected)


@pytest.mark.parametrize(
    ("policy", "message"), [(torch.ones(5, 3), "torch.bool"), (torch.ones(5, 4).bool(), r"\(5, 3\)")]
)
def test_a_policy_of_another_kind_is_named(policy: Tensor, message: str) -> None:
    _, network = parts_of(TokenNet)
    with pytest.raises(ValueError, match=message):
        network(images_of(), policy)


def test_a_transition_for_each_stage() -> None:
    with pytest.raises(ValueError, match="transitions: got 1 for 2 stages"):
        DroppableParts(nn.Identity(), [[MapBlock(3)], [MapBlock(3)]], nn.Identity(), [None])


# ---- policy networks that look through its stem


@KINDS
def test_a_policy_network_looks_through_the_stem_and_training_it_changes_nothing_of_it(
    kind: type[nn.Module],
) -> None:
    _, network = parts_of(kind)
    network.train()
    before = copy.deepcopy(network.state_dict())
    policy_network = build_policy_network(network.num_blocks, policy_net="stem", backbone=network)
    assert policy_network.features.get_submodule("stem_part") is network.stem_part
    assert name_of(policy_network, large_images=False) == "stem"
    own = policy_network.own_parameters()
    optimizer = torch.optim.Adam(own, lr=0.1)
    started = [parameter.detach().clone() for parameter in own]
    for _ in range(2):
        policy_network.train()
        keep_probs, value = policy_network(images_of(6))
        optimizer.zero_grad()
        (keep_probs.sum() + value.sum()).backward()
        optimizer.step()
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not [start for start, parameter in zip(started, own, strict=True) if start.equal(parameter)]
    assert all(module.training for module in network.modules()), "train() leaves the stem's mode alone"


@KINDS
def test_folding_such_a_policy_network_keeps_its_decisions(kind: type[nn.Module]) -> None:
    _, network = parts_of(kind)
    policy_network = build_policy_network(network.num_blocks, policy_net="stem", backbone=network)
    policy_network(images_of(6)), policy_network.eval()
    nn.init.normal_(policy_network.logit.weight)
    images = images_of()
    with torch.no_grad():
        keep_probs, _ = policy_network(images)
        torch.testing.assert_close(folded_policy_network(policy_network)(images)[0], keep_probs)
    assert not keep_probs[0].allclose(keep_probs[1])


class DroppingStem(nn.Sequential):
    """A stem that is random in training."""


def test_the_policy_network_sees_the_stem_as_at_inference_in_training_too() -> None:
    stem = DroppingStem(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    network = DroppableParts(stem, [[MapBlock(4)]], nn.Flatten(), stem_shape=(4, 14, 14))
    policy_network = build_policy_network(1, policy_net="stem", backbone=network).eval()
    images = images_of()
    with torch.no_grad():
        expected, _ = policy_network(images)
        network.train()
        torch.testing.assert_close(policy_network(images)[0], expected)
    assert stem[1].num_batches_tracked == 0


@pytest.mark.parametrize("shape", [(6, 8, 8), (8, 8, 6), (16, 6), (2, 2, 6)])
def test_channels_are_what_differs_from_the_sides_of_a_map(shape: tuple[int, ...]) -> None:
    class Stem(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.ones(len(images), *shape)

    network = DroppableParts(Stem(), [[MapBlock(6)]], nn.Flatten(), stem_shape=shape)
    policy_network = build_policy_network(1, policy_net="stem", backbone=network).eval()
    assert policy_network.logit.in_features == 4 * 6
    assert policy_network(images_of(2))[0].shape == (2, 1)


def test_a_stem_of_unknown_shape_lends_itself_to_no_policy_network() -> None:
    network = DroppableParts(ToTokens(8), [[MapBlock(8)]], nn.Flatten())
    with pytest.raises(ValueError, match=r"policy network stem: looks at .* not at a shape None; choose"):
        build_policy_network(1, policy_net="stem", backbone=network)
