"""How much of what policies do comes from looking at the image."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from agents.deciders import keep_all
from blockdrop.data import Images, Normalisation
from blockdrop.dynamic import DynamicNetwork
from blockdrop.evaluation import Share
from blockdrop.inference.executor import Executor
from blockdrop.measure import evaluate_images, executor, predict_under
from blockdrop.policy_stats import policy_text
from blockdrop.ranges import Count, NotNegative
from blockdrop.training.compute import Compute

DEALS = 5
"""Times that policies are dealt to other images."""


@dataclass(frozen=True, kw_only=True)
class WorthOfLooking:
    """Accuracies on the same images."""

    frequent_policy: str
    """A character for each block: 1 runs, 0 is dropped."""
    frequent_accuracy: Share
    """Of the most frequent policy, given to all images."""
    frequent_flops: NotNegative
    """Of it, a fraction of the full network's, without a policy network."""
    routed_accuracy: Share
    """Of it, but all blocks for those that it is least sure of, at the cost of the own policies."""
    accuracy: Share
    """Of the own policies."""
    dealt_accuracies: list[Share]
    """Of the own policies dealt to other images, each time."""
    dealt_accuracy: Share
    """Mean of those."""
    unique_policies: Count
    full_accuracy: Share
    """With all blocks."""


@torch.no_grad()
def worth_of_looking(dynamic: DynamicNetwork, images: Images, compute: Compute) -> WorthOfLooking:
    """What the networks do with all blocks, under their own policies, and what looking at the image is worth.

    Policies are dealt out anew `DEALS` times: the same blocks run, as often, but not by what is in the image. And
    the most frequent policy goes to all images: alone, and with all blocks for those that it is least sure of, as
    many as cost what the own policies do. No decider can know that before the blocks have run.
    """
    full = evaluate_images(dynamic, images, compute, decider=keep_all(dynamic.num_blocks))
    run = executor(dynamic.network, dynamic.policy_network, compute)
    own = evaluate_images(dynamic, images, compute, run=run)
    generator = torch.Generator().manual_seed(0)
    dealt = [own.policy[torch.randperm(len(own.policy), generator=generator)] for _ in range(DEALS)]
    predictions = predict_under(  # (DEALS, N)
        run, torch.stack(dealt), images, dynamic.normalisation, compute, title="dealing"
    )
    others = (predictions == own.labels).double().mean(1).tolist()

    policies, counts = own.policy.unique(dim=0, return_counts=True)
    frequent = policies[counts.argmax()]  # (K,)
    alone, certainty = predict_with_certainty(run, frequent, images, dynamic.normalisation, compute)
    flops = dynamic.flop_table(looks=False)
    cost = flops.per_image(frequent[None]).item()
    share = affordable_share(own.flops_per_image[0], cost, flops.full)
    routed = reroute_unsure(alone, certainty, full.predictions, share)
    return WorthOfLooking(
        frequent_policy=policy_text(frequent),
        frequent_accuracy=(alone == own.labels).double().mean().item(),
        frequent_flops=cost / flops.full,
        routed_accuracy=(routed == own.labels).double().mean().item(),
        accuracy=own.accuracy,
        dealt_accuracies=others,
        dealt_accuracy=mean(others),
        unique_policies=own.unique_policies,
        full_accuracy=full.accuracy,
    )


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
