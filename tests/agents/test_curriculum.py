"""The curriculum by hand-worked cases."""

import torch

from agents.curriculum import keep_undecided, num_decided


def test_one_more_block_each_epoch_until_all() -> None:
    assert [num_decided(epoch, 15) for epoch in (0, 1, 13, 14, 15, 9999)] == [1, 2, 14, 15, 15, 15]


def test_the_last_blocks_are_decided_first() -> None:
    none = torch.zeros(2, 5, dtype=torch.bool)
    assert keep_undecided(none, 2).tolist() == [[True, True, True, False, False]] * 2
    assert keep_undecided(none, 5).equal(none)
    assert not none.any(), "the policy handed in stays as it is"
