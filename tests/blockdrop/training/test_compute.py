"""Devices and number formats."""

import pytest
import torch

from blockdrop.errors import BlockdropError
from blockdrop.training.compute import choose_compute


def test_precision_is_as_asked() -> None:
    assert choose_compute("cpu", "float32").dtype == torch.float32
    assert choose_compute("cpu", "bfloat16").dtype == torch.bfloat16
    assert choose_compute("cpu", "auto").dtype in (torch.float32, torch.bfloat16)


def test_unknown_device_is_named() -> None:
    with pytest.raises(BlockdropError, match="--device abacus: not available"):
        choose_compute("abacus")
