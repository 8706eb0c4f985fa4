"""Files of the safetensors format: what `blockdrop.export` writes, and others' bare state dicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from blockdrop.errors import BlockdropError, CheckpointError
from blockdrop.models.checkpoints.tensor_pickle import STORAGES, one_line
from blockdrop.output import write_whole

SUFFIX = ".safetensors"
PARTS = {"resnet": "resnet", "policy_network": "agent"}
"""What tensors' names begin with, and where our other checkpoints keep those tensors."""
JSON_KEYS = (
    "normalisation", "classes", "threshold", "answer_threshold", "variant", "preprocessing", "origin", "outputs",
    "epoch", "metrics", "operating_point", "acc", "reward",
)  # fmt: skip
"""Of the metadata, whose values are text; the others are plain."""


def encode_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """Plain values as the text that a header may hold; what is None but has no place for it is left out."""
    return {
        key: json.dumps(value) if key in JSON_KEYS else str(value)
        for key, value in values.items()
        if key in JSON_KEYS or value is not None
    }


def write_safetensors_file(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None
) -> None:
    """Contiguous tensors that share no memory, whole or not at all.

    Raises:
        OSError: it can't be written.
        BlockdropError: safetensors is not installed.
    """
    content = _safetensors("safetensors.torch").save(dict(tensors), metadata=metadata)
    write_whole(path, lambda file: file.write(content))


def read_safetensors_file(path: str | Path, our_format: str) -> dict[str, Any]:
    """The file's content in the form of our other checkpoints where its metadata says that it is ours
    (`format` is `our_format`), else a bare state dict.

    Raises:
        CheckpointError: it can't be read, or is damaged.
        BlockdropError: safetensors is not installed.
    """
    safetensors = _safetensors("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or one_line(error)})") from None
    except (safetensors.SafetensorError, TypeError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({one_line(error)})") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in STORAGES.values():
            raise CheckpointError(f"{path}: {one_line(name)} is of {tensor.dtype}, which no checkpoint is")
    if metadata.get("format") != our_format:
        return tensors
    try:
        content = {key: json.loads(value) if key in JSON_KEYS else value for key, value in metadata.items()}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged metadata ({one_line(error)})") from None
    content["shortcut"] = None if content.get("shortcut") == "none" else content.get("shortcut")
    if "threshold" in content and not content.get("operating_point"):
        names = [name for name in ("threshold", "answer_threshold") if name in content]
        content["operating_point"] = {name: content.pop(name) for name in names}
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        if part not in parts:
            raise CheckpointError(f"{path}: {one_line(name)} belongs to no network")
        parts[part][key] = tensor
    return content | {PARTS[part]: state or None for part, state in parts.items()}


def _safetensors(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise BlockdropError(f"safetensors is missing ({error}); pip install blockdrop[export]") from None
