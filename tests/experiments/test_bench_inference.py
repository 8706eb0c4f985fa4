import pytest
import torch

import blockdrop
from blockdrop.errors import UserError
from blockdrop.flops import count_flops
from experiments import bench_inference
from experiments.bench_inference import BenchConfig, Row, draw_policies, figure, spread_policies, table


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
    ratio = bench_inference.flops_ratio(flops, everything)
    assert ratio == pytest.approx(505_775_360 / (505_775_360 + 24_484_736))


def test_table_and_figure_show_each_row() -> None:
    rows = [
        Row("R8_C10", "float32", 4, "OpenVINO", 0.5),
        Row("R8_C10", "float32", 4, "blockdrop torch", 0.25, 1.5, 2, 2.0, 1.0),
    ]
    lines = table(rows).splitlines()
    assert "| R8_C10 | float32 | 4 | OpenVINO | all |  | 8 |" in lines[2]
    assert "| blockdrop torch | 1.5 | 2 | 16 | 2.00 | 1.00 |" in lines[3]
    assert len(figure(rows).axes) == 1


def test_earlier_results_are_not_overwritten(tmp_path: object) -> None:
    from pathlib import Path

    Path(str(tmp_path), "results.json").write_text("{}")
    with pytest.raises(UserError, match="--overwrite"):
        BenchConfig(out=str(tmp_path)).check()
