"""Names to models: `R110_C10` is a CIFAR ResNet-110 with ten classes and its policy network."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

from torch import nn

from agents.policy_network import PolicyNetwork
from blockdrop.data import DATASETS
from blockdrop.errors import UserError
from blockdrop.models.resnet import SHORTCUTS, DroppableResNet, Shortcut, make_resnet

CIFAR_DEPTHS = (8, 14, 20, 26, 32, 38, 44, 56, 74, 110)  # 6n + 2: 3 stages of n basic blocks
CIFAR_WIDTHS = (16, 32, 64)
IMAGENET_LAYERS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
IMAGENET_WIDTHS = (64, 128, 256, 512)
BOTTLENECK_DEPTHS = (50, 101, 152)

POLICY_NETS = {"reference": 1, "pooled": 2, "pooled4": 4}
"""Policy networks by name: the factor by which their input is average-pooled beyond the reference's."""


@dataclass(frozen=True)
class ModelSpec:
    """A model name, understood."""

    name: str
    depth: int
    dataset: str
    image_size: int
    """Side of the square images in pixels: 32, or 224 for the 7×7 stem."""

    @property
    def large_images(self) -> bool:
        return self.image_size > 64

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks per stage."""
        return IMAGENET_LAYERS.get(self.depth) or ((self.depth - 2) // 6,) * 3

    @property
    def widths(self) -> tuple[int, ...]:
        return IMAGENET_WIDTHS if self.depth in IMAGENET_LAYERS else CIFAR_WIDTHS

    @property
    def bottleneck(self) -> bool:
        return self.depth in BOTTLENECK_DEPTHS

    @property
    def default_shortcut(self) -> Shortcut:
        return "projection" if self.depth in IMAGENET_LAYERS else "pad_avgpool"


def parse_model_name(name: str) -> ModelSpec:
    """`R<depth>_<dataset>` to what it stands for.

    Raises:
        UserError: not of that form, unknown depth or data set, or a depth that doesn't suit the data set.

    >>> parse_model_name("R110_C10").layers
    (18, 18, 18)
    """
    match = re.fullmatch(r"R(\d+)_(\w+)", name)
    if not match:
        raise UserError(f"{name}: model names have the form R<depth>_<dataset>, for example R110_C10")
    depth, dataset = int(match[1]), match[2]
    if dataset not in DATASETS:
        raise UserError(f"{name}: unknown data set {dataset}; choose {', '.join(DATASETS)}")
    if depth not in (*CIFAR_DEPTHS, *IMAGENET_LAYERS):
        raise UserError(
            f"{name}: no ResNet has depth {depth}; choose {', '.join(map(str, CIFAR_DEPTHS))} (3 stages) "
            f"or {', '.join(map(str, IMAGENET_LAYERS))} (4 stages)"
        )
    image_size = DATASETS[dataset].image_size or (224 if depth in IMAGENET_LAYERS else 32)
    if image_size > 64 and depth in CIFAR_DEPTHS:
        raise UserError(
            f"{name}: depth {depth} is a ResNet for 32 px images; for {image_size} px choose "
            f"{', '.join(map(str, IMAGENET_LAYERS))}"
        )
    return ModelSpec(name, depth, dataset, image_size)


def build(
    name: str,
    num_classes: int | None = None,
    shortcut: Shortcut | None = None,
    policy_net: str = "reference",
) -> tuple[DroppableResNet, PolicyNetwork]:
    """A ResNet with droppable blocks and its policy network, both with fresh weights.

    Args:
        name: `R<depth>_<dataset>`, for example R110_C10, R101_ImgNet, R32_Digits.
        num_classes: overrides the data set's (and is needed for `Folder`, which has none of its own).
        shortcut: "pad_avgpool", "pad_stride" or "projection"; default pad_avgpool for the CIFAR family,
            projection for the ImageNet family, as the reference has it.
        policy_net: "reference", "pooled" (its input average-pooled by 2: a quarter of the FLOPs) or
            "pooled4" (by 4).
    Raises:
        UserError: unknown name, shortcut or policy network; class count missing.

    >>> resnet, policy_network = build("R32_C10")
    >>> resnet.num_blocks, sum(p.numel() for p in resnet.parameters())
    (15, 464154)
    """
    spec = parse_model_name(name)
    classes = num_classes or DATASETS[spec.dataset].num_classes
    if classes is None:
        raise UserError(f"{name}: a Folder has no class count of its own; pass num_classes")
    if shortcut is not None and shortcut not in SHORTCUTS:
        raise UserError(f"unknown shortcut {shortcut}; choose {', '.join(SHORTCUTS)}")
    resnet = make_resnet(
        spec.layers,
        spec.widths,
        classes,
        shortcut or spec.default_shortcut,
        bottleneck=spec.bottleneck,
        large_images=spec.large_images,
    )
    return resnet, build_policy_network(resnet.num_blocks, spec.large_images, policy_net)


def build_policy_network(
    num_blocks: int, large_images: bool = False, policy_net: str = "reference"
) -> PolicyNetwork:
    """The reference's policy network for K blocks, with fresh weights.

    32 px: a ResNet-8 trunk. 224 px: the image pooled by 2, then a [1, 1, 1, 1] trunk of the ImageNet family.
    """
    if policy_net not in POLICY_NETS:
        raise UserError(f"unknown policy network {policy_net}; choose {', '.join(POLICY_NETS)}")
    pool = POLICY_NETS[policy_net]
    if large_images:
        trunk = make_resnet((1, 1, 1, 1), IMAGENET_WIDTHS, 1, "projection", large_images=True)
        pool *= 2
    else:
        trunk = make_resnet((1, 1, 1), CIFAR_WIDTHS, 1, "pad_avgpool")
    head = trunk.fc
    assert isinstance(head, nn.Linear)
    trunk.fc = nn.Identity()
    return PolicyNetwork(trunk, head.in_features, num_blocks, input_pool=pool)


def folded_policy_network(policy_network: PolicyNetwork) -> PolicyNetwork:
    """A copy for inference with BatchNorm folded into the trunk's convolutions; same keep probabilities."""
    network = copy.deepcopy(policy_network).eval().requires_grad_(False)
    if isinstance(network.features, DroppableResNet):
        network.features = network.features.folded()
    return network
