"""What a model's name says: `R110_C10` is a CIFAR ResNet-110 with ten classes, `plain20_C10` a net without
shortcuts. Without torch; `blockdrop.models.zoo` builds the networks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from blockdrop.data.sets import DATASETS
from blockdrop.errors import BlockdropError
from blockdrop.names import REDUCTION_MODES, ReductionMode, Shortcut

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
    """block (inner widths / reduction), net (all widths / √reduction), depthwise, shuffle, mobile (see
    `reduced_branch`)."""

    def __post_init__(self) -> None:
        for name in ("expansion", "reduction"):
            value = getattr(self, name)
            if value is not None and not 0.01 <= value <= 100:
                raise BlockdropError(f"{name} {value}: must be between 0.01 and 100")
        if self.reduction_mode not in (*REDUCTION_MODES, None):
            raise BlockdropError(f"reduction mode {self.reduction_mode}: choose {', '.join(REDUCTION_MODES)}")

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


LIBRARIES = ("timm", "torchvision")
DEFAULT_MODEL = "R110_C10"
"""The reference's."""


@dataclass(frozen=True)
class ForeignSpec:
    """The name of a network that somebody else's code builds, understood: `timm:resnet50d`,
    `torchvision:resnext50_32x4d`, or `my_package.my_module:build`, a function that returns the network."""

    name: str
    library: str
    """timm, torchvision, or the module that holds the function."""
    target: str
    """The network's name in the library, or the function's."""

    dataset = "Folder"
    droppable = True
    architecture = property(lambda self: self.name)
    family = "brought"

    @property
    def is_function(self) -> bool:
        """Whether a function of the user's own builds it: never called because a file says so."""
        return self.library not in LIBRARIES


Spec = ModelSpec | ForeignSpec


def parse_name(name: str) -> Spec:
    """The name of any network to what it stands for: with a colon that of somebody else's, else the zoo's.

    Raises:
        BlockdropError: as `parse_model_name`; or a name with a colon that is neither `library:network` nor
            `module:function`.

    >>> parse_name("timm:resnet50d").library, parse_name("R110_C10").dataset
    ('timm', 'C10')
    """
    if ":" not in name:
        return parse_model_name(name)
    library, _, target = name.partition(":")
    is_module = all(part.isidentifier() for part in library.split("."))
    is_target = target.isidentifier() if library not in LIBRARIES else re.fullmatch(r"[\w.\-]+", target)
    if not (is_module and is_target):
        raise BlockdropError(
            f"{name}: names of networks with a colon are timm:<name>, torchvision:<name>, or <module>:<function>"
        )
    return ForeignSpec(name, library, target)


def _in_its_case(word: str, known: Iterable[str]) -> str | None:
    """A known word as it is spelled, whatever the case it was written in."""
    return next((one for one in known if one.lower() == word.lower()), None)


def parse_model_name(name: str) -> ModelSpec:
    """`<family><depth>_<dataset>` to what it stands for; see `FAMILIES`.

    Raises:
        BlockdropError: not of that form, unknown family, depth or data set, or a depth that doesn't suit the
            family or the data set.

    >>> parse_model_name("R110_C10").layers
    (18, 18, 18)
    """
    match = re.fullmatch(r"([A-Za-z]+)(\d+)_(\w+)", name)
    if not match and ":" in name:
        raise BlockdropError(f"{name}: a network of others; here a name R<depth>_<dataset> is wanted")
    if not match:
        raise BlockdropError(
            f"{name}: model names have the form R<depth>_<dataset>, for example R110_C10, or plain20_C10; "
            "networks of others timm:<name>, torchvision:<name> or <module>:<function>"
        )
    family, depth, dataset = match[1], int(match[2]), match[3]
    likely = _in_its_case(family, FAMILIES), _in_its_case(dataset, DATASETS)
    if likely != (family, dataset) and None not in likely:
        raise BlockdropError(f"{name}: did you mean {likely[0]}{depth}_{likely[1]}?")
    if family not in FAMILIES:
        raise BlockdropError(f"{name}: unknown architecture {family}; choose {', '.join(FAMILIES)}")
    if dataset not in DATASETS:
        raise BlockdropError(f"{name}: unknown data set {dataset}; choose {', '.join(DATASETS)}")
    if depth not in (*CIFAR_DEPTHS, *IMAGENET_LAYERS):
        raise BlockdropError(
            f"{name}: no ResNet has depth {depth}; choose {', '.join(map(str, CIFAR_DEPTHS))} (3 stages) "
            f"or {', '.join(map(str, IMAGENET_LAYERS))} (4 stages)"
        )
    if family == "shiftresnet" and depth not in CIFAR_DEPTHS:
        raise BlockdropError(f"{name}: shift nets have 3 stages; choose depth {', '.join(map(str, CIFAR_DEPTHS))}")
    image_size = DATASETS[dataset].image_size or (224 if depth in IMAGENET_LAYERS else 32)
    if image_size > 64 and depth in CIFAR_DEPTHS:
        raise BlockdropError(
            f"{name}: depth {depth} is a ResNet for 32 px images; for {image_size} px choose "
            f"{', '.join(map(str, IMAGENET_LAYERS))}"
        )
    return ModelSpec(name, family, depth, dataset, image_size)
