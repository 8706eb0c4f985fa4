import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from blockdrop.inference.plan import block_ranges, plan_batch

policies = st.tuples(st.integers(1, 3), st.integers(0, 9), st.integers(1, 12)).flatmap(
    lambda shape: arrays(bool, shape)
)


@given(policies, st.integers(1, 4))
def test_every_image_runs_exactly_its_policys_blocks_on_its_way_through_the_plan(
    bits: np.ndarray, parts: int
) -> None:
    cuts = sorted({0, bits.shape[2], *(bits.shape[2] * i // parts for i in range(parts))})
    plan = plan_batch(bits, list(itertools.pairwise(cuts)))
    for policy, row_of_image in zip(bits, plan.rows, strict=True):
        for image, row in enumerate(row_of_image):
            ran: list[bool] = []
            for segment in reversed(plan.segments):  # back from the last row to the image
                ran = [*segment.bits[row], *ran]
                row = segment.source[row]
            assert row == image
            assert ran == policy[image].tolist()


@given(policies)
def test_groups_are_the_maximal_ranges_of_equal_sub_policies(bits: np.ndarray) -> None:
    half = bits.shape[2] // 2
    segments = [(0, half), (half, bits.shape[2])] if half else [(0, bits.shape[2])]
    for segment in plan_batch(bits, segments).segments:
        groups = [segment.bits[start:stop] for start, stop in segment.groups]
        assert sum(map(len, groups)) == len(segment.bits)
        assert all((group == group[0]).all() for group in groups)
        assert len(groups) == len(np.unique(segment.bits, axis=0))


def test_two_policies_of_an_image_share_a_row_until_the_segment_in_which_they_differ() -> None:
    bits = np.array([[[1, 0, 1, 1]], [[1, 0, 0, 1]]], dtype=bool)  # (S = 2, N = 1, K = 4)
    plan = plan_batch(bits, [(0, 2), (2, 4)])
    assert [len(segment.bits) for segment in plan.segments] == [1, 2]
    assert plan.segments[1].source.tolist() == [0, 0]


def test_policies_of_more_blocks_than_a_machine_word_has_bits_are_told_apart() -> None:
    bits = np.ones((1, 3, 130), dtype=bool)
    bits[0, 1, 0] = bits[0, 2, 129] = False
    (segment,) = plan_batch(bits, [(0, 130)]).segments
    assert len(segment.groups) == 3


@given(st.tuples(st.integers(0, 12), st.integers(1, 8)).flatmap(lambda shape: arrays(bool, shape)))
def test_every_true_lies_in_exactly_one_range_of_its_block_and_no_false_in_any(bits: np.ndarray) -> None:
    covered = np.zeros(bits.shape, dtype=int)
    for block, ranges in enumerate(block_ranges(bits)):
        for start, stop in ranges:
            covered[start:stop, block] += 1
        assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(ranges)), "maximal"
    assert (covered == bits).all()
