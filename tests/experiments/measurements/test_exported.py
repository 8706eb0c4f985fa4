"""An exported network beside straight graphs of its blocks."""

import json
from pathlib import Path

import pytest
import torch

from blockdrop import build
from experiments.measurements import exported
from experiments.measurements.exported import ExportedConfig, Straight, spread_policies


def test_policies_keep_the_share_of_blocks_that_is_asked_for_and_differ() -> None:
    _, policy_network = build("R32_C10", policy_net="pooled4")
    images = torch.randn(40, 1, 3, 32, 32)
    spread_policies(policy_network.eval(), images, 0.6)
    with torch.no_grad():
        policies = torch.cat([policy_network(image)[0] >= 0.5 for image in images])
    assert policies.double().mean().item() == pytest.approx(0.6, abs=0.05)
    assert len(policies.unique(dim=0)) > 1
    shares = policies.double().mean(0)
    assert ((shares == 0) | (shares == 1)).sum() == 12, "of 15"


@torch.no_grad()
def test_a_straight_graph_has_the_logits_of_its_policy() -> None:
    resnet, _ = build("R8_C10")
    images, policy = torch.randn(2, 3, 32, 32), torch.tensor([True, False, True])
    expected = resnet.eval()(images, policy.expand(2, 3), "masked")
    torch.testing.assert_close(Straight(resnet, policy)(images), expected)


def test_all_graphs_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    path = tmp_path / "numbers.json"
    found = exported.main(ExportedConfig(model="R8_C10", policy_net="pooled4", images=1, json=str(path)))
    assert json.loads(path.read_text()) == found
    times = found["milliseconds"]
    assert [*times] == ["full network", "dynamic network", "straight graphs", "policy network"]
    assert min(times.values()) > 0
    assert found["program_efficiency"] == times["straight graphs"] / times["dynamic network"]
    assert "R8_C10, pooled4 policy network, 1 policies that keep" in capsys.readouterr().out
