"""A stream of photos for `experiments.bench_inference`: many policies, from a cold start."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

import blockdrop
from agents.policy_network import PolicyNetwork
from blockdrop.data import DATASETS, DataSource
from blockdrop.flops import count_flops
from blockdrop.inference.openvino_engine import is_installed as openvino_is_installed
from blockdrop.models.resnet import DroppableResNet
from blockdrop.models.specs import parse_model_name
from blockdrop.progress import progress
from experiments.bench_inference_contenders import DTYPES, build_networks, engines, flops_ratio, openvino_network

MODEL = "R110_C10"


def stream(data_dir: str, precisions: Sequence[str]) -> list[dict[str, Any]]:
    """10,000 photos in random order in batches of 256, cold start included, R110_C10.

    The policy network's trunk looks at the photos; its head is drawn at random and scaled so that 469 distinct
    policies of 17 blocks on average come out, as in the reference's published run. The full network, which
    compiles within its time as well, is OpenVINO's where it is installed, else torch's.
    """
    size = parse_model_name(MODEL).image_size
    resnet, policy_network = build_networks(MODEL, size)
    photos = DataSource("C10", data_dir, size).test
    shuffled = photos.subset(torch.randperm(len(photos), generator=torch.Generator().manual_seed(0)))
    loaded = shuffled.batches(256, DATASETS["C10"].normalisation, torch.device("cpu"))
    batches = [images.contiguous() for images, _ in loaded]
    policies = spread_policies(policy_network, batches, distinct=469, blocks=17)
    ratio = flops_ratio(count_flops(resnet, policy_network, size), policies)
    counts = torch.unique(policies, dim=0, return_counts=True)[1].sort(descending=True)[0]

    def seconds_of(make: Callable[[], Callable[[Tensor], object]]) -> tuple[float, float]:
        """Of making it and running all batches, and of running them all again."""
        times = [time.perf_counter()]
        run = make()
        for _ in range(2):
            for images in batches:
                run(images)
            times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    found = []
    for precision in precisions:
        dtype = DTYPES[precision]
        makers: dict[str, Callable[[], Callable[[Tensor], object]]] = {
            "full": functools.partial(full_network, resnet, dtype, size)
        }
        for engine in engines():
            makers[f"blockdrop {engine}"] = functools.partial(
                blockdrop.compile, resnet, policy_network, dtype=dtype, engine=engine
            )
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
        for _ in progress(range(3), f"stream, {precision}", 3, "rounds"):
            for name, make in makers.items():
                seconds[name].append(seconds_of(make))
        medians = {name: [median(times) for times in zip(*both, strict=True)] for name, both in seconds.items()}
        for name, (first, again) in medians.items():
            found.append(
                {
                    "contender": name,
                    "precision": precision,
                    "images": len(policies),
                    "policies": len(counts),
                    "top_10_policies": counts[:10].sum().item() / len(policies),
                    "kept_blocks": policies.sum(1).double().mean().item(),
                    "flops_ratio": 1.0 if name == "full" else ratio,
                    "seconds": first,
                    "seconds_again": again,
                    "efficiency": medians["full"][0] / first / (1.0 if name == "full" else ratio),
                    "efficiency_again": medians["full"][1] / again / (1.0 if name == "full" else ratio),
                }
            )
            print(
                f"stream of {len(policies):,} photos at {size} px, {len(counts)} policies, {precision}, {name}: "
                f"{first:.1f} s from a cold start, {again:.1f} s again; realised efficiency "
                f"{found[-1]['efficiency']:.2f}, {found[-1]['efficiency_again']:.2f}"
            )
    return found


def full_network(resnet: DroppableResNet, dtype: torch.dtype, image_size: int) -> Callable[[Tensor], object]:
    """The full network in OpenVINO, else in torch (folded, channels_last)."""
    if openvino_is_installed():
        return openvino_network(resnet.folded(), dtype, image_size)
    last: Any = torch.channels_last
    net = resnet.folded().to(dtype).to(memory_format=last)
    return lambda images: net(images.to(dtype).to(memory_format=last))


@torch.no_grad()
def spread_policies(
    policy_network: PolicyNetwork, batches: Sequence[Tensor], distinct: int, blocks: int
) -> Tensor:
    """Sets the policy network's head so that about `distinct` MAP policies keep `blocks` blocks on average.

    Returns:
        those policies, bool (N, K).
    """
    features = torch.cat([policy_network.features(images) for images in batches])
    centre, scale = features.mean(0), features.std()
    generator = torch.Generator().manual_seed(0)
    head = policy_network.logit
    directions = torch.randn(head.weight.shape, generator=generator) / head.in_features**0.5
    offsets = torch.randn(head.out_features, generator=generator)
    least, most = 0.0, 30.0
    for _ in range(25):
        strength = (least + most) / 2
        head.weight.copy_(strength * directions / scale)
        logits = features @ head.weight.T + offsets - head.weight @ centre
        cut = logits.flatten().sort(descending=True)[0][len(logits) * blocks]
        head.bias.copy_(offsets - head.weight @ centre - cut)
        policies = torch.sigmoid(head(features)) >= 0.5
        if len(torch.unique(policies, dim=0)) > distinct:
            most = strength
        else:
            least = strength
    return policies
