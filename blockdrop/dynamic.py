"""`DynamicNetwork`: a network with droppable blocks, the policy network that decides on them, and all that the two
know of themselves: operating point, image size, preprocessing, class names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.answers import NEVER, Thresholds, with_answers
from agents.deciders import Decider, Decision, Learned, keep_all
from agents.names import DEFAULT_THRESHOLD
from agents.policy_network import PolicyNetwork
from blockdrop.data.sets import LARGEST_IN_MEMORY, Normalisation, Preprocessing
from blockdrop.errors import BlockdropError, require
from blockdrop.flops import FlopTable, count_flops
from blockdrop.inference.executor import Executor, Result, compile
from blockdrop.models.backbone import Network
from blockdrop.models.checkpoints.operating_points import (
    check_operating_point,
    thresholds_of,
    thresholds_record,
)
from blockdrop.models.checkpoints.saving import save_checkpoint
from blockdrop.models.conversion import num_classes_of
from blockdrop.models.droppable import put_rows, take_rows
from blockdrop.models.policy_networks import StemFeatures, name_of
from blockdrop.models.specs import Variant


class DynamicNetwork(nn.Module):
    """A network, and the policy network that decides image by image which of its blocks run.

    Without a policy network (a plain net, or one whose policy is still to be learned) every block runs.

    Calling it runs images, normalised as `transform` does, at its own operating point:

        logits, policy = dynamic(images)

    Args:
        network: with K blocks; droppable, unless there is no policy network.
        policy_network: decides on K blocks; its `threshold` and `answer_threshold` are the operating point's.
        model: what the network is built from: a name of the zoo, `timm:…`, `torchvision:…`, or a class's name.
        preprocessing: of the images that the network wants.
        variant: of a network of the zoo.
        policy_net: name of the kind of policy network; default: what it looks like.
        classes: names in label order.
        operating_point: how the threshold was chosen; see `check_operating_point`.
        origin: of a network that isn't the zoo's: how its parts were found; see `blockdrop.models.conversion`.
        metrics: what was measured when it was saved.
        epoch: after which it was saved.
        config: flags of the run that made it.
    """

    def __init__(
        self,
        network: Network,
        policy_network: PolicyNetwork | None = None,
        *,
        model: str,
        preprocessing: Preprocessing,
        variant: Variant = Variant(),
        policy_net: str | None = None,
        classes: Sequence[str] | None = None,
        operating_point: Mapping[str, Any] | None = None,
        origin: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        epoch: int | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.network, self.policy_network = network, policy_network
        self.model, self.variant, self.origin = model, variant, None if origin is None else dict(origin)
        self._policy_net = policy_net
        self.preprocessing = preprocessing
        self._counted: dict[bool | None, tuple[object, FlopTable]] = {}
        if isinstance(classes, str):
            raise BlockdropError(f"classes {classes!r}: give a list of names, in label order")
        self.classes = None if classes is None else [str(name) for name in classes]
        self._operating_point: dict[str, Any] | None = None
        self.operating_point = operating_point
        self.metrics, self.epoch, self.config = dict(metrics or {}), epoch, dict(config or {})
        network.image_size = preprocessing.image_size
        if policy_network is not None:
            self._check_policy_network(policy_network)
            self._policy_net = policy_net or name_of(policy_network, self.image_size > LARGEST_IN_MEMORY)

    # ---- what it knows of itself

    @property
    def num_blocks(self) -> int:
        """K."""
        return self.network.num_blocks

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return num_classes_of(self.network, self.image_size)

    @property
    def policy_net(self) -> str | None:
        """Name of the kind of policy network; None where there is none."""
        return None if self.policy_network is None else self._policy_net

    @property
    def threshold(self) -> float:
        """A block runs where its keep probability is at least this: the policy network's own."""
        return DEFAULT_THRESHOLD if self.policy_network is None else self.policy_network.threshold

    @property
    def answer_threshold(self) -> float:
        """An image is answered where the policy network's largest probability is at least this: the policy
        network's own; infinite where none is answered."""
        return NEVER if self.policy_network is None else self.policy_network.answer_threshold

    @property
    def thresholds(self) -> Thresholds:
        """Both of them."""
        return Thresholds(self.threshold, self.answer_threshold)

    @property
    def operating_point(self) -> dict[str, Any] | None:
        """How the thresholds were chosen, see `check_operating_point`; None: they are the usual ones.

        Setting it sets the policy network's thresholds. Where these are set by hand, nothing else is known.

        Raises:
            BlockdropError: what is no operating point, when it is set.
        """
        if self.thresholds == thresholds_of(self._operating_point):
            return self._operating_point
        return check_operating_point(thresholds_record(self.thresholds))

    @operating_point.setter
    def operating_point(self, point: Mapping[str, Any] | None) -> None:
        try:
            self._operating_point = None if point is None else check_operating_point(point)
        except ValueError as error:
            raise BlockdropError(str(error)) from None
        if self.policy_network is not None:
            network = self.policy_network
            network.threshold, network.answer_threshold = thresholds_of(self._operating_point)

    def set_policy_network(self, policy_network: PolicyNetwork) -> None:
        """Gives it another policy network, at that one's own threshold.

        Raises:
            BlockdropError: one for another number of blocks, that looks through another network's stem, or of a
                kind that has no name.
        """
        self._check_policy_network(policy_network)
        kind = name_of(policy_network, self.image_size > LARGEST_IN_MEMORY)
        if kind is None:
            raise BlockdropError("policy network: of a kind that has no name; choose one of blockdrop.build's")
        features = policy_network.features
        if isinstance(features, StemFeatures):
            own = {id(module) for module in self.network.modules()}
            if not own.issuperset(map(id, features.borrowed)):
                raise BlockdropError("policy network stem: looks through another network's stem than this one's")
        self.policy_network, self._policy_net, self._operating_point = policy_network, kind, None

    def _check_policy_network(self, policy_network: PolicyNetwork) -> None:
        if policy_network.num_blocks != self.network.num_blocks:
            raise BlockdropError(
                f"{self.model}: has {self.network.num_blocks} blocks, its policy network decides on "
                f"{policy_network.num_blocks}"
            )

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.preprocessing.image_size

    @property
    def normalisation(self) -> Normalisation:
        """Of images scaled to [0, 1]."""
        return self.preprocessing.normalisation

    @property
    def transform(self) -> Callable[[Any], Tensor]:
        """A torchvision transform from a PIL image to what the network wants, float32 (3, H, W)."""
        return self.preprocessing.transform()

    def flop_table(self, looks: bool | None = None) -> FlopTable:
        """What each part costs for one image.

        Args:
            looks: whether the policy network counts; default: if there is one.
        """
        policy_network = None if looks is False else self.policy_network
        networks = [network for network in (self.network, policy_network) if network is not None]
        built = (
            self.image_size,
            *(
                (id(network), repr(network), [parameter.shape for parameter in network.parameters()])
                for network in networks
            ),
        )
        if looks not in self._counted or built != self._counted[looks][0]:  # the first time, or changed since
            self._counted[looks] = built, count_flops(self.network, policy_network, self.image_size)
        return self._counted[looks][1]

    def flops(self, policy: Tensor | None = None, answered: Tensor | None = None) -> Tensor:
        """FLOPs of images under their policies, policy network included.

        Args:
            policy: bool (N, K); default: all blocks, of one image.
            answered: bool (N,), images that cost the policy network alone; default: none.
        Returns:
            int64 (N,).
        Raises:
            BlockdropError: a policy, or what is answered, of another shape or type.
        """
        shape = None if policy is None else tuple(policy.shape)
        if policy is not None and (policy.dtype != torch.bool or policy.shape[1:] != (self.num_blocks,)):
            raise BlockdropError(
                f"policy: got {policy.dtype} of shape {shape}; expected torch.bool of shape (N, {self.num_blocks})"
            )
        if policy is None:
            policy = torch.ones(1, self.num_blocks, dtype=torch.bool)
        if answered is not None and (answered.dtype != torch.bool or answered.shape != policy.shape[:1]):
            raise BlockdropError(
                f"answered: got {answered.dtype} of shape {tuple(answered.shape)}; expected torch.bool of shape "
                f"({len(policy)},)"
            )
        return self.flop_table().per_image(policy, answered)

    # ---- running

    def compile(self, **options: Any) -> Executor:  # type: ignore[override]  # torch's own is for its compiler
        """The fast executor of the networks at the operating point, for inference; see `blockdrop.compile`, which
        knows the options: `dtype=torch.bfloat16`, `engine="torch"`, …."""
        return compile(self.network, self.policy_network, **options)

    def decider(self) -> Decider:
        """What decides by itself: the policy network at the operating point, else all blocks."""
        if self.policy_network is None:
            return keep_all(self.num_blocks)
        return Learned(self.policy_network.glance, self.num_blocks, self.threshold, self.answer_threshold)

    def decide(self, images: Tensor) -> Decision:
        """Keep probabilities (N, K), policy bool (N, K), values, and what is answered of images (N, 3, H, W)."""
        self.check_images(images)
        return self.decider()(images)

    def forward(self, images: Tensor, policy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs images under their policies.

        Args:
            images: float (N, 3, H, W), normalised, of `image_size` pixels a side.
            policy: bool (N, K) in place of what is decided at the operating point; no image is answered then.
        Returns:
            logits (N, classes), and the policy that ran, bool (N, K).
        Raises:
            BlockdropError: images of another size or type.
        """
        if policy is None:
            return self.run(images)[:2]
        self.check_images(images)
        return self.network(images, policy), policy

    def run(self, images: Tensor) -> Result:
        """Runs images at the operating point, and tells all of it; no part of the network runs for what is
        answered.

        Args:
            images: float (N, 3, H, W), normalised, of `image_size` pixels a side.
        Raises:
            BlockdropError: images of another size or type.
        """
        self.check_images(images)
        keep_probs, policy, _, answered, answer = self.decider()(images)
        weight = getattr(self.policy_network, "answer_weight", None)
        if answered is None or answer is None or not bool(answered.any()):
            none = torch.zeros(len(images), dtype=torch.bool, device=images.device)
            logits = with_answers(self.network(images, policy), answer, None, weight)
            return Result(logits, policy, none, keep_probs, answer)
        rest = (~answered).nonzero().squeeze(1)
        logits = answer
        if len(rest):
            found = self.network(take_rows(images, rest), policy[rest])
            logits = put_rows(answer.clone(), rest, with_answers(found, answer[rest], None, weight))
        return Result(logits, policy, answered, keep_probs, answer)

    def check_images(self, images: Tensor) -> None:
        """Raises `BlockdropError` for images that the network wasn't made for."""
        side = self.image_size
        if not isinstance(images, Tensor):
            raise BlockdropError(
                f"images: got a {type(images).__name__}; expected a tensor (N, 3, {side}, {side})"
            )
        if images.dim() != 4 or images.shape[1:] != (3, side, side) or not images.is_floating_point():
            raise BlockdropError(
                f"images: {images.dtype} of shape {tuple(images.shape)}; {self.model} takes normalised float "
                f"images (N, 3, {side}, {side}), as .transform makes them"
            )

    def with_network(
        self, network: Network, model: str | None = None, variant: Variant | None = None
    ) -> DynamicNetwork:
        """The same facts about another network, which has no policy network.

        Args:
            model, variant: what that network is built from; default: what this one's is.
        """
        return DynamicNetwork(
            network,
            model=model or self.model,
            variant=self.variant if variant is None else variant,
            preprocessing=self.preprocessing,
            classes=self.classes,
            origin=self.origin,
        )

    # ---- files

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes the networks and all that is known of them into one file, whole or not at all; `blockdrop.load`
        reads it.

        Args:
            path: a safetensors file if it ends in `.safetensors`, else a file of torch's.
            overwrite: replace a file of this name.
        Raises:
            BlockdropError: the file exists, or can't be written; a weight isn't finite.
        """
        path = Path(path)
        require(overwrite or not os.path.lexists(path), f"{path}: exists; pass overwrite=True to replace it")
        save_checkpoint(
            path,
            model=self.model,
            variant=self.variant,
            resnet=self.network,
            normalisation=self.normalisation,
            preprocessing=self.preprocessing,
            policy_network=self.policy_network,
            policy_net=self.policy_net or "reference",
            classes=self.classes,
            epoch=self.epoch or 0,
            metrics=self.metrics,
            config=self.config,
            operating_point=self.operating_point,
            origin=self.origin,
            outputs=self.num_classes,
        )

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        what = f"{self.model}, {self.num_blocks} blocks, {self.num_classes} classes, {self.image_size} px, "
        what += f"{parameters:,} parameters"
        if self.policy_network is None:
            return f"DynamicNetwork({what}, no policy network)"
        what += f", policy network {self.policy_net}, threshold {self.threshold:.4g}"
        if self.policy_network.answer is not None:
            what += f", answer threshold {self.answer_threshold:.4g}"
        return f"DynamicNetwork({what})"
