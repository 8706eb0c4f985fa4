"""Statistics of policies by hand."""

import math

import pytest
import torch

from blockdrop.policy_stats import Outcomes

OUTCOMES = Outcomes(
    policy=torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]).bool(),
    predictions=torch.tensor([0, 1, 2, 3]),
    labels=torch.tensor([0, 1, 2, 0]),
    flops=torch.tensor([300_000_000, 100_000_000, 300_000_000, 200_000_000]),
)


def test_numbers_by_hand() -> None:
    assert OUTCOMES.accuracy == 0.75
    assert OUTCOMES.block_usage == pytest.approx((2.25, math.sqrt((2 * 0.75**2 + 1.25**2 + 0.25**2) / 3)))
    assert OUTCOMES.flops_per_image == pytest.approx(
        (2.25e8, 1e8 * math.sqrt((2 * 0.75**2 + 1.25**2 + 0.25**2) / 4))
    )
    assert OUTCOMES.unique_policies == 3
    assert OUTCOMES.usage_per_block.tolist() == [1.0, 0.75, 0.5, 0.0]
    assert OUTCOMES.reward(-2.0) == pytest.approx((2 * (1 - 9 / 16) + 15 / 16 - 2) / 4)


def test_the_four_lines_in_the_references_format() -> None:
    assert OUTCOMES.four_lines() == (
        "    Accuracy: 0.750\n"
        "    Block Usage: 2.250 ± 0.957\n"
        "    FLOPs/img: 2.25E+08 ± 8.29E+07\n"
        "    Unique Policies: 3"
    )
