"""What a brought network says of itself: its classes, and what it wants done to an image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from blockdrop.data.sets import INTERPOLATIONS, NORMALISATIONS, Normalisation, Preprocessing
from blockdrop.errors import BlockdropError
from blockdrop.models.dry_run import run_for_nothing

IMAGENET = NORMALISATIONS["imagenet"]


def class_name(model: object) -> str:
    """The full name of an object's class."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def preprocessing_of(model: nn.Module) -> Preprocessing | None:
    """The preprocessing that a network was trained with: as a timm model's configuration has it, as torchvision's
    networks usually want it; None of others, which don't say.

    Raises:
        BlockdropError: a configuration of images that aren't square.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, Mapping) and "input_size" in config:
        # a vision transformer may be made for another size than its configuration's
        height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or config["input_size"][1:]
        if height != width:
            raise BlockdropError(
                f"{type(model).__name__}: takes images of {height}×{width} pixels; they must be square"
            )
        if config.get("crop_mode") == "squash":
            warnings.warn(
                f"{type(model).__name__}: its makers squash images to a square; here their short side is resized "
                "and the centre cut out",
                stacklevel=3,
            )
        interpolation = str(config.get("interpolation") or "bilinear")
        return Preprocessing(
            int(width),
            Normalisation(tuple(config.get("mean", IMAGENET.mean)), tuple(config.get("std", IMAGENET.std))),
            math.floor(width / (config.get("crop_pct") or 1)),
            interpolation if interpolation in INTERPOLATIONS else "bilinear",
        )
    if any(cls.__module__.startswith("torchvision.models.") for cls in type(model).__mro__):
        return Preprocessing(224, IMAGENET, 256)
    return None


def num_classes_of(network: nn.Module, image_size: int) -> int:
    """How many logits a network gives.

    Args:
        image_size: side of the square images that it takes, in pixels.
    Raises:
        BlockdropError: it gives something else than logits (N, classes).
    """
    logits = run_for_nothing(network, image_size, lambda net, images: net(images))
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise BlockdropError(f"{type(network).__name__}: gives {what} for one image, not logits (1, classes)")
    return logits.shape[1]
