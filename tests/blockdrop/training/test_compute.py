"""Devices and number formats."""

import pytest
import torch

from blockdrop import build
from blockdrop.errors import UserError
from blockdrop.training.compute import choose_compute


def test_precision_is_as_asked() -> None:
    assert choose_compute("cpu", "float32").dtype == torch.float32
    assert choose_compute("cpu", "bfloat16").dtype == torch.bfloat16
    assert choose_compute("cpu", "auto").dtype in (torch.float32, torch.bfloat16)


def test_a_frozen_copy_predicts_as_the_network_does() -> None:
    resnet = build("R8_C10")[0].eval()
    before = {key: value.clone() for key, value in resnet.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    frozen = choose_compute("cpu", "bfloat16").frozen(resnet)
    logits = frozen(images.bfloat16()).float()
    torch.testing.assert_close(logits, resnet(images), rtol=0.1, atol=0.1)
    assert all(value.equal(before[key]) for key, value in resnet.state_dict().items())
    assert not any(p.requires_grad for p in frozen.parameters())


def test_unknown_device_is_named() -> None:
    with pytest.raises(UserError, match="--device abacus: not available"):
        choose_compute("abacus")
