"""Names to models: `R110_C10` is a CIFAR ResNet-110 with ten classes and its policy network; `plain20_C10` and
`shiftresnet20_C10` are static nets beside it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from agents.policy_network import PolicyNetwork
from blockdrop.data import DATASETS
from blockdrop.errors import UserError
from blockdrop.models.backbone import Backbone
from blockdrop.models.compact import reduced_branch, reduced_widths
from blockdrop.models.deciders import build_policy_network
from blockdrop.models.plain import make_exact_plain, make_plain
from blockdrop.models.resnet import DroppableResNet, make_resnet
from blockdrop.models.shift import make_shift_resnet
from blockdrop.names import REDUCTION_MODES, SHORTCUTS, ReductionMode, Shortcut

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

FAMILIES = {
    "R": "the BlockDrop reference's ResNet: zero-padding shortcuts on CIFAR",
    "resnet": "ResNet with projection shortcuts",
    "plain": "ResNet without any shortcut",
    "dsplain": "ResNet without shortcuts but the downsampling ones",
    "exactplain": "plain net of a ResNet's logits, see distill --method exact",
    "shiftresnet": "ShiftResNet",
}
"""Architectures are named by family and depth: R110, plain20, shiftresnet56."""


@dataclass(frozen=True)
class Variant:
    """How a network departs from the usual widths of its architecture. None = as usual."""

    expansion: float | None = None
    """Inner channels of a shift block / its output channels."""
    reduction: float | None = None
    """By how much widths shrink; see `reduction_mode`."""
    reduction_mode: ReductionMode | None = None
    """block (inner widths / reduction), net (all widths / √reduction), depthwise (see `reduced_branch`)."""

    def __post_init__(self) -> None:
        for name in ("expansion", "reduction"):
            value = getattr(self, name)
            if value is not None and not 0.01 <= value <= 100:
                raise UserError(f"{name} {value}: must be between 0.01 and 100")
        if self.reduction_mode not in (*REDUCTION_MODES, None):
            raise UserError(f"reduction mode {self.reduction_mode}: choose {', '.join(REDUCTION_MODES)}")

    def overridden_by(self, other: Variant) -> Variant:
        """The other's values where it has some, else this one's."""
        return Variant(**{**self.numbers(), **other.numbers()})  # type: ignore[arg-type]

    def numbers(self) -> dict[str, float | str]:
        """What isn't as usual, for checkpoints."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(
            f"{key} {value:g}" if key != "reduction_mode" else f"by {value}"
            for key, value in self.numbers().items()
        )


@dataclass(frozen=True)
class ModelSpec:
    """A model name, understood."""

    name: str
    family: str
    """One of `FAMILIES`."""
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
    def architecture(self) -> str:
        """The name without the data set: R110, plain20."""
        return f"{self.family}{self.depth}"

    @property
    def droppable(self) -> bool:
        """Whether its blocks have shortcuts, so that a policy can drop them."""
        return self.family in ("R", "resnet", "shiftresnet")

    @property
    def default_shortcut(self) -> Shortcut | None:
        if self.family in ("plain", "exactplain"):
            return None
        of_reference = self.family == "R" and self.depth in CIFAR_DEPTHS
        return "pad_avgpool" if of_reference else "projection"


def parse_model_name(name: str) -> ModelSpec:
    """`<family><depth>_<dataset>` to what it stands for; see `FAMILIES`.

    Raises:
        UserError: not of that form, unknown family, depth or data set, or a depth that doesn't suit the family or
            the data set.

    >>> parse_model_name("R110_C10").layers
    (18, 18, 18)
    """
    match = re.fullmatch(r"([A-Za-z]+)(\d+)_(\w+)", name)
    if not match:
        raise UserError(
            f"{name}: model names have the form R<depth>_<dataset>, for example R110_C10, or plain20_C10"
        )
    family, depth, dataset = match[1], int(match[2]), match[3]
    if family not in FAMILIES:
        raise UserError(f"{name}: unknown architecture {family}; choose {', '.join(FAMILIES)}")
    if dataset not in DATASETS:
        raise UserError(f"{name}: unknown data set {dataset}; choose {', '.join(DATASETS)}")
    if depth not in (*CIFAR_DEPTHS, *IMAGENET_LAYERS):
        raise UserError(
            f"{name}: no ResNet has depth {depth}; choose {', '.join(map(str, CIFAR_DEPTHS))} (3 stages) "
            f"or {', '.join(map(str, IMAGENET_LAYERS))} (4 stages)"
        )
    if family == "shiftresnet" and depth not in CIFAR_DEPTHS:
        raise UserError(f"{name}: shift nets have 3 stages; choose depth {', '.join(map(str, CIFAR_DEPTHS))}")
    image_size = DATASETS[dataset].image_size or (224 if depth in IMAGENET_LAYERS else 32)
    if image_size > 64 and depth in CIFAR_DEPTHS:
        raise UserError(
            f"{name}: depth {depth} is a ResNet for 32 px images; for {image_size} px choose "
            f"{', '.join(map(str, IMAGENET_LAYERS))}"
        )
    return ModelSpec(name, family, depth, dataset, image_size)


def build_backbone(
    spec: ModelSpec,
    num_classes: int | None = None,
    shortcut: Shortcut | None = None,
    variant: Variant = Variant(),
) -> Backbone:
    """Any network of the zoo, with fresh weights.

    Args:
        spec: from `parse_model_name`.
        num_classes: overrides the data set's (and is needed for `Folder`, which has none of its own).
        shortcut: "pad_avgpool", "pad_stride" or "projection"; default: the family's.
        variant: widths other than usual.
    Raises:
        UserError: class count missing, an unknown shortcut, a shortcut for a family without any, a variant that
            doesn't suit the family.
    """
    classes = num_classes or DATASETS[spec.dataset].num_classes
    if classes is None:
        raise UserError(f"{spec.name}: a Folder has no class count of its own; pass num_classes")
    if shortcut is not None and shortcut not in SHORTCUTS:
        raise UserError(f"unknown shortcut {shortcut}; choose {', '.join(SHORTCUTS)}")
    if shortcut is not None and spec.default_shortcut is None:
        raise UserError(f"shortcut {shortcut}: {spec.architecture} has no shortcuts")
    shortcut = shortcut or spec.default_shortcut
    if spec.family == "shiftresnet":
        if variant.reduction is not None or variant.reduction_mode is not None:
            given = f"mode {variant.reduction_mode}" if variant.reduction is None else variant.reduction
            raise UserError(
                f"reduction {given}: for ResNets and plain nets; {spec.architecture} takes an expansion"
            )
        assert shortcut is not None
        return make_shift_resnet(spec.layers, spec.widths, classes, variant.expansion or 1.0, shortcut)
    if variant.expansion is not None:
        raise UserError(f"expansion {variant.expansion}: for shift nets; {spec.architecture} takes a reduction")
    widths, branch = spec.widths, None
    if variant.reduction is not None or variant.reduction_mode is not None:
        mode, reduction = variant.reduction_mode or "block", variant.reduction or 1.0
        branch = reduced_branch(mode, reduction, spec.bottleneck)
        widths = reduced_widths(widths, reduction) if mode == "net" else widths
    how = (spec.bottleneck, spec.large_images, branch)
    if spec.family == "exactplain":
        return make_exact_plain(spec.layers, widths, classes, *how)
    if spec.family in ("plain", "dsplain"):
        return make_plain(spec.layers, widths, classes, shortcut, *how)
    assert shortcut is not None
    return make_resnet(spec.layers, widths, classes, shortcut, *how)


def build(
    name: str,
    num_classes: int | None = None,
    shortcut: Shortcut | None = None,
    policy_net: str = "reference",
    variant: Variant = Variant(),
) -> tuple[DroppableResNet, PolicyNetwork]:
    """A ResNet with droppable blocks and its policy network, both with fresh weights.

    Args:
        name: `R<depth>_<dataset>`, for example R110_C10, R101_ImgNet, R32_Digits; or another droppable family's.
        num_classes: overrides the data set's (and is needed for `Folder`, which has none of its own).
        shortcut: "pad_avgpool", "pad_stride" or "projection"; default pad_avgpool for the CIFAR family,
            projection for the ImageNet family, as the reference has it.
        policy_net: "reference", "pooled" (its input average-pooled by 2: a quarter of the FLOPs), "pooled4" (by
            4), "stem" (looks through the ResNet's own stem, which the two share) or "constant" (one policy for
            all images).
        variant: widths other than usual.
    Raises:
        UserError: unknown name, shortcut or policy network; class count missing; a net without shortcuts.

    >>> resnet, policy_network = build("R32_C10")
    >>> resnet.num_blocks, sum(p.numel() for p in resnet.parameters())
    (15, 464154)
    """
    spec = parse_model_name(name)
    resnet = build_backbone(spec, num_classes, shortcut, variant)
    if not isinstance(resnet, DroppableResNet):
        raise UserError(f"{name}: a net without shortcuts has no blocks to drop; build_static makes it")
    return resnet, build_policy_network(resnet.num_blocks, spec.large_images, policy_net, backbone=resnet)


def build_static(
    name: str,
    num_classes: int | None = None,
    shortcut: Shortcut | None = None,
    *,
    expansion: float | None = None,
    reduction: float | None = None,
    reduction_mode: ReductionMode | None = None,
) -> Backbone:
    """Any network of the zoo without a policy network, with fresh weights.

    Args:
        name: `<architecture>_<dataset>`, for example plain20_C10, shiftresnet20_C100, resnet20_C10.
        num_classes, shortcut: as for `build`.
        expansion: of shift nets: inner channels of a block / its output channels.
        reduction, reduction_mode: of ResNets and plain nets: see `Variant`.
    Raises:
        UserError: as `build_backbone`.

    >>> sum(p.numel() for p in build_static("shiftresnet20_C10", expansion=3).parameters())
    95642
    """
    variant = Variant(expansion, reduction, reduction_mode)
    return build_backbone(parse_model_name(name), num_classes, shortcut, variant)
