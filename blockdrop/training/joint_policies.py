"""Who decides while policies and ResNet are fine-tuned jointly."""

from __future__ import annotations

import copy

import torch
from torch import nn

from agents.answers import NEVER
from agents.deciders import Decider, Learned, Look, Shuffled, Static
from agents.names import DEFAULT_THRESHOLD
from agents.static_policies import StaticPolicy
from blockdrop.dynamic import DynamicNetwork
from blockdrop.measure import executor, look_through
from blockdrop.training.closing import POLICY_STEPS
from blockdrop.training.compute import Compute
from blockdrop.training.policies import OperatingPoint
from blockdrop.training.policy_epoch import Test, gathered


class JointPolicies:
    """Who decides in training, in recalibration and in tests: the policy network, or a static policy.

    Args:
        dynamic: its policy network is the one that learns.
        static: takes the policy network's place.
        shuffled: each image gets the policy of another one.
        answers_learn: the trunk that answers come from learns with the policies; otherwise it stays as it is.

    Attributes:
        point: threshold of the policy network's MAP policies.
        borrowed: modules of the ResNet that the policy network looks through.
    """

    def __init__(
        self,
        dynamic: DynamicNetwork,
        compute: Compute,
        static: StaticPolicy | None = None,
        shuffled: bool = False,
        answers_learn: bool = False,
    ):
        self.dynamic, self.compute, self.static, self.shuffled = dynamic, compute, static, shuffled
        self.answers_learn = answers_learn
        self.point = OperatingPoint(answer_threshold=DEFAULT_THRESHOLD if answers_learn else NEVER)
        self.borrowed: tuple[nn.Module, ...] = ()
        if dynamic.policy_network is not None:
            self.compute.place(dynamic.policy_network)
            self.borrowed = dynamic.policy_network.borrowed

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What is trained beside the ResNet, by its name in messages."""
        network = self.dynamic.policy_network
        return {} if network is None else {"policy network": network}

    def train(self, learns: bool) -> None:
        """Puts the policy network into the mode of a batch; what its answers come from stays as it is."""
        network = self.dynamic.policy_network
        if network is not None:
            network.train(learns)
            if network.answer is not None and not self.answers_learn:
                network.features.eval()

    def in_training(self, draws: torch.Generator, static_draws: torch.Generator) -> Decider:
        """For an epoch's batches.

        Args:
            draws: of shuffled policies.
            static_draws: of a static policy.
        """
        if self.static is not None:
            return Static(self.static, static_draws)
        assert self.dynamic.policy_network is not None
        return self._of(gathered(self.dynamic.policy_network, self.compute.processes), draws, answers=False)

    def in_recalibration(self) -> Decider:
        """For BatchNorm's statistics: the policy network is a copy, which stays as it is meanwhile."""
        if self.static is not None:
            return Static(self.static)
        policy_network = copy.deepcopy(self.dynamic.policy_network)
        assert policy_network is not None
        return self._of(policy_network.eval().glance)

    def test(self, steps: int) -> Test:
        """For the test after an epoch.

        Args:
            steps: in which the policy network has learned.
        """
        run = executor(self.dynamic.network, self.dynamic.policy_network, self.compute.in_float32())
        decider: Decider
        if self.static is not None:
            decider = Static(self.static)
        else:
            decider = self._of(look_through(run, self.compute.processes))
        return Test(run, decider, self.point, {} if self.static is not None else {POLICY_STEPS: steps})

    def _of(self, look: Look, draws: torch.Generator | None = None, answers: bool = True) -> Decider:
        answer_threshold = self.point.answer_threshold if answers else NEVER
        learned = Learned(look, self.dynamic.num_blocks, self.point.threshold, answer_threshold)
        return Shuffled(learned, draws) if self.shuffled else learned
