"""Weights that others publish, fetched by name."""

from __future__ import annotations

import re
from http.client import HTTPException
from pathlib import Path

import torch

from blockdrop.errors import CheckpointError
from blockdrop.models.checkpoints.dialects import Checkpoint, read_checkpoint
from blockdrop.models.specs import IMAGENET_LAYERS, ModelSpec


def torchvision_checkpoint(spec: ModelSpec) -> Checkpoint:
    """torchvision's best ImageNet weights of a ResNet, downloaded at first and kept in torch's hub folder.

    Raises:
        CheckpointError: there are none for this network, or they can't be fetched.
    """
    if spec.depth not in IMAGENET_LAYERS or not spec.droppable:
        depths = ", ".join(map(str, IMAGENET_LAYERS))
        raise CheckpointError(
            f"torchvision has no weights for {spec.architecture}; it has ResNets of depth {depths}"
        )
    import torchvision  # takes two seconds

    weights = torchvision.models.get_model_weights(f"resnet{spec.depth}").DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not path.exists():
        hash_start = re.search(r"-([0-9a-f]{8,})\.", path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(path), hash_start and hash_start[1], progress=False)
        except (OSError, RuntimeError, HTTPException) as error:  # another hash is a RuntimeError
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise CheckpointError(
                f"torchvision: {weights.url} can't be fetched to {path.parent} ({reason}); fetch it by other "
                "means and name the file"
            ) from None
    return read_checkpoint(path)
