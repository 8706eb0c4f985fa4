"""Curves of accuracy against FLOPs: each point is what its policies cost and reach."""

import pytest
import torch
from torch import Tensor

from agents.policies import map_policy
from blockdrop.flops import FlopTable
from blockdrop.policy_curves import (
    blind_curves,
    class_means,
    dynamic_curve,
    full_curve,
    nested_policies,
    predictions_at,
)

TABLE = FlopTable(fixed=10, blocks=(1, 2, 4), policy_network=100)


@pytest.mark.parametrize("threshold", [1e-9, 0.25, 0.3, 0.5, 0.75, 1 - 1e-9])
def test_every_threshold_gives_one_of_the_nested_policies(threshold: float) -> None:
    keep_probs = torch.randint(5, (40, 6)) / 4  # many are equal, some 0, some 1
    nested = nested_policies(keep_probs)
    assert nested.sum(2).equal(torch.arange(7)[:, None].expand(7, 40))
    policy = map_policy(keep_probs, threshold)
    assert nested[policy.sum(1), torch.arange(40)].equal(policy)


def test_a_threshold_says_what_its_policies_say() -> None:
    keep_probs = torch.tensor([[0.2, 0.8], [0.6, 0.7]])
    nested_predictions = torch.tensor([[0, 3], [1, 4], [2, 5]])  # of 0, 1 and 2 blocks
    assert predictions_at(keep_probs, nested_predictions, 0.5).tolist() == [1, 5]
    assert predictions_at(keep_probs, nested_predictions, 0.65).tolist() == [1, 4]


def test_the_dynamic_curve_goes_from_no_block_to_all_and_holds_the_threshold() -> None:
    keep_probs = torch.tensor([[0.2, 0.5, 0.9], [0.3, 0.6, 0.1]])
    nested_predictions = torch.tensor([[9, 9], [1, 9], [1, 9], [1, 1]])  # image 0 needs a block, image 1 all
    curve = dynamic_curve(keep_probs, nested_predictions, torch.tensor([1, 1]), TABLE, threshold=0.4)
    assert curve.points[0].flops == 110
    assert curve.points[0].accuracy == 0
    assert curve.points[-1].flops == 117
    assert curve.points[-1].accuracy == 1
    (own,) = [point for point in curve.points if point.label == "threshold 0.4"]
    assert own.flops == 110 + ((2 + 4) + 2) / 2
    assert own.accuracy == 0.5
    costs = [point.flops for point in curve.points]
    assert costs == sorted(costs)


def test_blind_policies_cost_and_reach_what_they_run() -> None:
    keep_probs = torch.tensor([[0.9, 0.8, 0.7], [0.2, 0.1, 0.6], [0.9, 0.2, 0.1], [0.1, 0.2, 0.9]])
    labels = torch.tensor([0, 0, 2, 2])
    asked: list[Tensor] = []

    def predict(policies: Tensor, looks: Tensor) -> Tensor:
        asked.append(looks)
        return torch.where(policies[..., 2], labels, -1)  # right where the last block runs

    curves = {curve.name: curve.points for curve in blind_curves(keep_probs, labels, TABLE, predict)}
    (looks,) = asked  # all policies share one pass
    assert looks.sum() == len(curves["learned, of another image"])
    first = {point.label: (point.flops, point.accuracy) for point in curves["first K blocks"]}
    assert first == {
        "first 0 blocks": (10, 0), "first 1 block": (11, 0), "first 2 blocks": (13, 0), "first 3 blocks": (17, 1),
    }  # fmt: skip
    random = curves["random K blocks"]
    assert [point.label for point in random] == [f"random {k} block{'s' * (k != 1)}" for k in range(4)]
    assert (random[0].flops, random[-1].flops) == (10, 17)
    dealt = curves["learned, of another image"]
    assert (dealt[0].flops, dealt[-1].flops) == (110, 117), "the policy network still runs"
    # means are (0.55, 0.45, 0.65) for class 0, (0.5, 0.2, 0.5) for class 2, so there is a threshold for blocks 0
    # and 2 of both
    means = curves["class means"]
    assert (means[0].flops, means[-1].flops) == (10, 17)
    assert any((point.flops, point.accuracy) == (15, 1) for point in means)


def test_dealt_policies_are_the_learned_ones_of_other_images() -> None:
    keep_probs = torch.rand(50, 3)
    asked: list[Tensor] = []

    def predict(policies: Tensor, looks: Tensor) -> Tensor:
        asked.append(policies)
        return torch.zeros(policies.shape[:2], dtype=torch.long)

    blind_curves(keep_probs, torch.zeros(50, dtype=torch.long), TABLE, predict)
    dealt = asked[0][4]  # a threshold between none and all
    costs = TABLE.per_image(dealt).sort().values
    thresholds = keep_probs.flatten().tolist()
    assert any(TABLE.per_image(map_policy(keep_probs, t)).sort().values.equal(costs) for t in thresholds)
    assert not any(map_policy(keep_probs, t).equal(dealt) for t in thresholds)


def test_class_means_and_the_full_network() -> None:
    assert class_means(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 1])).tolist() == [[0, 0], [0.5, 0]]
    (point,) = full_curve(torch.tensor([True, False]), TABLE).points
    assert (point.flops, point.accuracy) == (17, 0.5)
