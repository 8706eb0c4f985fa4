"""The policy network with a fake feature extractor."""

import torch
from torch import nn

from agents.policy_network import PolicyNetwork


def test_input_is_pooled_first() -> None:
    network = PolicyNetwork(nn.Flatten(), 3 * 4 * 4, num_blocks=6, input_pool=2)
    image = torch.rand(2, 3, 8, 8)
    pooled = image.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    keep_probs, value = network(image)
    torch.testing.assert_close(keep_probs, network.logit(pooled.flatten(1)).sigmoid())
    torch.testing.assert_close(value, network.vnet(pooled.flatten(1)))
    assert network.num_blocks == 6


def test_borrowed_modules_are_not_its_own_to_train() -> None:
    lent, own = nn.Linear(4, 4), nn.Linear(4, 2)
    features = nn.Sequential(lent, own)
    network = PolicyNetwork(features, 2, num_blocks=3)
    assert len(network.own_parameters()) == len(list(network.parameters())) == 8
    features.borrowed = (lent,)  # type: ignore[assignment]
    expected = [*own.parameters(), *network.logit.parameters(), *network.vnet.parameters()]
    assert [id(parameter) for parameter in network.own_parameters()] == [id(parameter) for parameter in expected]
