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

from agents.curriculum import keep_undecided
from agents.names import DEFAULT_THRESHOLD
from agents.policies import map_policy
from agents.static_policies import StaticPolicy, make_static_policy

Look = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""images (N', C, H, W), this process's share, to keep probabilities (N, K) and values (N, 1) of the whole batch;
None where there are no values. A `PolicyNetwork` is one, for one process."""


class Decision(NamedTuple):
    """What was decided for a batch of N images."""

    keep_probs: Tensor
    """(N, K), with the gradient that the decider's network gives; zeros and ones where nothing is uncertain."""
    policy: Tensor
    """bool (N, K): the blocks that run."""
    values: Tensor | None = None
    """(N, 1): estimates of each image's reward; None where the decider makes none."""


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
    """What a policy network decides: a block runs where its keep probability is at least the threshold.

    Args:
        look: the policy network.
        num_blocks: K.
        threshold: may be changed between batches.

    >>> decide = Learned(lambda images: (torch.tensor([[0.2, 0.9]]), None), num_blocks=2)
    >>> decide(torch.zeros(1, 3, 4, 4)).policy
    tensor([[False,  True]])
    """

    looks = True

    def __init__(self, look: Look, num_blocks: int, threshold: float = DEFAULT_THRESHOLD):
        self.look, self.num_blocks, self.threshold = look, num_blocks, threshold

    def __call__(self, images: Tensor, count: int | None = None) -> Decision:
        keep_probs, values = self.look(images)
        return Decision(keep_probs, map_policy(keep_probs, self.threshold), values)


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
    image.

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
        order = order.to(found.policy.device)
        values = None if found.values is None else found.values[order]
        return Decision(found.keep_probs[order], found.policy[order], values)


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
        return found._replace(policy=keep_undecided(found.policy, self.decided))
