"""Where a network comes from, by its name: the zoo, timm, torchvision, or a function of the user's own."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

from torch import nn

from blockdrop.data.sets import DATASETS, Normalisation, Preprocessing
from blockdrop.errors import BlockdropError, CheckpointError
from blockdrop.models.backbone import Network
from blockdrop.models.checkpoints.dialects import Checkpoint
from blockdrop.models.checkpoints.filling import fill_brought, network_from
from blockdrop.models.conversion import convert, convert_like, preprocessing_of
from blockdrop.models.conversion.convert import Origin
from blockdrop.models.specs import ForeignSpec, ModelSpec, Spec, Variant
from blockdrop.models.zoo import build_backbone
from blockdrop.names import Shortcut


class Source(ABC):
    """Makes the network that a name stands for.

    Attributes:
        spec: the name, understood.
        variant: widths other than usual.
        origin: how the parts of the network that was made last were found; None of the zoo's.
    """

    spec: Spec
    variant: Variant
    origin: Origin | None = None

    @abstractmethod
    def preprocessing(self, normalisation: Normalisation | None = None) -> Preprocessing:
        """What the network wants of images; with this normalisation, if one is given."""

    @abstractmethod
    def fresh(self, num_classes: int | None = None) -> Network:
        """The network with fresh weights.

        Args:
            num_classes: overrides its own number of classes.
        Raises:
            BlockdropError: it can't be made so.
        """

    @abstractmethod
    def filled(self, checkpoint: Checkpoint, num_classes: int | None = None, new_head: bool = False) -> Network:
        """The network with a checkpoint's weights.

        Args:
            new_head: all but those of the head.
        Raises:
            CheckpointError: another network's.
            BlockdropError: as `fresh`.
        """


class ZooSource(Source):
    """Networks of ours.

    Args:
        shortcut, variant: override the checkpoint's, else the usual ones.
    """

    spec: ModelSpec

    def __init__(self, spec: ModelSpec, shortcut: Shortcut | None = None, variant: Variant = Variant()):
        self.spec, self.shortcut, self.variant = spec, shortcut, variant

    def preprocessing(self, normalisation: Normalisation | None = None) -> Preprocessing:
        usual = DATASETS[self.spec.dataset].normalisation
        return Preprocessing.usual(self.spec.image_size, normalisation or usual)

    def fresh(self, num_classes: int | None = None) -> Network:
        return build_backbone(self.spec, num_classes, self.shortcut, self.variant)

    def filled(self, checkpoint: Checkpoint, num_classes: int | None = None, new_head: bool = False) -> Network:
        if checkpoint.origin is not None:
            raise CheckpointError(f"{checkpoint.path}: holds {checkpoint.model}, the model is {self.spec.name}")
        self.variant = checkpoint.variant.overridden_by(self.variant)
        return network_from(checkpoint, self.spec, num_classes, self.shortcut, self.variant, new_head)


class BroughtSource(Source):
    """Networks of other people's code.

    Args:
        image_size: side of the square images in pixels; default: what the network says of itself.
    Raises:
        BlockdropError: there is no such network; it doesn't say its image size.
    """

    def __init__(self, spec: ForeignSpec, image_size: int | None = None):
        self.spec, self.variant, self.image_size = spec, Variant(), image_size
        self._facts = _facts_of(self._build(None))
        if self._facts is None and image_size is None:
            raise BlockdropError(f"{spec.name}: its image size isn't known; pass --image_size")

    def preprocessing(self, normalisation: Normalisation | None = None) -> Preprocessing:
        facts = self._facts
        if facts is None:
            assert self.image_size is not None  # else the network were refused
            facts = Preprocessing.usual(self.image_size, DATASETS["Folder"].normalisation)
        return facts.at(self.image_size, normalisation)

    def fresh(self, num_classes: int | None = None) -> Network:
        return self._convert(self._build(num_classes))

    def filled(self, checkpoint: Checkpoint, num_classes: int | None = None, new_head: bool = False) -> Network:
        if checkpoint.model not in (None, self.spec.name) and checkpoint.origin is None:
            raise CheckpointError(f"{checkpoint.path}: holds {checkpoint.model}, the model is {self.spec.name}")
        module = self._build(num_classes if new_head else num_classes or checkpoint.num_classes)
        if checkpoint.origin is None and (checkpoint.resnet or {}).keys() == module.state_dict().keys():
            try:  # a file of the network's own makers
                module.load_state_dict(checkpoint.resnet or {})
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise CheckpointError(f"{checkpoint.path}: doesn't fit {self.spec.name} ({reason})") from None
            return self._convert(module)
        if checkpoint.origin is not None and not new_head:
            network: Network
            try:
                network = convert_like(module, checkpoint.origin)  # type: ignore[arg-type]
            except BlockdropError as error:
                raise CheckpointError(f"{checkpoint.path}: {error}") from None
            self.origin = checkpoint.origin  # type: ignore[assignment]
        else:
            network = self._convert(module)
        fill_brought(checkpoint, network, new_head)
        return network

    def _convert(self, module: nn.Module) -> Network:
        try:
            network, self.origin = convert(module, image_size=self.preprocessing().image_size)
        except BlockdropError as error:
            raise BlockdropError(f"{self.spec.name}: {error}{self._mend}") from None
        return network

    @property
    def _mend(self) -> str:
        """How a function can give a network by its parts."""
        if not isinstance(self.spec, ForeignSpec) or not self.spec.is_function:
            return ""
        return "; a function may return blockdrop.make_dynamic(stem=…, …).network"

    def _build(self, num_classes: int | None) -> nn.Module:
        spec = self.spec
        assert isinstance(spec, ForeignSpec)
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        if spec.library == "timm":
            timm = _imported("timm", "pip install blockdrop[timm]")
            if not timm.is_model(spec.target):
                raise BlockdropError(f"{spec.name}: timm {timm.__version__} has no such network")
            return timm.create_model(spec.target, **options)
        if spec.library == "torchvision":
            from torchvision import models

            if spec.target not in models.list_models(module=models):
                raise BlockdropError(
                    f"{spec.name}: torchvision has no such network; it has resnet50, resnext50_32x4d, …"
                )
            return models.get_model(spec.target, weights=None, **options)
        function = getattr(_imported(spec.library, "put its folder on PYTHONPATH"), spec.target, None)
        if not callable(function):
            raise BlockdropError(f"{spec.name}: {spec.library} has no function {spec.target}")
        takes = inspect.signature(function).parameters
        module = function(**(options if "num_classes" in takes else {}))
        if not isinstance(module, nn.Module):
            raise BlockdropError(f"{spec.name}: returned a {type(module).__name__}, not an nn.Module")
        return module


def open_source(
    spec: Spec,
    *,
    shortcut: Shortcut | None = None,
    variant: Variant = Variant(),
    image_size: int | None = None,
) -> Source:
    """The source of a network by its name.

    Args:
        shortcut, variant: of networks of the zoo.
        image_size: of others.
    Raises:
        BlockdropError: an option that the network doesn't know; as `BroughtSource`.
    """
    if isinstance(spec, ModelSpec):
        if image_size not in (None, spec.image_size):
            raise BlockdropError(f"--image_size {image_size}: {spec.name} takes images of {spec.image_size} px")
        return ZooSource(spec, shortcut, variant)
    for flag, value in (("shortcut", shortcut), *variant.numbers().items()):
        if value is not None:
            raise BlockdropError(f"--{flag} {value}: for networks of blockdrop's own; {spec.name} has its own")
    return BroughtSource(spec, image_size)


def _facts_of(module: nn.Module) -> Preprocessing | None:
    if isinstance(module, Network) and module.image_size is not None:
        return Preprocessing.usual(module.image_size, DATASETS["Folder"].normalisation)
    return preprocessing_of(module)


def _imported(module: str, mend: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise BlockdropError(f"{module} can't be imported ({error}); {mend}") from None
