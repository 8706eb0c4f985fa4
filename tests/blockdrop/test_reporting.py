"""What a network does on images, in a few lines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import blockdrop
from blockdrop.data import DataSource
from blockdrop.errors import BlockdropError
from tests.blockdrop.test_train import own_data, own_network
from tests.conftest import write_image_tree


def test_it_is_what_the_network_does_at_its_own_threshold(tmp_path_factory: pytest.TempPathFactory) -> None:
    dynamic = own_network().eval()
    assert dynamic.policy_network is not None
    torch.nn.init.normal_(dynamic.policy_network.logit.weight, std=1.0)
    dynamic.operating_point = {"threshold": 0.8}
    images, labels = own_data(12).tensors
    with torch.no_grad():
        probs = dynamic.decide(images).keep_probs
    for threshold in (None, 0.5, 0.95):
        report = blockdrop.evaluate(dynamic, own_data(12), threshold=threshold, speed=False, batch_size=5)
        policy = probs >= (threshold or 0.8)
        logits, _ = dynamic(images, policy)
        full, own = report.rows
        assert (full.name, own.name) == ("full network", "dynamic")
        assert own.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
        assert own.flops == pytest.approx(dynamic.flops(policy).double().mean().item())
        assert full.flops == dynamic.flop_table(looks=False).full
    assert own.images_per_second is None
    by_loader = blockdrop.evaluate(dynamic, DataLoader(own_data(12), batch_size=7), speed=False)
    by_set = blockdrop.evaluate(dynamic, own_data(12), speed=False)
    assert by_loader.to_json() == by_set.to_json()
    root = write_image_tree(tmp_path_factory.mktemp("data") / "tree", classes=("a", "b", "c"))
    source = DataSource("Folder", root, image_size=32, preprocessing=dynamic.preprocessing)
    assert len(blockdrop.evaluate(dynamic, source, speed=False).rows) == 2


def test_a_network_without_a_policy_network_has_one_row_and_its_speed() -> None:
    dynamic = own_network().eval()
    report = blockdrop.evaluate(dynamic.with_network(dynamic.network), own_data(12))
    (row,) = report.rows
    assert row.name == "full network"
    assert row.images_per_second is not None
    assert row.images_per_second > 0
    assert "full network" in str(report)
    assert "<table" in report._repr_html_()


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"threshold": 1.5}, "^threshold: got 1.5; expected a number above 0 and below 1"),
    ({"threshold": float("nan")}, "^threshold: got nan; expected a number above 0 and below 1"),
    ({"batch_size": 0}, "^batch_size 0: must be a whole number, at least 1"),
    ({"batch_size": 2.5}, "^batch_size 2.5: must be a whole number, at least 1"),
    ({"workers": -1}, "^workers -1: must be a whole number, at least 0"),
    ({"precision": "half"}, "^precision half: choose one of auto, float32, bfloat16"),
    ({"device": "abacus"}, "^device abacus: not available"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_an_argument_that_is_wrong_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockdropError, match=message):
        blockdrop.evaluate(own_network(), own_data(12), speed=False, **arguments)


def test_a_device_may_be_torchs() -> None:
    report = blockdrop.evaluate(own_network(), own_data(12), speed=False, device=torch.device("cpu"))
    assert len(report.rows) == 2
