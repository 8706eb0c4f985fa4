"""The benchmark of the executor: its policies, sizes and tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import blockdrop
from blockdrop.errors import BlockdropError
from blockdrop.flops import count_flops
from experiments import bench_inference, bench_inference_contenders
from experiments.bench_inference import BenchConfig, Row, figure, table, verdict
from experiments.bench_inference_contenders import (
    StraightPrograms,
    draw_policies,
    flops_ratio,
    openvino_network,
)
from experiments.bench_inference_stream import spread_policies


@pytest.mark.parametrize(("kept", "distinct"), [(0.3, 1), (0.3, 20), (1.0, 5), (0.0, 3)])
def test_drawn_policies_keep_as_many_blocks_and_are_as_many_as_asked(kept: float, distinct: int) -> None:
    policy = draw_policies(64, 30, kept, distinct)
    assert (policy.sum(1) == round(kept * 30)).all()
    expected = distinct if 0 < kept < 1 else 1
    assert len(torch.unique(policy, dim=0)) == expected


def test_policies_may_share_most_of_their_blocks_and_differ_in_frequency() -> None:
    policy = draw_policies(400, 33, 0.75, 10, always=0.8, zipf=True)
    assert (policy.sum(1) == 25).all()
    assert policy.all(0).sum() >= 20
    distinct, counts = torch.unique(policy, dim=0, return_counts=True)
    assert len(distinct) == 10
    assert counts.max() > 5 * counts.min()
    assert len(torch.unique(draw_policies(8, 33, 0.75, 10, always=0.8, zipf=True), dim=0)) == 8, "one per image"


def test_the_limit_takes_the_best_batch_size_of_each_policy() -> None:
    pytest.importorskip("openvino")
    resnet, policy_network = bench_inference_contenders.build_networks("R8_C10", 32)
    policy = torch.tensor([[True, False, False], [True, True, True], [True, True, True]])
    limit = StraightPrograms(resnet, policy_network, torch.float32, 32, 8, policy)
    assert limit.sizes == [1, 4, 8]
    for run in limit.runs.values():
        run()
    measured = {"policy network": 0.5, **dict.fromkeys(limit.runs.keys() - {"policy network"}, 8.0)}
    assert limit.seconds(measured) == 0.5 + 8.0, "8 rows at once are the best"
    assert limit.seconds({**measured, "policy 0 by 1": 0.5}) == 0.5 + 8 * (0.5 + 1) / 2


def test_the_verdict_is_about_the_most_policies_and_tells_noise() -> None:
    rows = [
        Row("R8_C10", 32, "float32", 4, "OpenVINO", 0.5, spread=0.01),
        Row("R8_C10", 32, "float32", 4, "blockdrop openvino, all blocks, no policy network", 0.4, spread=0.01),
        Row("R8_C10", 32, "float32", 4, "blockdrop openvino", 0.2, 1.5, 1, 2.5, 1.0, 1.0, 0.02),
        Row("R8_C10", 32, "float32", 4, "blockdrop openvino", 0.25, 1.5, 2, 2.5, 0.8, 0.75, 0.02),
    ]
    assert verdict(rows) == [
        "verdict: R8_C10, float32, batch 4: 1.5 blocks under 2 policies run 2.00 times as fast as the fastest "
        "full network; FLOPs say 2.50, 75% of OpenVINO's limit"
    ]
    noisy = [replace(row, spread=0.3) for row in rows]
    assert verdict(noisy)[1].startswith(
        "noise: the rounds of 4 of 4 contenders spread by more than 10% (up to 30%)"
    )


def test_large_images_are_measured_in_small_batches_under_policies_as_learned_ones_are() -> None:
    config = BenchConfig(batches=(2,))
    assert config.grid_of("R110_C10") == ((2,), (0.1, 0.315, 0.6, 1.0), (1, 50, 500), 0.0)
    assert config.grid_of("R101_ImgNet") == ((2,), (0.75,), (10,), 0.8)


def test_the_policy_networks_head_is_set_to_as_many_policies_of_as_many_blocks_as_asked() -> None:
    _, policy_network = blockdrop.build("R32_C10")
    policy_network.eval()
    batches = list(torch.randn(400, 3, 32, 32).split(100))
    policies = spread_policies(policy_network, batches, distinct=40, blocks=5)
    assert 30 <= len(torch.unique(policies, dim=0)) <= 44, "40, and a few by rounding at the threshold"
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
    with monkeypatch.context() as patch:
        patch.setattr(bench_inference, "memory", lambda *_: [])  # starts processes; measured below
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
