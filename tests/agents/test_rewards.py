"""Rewards by hand-worked cases."""

import math

import pytest
import torch
from torch import Tensor

from agents.rewards import Reward, blockdrop_reward, cost_share

COSTS = torch.tensor([6, 1, 1])
POLICIES = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1]]).bool()  # shares of the costs: 1, 1/8, 7/8
LABELS = torch.tensor([0, 0, 0])
LOGITS = torch.tensor([[3.0, 1.0], [math.log(3.0), 0.0], [0.0, math.log(3.0)]])  # right, right, wrong


def test_reward_by_hand() -> None:
    policy = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0]]).bool()
    correct = torch.tensor([True, True, True, False])
    expected = torch.tensor([0.0, 1.0, 1 - (3 / 4) ** 2, -5.0])
    torch.testing.assert_close(blockdrop_reward(correct, policy, penalty=-5.0), expected)


def test_reward_of_several_policies_an_image() -> None:
    policies = torch.tensor([[[1, 1]], [[0, 1]]]).bool()  # (2, 1, 2)
    correct = torch.tensor([[True], [False]])
    assert blockdrop_reward(correct, policies, penalty=-1.0).tolist() == [[0.0], [-1.0]]


def test_cost_share_by_hand() -> None:
    torch.testing.assert_close(cost_share(POLICIES, COSTS), torch.tensor([1, 1 / 8, 7 / 8]))
    torch.testing.assert_close(cost_share(POLICIES), torch.tensor([1, 1 / 3, 2 / 3]))


def test_blocks_that_cost_alike_make_flops_and_blockdrop_the_same() -> None:
    correct = torch.tensor([True, True, False])
    alike = blockdrop_reward(correct, POLICIES, -1.0, torch.full((3,), 7))
    torch.testing.assert_close(alike, blockdrop_reward(correct, POLICIES, -1.0))


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (Reward("blockdrop", penalty=-2.0), [0, 1 - (1 / 3) ** 2, -2]),
        (Reward("blockdrop", penalty=-2.0, costs=COSTS), [0, 1 - (1 / 3) ** 2, -2]),
        (Reward("flops", penalty=-2.0, costs=COSTS), [0, 1 - (1 / 8) ** 2, -2]),
        (
            Reward("log_likelihood", penalty=-2.0, costs=COSTS),
            [
                2 * math.log(1 / (1 + math.exp(-2))),
                1 - (1 / 8) ** 2 + 2 * math.log(3 / 4),
                1 - (7 / 8) ** 2 + 2 * math.log(1 / 4),
            ],
        ),
    ],
    ids=["blockdrop", "blockdrop with costs", "flops", "log_likelihood"],
)
def test_rewards_by_name_by_hand(reward: Reward, expected: list[float]) -> None:
    torch.testing.assert_close(reward(LOGITS, LABELS, POLICIES), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (Reward("flops", penalty=-2.0, costs=COSTS), [1 - 4, 1 - 4 / 8, -2 - 4 * 7 / 8]),
        (Reward("blockdrop", penalty=-2.0, costs=COSTS), [1 - 4, 1 - 4 / 8, -2 - 4 * 7 / 8]),
        (Reward("blockdrop", penalty=-2.0), [1 - 4, 1 - 4 / 3, -2 - 4 * 2 / 3]),
        (
            Reward("log_likelihood", penalty=-2.0, costs=COSTS),
            [
                1 - 4 + 2 * math.log(1 / (1 + math.exp(-2))),
                1 - 4 / 8 + 2 * math.log(3 / 4),
                1 - 4 * 7 / 8 + 2 * math.log(1 / 4),
            ],
        ),
    ],
    ids=["flops", "blockdrop with costs", "blockdrop", "log_likelihood"],
)
def test_a_price_charges_for_the_share_itself(reward: Reward, expected: list[float]) -> None:
    charged = reward(LOGITS, LABELS, POLICIES, price=4.0)
    torch.testing.assert_close(charged, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("name", ["blockdrop", "flops", "log_likelihood"])
@pytest.mark.parametrize("price", [None, 0.5])
def test_several_policies_an_image_are_paid_one_by_one(name: str, price: float | None) -> None:
    reward = Reward(name, costs=COSTS)  # type: ignore[arg-type]
    logits, policies, labels = torch.randn(4, 3, 5), torch.rand(4, 3, 3) < 0.5, torch.tensor([4, 0, 2])
    paid = reward(logits, labels, policies, price)
    assert (paid.shape, paid.dtype) == ((4, 3), torch.float32)
    one_by_one = [reward(*row, price) for row in zip(logits, [labels] * 4, policies, strict=True)]
    torch.testing.assert_close(paid, torch.stack(one_by_one))


def test_log_likelihood_tells_a_near_miss_from_a_bad_one() -> None:
    def paid(name: str, margin: float) -> Tensor:
        reward = Reward(name, costs=COSTS)  # type: ignore[arg-type]
        return reward(torch.tensor([[0.0, margin]]), torch.tensor([0]), POLICIES[:1])

    assert paid("log_likelihood", 0.1) > paid("log_likelihood", 3.0)
    assert paid("flops", 0.1) == paid("flops", 3.0)


def test_bfloat16_logits_are_judged_in_float32() -> None:
    reward = Reward("log_likelihood", costs=COSTS)
    rounded = LOGITS.bfloat16()
    torch.testing.assert_close(reward(rounded, LABELS, POLICIES), reward(rounded.float(), LABELS, POLICIES))


def test_unknown_rewards_and_missing_costs_are_named() -> None:
    with pytest.raises(ValueError, match="unknown reward accuracy; choose blockdrop, flops, log_likelihood"):
        Reward("accuracy")  # type: ignore[arg-type]
    for name in ("flops", "log_likelihood"):
        with pytest.raises(ValueError, match=f"reward {name}: needs each block's costs"):
            Reward(name)  # type: ignore[arg-type]
