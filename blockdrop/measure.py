"""What a network does on a set of images: its outcomes, and its speed."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from agents.answers import Thresholds, is_sure, with_answers
from agents.deciders import Decider, Decision, Learned, Look, keep_all
from agents.policies import map_policy
from agents.policy_network import Glance, PolicyNetwork
from blockdrop.data import Images, Normalisation
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError
from blockdrop.inference.executor import Executor, compile
from blockdrop.models.backbone import Backbone, Network
from blockdrop.names import EngineName
from blockdrop.policy_stats import Outcomes, losses_and_margins
from blockdrop.processes import ALONE, Processes
from blockdrop.progress import progress
from blockdrop.training.compute import Compute

Item = TypeVar("Item")
SPEED_ROUNDS = 5
SPEED_BATCHES, SPEED_IMAGES = 8, 128  # at least so many a round
LATENCY_IMAGES, LATENCY_SECONDS = 200, 3.0
"""Single images that are timed at most, and how long it may take for each network, about."""
LEAST_LATENCIES = 10
"""Single images that are timed, however long they take."""
TIMED_BYTES = 1 << 30
MAPS_PER_IMAGE = 8
"""Bytes of the feature maps that a row holds at a time, of its image's, about."""


@torch.no_grad()
def evaluate_images(
    dynamic: DynamicNetwork,
    images: Images,
    compute: Compute = Compute(torch.device("cpu"), torch.float32, channels_last=True),  # noqa: B008
    *,
    decider: Decider | None = None,
    run: Executor | None = None,
    batch_size: int = 256,
) -> Outcomes:
    """Predictions, policies and FLOPs of all images; of several processes each runs its share, and all return all.

    Args:
        dynamic: left as it is.
        decider: which blocks run; default: the network's own. One that looks at images does so by `look_through`.
        run: an executor of its networks to go on with (default: a new one).
    Raises:
        BlockdropError: the decider is for another number of images.
    """
    processes = compute.processes
    if run is None:
        looks = dynamic.policy_network is not None if decider is None else decider.looks
        run = executor(dynamic.network, dynamic.policy_network if looks else None, compute)
    if decider is None:
        decider = own_decider(dynamic, run, processes)
    try:
        decider.check(len(images))
    except ValueError as error:
        raise BlockdropError(f"--policy {error}") from None
    decider.restart()
    table = dynamic.flop_table(decider.looks)
    decisions: list[Decision] = []
    labels: list[Tensor] = []
    found: list[list[Tensor]] = [[], [], []]  # predictions, losses, margins
    batches = images.batches(
        batch_size,
        dynamic.normalisation,
        compute.device,
        channels_last=compute.channels_last,
        share=processes.share,
    )
    for batch, batch_labels in progress(batches, "testing", -(-len(images) // batch_size)):
        all_labels = processes.gather(batch_labels)
        decision = decider(batch, len(all_labels))
        own_found = (batch_labels, *[torch.empty(0, device=compute.device)] * 2)
        rows = processes.rows(len(batch))
        if len(batch):  # of a last small batch a process may get nothing
            logits = run.carry_out(batch, decision.rows(rows))
            own_found = (logits.argmax(1), *losses_and_margins(logits, batch_labels))
        for parts, part in zip(found, own_found, strict=True):
            parts.append(processes.gather(part).cpu())
        decisions.append(Decision(*(None if part is None else part.cpu() for part in decision)))  # type: ignore[arg-type]
        labels.append(all_labels.cpu())
    keep_probs, policy, _, answered, answer = map(_joined, zip(*decisions, strict=True))
    predictions, losses, margins = map(torch.cat, found)
    assert policy is not None
    return Outcomes(
        policy,
        predictions,
        torch.cat(labels),
        table.per_image(policy, answered),
        keep_probs if decider.looks else None,
        losses,
        margins,
        answered,
        answer,
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def look_through(run: Executor, processes: Processes = ALONE) -> Look:
    """The policy network of an executor, as deciders take it: this process's images to all processes' keep
    probabilities and answers."""

    def look(images: Tensor) -> Glance:
        found = run.glance(images) if len(images) else run.no_glance(images)
        answer = None if found.answer is None else processes.gather(found.answer)
        return Glance(processes.gather(found.keep_probs), None, answer)

    return look


def own_decider(dynamic: DynamicNetwork, run: Executor, processes: Processes = ALONE) -> Decider:
    """What decides by itself, through an executor: the policy network at its operating point, else all blocks."""
    if dynamic.policy_network is None:
        return keep_all(dynamic.num_blocks)
    return Learned(look_through(run, processes), dynamic.num_blocks, dynamic.threshold, dynamic.answer_threshold)


def predict_under(
    run: Executor,
    policies: Tensor,
    images: Images,
    normalisation: Normalisation,
    compute: Compute,
    batch_size: int = 256,
    title: str = "testing",
    *,
    answer: Tensor | None = None,
    answer_weights: Tensor | None = None,
) -> Tensor:
    """Predictions of all images under several policies, which share their work up to where they first differ, as
    many at a time as fit in about a GiB.

    Args:
        policies: bool (S, N, K).
        title: of the progress bar.
        answer, answer_weights: the policy network's log-probabilities (N, classes), and what they weigh beside the
            logits of each policy, (S,); default: they don't count. No image is answered.
    Returns:
        int64 (S, N), on the CPU.
    """
    weights = torch.zeros(len(policies)) if answer_weights is None else answer_weights
    weights = weights.to(compute.device).view(-1, 1, 1)
    batches = images.batches(batch_size, normalisation, compute.device, channels_last=compute.channels_last)
    found: list[Tensor] = []
    start = 0
    for batch, _ in progress(batches, title, -(-len(images) // batch_size)):
        rows = slice(start, start + len(batch))
        own, beside = policies[:, rows].to(batch.device), None if answer is None else answer[rows].to(batch.device)
        together = max(1, TIMED_BYTES // (MAPS_PER_IMAGE * max(1, batch.nbytes)))
        logits = (run(batch, policy=some)[0] for some in own.split(together))
        both = zip(logits, weights.split(together), strict=True)
        found.append(torch.cat([with_answers(one, beside, None, weight).argmax(-1).cpu() for one, weight in both]))
        start += len(batch)
    return torch.cat(found, dim=1)


def executor(
    resnet: Network, policy_network: PolicyNetwork | None, compute: Compute, engine: EngineName = "auto"
) -> Executor:
    """The fast executor on a command's device, in its number format."""
    return compile(resnet, policy_network, dtype=compute.dtype, device=compute.device, engine=engine)


def measure_speed(
    full: Executor,
    dynamic: Executor,
    images: Images,
    normalisation: Normalisation,
    *,
    batch_size: int,
    policies: Sequence[Thresholds | Tensor],
    channels_last: bool = True,
) -> tuple[float, list[float]]:
    """Images per second of the full network, and of the dynamic one under each of the policies.

    A policy is what thresholds make of the policy network, which counts, or bool (N, K) for all images.

    All run the same batches, drawn from all over the images and already in memory, in turns; the median of
    several rounds counts. Programs are compiled before.
    """
    count = max(SPEED_BATCHES * batch_size, SPEED_IMAGES)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    batches = [
        batch
        for batch, _ in images.subset(chosen).batches(
            batch_size, normalisation, full.device, channels_last=channels_last
        )
    ]
    pairs = list(zip(chosen.split(batch_size), batches, strict=False))
    given = [  # a batch may lack images that can't be read
        [
            policy[rows % len(policy)][: len(batch)] if isinstance(policy, Tensor) else policy
            for rows, batch in pairs
        ]
        for policy in policies
    ]
    for number, batch in enumerate(batches):
        found = dynamic.glance(batch)
        full.warm(torch.ones_like(found.keep_probs, dtype=torch.bool), batch.shape[-1], batch_size)
        for one in given:
            policy = one[number]
            if isinstance(policy, Thresholds):
                rest = ~is_sure(found.answer, policy.answer, found.keep_probs)
                policy = map_policy(found.keep_probs, policy.keep)[rest]
            dynamic.warm(policy, batch.shape[-1], batch_size)

    def run_all(one: list[Thresholds | Tensor], item: tuple[int, Tensor]) -> object:
        wanted = one[item[0]]
        if isinstance(wanted, Tensor):
            return dynamic(item[1], policy=wanted)
        return dynamic.run(item[1], threshold=wanted.keep, answer_threshold=wanted.answer)

    runs: list[Callable[[tuple[int, Tensor]], object]] = [
        lambda item: full(item[1]),
        *(functools.partial(run_all, one) for one in given),
    ]
    seconds = seconds_in_turns(runs, list(enumerate(batches)), full.device)
    full_speed, *speeds = (len(chosen) / found for found in seconds)
    return full_speed, speeds


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a single image, over several images."""

    median: float
    p95: float
    """95 % of the images take at most so long."""

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """From the seconds of each image."""
        middle, late = np.quantile(seconds, (0.5, 0.95))
        return cls(1000 * float(middle), 1000 * float(late))


def latency_words(full: Latency, dynamic: Latency) -> str:
    """Both for people.

    >>> latency_words(Latency(4.0, 4.5), Latency(2.0, 3.9))
    'full 4.00 ms (95 % of them: 4.50), dynamic 2.00 ms (3.90), 2.00 × as fast by the medians'
    """
    return (
        f"full {full.median:.2f} ms (95 % of them: {full.p95:.2f}), dynamic {dynamic.median:.2f} ms "
        f"({dynamic.p95:.2f}), {full.median / dynamic.median:.2f} × as fast by the medians"
    )


def measure_latency(
    full: Executor,
    dynamic: Executor,
    images: Images,
    normalisation: Normalisation,
    policy: Thresholds | Tensor,
    channels_last: bool = True,
) -> tuple[Latency, Latency]:
    """Milliseconds of single images, of the full network and of the dynamic one, in turns.

    The images are drawn from all over the set and are already in memory; programs are compiled before. At most
    `LATENCY_IMAGES` are timed, fewer if that takes longer than `LATENCY_SECONDS` for each network.

    Args:
        policy: what thresholds make of the policy network, which counts; or bool (M, K), a row for an image, over
            and over where there are more images (some may not be readable).
    """
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:LATENCY_IMAGES]
    batches = images.subset(chosen).batches(1, normalisation, full.device, channels_last=channels_last)
    numbered = zip(chosen.tolist(), batches, strict=False)  # one that can't be read is an empty batch, or none
    pairs = [
        (policy[row % len(policy)][None] if isinstance(policy, Tensor) else None, one)
        for row, (one, _) in numbered
        if len(one)
    ]

    def run_dynamic(image: Tensor, row: Tensor | None) -> Tensor:
        if row is not None:
            return dynamic(image, policy=row)[1]
        assert isinstance(policy, Thresholds)
        return dynamic.run(image, threshold=policy.keep, answer_threshold=policy.answer).policy

    size = pairs[0][1].shape[-1]
    full.warm(torch.ones(1, dynamic.num_blocks, dtype=torch.bool), size, 1)
    row, one = pairs[0]
    run_dynamic(one, row)
    begun = time.perf_counter()
    run_dynamic(one, row)
    pairs = pairs[: max(LEAST_LATENCIES, int(LATENCY_SECONDS / (time.perf_counter() - begun)))]
    found = torch.cat([run_dynamic(one, row) for row, one in pairs])
    dynamic.warm(found[found.any(1)], size, 1)
    for row, one in 2 * pairs[:1]:
        full(one)
        run_dynamic(one, row)
    if full.device.type == "cuda":
        torch.cuda.synchronize(full.device)
    seconds: tuple[list[float], list[float]] = ([], [])
    runs: tuple[Callable[[Tensor, Tensor | None], object], ...] = (lambda image, _: full(image), run_dynamic)
    for row, one in pairs:
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run(one, row)
            if full.device.type == "cuda":
                torch.cuda.synchronize(full.device)
            times.append(time.perf_counter() - start)
        if sum(map(sum, seconds)) > len(runs) * LATENCY_SECONDS:
            break
    return Latency.of(seconds[0]), Latency.of(seconds[1])


def measure_passes(
    networks: Sequence[Backbone],
    images: Images,
    normalisation: Normalisation,
    compute: Compute,
    *,
    batch_size: int,
    engines: Sequence[EngineName | Literal["eager"]],
    timed_images: int | None = None,
    executors: Mapping[EngineName, Sequence[Executor]] | None = None,
) -> list[dict[str, float]]:
    """Seconds that each network takes for all images, with all its blocks, by each engine.

    The images are in memory, BatchNorm is folded; all take turns, and the median of several rounds counts.

    Args:
        engines: the executor's, or "eager": torch as it is, one operation after the other.
        timed_images: time at most the first so many, which stand for all; default: those that fit in a GiB.
        executors: the networks' by engine, where there already are some.
    """
    some = images if timed_images is None else images.subset(torch.arange(min(timed_images, len(images))))
    batches, timed = [], 0
    for batch, _ in some.batches(batch_size, normalisation, compute.device, channels_last=compute.channels_last):
        batches.append(batch)
        timed += len(batch)
        if timed_images is None and timed * batch[0].nbytes > TIMED_BYTES:
            break
    runs: list[Callable[[Tensor], object]] = []
    for index, network in enumerate(networks):
        for engine in engines:
            if engine == "eager":
                folded = compute.place(network.folded()).to(compute.dtype)
                runs.append(functools.partial(_run_eagerly, folded, compute.dtype))
                continue
            ready = (executors or {}).get(engine)
            run = executor(network, None, compute, engine) if ready is None else ready[index]
            everything = torch.ones(batch_size, network.num_blocks, dtype=torch.bool)
            run.warm(everything, batches[0].shape[-1], batch_size)
            runs.append(run)
    seconds = iter(seconds_in_turns(runs, batches, compute.device))
    return [{engine: next(seconds) * len(images) / timed for engine in engines} for _ in networks]


@torch.no_grad()
def _run_eagerly(network: Backbone, dtype: torch.dtype, images: Tensor) -> Tensor:
    return network(images.to(dtype))


def seconds_in_turns(
    runs: Sequence[Callable[[Item], object]], batches: Sequence[Item], device: torch.device
) -> list[float]:
    """Median seconds that each of the runs takes for all batches, in `SPEED_ROUNDS` rounds in turns."""
    for run in runs:
        run(batches[0])
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in progress(range(SPEED_ROUNDS), "timing", SPEED_ROUNDS, "rounds"):
        for run, found in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            for batch in batches:
                run(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found.append(time.perf_counter() - start)
    return [median(found) for found in seconds]
