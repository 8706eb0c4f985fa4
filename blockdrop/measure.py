"""What a network does on a set of images: its outcomes, and its speed."""

from __future__ import annotations

import copy
import time
from statistics import median

import torch
from torch import Tensor

from agents.curriculum import keep_undecided
from agents.estimators import map_policy
from agents.policy_network import PolicyNetwork
from blockdrop.console import progress
from blockdrop.data import Images, Normalisation
from blockdrop.flops import count_flops
from blockdrop.models.resnet import DroppableResNet
from blockdrop.policy_stats import Outcomes
from blockdrop.training.compute import Compute

SPEED_ROUNDS = 5
SPEED_BATCHES, SPEED_IMAGES = 8, 128  # at least so many a round


def evaluate_images(
    resnet: DroppableResNet,
    policy_network: PolicyNetwork | None,
    images: Images,
    normalisation: Normalisation,
    compute: Compute = Compute(torch.device("cpu"), torch.float32, channels_last=True),  # noqa: B008
    batch_size: int = 256,
    image_size: int = 32,
    threshold: float = 0.5,
    decided: int | None = None,
) -> Outcomes:
    """Predictions, policies and FLOPs of all images under their MAP policies.

    Args:
        resnet, policy_network: left as they are (copies with folded BatchNorm run). None = keep every block.
        threshold: run a block where its keep probability is at least this.
        decided: only the last so many blocks are decided, earlier ones run (during a curriculum).
    """
    table = count_flops(resnet, policy_network, image_size)
    net = compute.frozen(resnet)
    decider = None if policy_network is None else _frozen_policy_network(policy_network, compute)
    policies, probabilities, predictions, labels = [], [], [], []
    batches = images.batches(batch_size, normalisation, compute.device, channels_last=compute.channels_last)
    with torch.inference_mode():
        for batch, batch_labels in progress(batches, "testing", -(-len(images) // batch_size)):
            batch = batch.to(compute.dtype)
            policy = None
            if decider is not None:
                keep_probs = decider(batch)[0]
                probabilities.append(keep_probs.cpu())
                policy = map_policy(keep_probs, threshold)
                if decided is not None:
                    policy = keep_undecided(policy, decided)
                policies.append(policy.cpu())
            predictions.append(net(batch, policy).argmax(1).cpu())
            labels.append(batch_labels.cpu())
    if not policies:
        policies.append(torch.ones(len(images), resnet.num_blocks, dtype=torch.bool))
    policy = torch.cat(policies)
    return Outcomes(
        policy,
        torch.cat(predictions),
        torch.cat(labels),
        table.per_image(policy),
        torch.cat(probabilities) if probabilities else None,
    )


def _frozen_policy_network(policy_network: PolicyNetwork, compute: Compute) -> PolicyNetwork:
    network = copy.deepcopy(policy_network).eval()
    if isinstance(network.features, DroppableResNet):
        network.features = network.features.folded()
    return compute.place(network.to(compute.dtype))


def measure_speed(
    resnet: DroppableResNet,
    policy_network: PolicyNetwork | None,
    images: Images,
    normalisation: Normalisation,
    batch_size: int,
    compute: Compute,
    threshold: float = 0.5,
) -> tuple[float, float]:
    """Images per second of the full and of the dynamic network (policy network included).

    Both run the same batches, already in memory, in turns; the median of several rounds counts.
    """
    net = compute.frozen(resnet)
    decider = None if policy_network is None else _frozen_policy_network(policy_network, compute)
    batches: list[Tensor] = []
    count = 0
    for batch, _ in images.batches(batch_size, normalisation, compute.device, channels_last=compute.channels_last):
        batches.append(batch.to(compute.dtype))
        count += len(batch)
        if len(batches) >= SPEED_BATCHES and count >= SPEED_IMAGES:
            break

    def full(batch: Tensor) -> Tensor:
        return net(batch)

    def dynamic(batch: Tensor) -> Tensor:
        return net(batch, None if decider is None else map_policy(decider(batch)[0], threshold))

    seconds: dict[str, list[float]] = {"full": [], "dynamic": []}
    with torch.inference_mode():
        full(batches[0]), dynamic(batches[0])
        for _ in progress(range(SPEED_ROUNDS), "timing", SPEED_ROUNDS, "rounds"):
            for name, run in (("full", full), ("dynamic", dynamic)):
                start = time.perf_counter()
                for batch in batches:
                    run(batch)
                if compute.device.type == "cuda":
                    torch.cuda.synchronize(compute.device)
                seconds[name].append(time.perf_counter() - start)
    return count / median(seconds["full"]), count / median(seconds["dynamic"])
