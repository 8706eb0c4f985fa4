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
