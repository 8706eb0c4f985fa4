"""Policies from keep probabilities, and what is said of them."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.policies import bound_keep_probs, entropy, log_prob, map_policy, policy_information, sample_policy


def test_bounding_maps_0_and_1_to_the_bounds() -> None:
    torch.testing.assert_close(bound_keep_probs(torch.tensor([0.0, 1.0]), 0.8), torch.tensor([0.2, 0.8]))


def test_bounding_leaves_the_most_probable_policy_as_it_is() -> None:
    keep_probs = torch.linspace(0, 1, 101)
    assert map_policy(bound_keep_probs(keep_probs, 0.8)).equal(map_policy(keep_probs))


def test_map_policy_keeps_at_the_threshold() -> None:
    assert map_policy(torch.tensor([0.49, 0.5, 0.51])).tolist() == [False, True, True]
    assert map_policy(torch.tensor([0.29, 0.3]), threshold=0.3).tolist() == [False, True]


def test_samples_have_the_frequency_of_their_probability() -> None:
    keep_probs = torch.tensor([0.0, 0.1, 0.5, 0.95, 1.0]).expand(40_000, 5)
    frequency = sample_policy(keep_probs, torch.Generator().manual_seed(1)).float().mean(0)
    torch.testing.assert_close(frequency, keep_probs[0], atol=0.01, rtol=0)
    assert frequency[[0, 4]].tolist() == [0, 1], "0 and 1 leave nothing to chance"


def test_log_prob_is_finite_at_the_ends() -> None:
    keep_probs = torch.tensor([0.0, 1.0, 0.25])
    assert log_prob(keep_probs, torch.tensor([True, False, True])).isfinite().all()
    torch.testing.assert_close(log_prob(keep_probs, torch.ones(3).bool())[2], torch.tensor(0.25).log())


def test_log_prob_of_several_policies_an_image() -> None:
    keep_probs = torch.tensor([[0.25, 0.5]])  # (1, 2)
    policies = torch.tensor([[[True, False]], [[False, False]]])  # (2, 1, 2)
    torch.testing.assert_close(log_prob(keep_probs, policies).exp(), torch.tensor([[[0.25, 0.5]], [[0.75, 0.5]]]))


def test_entropy_by_hand() -> None:
    # Σ -p log p for p = (0.5, 0.25) and (1, 0), averaged over the two images
    expected = (-(0.5 * torch.tensor(0.5).log() + 0.25 * torch.tensor(0.25).log())) / 2
    torch.testing.assert_close(entropy(torch.tensor([[0.5, 0.25], [1.0, 0.0]])), expected)


def test_information_by_hand() -> None:
    # block 0: H(½) - ½ (H(¼) + H(¾)) = H(½) - H(¼); block 1 tells nothing
    keep_probs = torch.tensor([[0.25, 0.9], [0.75, 0.9]], dtype=torch.float64)
    expected = math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    torch.testing.assert_close(policy_information(keep_probs), torch.tensor(expected, dtype=torch.float64))


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6))
def test_information_lies_between_one_policy_for_all_and_a_bit_a_block(rows: list[list[float]]) -> None:
    keep_probs = torch.tensor(rows, dtype=torch.float64)
    assert -1e-9 <= policy_information(keep_probs) <= 3 * math.log(2) + 1e-9
    assert abs(policy_information(keep_probs[:1].expand(5, 3))) < 1e-9


def test_information_as_a_bonus_drives_images_apart() -> None:
    keep_probs = torch.tensor([[0.4], [0.6]], requires_grad=True)
    policy_information(keep_probs).backward()
    assert keep_probs.grad is not None
    assert keep_probs.grad[0] < 0 < keep_probs.grad[1]
