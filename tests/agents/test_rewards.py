"""Rewards by hand-worked cases."""

import torch

from agents.rewards import blockdrop_reward


def test_reward_by_hand() -> None:
    policy = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0]]).bool()
    correct = torch.tensor([True, True, True, False])
    expected = torch.tensor([0.0, 1.0, 1 - (3 / 4) ** 2, -5.0])
    torch.testing.assert_close(blockdrop_reward(correct, policy, penalty=-5.0), expected)


def test_reward_of_several_policies_an_image() -> None:
    policies = torch.tensor([[[1, 1]], [[0, 1]]]).bool()  # (2, 1, 2)
    correct = torch.tensor([[True], [False]])
    assert blockdrop_reward(correct, policies, penalty=-1.0).tolist() == [[0.0], [-1.0]]
