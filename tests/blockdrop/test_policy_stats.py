"""Statistics of policies by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.rewards import Reward
from blockdrop.policy_stats import (
    Outcomes,
    losses_and_margins,
    policy_distances,
    policy_statistics,
    statistics_lines,
)

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
    assert OUTCOMES.reward(Reward(penalty=-2.0)) == pytest.approx((2 * (1 - 9 / 16) + 15 / 16 - 2) / 4)


def test_the_four_lines_in_the_references_format() -> None:
    assert OUTCOMES.four_lines() == (
        "    Accuracy: 0.750\n"
        "    Block Usage: 2.250 ± 0.957\n"
        "    FLOPs/img: 2.25E+08 ± 8.29E+07\n"
        "    Unique Policies: 3"
    )


# ---- what policies depend on

FULL = Outcomes(
    policy=torch.ones(4, 4).bool(),
    predictions=torch.tensor([0, 1, 2, 0]),
    labels=OUTCOMES.labels,
    flops=torch.full((4,), 400_000_000),
    losses=torch.tensor([0.3, 0.1, 0.4, 0.2]),
    margins=torch.tensor([1.0, 4.0, 2.0, 3.0]),
)
CLASSES = ["cat", "dog", "<script>", "never seen"]


def test_statistics_by_hand() -> None:
    found = policy_statistics(OUTCOMES, FULL, CLASSES, (2, 2))
    assert found.usage_per_block == [1.0, 0.75, 0.5, 0.0]
    assert found.usage_per_stage == [0.875, 0.25]
    assert found.blocks_histogram == [0, 1, 1, 2, 0]
    assert [(c.name, c.images, c.accuracy, c.blocks) for c in found.classes] == [
        ("cat", 2, 0.5, 2.5), ("dog", 1, 1.0, 1.0), ("<script>", 1, 1.0, 3.0),
    ]  # fmt: skip
    assert found.classes[0].usage_per_block == [1.0, 1.0, 0.5, 0.0]
    assert [(f.policy, f.images, f.share, f.accuracy) for f in found.frequent] == [
        ("1110", 2, 0.5, 1.0), ("1100", 1, 0.25, 0.0), ("1000", 1, 0.25, 1.0),
    ]  # fmt: skip
    assert found.coverage == {10: 1.0, 50: 1.0}
    assert found.blocks_when_right == pytest.approx(7 / 3)
    assert found.blocks_when_wrong == 2.0
    # ranks of the blocks used 3.5, 1, 3.5, 2 and of the losses 3, 1, 4, 2
    assert found.loss_correlation is not None
    assert found.loss_correlation.coefficient == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert found.margin_correlation is not None
    assert found.margin_correlation.coefficient < 0
    # policies a, b, a, c of classes 0, 1, 2, 0: H(policy) = H(class) = 1.5 bits, H(both) = 2 bits
    assert found.class_information == pytest.approx(math.log(2))
    assert found.class_entropy == pytest.approx(1.5 * math.log(2))
    assert found.distance_within == 1.0
    assert found.distance_between == pytest.approx((2 + 0 + 2 + 1 + 1) / 5)


def test_information_of_shuffled_labels_is_what_is_left_of_none() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2000,), generator=generator)
    noise = torch.rand(2000, 6, generator=generator) < 0.5
    telling = torch.cat([noise[:, :4], labels[:, None] < torch.tensor([1, 2])], 1)
    for policy, informed in ((noise, False), (telling, True)):
        outcomes = Outcomes(policy, labels, labels, torch.zeros(2000))
        found = policy_statistics(outcomes, outcomes, CLASSES, (6,))
        assert 0.01 < found.shuffled_information < 0.1
        assert (found.class_information > 2 * found.shuffled_information) == informed


def test_what_is_not_defined_is_none() -> None:
    one = OUTCOMES.subset(torch.tensor([1]))
    found = policy_statistics(one, FULL.subset(torch.tensor([1])), CLASSES, (4,))
    assert found.blocks_when_wrong is None
    assert found.loss_correlation is None
    assert (found.distance_within, found.distance_between) == (None, None)
    assert "dog" in statistics_lines(found)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.booleans(), min_size=3, max_size=3)), min_size=2, max_size=12
    )
)
def test_distances_are_the_means_over_all_pairs(rows: list[tuple[int, tuple[bool, ...]]]) -> None:
    labels, policy = torch.tensor([label for label, _ in rows]), torch.tensor([kept for _, kept in rows])
    pairs: dict[bool, list[int]] = {True: [], False: []}
    for i in range(len(rows)):
        for j in range(i):
            pairs[bool(labels[i] == labels[j])].append(int((policy[i] != policy[j]).sum()))
    expected = tuple(sum(found) / len(found) if found else None for found in (pairs[True], pairs[False]))
    assert policy_distances(policy, labels) == pytest.approx(expected)


def test_losses_and_margins_of_logits() -> None:
    def check(logits: Tensor, labels: Tensor) -> None:
        losses, margins = losses_and_margins(logits, labels)
        for row, label, loss, margin in zip(logits, labels, losses, margins, strict=True):
            assert loss.item() == pytest.approx(-row.log_softmax(0)[label].item(), abs=1e-6)
            others = [value.item() for index, value in enumerate(row) if index != label]
            assert margin.item() == pytest.approx(row[label].item() - max(others))

    check(torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]))


def test_lines_name_every_class_and_the_policies() -> None:
    lines = statistics_lines(policy_statistics(OUTCOMES, FULL, CLASSES, (2, 2))).splitlines()
    assert "blocks used: 2.33 where the prediction is right, 2.00 where the prediction is wrong" in lines
    assert "    1110       2 images ( 50.0%), accuracy 1.0000" in lines
    assert "      3       2  ########################################" in lines
    assert "    cat            2    0.5000    2.50  xx50" in lines
