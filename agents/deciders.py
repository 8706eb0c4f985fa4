"""Deciders: which blocks run for which image.

Training, tests, recalibration of BatchNorm, curves and callers of the executor all ask a decider, batch after
batch; none decides by itself. Deciders compose: `LastDecided(Shuffled(Learned(policy_network)), 3)`.

Of several processes each gives its share of a batch, and gets the decision for the whole batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from agents.answers import NEVER, is_sure
from agents.curriculum import keep_undecided
from agents.names import DEFAULT_THRESHOLD
from agents.policies import map_policy
from agents.policy_network import Glance
from agents.static_policies import StaticPolicy, make_static_policy

Look = Callable[[Tensor], Glance]
"""images (N', C, H, W), this process's share, to what a policy network makes of the whole batch. `glance` of a
`PolicyNetwork` is one, for one process."""


class Decision(NamedTuple):
    """What was decided for a batch of N images."""

    keep_probs: Tensor
    """(N, K), with the gradient that the decider's network gives; zeros and ones where nothing is uncertain."""
    policy: Tensor
    """bool (N, K): the blocks that run; none of an answered image."""
    values: Tensor | None = None
    """(N, 1): estimates of each image's reward; None where the decider makes none."""
    answered: Tensor | None = None
    """bool (N,): nothing but the policy network runs for these images; None where nothing can be answered."""
    answer: Tensor | None = None
    """(N, classes): log-probabilities; None where nothing can be answered."""

    def rows(self, rows: slice | Tensor) -> Decision:
        """That for some of the images."""
        return Decision(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]


class Decider(ABC):
    """images -> keep probabilities and policy.

    Attributes:
        num_blocks: K.
        looks: whether a policy network looks at the images, so that its FLOPs count.
    """

    num_blocks: int
    looks: bool

    def restart(self) -> None:  # noqa: B027  # nothing to do where nothing is drawn
        """Begins a pass over a set of images: what is drawn at random comes out as in the pass before."""

    def check(self, images: int) -> None:  # noqa: B027
        """Raises `ValueError` if it can't decide for a set of so many images."""

    @abstractmethod
    def __call__(self, images: Tensor, count: int | None = None) -> Decision:
        """Decides for the next batch of a pass.

        Args:
            images: this process's share of the batch, (N', C, H, W), normalised.
            count: N, the images of the whole batch; default: those given.
        """


class Learned(Decider):
    """What a policy network decides: a block runs where its keep probability is at least the threshold, of images
    that aren't answered.

    Args:
        look: the policy network.
        num_blocks: K.
        threshold, answer_threshold: may be changed between batches.

    >>> decide = Learned(lambda images: Glance(torch.tensor([[0.2, 0.9]])), num_blocks=2)
    >>> decide(torch.zeros(1, 3, 4, 4)).policy
    tensor([[False,  True]])
    """

    looks = True

    def __init__(
        self,
        look: Look,
        num_blocks: int,
        threshold: float = DEFAULT_THRESHOLD,
        answer_threshold: float = NEVER,
    ):
        self.look, self.num_blocks = look, num_blocks
        self.threshold, self.answer_threshold = threshold, answer_threshold

    def __call__(self, images: Tensor, count: int | None = None) -> Decision:
        keep_probs, values, answer = self.look(images)
        policy = map_policy(keep_probs, self.threshold)
        if answer is None:
            return Decision(keep_probs, policy, values)
        answered = is_sure(answer, self.answer_threshold, policy)
        return Decision(keep_probs, policy & ~answered.unsqueeze(-1), values, answered, answer)


class Static(Decider):
    """A static policy: no image is looked at.

    Args:
        policy: see `make_static_policy`.
        generator: draws from it go on from batch to batch and from pass to pass; default: the same draws in every
            pass.

    >>> decide = keep_all(2)
    >>> decide(torch.zeros(1, 3, 4, 4)).policy
    tensor([[True, True]])
    """

    looks = False

    def __init__(self, policy: StaticPolicy, generator: torch.Generator | None = None):
        self.policy, self.num_blocks = policy, policy.num_blocks
        self._given, self._generator, self._start = generator, generator, 0

    def restart(self) -> None:
        self._start = 0
        if self._given is None:
            self._generator = None

    def check(self, images: int) -> None:
        if self.policy.images not in (None, images):
            raise ValueError(f"{self.policy.name}: {self.policy.images} policies for {images} images")

    def __call__(self, images: Tensor, count: int | None = None) -> Decision:
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(0)
        count = len(images) if count is None else count
        policy = self.policy.draw(count, self._generator, self._start).to(images.device)
        self._start += count
        return Decision(policy.float(), policy)


def keep_all(num_blocks: int) -> Static:
    """The decider of the full network."""
    return Static(make_static_policy("full", num_blocks))


class Shuffled(Decider):
    """Gives each image of a batch the decision for another one: what policies are worth that know nothing of their
    image. Whether it is answered is dealt, too; what is answered stays its own.

    Args:
        decider: whose decisions are dealt.
        generator: as of `Static`, on the device of the decisions.
    """

    def __init__(self, decider: Decider, generator: torch.Generator | None = None):
        self.decider, self.num_blocks, self.looks = decider, decider.num_blocks, decider.looks
        self._given, self._generator = generator, generator

    def restart(self) -> None:
        self.decider.restart()
        if self._given is None:
            self._generator = None

    def check(self, images: int) -> None:
        self.decider.check(images)

    def __call__(self, images: Tensor, count: int | None = None) -> Decision:
        found = self.decider(images, count)
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(found.policy), generator=self._generator, device=self._generator.device)
        return found.rows(order.to(found.policy.device))._replace(answer=found.answer)


class LastDecided(Decider):
    """A curriculum's: only the last `decided` blocks are decided, earlier ones run. Keep probabilities stay."""

    def __init__(self, decider: Decider, decided: int):
        self.decider, self.num_blocks, self.looks = decider, decider.num_blocks, decider.looks
        self.decided = decided

    def restart(self) -> None:
        self.decider.restart()

    def check(self, images: int) -> None:
        self.decider.check(images)

    def __call__(self, images: Tensor, count: int | None = None) -> Decision:
        found = self.decider(images, count)
        policy = keep_undecided(found.policy, self.decided)
        return found._replace(policy=policy if found.answered is None else policy & ~found.answered.unsqueeze(-1))
