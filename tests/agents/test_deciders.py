"""Deciders: one interface for which blocks run, which composes."""

import pytest
import torch
from torch import Tensor

from agents.deciders import Decider, LastDecided, Learned, Shuffled, Static, keep_all
from agents.policy_network import Glance
from agents.static_policies import make_static_policy

PROBABILITIES = torch.rand(10, 4, generator=torch.Generator().manual_seed(1))
IMAGES = torch.arange(10.0).view(10, 1, 1, 1)


def look(images: Tensor) -> Glance:
    """Keep probabilities and values by the number that an image shows."""
    rows = images.flatten().long()
    return Glance(PROBABILITIES[rows], rows[:, None].float())


def in_batches(decide: Decider, size: int) -> Tensor:
    decide.restart()
    return torch.cat([decide(batch).policy for batch in IMAGES.split(size)])


def test_a_learned_decider_keeps_what_reaches_its_threshold_even_if_that_changes() -> None:
    decide = Learned(look, 4)
    assert decide(IMAGES).policy.equal(PROBABILITIES >= 0.5)
    decide.threshold = 0.8
    found = decide(IMAGES)
    assert found.policy.equal(PROBABILITIES >= 0.8)
    assert found.values is not None
    assert found.values.flatten().tolist() == list(range(10))


@pytest.mark.parametrize("size", [1, 3, 10])
def test_static_draws_are_those_of_the_whole_set_whatever_the_batches(size: int) -> None:
    policy = make_static_policy("random_k:2", 4)
    whole = policy.draw(10, torch.Generator().manual_seed(0))
    decide = Static(policy)
    assert in_batches(decide, size).equal(whole)
    assert in_batches(decide, size).equal(whole), "every pass draws the same"
    assert not decide.looks


def test_draws_from_a_generator_that_is_given_go_on_from_pass_to_pass() -> None:
    decide = Static(make_static_policy("random_k:2", 4), torch.Generator().manual_seed(0))
    assert not in_batches(decide, 5).equal(in_batches(decide, 5))


def test_policies_of_single_images_are_dealt_in_order_and_counted(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "policies.txt"
    file.write_text("\n".join(f"{number:04b}" for number in range(10)))
    decide = Static(make_static_policy(str(file), 4))
    assert [int("".join(map(str, row)), 2) for row in in_batches(decide, 4).int().tolist()] == list(range(10))
    decide.check(10)
    with pytest.raises(ValueError, match="10 policies for 7 images"):
        Shuffled(decide).check(7)


def test_shuffled_decisions_are_the_same_ones_dealt_to_other_images() -> None:
    decide = Shuffled(Learned(look, 4))
    one = decide(IMAGES)
    assert one.values is not None
    order = one.values.flatten().long()
    assert sorted(order.tolist()) == list(range(10))
    assert order.tolist() != list(range(10))
    assert one.keep_probs.equal(PROBABILITIES[order])
    assert one.policy.equal(PROBABILITIES[order] >= 0.5)
    decide.restart()
    assert decide(IMAGES).keep_probs.equal(one.keep_probs), "every pass deals the same"
    assert decide.looks


def test_undecided_blocks_run_and_their_keep_probabilities_stay() -> None:
    found = LastDecided(Shuffled(Learned(lambda images: Glance(torch.zeros(len(images), 4)), 4)), 1)(IMAGES)
    assert found.policy.tolist() == [[True, True, True, False]] * 10
    assert not found.keep_probs.any()


def test_one_process_decides_for_the_whole_batch_that_it_has_a_share_of() -> None:
    assert keep_all(4)(IMAGES[:3], count=10).policy.shape == (10, 4)
