"""Policies that never look at the image."""

from pathlib import Path

import pytest
import torch

from agents.static_policies import make_static_policy


def test_each_kind_keeps_what_it_says() -> None:
    assert make_static_policy("full", 3).draw(2).tolist() == [[True] * 3] * 2
    assert make_static_policy("first_k:2", 3).draw(1).tolist() == [[True, True, False]]
    for name in ("random_k:0", "first_k:0"):
        assert not make_static_policy(name, 3).draw(4).any()
    drawn = make_static_policy("random_k:3", 6).draw(4000, torch.Generator().manual_seed(0))
    assert set(drawn.sum(1).tolist()) == {3}
    assert drawn.double().mean(0).tolist() == pytest.approx([0.5] * 6, abs=0.03)


def test_dist_k_draws_without_replacement_by_the_usage() -> None:
    """Of weights a, b, c two are drawn: block 0 misses with probability b/s · c/(s-b) + c/s · b/(s-c)."""
    a, b, c = 0.6, 0.3, 0.1
    drawn = make_static_policy("dist_k:2", 3, [a, b, c]).draw(20_000, torch.Generator().manual_seed(0))
    missed = b * c / (1 - b) + c * b / (1 - c)
    assert set(drawn.sum(1).tolist()) == {2}
    assert 1 - drawn[:, 0].double().mean().item() == pytest.approx(missed, abs=0.01)
    never = make_static_policy("dist_k:2", 4, [0.5, 0.0, 0.9, 0.0]).draw(500)
    assert never.double().mean(0).tolist() == [1, 0, 1, 0]


def test_same_generator_same_draw() -> None:
    policy = make_static_policy("random_k:2", 5)
    one, two = (policy.draw(9, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.equal(two)
    assert not one.equal(policy.draw(9, torch.Generator().manual_seed(4)))


def test_files_hold_one_policy_for_all_or_one_for_each(tmp_path: Path) -> None:
    path = tmp_path / "policies.txt"
    path.write_text("101\n")
    assert make_static_policy(str(path), 3).draw(2).int().tolist() == [[1, 0, 1]] * 2
    path.write_text("101\n001\n")
    policy = make_static_policy(str(path), 3)
    assert (policy.images, policy.count) == (2, -1)
    assert policy.draw(2).int().tolist() == [[1, 0, 1], [0, 0, 1]]
    with pytest.raises(ValueError, match="2 policies for 5 images"):
        policy.draw(5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first_k", "first_k: write first_k:K, with K from 0 to 3"),
        ("random_k:4", "random_k:4: write random_k:K, with K from 0 to 3"),
        ("random_k:-1", "write random_k:K"),
        ("dist_k:2", "no policy network is given"),
        ("full:3", "full takes no number"),
        ("last_k:3", "last_k:3: neither a file nor one of full, first_k:K, random_k:K, dist_k:K"),
        ("", "neither a file"),
    ],
)
def test_unknown_policies_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_static_policy(text, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no policy"),
        (b"101\n11\n", "policy 2 isn't 3 characters 0 or 1"),
        (b"1x1", "policy 1 isn't 3 characters 0 or 1"),
        ("１０１".encode(), "can't be read"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "policies.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make_static_policy(str(path), 3)
