"""Networks of finished runs, opened again to be measured: the one place where studies open checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agents.policy_network import PolicyNetwork
from agents.static_policies import StaticPolicy
from blockdrop.data import DataSource, Images, Normalisation
from blockdrop.inference.executor import EngineName, Executor
from blockdrop.measure import evaluate_images, executor
from blockdrop.models.backbone import Backbone
from blockdrop.policy_stats import Outcomes
from blockdrop.training.compute import Compute
from blockdrop.training.config import ModelConfig
from blockdrop.training.policies import open_static_policy, training_keep_probs
from blockdrop.training.setup import Setup, open_setup


@dataclass(frozen=True)
class OpenedNetworks:
    """Networks of a checkpoint, and the data set that they are for."""

    setup: Setup

    @property
    def model(self) -> str:
        return self.setup.model

    @property
    def network(self) -> Backbone:
        """The network whose blocks may be dropped."""
        return self.setup.resnet

    @property
    def has_backbone(self) -> bool:
        """Whether a checkpoint filled that network."""
        return self.setup.has_backbone

    @property
    def policy_network(self) -> PolicyNetwork | None:
        """The learned one; None where none decides."""
        return self.setup.policy_network if self.setup.has_policy else None

    @property
    def static(self) -> StaticPolicy | None:
        """What decides instead, if that was asked for."""
        return self.setup.static

    @property
    def threshold(self) -> float:
        """Of keep probabilities, as the checkpoint has it, else 0.5."""
        return self.setup.stored_threshold

    @property
    def normalisation(self) -> Normalisation:
        return self.setup.normalisation

    @property
    def image_size(self) -> int:
        return self.setup.image_size

    @property
    def data(self) -> DataSource:
        return self.setup.data

    @property
    def undecided(self) -> str | None:
        """A warning, if the policy network doesn't decide on every block yet."""
        return self.setup.undecided

    def executor(self, compute: Compute, engine: EngineName = "auto") -> Executor:
        """The fast executor of both networks."""
        return executor(self.network, self.policy_network, compute, engine)

    def outcomes(self, images: Images, compute: Compute, run: Executor | None = None) -> Outcomes:
        """What the networks do under their own policies.

        Args:
            run: `executor`'s, if there is one already.
        """
        return evaluate_images(
            self.network, self.policy_network, images, self.normalisation, compute, image_size=self.image_size,
            threshold=self.threshold, run=run,
        )  # fmt: skip

    def full_outcomes(self, images: Images, compute: Compute) -> Outcomes:
        """What the network does with all its blocks."""
        return evaluate_images(self.network, None, images, self.normalisation, compute, image_size=self.image_size)

    def training_keep_probs(self, compute: Compute) -> Tensor:
        """Keep probabilities of some training images, (N, K), always the same ones; needs a policy network."""
        return training_keep_probs(compute.place(self.setup.policy_network), self.setup, compute)


def open_networks(
    config: ModelConfig, checkpoints: tuple[str, ...], compute: Compute | None = None, policy: str | None = None
) -> OpenedNetworks:
    """Opens checkpoints or run directories, and the data that the flags name.

    Args:
        compute: of a static policy that is drawn by learned usage.
        policy: a static policy that takes the policy network's place, as evaluate's --policy names it.
    Raises:
        UserError: see `open_setup` and `open_static_policy`.
    """
    setup = open_setup(config, checkpoints)
    if policy is not None:
        setup.static = open_static_policy(policy, setup, compute or config.compute())
        setup.has_policy = False
    return OpenedNetworks(setup)
