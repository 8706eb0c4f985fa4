"""What looking at the image is worth: policies dealt to other images, images that one policy is unsure of."""

from __future__ import annotations

import torch

from blockdrop import build
from blockdrop.data import NORMALISATIONS, MemoryImages
from blockdrop.data.sets import Preprocessing
from blockdrop.dynamic import DynamicNetwork
from blockdrop.flops import count_flops
from blockdrop.studies.worth_of_looking import affordable_share, reroute_unsure, worth_of_looking
from blockdrop.training.compute import choose_compute


def test_images_that_are_dealt_others_policies_lose_what_theirs_knew() -> None:
    """One image keeps all blocks, another none; with each other's policy they are taken for another class."""
    resnet, policy_network = build("R8_Digits", num_classes=2)
    resnet.eval(), policy_network.eval()
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    images = pixels / 255
    own = torch.tensor([[False] * 3, [True] * 3])
    with torch.no_grad():
        one, other = policy_network.features(images)
        policy_network.logit.weight.copy_((other - one).expand(3, -1))
        policy_network.logit.bias.fill_((one - other) @ (one + other) / 2)
        assert (policy_network(images)[0] >= 0.5).equal(own)
        head, resnet.fc = resnet.fc, torch.nn.Identity()
        features = torch.cat([resnet(images, own), resnet(images, ~own)])  # (4, 64)
        wanted = torch.tensor([1.0, 1.0, -1.0, -1.0])
        head.weight.zero_(), head.bias.zero_()
        head.weight[1] = torch.linalg.lstsq(features, wanted, driver="gelsd").solution
        resnet.fc = head
        assert resnet(images, own).argmax(-1).tolist() == [1, 1]
        assert resnet(images, ~own).argmax(-1).tolist() == [0, 0]
    dynamic = DynamicNetwork(
        resnet, policy_network, model="R8_Digits", preprocessing=Preprocessing.usual(32, NORMALISATIONS["none"])
    )
    crowd = MemoryImages(pixels.repeat_interleave(torch.tensor([60, 40]), 0), torch.ones(100, dtype=torch.int64))
    end = worth_of_looking(dynamic, crowd, choose_compute("cpu", "float32"))
    assert end.accuracy == 1
    assert end.unique_policies == 2
    assert all(0.3 < accuracy < 0.7 for accuracy in end.dealt_accuracies), "half of them keep their kind"
    assert end.full_accuracy == 0.4
    assert (end.frequent_policy, end.frequent_accuracy) == ("000", 0.6)
    flops = count_flops(resnet, None, 32)
    assert end.frequent_flops == flops.per_image(torch.zeros(1, 3, dtype=torch.bool)).item() / flops.full
    assert end.routed_accuracy == 0.4, "so dear a policy network would pay for all blocks of all images"


def test_the_least_sure_predictions_are_replaced_as_far_as_the_budget_goes() -> None:
    predictions, better = torch.tensor([0, 0, 0, 0]), torch.tensor([1, 2, 3, 4])
    certainty = torch.tensor([0.9, 0.3, 0.8, 0.2])
    assert reroute_unsure(predictions, certainty, better, 0.5).tolist() == [0, 2, 0, 4]
    assert reroute_unsure(predictions, certainty, better, 0.0).tolist() == [0, 0, 0, 0]
    assert reroute_unsure(predictions, certainty, better, 1.0).tolist() == [1, 2, 3, 4]
    assert affordable_share(budget=30, cost=40, full=100) == 0, (
        "the most frequent policy isn't always the cheapest"
    )
    assert affordable_share(budget=120, cost=40, full=100) == 1, "a policy network may cost more than it saves"
    assert affordable_share(budget=100, cost=100, full=100) == 1
