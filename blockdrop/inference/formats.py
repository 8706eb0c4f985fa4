"""The formats of exported networks, and the packages that each needs. Without torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

from blockdrop.errors import BlockdropError

Format = Literal["onnx", "aoti", "safetensors"]
SUFFIXES = {"onnx": ".onnx", "aoti": ".pt2", "safetensors": ".safetensors"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "aoti": (), "safetensors": ("safetensors",)}


def optional_package(name: str) -> Any:
    """A package of the [export] extra; raises `BlockdropError` if it isn't installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise BlockdropError(f"{name.split('.')[0]} is missing ({error}); pip install blockdrop[export]") from None
