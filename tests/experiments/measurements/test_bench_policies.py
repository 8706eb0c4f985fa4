"""The benchmark of many policies for each image: its rows, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from blockdrop import build, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.errors import BlockdropError
from experiments.measurements import bench_policies
from experiments.measurements.bench_policies import (
    REFERENCE,
    SHARED,
    BenchPoliciesConfig,
    Way,
    check_agreement,
    make_ways,
    open_networks,
)

TINY: dict[str, Any] = {"model": "R8_Digits", "batch_size": 8, "rounds": 1, "policies": (1, 4)}


def test_a_row_for_each_depth_number_of_policies_and_way(tmp_path: Path) -> None:
    config = BenchPoliciesConfig(
        **TINY, engines=("torch",), precisions=("float32",), json=str(tmp_path / "b.json")
    )
    report = bench_policies.main(config)
    names = (REFERENCE, SHARED, "executor, torch")
    assert [(row["decided"], row["policies"], row["way"]) for row in report["rows"]] == [
        (decided, samples, name) for decided in (1, 3) for samples in (1, 4) for name in names
    ]
    assert [(row["decided"], row["way"]) for row in report["steps"]] == [
        (decided, name) for decided in (1, 3) for name in (REFERENCE, "executor, torch")
    ]
    assert all(row["per_second"] == row["policies"] * 8 / row["seconds"] for row in report["rows"])
    assert json.loads((tmp_path / "b.json").read_text()) == json.loads(json.dumps(report))
    with pytest.raises(BlockdropError, match="--overwrite"):
        config.check()


def test_sharing_saves_what_policies_agree_on() -> None:
    report = bench_policies.main(BenchPoliciesConfig(**TINY, engines=("torch",), precisions=("float32",)))
    rows = {(row["decided"], row["policies"], row["way"]): row for row in report["rows"]}
    for decided in (1, 3):
        assert rows[decided, 1, SHARED]["saved_by_sharing"] == 0, "a single policy shares nothing"
        assert rows[decided, 4, REFERENCE]["block_executions"] == 4 * 8 * 3, "every block for every policy"
        shared, by_stage = (rows[decided, 4, way]["saved_by_sharing"] for way in (SHARED, "executor, torch"))
        assert 0 < by_stage <= shared < 1
    # Of 4 policies that differ in the last block alone, the first two blocks run once and the last at most once.
    assert rows[1, 4, SHARED]["block_executions"] <= 8 * 3


def test_the_ways_give_the_same_logits() -> None:
    resnet, _ = build("R14_Digits")
    ways = make_ways(BenchPoliciesConfig(model="R14_Digits"), resnet.eval())
    images, policies = torch.randn(8, 3, 32, 32), torch.rand(3, 8, 6) < 0.5
    with torch.no_grad():
        check_agreement(ways, images, policies)
        other = Way("another", "float32", lambda images, policies: ways[0].run(images, policies) + 1)
        with pytest.raises(RuntimeError, match="another: logits differ"):
            check_agreement([*ways, other], images, policies)


def test_networks_come_from_the_checkpoint(tmp_path: Path) -> None:
    resnet, policy_network = build("R8_Digits", policy_net="stem")
    path = tmp_path / "c.t7"
    none = NORMALISATIONS["none"]
    networks: dict[str, Any] = {"resnet": resnet, "policy_network": policy_network, "policy_net": "stem"}
    save_checkpoint(path, model="R8_Digits", normalisation=none, **networks)
    found, decider, normalisation = open_networks(BenchPoliciesConfig(model="R8_Digits", load=str(path)))
    images = torch.randn(4, 3, 32, 32)
    assert normalisation == none
    assert found(images).equal(resnet.eval()(images))
    assert decider(images)[0].equal(policy_network.eval()(images)[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"policies": ()}, "--policies: name at least one"),
        ({"decided": (4,)}, "--decided 4: must be from 1 to 3"),
        ({"model": "plain20_C10"}, "plain20 has no blocks that a policy could drop"),
        ({"batch_size": 1000, "data_dir": "data"}, "--batch_size 1000: data has no more than 450 test images"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockdropError, match=message):
        bench_policies.main(BenchPoliciesConfig(**{**TINY, **flags}))
