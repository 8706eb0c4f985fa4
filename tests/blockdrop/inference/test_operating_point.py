"""Thresholds for a budget against brute force over all thresholds, and the split of the images they come from."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.answers import NEVER
from blockdrop.errors import BlockdropError
from blockdrop.flops import FlopTable
from blockdrop.inference.operating_point import (
    DROP_ALL,
    KEEP_ALL,
    AnswerOutcomes,
    RestOutcomes,
    curve_thresholds,
    flops_by_threshold,
    front_of_pairs,
    held_out_halves,
    pair_for_budget,
    threshold_for_budget,
)

TABLE = FlopTable(fixed=10, blocks=(30, 20, 40), policy_network=5)
KEEP_PROBS = torch.tensor([[0.9, 0.5, 0.25], [0.5, 0.75, 0.25]])


def total(keep_probs: Tensor, table: FlopTable, threshold: float) -> int:
    return int(table.per_image(keep_probs >= threshold).sum())


@st.composite
def networks(draw: st.DrawFn) -> tuple[Tensor, FlopTable]:
    """Keep probabilities of a few images, with many ties and saturated ones, and what the blocks cost."""
    count, blocks = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    values = st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.7, 1 - 2**-24, 1.0]) | st.floats(0, 1, width=32)
    rows = st.lists(st.lists(values, min_size=blocks, max_size=blocks), min_size=count, max_size=count)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    costs = draw(st.lists(st.integers(1, 50), min_size=blocks, max_size=blocks))
    table = FlopTable(draw(st.integers(1, 30)), tuple(costs), draw(st.integers(0, 30)))
    return torch.tensor(draw(rows)).to(dtype), table


@given(networks(), st.integers(1, 150))
def test_the_best_of_all_thresholds_is_found(network: tuple[Tensor, FlopTable], percent: int) -> None:
    keep_probs, table = network
    distinct = {value for value in keep_probs.double().flatten().tolist() if 0 < value < 1}
    candidates = {KEEP_ALL, DROP_ALL} | distinct
    limit = Fraction(percent, 100) * table.full * len(keep_probs)
    affordable = [t for t in sorted(candidates) if total(keep_probs, table, t) <= limit]
    if affordable:
        threshold = threshold_for_budget(keep_probs, table, percent / 100)
        assert 0 < threshold < 1
        assert total(keep_probs, table, threshold) == max(total(keep_probs, table, t) for t in affordable)
        assert total(keep_probs, table, threshold) == total(keep_probs, table, affordable[0])
        below = max((t for t in candidates if t < affordable[0]), default=0)
        assert below < threshold <= affordable[0]
    else:
        with pytest.raises(BlockdropError, match="can't be met"):
            threshold_for_budget(keep_probs, table, percent / 100)


@given(networks())
def test_the_cost_of_every_threshold_is_that_of_its_policies(network: tuple[Tensor, FlopTable]) -> None:
    keep_probs, table = network
    thresholds, flops = flops_by_threshold(keep_probs, table)
    assert thresholds.tolist() == sorted(set(thresholds.tolist()))
    assert flops.tolist() == [total(keep_probs, table, t) for t in thresholds.tolist()]
    assert flops[0] == len(keep_probs) * (table.full + table.policy_network), "every block is kept"


@pytest.mark.parametrize(
    ("budget", "threshold"),
    [
        (1.05, KEEP_ALL),  # all blocks and the policy network cost 105
        (50, KEEP_ALL),
        (1.04, 0.375),
        (0.65, 0.375),  # 40 FLOPs cheaper, since both images drop their last block at once
        (0.6499, 0.625),
        (0.4, 0.625),
        (0.3, 0.825),
        (0.15, DROP_ALL),
    ],
)
def test_thresholds_by_hand(budget: float, threshold: float) -> None:
    assert threshold_for_budget(KEEP_PROBS, TABLE, budget) == pytest.approx(threshold)


def test_a_block_that_was_just_affordable_stays_so_where_rounding_differs() -> None:
    keep_probs = torch.tensor([[0.4976, 0.9, 0.1]])
    table = FlopTable(fixed=0, blocks=(1, 1, 1), policy_network=0)
    threshold = threshold_for_budget(keep_probs, table, 0.67)
    for rounded in (keep_probs, keep_probs.bfloat16(), keep_probs - 1e-4, keep_probs + 1e-4):
        assert (rounded >= threshold).tolist() == [[True, True, False]]


def test_between_neighbours_in_a_number_format_there_is_no_middle() -> None:
    low = torch.tensor(0.5, dtype=torch.bfloat16)
    keep_probs = torch.stack([low, torch.nextafter(low, torch.ones_like(low))]).unsqueeze(0)
    threshold = threshold_for_budget(keep_probs, FlopTable(fixed=0, blocks=(1, 1), policy_network=0), 0.5)
    assert (keep_probs >= threshold).tolist() == [[False, True]]


def test_a_budget_is_the_decimal_number_it_prints_as() -> None:
    table = FlopTable(fixed=0, blocks=(7,) * 100, policy_network=0)
    keep_probs = torch.linspace(0.005, 0.995, 100).unsqueeze(0)
    for percent in range(1, 101):  # in binary, many of these lie a hair below the decimal number
        threshold = threshold_for_budget(keep_probs, table, percent / 100)
        assert total(keep_probs, table, threshold) == 7 * percent


def test_an_impossible_budget_names_the_least_one_which_works() -> None:
    table = FlopTable(fixed=10, blocks=(30, 20, 41), policy_network=5)
    with pytest.raises(
        BlockdropError, match=r"budget 0\.1: can't be met; the least possible, .* is 0\.1486 of the full"
    ):
        threshold_for_budget(KEEP_PROBS, table, 0.1)
    assert threshold_for_budget(KEEP_PROBS, table, 0.1486) == DROP_ALL


def test_a_block_whose_probability_was_rounded_to_1_can_not_be_dropped() -> None:
    keep_probs = torch.tensor([[1.0, 0.5, 0.25]])
    with pytest.raises(BlockdropError, match=r"least possible, .* is 0\.4500"):
        threshold_for_budget(keep_probs, TABLE, 0.44)
    assert (keep_probs >= threshold_for_budget(keep_probs, TABLE, 0.45)).tolist() == [[True, False, False]]


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_a_budget_is_a_positive_number(budget: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        threshold_for_budget(KEEP_PROBS, TABLE, budget)


def test_the_curve_spreads_over_the_flops() -> None:
    table = FlopTable(fixed=10, blocks=(1,) * 90, policy_network=0)
    keep_probs = torch.rand(50, 90) ** 4  # crowded near 0
    thresholds = curve_thresholds(keep_probs, table, points=10, include=(0.5, 0.123))
    assert {0.5, 0.123, KEEP_ALL, DROP_ALL} < set(thresholds)
    assert thresholds == sorted(set(thresholds))
    costs = [total(keep_probs, table, t) / 50 for t in thresholds if t not in (0.5, 0.123)]
    assert costs == pytest.approx([100, 90, 80, 70, 60, 50, 40, 30, 20, 10], abs=0.05)


@given(networks(), st.lists(st.sampled_from([0.5, 0.3, 1e-3]), max_size=2))
def test_the_curve_holds_no_cost_twice_but_where_asked(
    network: tuple[Tensor, FlopTable], include: list[float]
) -> None:
    keep_probs, table = network
    thresholds = curve_thresholds(keep_probs, table, include=include)
    assert set(include) <= set(thresholds)
    assert len(thresholds) <= 9 + len(include)
    spread = [total(keep_probs, table, t) for t in thresholds if t not in include]
    assert len(set(spread)) == len(spread)
    assert all(0 < t < 1 for t in thresholds)


@given(st.lists(st.integers(0, 3), max_size=30))
def test_halves_are_disjoint_and_hold_the_classes_equally(labels: list[int]) -> None:
    label_of = torch.tensor(labels, dtype=torch.int64)
    choosing, reported = held_out_halves(label_of)
    assert sorted([*choosing.tolist(), *reported.tolist()]) == list(range(len(labels)))
    assert len(choosing) - len(reported) in (0, 1)
    for label in set(labels):
        assert abs(int((label_of[choosing] == label).sum() - (label_of[reported] == label).sum())) <= 1


def test_images_sorted_by_class_are_split_by_index() -> None:
    choosing, reported = held_out_halves(torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    assert choosing.tolist() == [0, 2, 4, 6]
    assert reported.tolist() == [1, 3, 5]


# ---- pairs


def some_outcomes(images: int, seed: int) -> tuple[list[RestOutcomes], AnswerOutcomes, FlopTable]:
    """Two thresholds and answers of which some are equally confident."""
    generator = torch.Generator().manual_seed(seed)
    table = FlopTable(fixed=5, blocks=(10, 20, 30), policy_network=7)
    rests = []
    for threshold in (0.3, 0.7):
        policy = torch.rand(images, 3, generator=generator) >= threshold
        right = torch.rand(images, generator=generator) < 0.8
        rests.append(RestOutcomes(threshold, right, table.per_image(policy)))
    sure = (torch.rand(images, generator=generator) * 6).round() / 6
    return rests, AnswerOutcomes(sure, torch.rand(images, generator=generator) < sure), table


def every_pair(
    rests: list[RestOutcomes], answers: AnswerOutcomes, table: FlopTable
) -> list[tuple[int, int, float, float]]:
    """Right predictions, FLOPs and thresholds of each pair that differs, one by one."""
    found = []
    for rest in rests:
        for threshold in [*answers.confidence.unique().tolist(), NEVER]:
            answered = answers.confidence >= threshold
            right = int(torch.where(answered, answers.right, rest.right).sum())
            flops = int(torch.where(answered, table.policy_network, rest.flops).sum())
            found.append((right, flops, rest.threshold, threshold))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_pair_for_a_budget_is_the_best_of_all_pairs(seed: int) -> None:
    rests, answers, table = some_outcomes(12, seed)
    everything = every_pair(rests, answers, table)
    for percent in range(11, 110, 7):
        within = [pair for pair in everything if pair[1] <= percent / 100 * 12 * table.full]
        if not within:
            with pytest.raises(
                BlockdropError, match=r"can't be met; the least possible, with all images answered"
            ):
                pair_for_budget(rests, answers, table, percent / 100)
            continue
        best = max(right for right, *_ in within)
        cheapest = min(flops for right, flops, *_ in within if right == best)
        pair = pair_for_budget(rests, answers, table, percent / 100)
        assert (pair.right, pair.flops) == (best, cheapest)
        answered = answers.confidence >= pair.answer_threshold  # as the executor compares
        rest = next(rest for rest in rests if rest.threshold == pair.threshold)
        assert int(answered.sum()) == pair.answered
        assert int(torch.where(answered, table.policy_network, rest.flops).sum()) == pair.flops
        assert int(torch.where(answered, answers.right, rest.right).sum()) == pair.right


@pytest.mark.parametrize("seed", range(5))
def test_no_pair_beats_one_of_the_front_and_its_ends_are_there(seed: int) -> None:
    rests, answers, table = some_outcomes(12, seed)
    everything = every_pair(rests, answers, table)
    front = front_of_pairs(rests, answers, table, points=100)
    wanted = {
        (right, flops)
        for right, flops, *_ in everything
        if not any(r >= right and f <= flops and (r, f) != (right, flops) for r, f, *_ in everything)
    }
    assert {(pair.right, pair.flops) for pair in front} == wanted
    some = front_of_pairs(rests, answers, table, points=3)
    assert len(some) <= 3
    assert (some[0], some[-1]) == (front[0], front[-1])


def test_no_pair_is_chosen_without_images_or_a_budget() -> None:
    rests, answers, table = some_outcomes(12, 0)
    for budget in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(BlockdropError, match=r"needs a positive number and an image"):
            pair_for_budget(rests, answers, table, budget)
