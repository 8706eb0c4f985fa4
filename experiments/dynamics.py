"""How much of what policies do comes from looking at the image."""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch
from blockdrop.training.setup import Setup
from torch import Tensor

from agents.names import DEFAULT_THRESHOLD
from blockdrop.data import Images, Normalisation
from blockdrop.flops import count_flops
from blockdrop.inference.executor import Executor
from blockdrop.measure import evaluate_images, executor, predict_under
from blockdrop.training.compute import Compute

DEALS = 5
"""Times that policies are dealt to other images."""


@torch.no_grad()
def evaluate_end(
    setup: Setup, images: Images, compute: Compute, threshold: float = DEFAULT_THRESHOLD
) -> dict[str, Any]:
    """What the networks do with all blocks, under their own policies, and what looking at the image is worth.

    Policies are dealt out anew `DEALS` times: the same blocks run, as often, but not by what is in the image. And
    the most frequent policy goes to all images: alone, and with all blocks for those that it is least sure of, as
    many as cost what the own policies do. No decider can know that before the blocks have run.
    """
    how = (images, setup.normalisation, compute)
    full = evaluate_images(setup.resnet, None, *how, image_size=setup.image_size)
    run = executor(setup.resnet, setup.policy_network, compute)

    own = evaluate_images(
        setup.resnet, setup.policy_network, *how, image_size=setup.image_size, threshold=threshold, run=run
    )
    generator = torch.Generator().manual_seed(0)
    dealt = [own.policy[torch.randperm(len(own.policy), generator=generator)] for _ in range(DEALS)]
    predictions = predict_under(run, torch.stack(dealt), *how, title="dealing")  # (DEALS, N)
    others = (predictions == own.labels).double().mean(1).tolist()

    policies, counts = own.policy.unique(dim=0, return_counts=True)
    frequent = policies[counts.argmax()]  # (K,)
    alone, certainty = predict_with_certainty(run, frequent, *how)
    flops = count_flops(setup.resnet, None, setup.image_size)
    cost = flops.per_image(frequent[None]).item()
    share = affordable_share(own.flops_per_image[0], cost, flops.full)
    routed = reroute_unsure(alone, certainty, full.predictions, share)
    return {
        "frequent_policy": "".join(str(int(bit)) for bit in frequent),
        "frequent_accuracy": (alone == own.labels).double().mean().item(),
        "frequent_flops": cost / flops.full,
        "routed_accuracy": (routed == own.labels).double().mean().item(),
        "accuracy": own.accuracy,
        "dealt_accuracies": others,
        "dealt_accuracy": mean(others),
        "unique_policies": own.unique_policies,
        "full_accuracy": full.accuracy,
    }


def predict_with_certainty(
    run: Executor, policy: Tensor, images: Images, normalisation: Normalisation, compute: Compute
) -> tuple[Tensor, Tensor]:
    """Predictions of all images under one policy (K,), and how probable the network finds them: (N,) each."""
    predictions, certainty = [], []
    for batch, _ in images.batches(256, normalisation, compute.device, channels_last=compute.channels_last):
        logits, _ = run(batch, policy=policy.expand(len(batch), -1).to(batch.device))
        found = logits.float().softmax(-1).max(-1)
        predictions.append(found.indices.cpu())
        certainty.append(found.values.cpu())
    return torch.cat(predictions), torch.cat(certainty)


def affordable_share(budget: float, cost: float, full: float) -> float:
    """The share of images that may cost `full` FLOPs where the others cost `cost`, to spend `budget` on the mean.

    >>> affordable_share(budget=70, cost=40, full=100)
    0.5
    """
    return 1.0 if cost >= full else min(1.0, max(0.0, (budget - cost) / (full - cost)))


def reroute_unsure(predictions: Tensor, certainty: Tensor, better: Tensor, share: float) -> Tensor:
    """Predictions (N,) with a share of them, those of least certainty (N,), replaced by better ones (N,)."""
    unsure = certainty.argsort(stable=True)[: round(share * len(certainty))]
    return predictions.index_copy(0, unsure, better[unsure])
