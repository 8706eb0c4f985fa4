"""The benchmark of the executor: its policies, sizes and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import blockdrop
from blockdrop.errors import BlockdropError
from blockdrop.flops import count_flops
from experiments import bench_inference, bench_inference_contenders
from experiments.bench_inference import BenchConfig, Row, figure, table
from experiments.bench_inference_contenders import draw_policies, flops_ratio, openvino_network
from experiments.bench_inference_stream import spread_policies


@pytest.mark.parametrize(("kept", "distinct"), [(0.3, 1), (0.3, 20), (1.0, 5), (0.0, 3)])
def test_drawn_policies_keep_as_many_blocks_and_are_as_many_as_asked(kept: float, distinct: int) -> None:
    policy = draw_policies(64, 30, kept, distinct)
    assert (policy.sum(1) == round(kept * 30)).all()
    expected = distinct if 0 < kept < 1 else 1
    assert len(torch.unique(policy, dim=0)) == expected


def test_the_policy_networks_head_is_set_to_as_many_policies_of_as_many_blocks_as_asked() -> None:
    _, policy_network = blockdrop.build("R32_C10")
    policy_network.eval()
    batches = list(torch.randn(400, 3, 32, 32).split(100))
    policies = spread_policies(policy_network, batches, distinct=40, blocks=5)
    assert 30 <= len(torch.unique(policies, dim=0)) <= 40
    assert policies.sum(1).double().mean().item() == pytest.approx(5, abs=0.1)
    run = blockdrop.compile(*blockdrop.build("R32_C10"))
    run = blockdrop.compile(run.resnet, policy_network, engine="torch")
    agree = torch.cat([run(batch)[1] for batch in batches]) == policies
    assert agree.double().mean() > 0.99, "up to rounding at the threshold"


def test_the_flops_ratio_counts_the_policy_network() -> None:
    flops = count_flops(*blockdrop.build("R110_C10"), image_size=32)
    everything = torch.ones(3, 54, dtype=torch.bool)
    ratio = flops_ratio(flops, everything)
    assert ratio == pytest.approx(505_775_360 / (505_775_360 + 24_484_736))


def test_table_and_figure_show_each_row() -> None:
    rows = [
        Row("R8_C10", 32, "float32", 4, "OpenVINO", 0.5),
        Row("R8_C10", 32, "float32", 4, "blockdrop torch", 0.25, 1.5, 2, 2.0, 1.0),
    ]
    lines = table(rows).splitlines()
    assert "| R8_C10 | 32 | float32 | 4 | OpenVINO | all |  | 8 |" in lines[2]
    assert "| blockdrop torch | 1.5 | 2 | 16 | 2.00 | 1.00 |" in lines[3]
    assert len(figure(rows).axes) == 1


def test_a_model_is_measured_at_its_own_image_size_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_inference, "MINIMUM_SECONDS", 0)
    monkeypatch.setattr(bench_inference, "export_onnx", lambda *_: None)  # takes seconds, as OpenVINO does
    monkeypatch.setattr(bench_inference_contenders, "openvino_is_installed", lambda: False)
    tiny: dict[str, Any] = {
        "batches": (1,), "kept": (0.5,), "distinct": (1,), "precisions": ("float32",), "rounds": 1,
        "torch_compile": False,
    }  # fmt: skip
    rows = bench_inference.main(BenchConfig(models=("R18_ImgNet",), out=str(tmp_path / "own"), **tiny))
    out = capsys.readouterr().out
    resnet, policy_network = blockdrop.build("R18_ImgNet")
    flops = count_flops(resnet, policy_network, 224).full
    assert f"R18_ImgNet on images of 224 × 224 px, {flops:,} FLOPs" in out
    assert "| R18_ImgNet | 224 | float32 | 1 | eager |" in out
    assert {row.image_size for row in rows} == {224}
    results = json.loads((tmp_path / "own" / "results.json").read_text())
    assert results["networks"] == [{"model": "R18_ImgNet", "image_size": 224, "full_flops": flops}]
    assert {row["image_size"] for row in results["rows"]} == {224}
    rows = bench_inference.main(BenchConfig(models=("R8_C10",), image_size=48, out=str(tmp_path / "told"), **tiny))
    assert {(row.model, row.image_size) for row in rows} == {("R8_C10", 48)}


def test_the_full_network_elsewhere_is_the_full_network_at_any_image_size() -> None:
    pytest.importorskip("openvino")
    resnet, _ = blockdrop.build("R8_C10")
    folded, images = resnet.eval().folded(), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = folded(images)
    (found,) = openvino_network(folded, torch.float32, 48, 2)(images).values()  # type: ignore[attr-defined]
    assert torch.from_numpy(found).allclose(expected, atol=1e-4)


def test_earlier_results_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(BlockdropError, match="--overwrite"):
        BenchConfig(out=str(tmp_path)).check()
