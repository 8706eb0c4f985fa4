"""The dynamic network as one graph with a condition for each block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blockdrop.inference.branching import BranchingNetwork
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
    graph = torch.export.export(BranchingNetwork(network, policy_network), (image, middle)).module()
    for threshold in (torch.tensor(0.0), middle, torch.tensor(1.0)):
        logits, policy, found = graph(image, threshold)
        torch.testing.assert_close(found, keep_probs)
        assert policy.equal(keep_probs >= threshold)
        torch.testing.assert_close(logits, network(image, policy))
