"""How a policy network learns to answer, and which images are then left to the ResNet.

First it is taught by the logits of the full network (Hinton et al. 2015, arXiv:1503.02531). Then, on training
images that it never saw, its answers are calibrated by a temperature (Guo et al. 2017, arXiv:1706.04599), the
answer threshold is chosen. The weight of answers beside the ResNet's logits can be fitted there, too; but the
ResNet has mostly been trained on these images before, and then looks better than it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.answers import NEVER, confidence, with_answers
from agents.deciders import Decision
from agents.policies import map_policy
from agents.policy_network import PolicyNetwork
from blockdrop.data import Data, Images
from blockdrop.dynamic import DynamicNetwork
from blockdrop.errors import BlockdropError
from blockdrop.flops import FlopTable
from blockdrop.inference.operating_point import AnswerOutcomes, RestOutcomes, pair_for_budget
from blockdrop.measure import executor
from blockdrop.models.droppable import take_rows
from blockdrop.training.compute import Compute
from blockdrop.training.config import AnswerConfig, SupervisedConfig
from blockdrop.training.hinton import HintonLoss
from blockdrop.training.policies import OperatingPoint
from blockdrop.training.session import Session
from blockdrop.training.supervised import Step, fit

TEACHING = HintonLoss(alpha=0.1, beta=0.9, temperature=4.0)
"""Labels and the full network's logits."""
ANY = 1e6
"""A budget that everything is within."""
MOST_HEAT, MOST_WEIGHT = 10.0, 2.0
"""Bounds for what is fitted: a few images that all are right would drive it on and on."""
FEW = 100
"""Images, of which a warning says that they are few to choose thresholds on."""
SHARPNESS = 2.0
"""Of the chance that a training image is answered, which is a sigmoid of its confidence's distance from the
threshold, both as logits: by so many times does it follow that distance."""


def hold_out(images: Images, share: float) -> tuple[Images, Images | None]:
    """Splits training images in those that are trained on and those that aren't, as many of each class as can be.

    Args:
        share: of the second part; 0: there is none.
    """
    count = round(share * len(images))
    if count == 0:
        return images, None
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    by_class = order[images.labels[order].argsort(stable=True)]
    chosen = (torch.arange(count) * len(images)) // count
    held = torch.zeros(len(images), dtype=torch.bool)
    held[by_class[chosen]] = True
    return images.subset((~held).nonzero().squeeze(1)), images.subset(held.nonzero().squeeze(1))


class AnswerTraining:
    """Answers in joint fine-tuning; of a policy network without an answer head all of this does nothing.

    Args:
        dynamic: its policy network gets an answer head, if `--answer_epochs` wants one.

    Attributes:
        train_images: those that are trained on.
        frozen: parameters that answers come from, which stay as they are while policies are learned.
    """

    def __init__(self, dynamic: DynamicNetwork, data: Data, session: Session[AnswerConfig]):
        self.dynamic, self.data, self.session = dynamic, data, session
        self.train_images, self.held_out = hold_out(data.train, session.config.hold_out)
        self.frozen: list[nn.Parameter] = []
        network = dynamic.policy_network
        if network is None:
            return
        learn = session.config.reinforce_answers
        if (session.config.answer_epochs or learn) and network.answer is None:
            network.add_answer(dynamic.num_classes)
        if network.answer is not None and not learn:
            theirs = {id(parameter) for module in network.borrowed for parameter in module.parameters()}
            parts = (*network.features.parameters(), *network.answer.parameters())
            self.frozen = [parameter for parameter in parts if id(parameter) not in theirs]
            if self.held_out is None:
                print(
                    "note: no image is answered, as none are held out to choose the threshold on; pass --hold_out"
                )

    @property
    def answers(self) -> bool:
        """Whether there is an answer head."""
        return len(self.frozen) > 0

    def teach(self) -> None:
        """Trains the policy network's trunk and answer head for `--answer_epochs`, by the full network."""
        dynamic, session = self.dynamic, self.session
        config, compute, state = session.config, session.compute, session.run.state
        network = dynamic.policy_network
        assert network is not None
        compute.place(network)
        teacher = compute.place(dynamic.network.folded()).eval().requires_grad_(False)
        views = config.answer_views if config.answer_views < config.answer_epochs else 0
        seen: dict[tuple[int, int], Tensor] = {}  # a view's batch to the teacher's logits

        def taught(batch: Tensor, epoch: int) -> Tensor:
            at = (epoch % views, state.batch) if views else None
            if at in seen:
                return seen[at].to(batch.device)
            with torch.no_grad():
                wanted: Tensor = teacher(batch)
            (rows,) = compute.processes.sum(len(batch))
            state.counts["block_executions"] += int(rows) * dynamic.num_blocks
            if at is not None:
                wanted = wanted.half()  # the first time, too: a resumed run sees the same
                seen[at] = wanted.cpu()
            return wanted

        def objective(batch: Tensor, labels: Tensor, epoch: int) -> Step:
            assert network.answer is not None
            return TEACHING(network.answer(network.look(batch)), taught(batch, epoch), labels)

        def end_epoch(epoch: int, last: bool) -> str:
            if self.held_out is None or not (last or epoch % config.test_every == 0):
                return ""
            found = look_at(dynamic, self.held_out, compute)
            session.run.log(epoch, "answer_held_out", {"accuracy": found.right.double().mean().item()})
            return f", held-out accuracy of the answers {found.right.double().mean():.4f}"

        teaching = SupervisedConfig(
            lr=config.answer_lr,
            wd=config.answer_wd,
            batch_size=config.batch_size,
            max_epochs=config.answer_epochs,
            seed=config.seed,
            accumulate=config.accumulate,
            clip_grad=config.clip_grad,
        )
        fit(
            replace(session, config=teaching),  # type: ignore[arg-type]
            _with_train(self.data, self.train_images),
            dynamic.normalisation,
            objective,
            module=network,
            parameters=self.frozen,
            begin_epoch=network.train,
            end_epoch=end_epoch,
            epochs=config.answer_epochs,
            phase="answer",
            views=views,
        )

    def policy_target(self, flops: FlopTable) -> float | None:
        """What images that aren't answered are to cost, policy network included, as a fraction of the full
        network's FLOPs; None without `--target_flops`."""
        config = self.session.config
        if not self.answers or config.rest_flops is None:
            return config.target_flops
        return config.rest_flops + flops.policy_network / flops.full

    def begin(self, point: OperatingPoint, flops: FlopTable) -> None:
        """Calibrates the answers, if they aren't yet, and chooses a first answer threshold by what policies are to
        cost."""
        for parameter in self.frozen:
            parameter.requires_grad_(False)
        if not self.answers or point.calibrated or self.held_out is None:
            return
        network, config = self.dynamic.policy_network, self.session.config
        assert network is not None
        found = look_at(self.dynamic, self.held_out, self.session.compute)
        temperature = calibrate_answers(network, found)
        found = look_at(self.dynamic, self.held_out, self.session.compute)
        target = self.policy_target(flops)
        if target is not None and config.target_flops is not None:
            looking = flops.policy_network / flops.full
            share = answered_share(looking, target - looking, config.target_flops)
            point.answer_threshold = found.confidence.quantile(1 - share).item() if share > 0 else NEVER
        point.calibrated = True
        print(
            f"answers: right for {found.right.double().mean():.2%} of {len(found.labels):,} training images that "
            f"were held out, calibrated by a temperature of {temperature:.3f}"
        )
        if len(found.labels) < FEW:
            print(f"note: {len(found.labels)} images are few to choose thresholds on; raise --hold_out")

    def left_to_the_resnet(
        self, images: Tensor, labels: Tensor, decision: Decision, point: OperatingPoint, draws: torch.Generator
    ) -> tuple[Tensor, Tensor, Decision]:
        """The part of a batch that the ResNet trains on: all that isn't answered, and others by their chance.

        Args:
            images: this process's share of the batch, (N', 3, H, W).
            labels, decision: of the whole batch.
            draws: on the networks' device.
        Returns:
            the same three of the images that are left, at least two.
        """
        lightest = self.session.config.answered_weight
        if decision.answer is None or lightest == 1 or point.answer_threshold == NEVER:
            return images, labels, decision
        chances = chances_of_answers(decision.answer.detach(), point.answer_threshold)
        weights = 1 - (1 - lightest) * chances
        stays = torch.rand(len(weights), generator=draws, device=weights.device) < weights
        if int(stays.sum()) < max(2, self.session.processes.size):
            return images, labels, decision
        own = stays[self.session.processes.rows(len(images))]
        decision = decision.rows(stays)
        return take_rows(images, own.nonzero().squeeze(1)), labels[stays], decision

    def choose(self, point: OperatingPoint, flops: FlopTable) -> None:
        """Sets the answers' weight beside the ResNet's logits, and chooses the answer threshold: that of the
        highest accuracy within `--target_flops` or, without one, of the highest accuracy there is; on held-out
        images, under the policies of tests."""
        if not self.answers or self.held_out is None:
            return
        dynamic, compute = self.dynamic, self.session.compute.in_float32()
        network = dynamic.policy_network
        assert network is not None
        assert network.answer_weight is not None
        found = look_at(dynamic, self.held_out, compute)
        policy = map_policy(found.keep_probs, point.threshold)
        logits = run_under(dynamic, policy, self.held_out, compute)
        rest = found.confidence < point.answer_threshold
        rest = rest if int(rest.sum()) > 1 else torch.ones_like(rest)
        weight = self.session.config.answer_weight
        if weight is None:
            weight = fit_weight(logits[rest], found.answer[rest], found.labels[rest])
        with torch.no_grad():
            network.answer_weight.fill_(weight)
        right = with_answers(logits, found.answer, None, weight).argmax(1) == found.labels
        outcomes = RestOutcomes(point.threshold, right, flops.per_image(policy))
        answers, target = AnswerOutcomes(found.confidence, found.right), self.session.config.target_flops
        try:
            pair = pair_for_budget([outcomes], answers, flops, ANY if target is None else target)
        except BlockdropError as error:
            print(f"    answer threshold {point.answer_threshold:g} stays: {error}")
            return
        cost = pair.flops / len(right) / flops.full
        point.answer_threshold = pair.answer_threshold
        point.found = {"budget": cost if target is None else target, "flops_fraction": cost}
        print(
            f"    held-out images: {pair.answered / len(right):.1%} answered, from a confidence of "
            f"{pair.answer_threshold:.4g} on; {pair.right / len(right):.2%} right at {cost:.1%} of the FLOPs, "
            f"{right.double().mean():.2%} with none answered (weight of answers beside the ResNet's: {weight:.2f})"
        )


@torch.no_grad()
def run_under(dynamic: DynamicNetwork, policy: Tensor, images: Images, compute: Compute) -> Tensor:
    """The network's logits of images, not augmented, under policies: bool (N, K) to float32 (N, classes), on the
    CPU; no image is answered."""
    run = executor(dynamic.network, None, compute)
    batches = images.batches(256, dynamic.normalisation, compute.device, channels_last=compute.channels_last)
    found: list[Tensor] = []
    start = 0
    for batch, _ in batches:
        found.append(run(batch, policy=policy[start : start + len(batch)].to(batch.device))[0].cpu())
        start += len(batch)
    return torch.cat(found)


def _with_train(data: Data, images: Images) -> Data:
    """The data with other training images."""
    return cast("Data", _OtherTraining(data, images))


class _OtherTraining:
    def __init__(self, data: Data, train: Images):
        self._data, self.train = data, train

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


@dataclass(frozen=True)
class HeldOut:
    """What both networks make of images that weren't trained on, on the CPU."""

    keep_probs: Tensor
    """(N, K)."""
    answer: Tensor
    """(N, classes), log-probabilities."""
    labels: Tensor
    """int64 (N,)."""

    @property
    def confidence(self) -> Tensor:
        """(N,)."""
        return confidence(self.answer)

    @property
    def right(self) -> Tensor:
        """bool (N,), of the answers."""
        return self.answer.argmax(1) == self.labels


@torch.no_grad()
def look_at(dynamic: DynamicNetwork, images: Images, compute: Compute) -> HeldOut:
    """The policy network on images as they are, not augmented; it is left in eval mode."""
    policy_network = dynamic.policy_network
    assert policy_network is not None
    policy_network.eval()
    batches = images.batches(256, dynamic.normalisation, compute.device, channels_last=compute.channels_last)
    found = [(policy_network.glance(batch), labels) for batch, labels in batches]
    answers = [glance.answer for glance, _ in found if glance.answer is not None]
    return HeldOut(
        torch.cat([glance.keep_probs.cpu() for glance, _ in found]),
        torch.cat(answers).cpu(),
        torch.cat([labels.cpu() for _, labels in found]),
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T, between 1 / `MOST_HEAT` and `MOST_HEAT`, that makes softmax(logits / T) fit the labels
    best (Guo et al. 2017).

    Args:
        logits: (N, classes), or log-probabilities.
        labels: int64 (N,).
    """
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    found = _minimise(lambda: F.cross_entropy(logits.double() / log_t.exp(), labels), log_t).exp().item()
    return min(max(found, 1 / MOST_HEAT), MOST_HEAT)


def fit_weight(logits: Tensor, answer: Tensor, labels: Tensor) -> float:
    """The weight w, 0 to `MOST_WEIGHT`, of the answers beside the ResNet's logits that fits the labels best, where
    softmax((logits + w · answer) / T) is fitted for both w and T: a network that is too sure of itself would leave
    no room for a second opinion otherwise.

    Args:
        logits: of images that aren't answered, (N, classes).
        answer: log-probabilities (N, classes).
        labels: int64 (N,).
    """
    both = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # w, and log T
    logits, answer = logits.double(), answer.double()

    def loss() -> Tensor:
        return F.cross_entropy(with_answers(logits, answer, None, both[0]) / both[1].exp(), labels)

    return min(max(_minimise(loss, both)[0].item(), 0.0), MOST_WEIGHT)


def _minimise(loss: Callable[[], Tensor], variable: Tensor) -> Tensor:
    optimizer = torch.optim.LBFGS([variable], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return variable.detach()


@torch.no_grad()
def calibrate_answers(policy_network: PolicyNetwork, held: HeldOut) -> float:
    """Divides the answer head's logits by the temperature that fits images not trained on; returns it."""
    temperature = fit_temperature(held.answer, held.labels)
    head = policy_network.answer
    assert head is not None
    for parameter in head.parameters():
        parameter.div_(temperature)
    return temperature


def answered_share(policy_cost: float, rest_cost: float, target: float) -> float:
    """Which share of the images has to be answered so that all cost `target` on average.

    Args:
        policy_cost: of the policy network, which all images pay.
        rest_cost: of the ResNet, which those pay that aren't answered.

    >>> round(answered_share(0.2, 0.5, 0.45), 3)
    0.5
    """
    return min(1.0, max(0.0, 1 - (target - policy_cost) / rest_cost))


def chances_of_answers(answer: Tensor, threshold: float) -> Tensor:
    """The chance of each image to be answered, (N,): a half at the threshold.

    Args:
        answer: log-probabilities (N, classes).
        threshold: the answer threshold, below 1.
    """
    eps = torch.finfo(torch.float32).eps
    at = torch.tensor(threshold).clamp(eps, 1 - eps).logit()
    return torch.sigmoid(SHARPNESS * (confidence(answer).clamp(eps, 1 - eps).logit() - at.to(answer.device)))
