"""The dynamic network as one graph with a condition for each block, and one for an answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agents.answers import ANSWER_ALL, NEVER
from blockdrop.inference.branching import BranchingNetwork, trace
from blockdrop.models.conversion import convert
from blockdrop.models.policy_networks import build_policy_network
from tests.blockdrop.models.brought import BY_NAME, MapNet, TokenNet, images_of, make


@pytest.mark.parametrize("kind", [MapNet, TokenNet])
def test_the_graph_of_a_network_by_its_parts_gives_its_logits(kind: type[nn.Module]) -> None:
    network, _ = convert(make(kind), **BY_NAME[kind], image_size=16)
    policy_network = build_policy_network(network.num_blocks, policy_net="stem", backbone=network).eval()
    nn.init.normal_(policy_network.logit.weight)
    image = images_of(1)
    keep_probs = policy_network(image)[0].detach()
    middle = keep_probs[0].median()
    graph = trace(BranchingNetwork(network, policy_network), (image, middle)).module()
    for threshold in (torch.tensor(0.0), middle, torch.tensor(1.0)):
        logits, policy, found = graph(image, threshold)
        torch.testing.assert_close(found, keep_probs)
        assert policy.equal(keep_probs >= threshold)
        torch.testing.assert_close(logits, network(image, policy))


@pytest.mark.parametrize("kind", [MapNet, TokenNet])
def test_the_graph_answers_or_adds_the_weighted_answer_to_the_logits(kind: type[nn.Module]) -> None:
    network, _ = convert(make(kind), **BY_NAME[kind], image_size=16)
    policy_network = build_policy_network(network.num_blocks, policy_net="stem", backbone=network).eval()
    nn.init.normal_(policy_network.logit.weight)
    image = images_of(1)
    policy_network.add_answer(network(image).shape[1])
    policy_network.requires_grad_(False)
    assert policy_network.answer_weight is not None
    policy_network.answer_weight.fill_(0.5)
    keep_probs, _, answer = policy_network.glance(image)
    assert answer is not None
    at = (keep_probs[0].median(), torch.tensor(NEVER))
    graph = trace(BranchingNetwork(network, policy_network), (image, *at)).module()
    for threshold in (0.0, float(at[0]), 1.0):
        for answer_threshold in (NEVER, ANSWER_ALL):
            logits, policy, found, answered, _ = graph(
                image, torch.tensor(threshold), torch.tensor(answer_threshold)
            )
            torch.testing.assert_close(found, keep_probs)
            assert answered.tolist() == [answer_threshold == ANSWER_ALL]
            assert policy.equal((keep_probs >= threshold) & ~answered)
            expected = answer if answered else network(image, policy) + 0.5 * answer
            torch.testing.assert_close(logits, expected)
