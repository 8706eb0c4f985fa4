"""What a brought network says of itself: its classes, and what it wants done to an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blockdrop.errors import UserError
from blockdrop.flops import run_for_nothing


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to a network's input: resize its shorter side, crop the centre, normalise the channels."""

    image_size: int
    """Side of the square that is cropped, in pixels."""
    resize: int
    """What the shorter side is resized to, in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the three channels, of pixels from 0 to 1."""
    interpolation: str
    """Of resizing: "bilinear", "bicubic", …"""


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def class_name(model: object) -> str:
    """The full name of an object's class."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def preprocessing_of(model: nn.Module) -> Preprocessing | None:
    """The preprocessing that a network was trained with: as a timm model's configuration has it, as torchvision's
    networks usually want it; None of others, which don't say.

    Raises:
        UserError: a configuration of images that aren't square.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, Mapping) and "input_size" in config:
        # a vision transformer may be made for another size than its configuration's
        height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or config["input_size"][1:]
        if height != width:
            raise UserError(
                f"{type(model).__name__}: takes images of {height}×{width} pixels; they must be square"
            )
        return Preprocessing(
            int(width),
            math.floor(width / (config.get("crop_pct") or 1)),
            tuple(config.get("mean", IMAGENET_MEAN)),
            tuple(config.get("std", IMAGENET_STD)),
            str(config.get("interpolation") or "bilinear"),
        )
    if any(cls.__module__.startswith("torchvision.models.") for cls in type(model).__mro__):
        return Preprocessing(224, 256, IMAGENET_MEAN, IMAGENET_STD, "bilinear")
    return None


def num_classes_of(network: nn.Module, image_size: int) -> int:
    """How many logits a network gives.

    Args:
        image_size: side of the square images that it takes, in pixels.
    Raises:
        UserError: it gives something else than logits (N, classes).
    """
    logits = run_for_nothing(network, image_size, lambda net, images: net(images))
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"{type(network).__name__}: gives {what} for one image, not logits (1, classes)")
    return logits.shape[1]
