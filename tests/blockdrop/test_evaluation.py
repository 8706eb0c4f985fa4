"""What evaluate finds, as data: to JSON and back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from blockdrop import build, evaluate
from blockdrop.errors import BlockdropError
from blockdrop.evaluation import Evaluation, recorded_checkpoints


def evaluation(right: str = "1101", /, **changes: Any) -> dict[str, Any]:
    """A whole file of evaluate --json, about a network of three blocks."""
    images = len(right)
    whole = {
        "model": "R8_C10", "variant": {}, "parameters": 75290, "dataset": "C10", "images": images,
        "images_digest": f"of {images}", "checkpoints": ["c.t7"], "accuracy": right.count("1") / images,
        "block_usage_mean": 2.0, "block_usage_std": 0.5, "num_blocks": 3, "flops_mean": 5e6, "flops_std": 0.0,
        "unique_policies": 1, "full_accuracy": 0.75, "full_flops": 9_000_000, "policy_network_flops": 0,
        "flops_saved": 4 / 9, "full_images_per_second": None, "images_per_second": None, "batch_size": 256,
        "usage_per_block": [1.0, 1.0, 0.0], "stage_sizes": [1, 1, 1], "policy": None, "policy_net": None,
        "threshold": 0.5, "operating_point": {"budget": None, "flops_fraction": None, "held_out_images": None},
        "statistics": None, "curve": [], "right": right, "compute": "cpu", "version": "0", "config": {},
    }  # fmt: skip
    assert changes.keys() <= whole.keys()
    return {**whole, **changes}


ROW = {
    "threshold": 0.5, "accuracy": 0.75, "block_usage_mean": 2.0, "block_usage_std": 0.5, "flops_mean": 5e6,
    "flops_fraction": 5 / 9, "unique_policies": 1, "images_per_second": None,
}  # fmt: skip


def test_what_evaluate_writes_is_read_back_whole_and_in_its_order(tmp_path: Path, image_tree: Path) -> None:
    resnet, policy_network = build("R8_Folder", num_classes=2)
    torch.nn.init.normal_(policy_network.logit.weight, std=0.5)
    torch.save({"agent": policy_network.state_dict(), "resnet": resnet.state_dict()}, tmp_path / "c.t7")
    found = evaluate.main(
        evaluate.EvaluateConfig(
            model="R8_Folder", data_dir=str(image_tree), load=(str(tmp_path / "c.t7"),), stats=True, curve=True,
            speed=False, json=str(tmp_path / "e.json"),
        )
    ).evaluation  # fmt: skip
    content = json.loads((tmp_path / "e.json").read_text())
    assert list(content) == list(evaluation()), "the keys are those of every version so far"
    again = Evaluation.from_json(content)
    assert again.statistics == found.statistics
    assert again.curve == found.curve != []
    assert json.loads(json.dumps(again.to_json())) == content
    assert list(content["curve"][0]) == list(ROW)
    assert recorded_checkpoints(tmp_path / "e.json") == [str(tmp_path / "c.t7")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "not what evaluate --json writes"),
        ({"accuracy": 0.5}, "not what evaluate --json writes"),
        ({k: v for k, v in evaluation().items() if k != "right"}, "of an older evaluate, which didn't record"),
        ({k: v for k, v in evaluation().items() if k != "dataset"}, "damaged in its dataset, which is missing"),
        (evaluation(right=None), "damaged in its right (None: must be a text)"),
        (evaluation(images=3), "damaged in its right ('1101': must be 3 characters, each 0 or 1)"),
        (evaluation(right="110x"), "damaged in its right ('110x': must be 4 characters"),
        (evaluation(right="110é"), r"damaged in its right ('110\xe9': must be 4"),
        (evaluation(right="110\ud800"), r"damaged in its right ('110\ud800'"),
        (evaluation(accuracy=0.9), "damaged in its right, which isn't the accuracy (0.750000, not 0.900000)"),
        (evaluation(accuracy=float("nan")), "damaged in its accuracy (nan: must be a finite number)"),
        (evaluation(flops_mean="many"), "damaged in its flops_mean ('many': must be a finite number)"),
        (evaluation(flops_mean=-1), "damaged in its flops_mean (-1: must be a positive number)"),
        (evaluation(full_flops=0), "damaged in its full_flops (0: must be a positive number)"),
        (evaluation(threshold=2), "damaged in its threshold (2: must be above 0 and below 1)"),
        (evaluation(model="R9_C10"), "damaged in its model ('R9_C10': "),
        (evaluation(checkpoints=[1]), "damaged in its checkpoints[0] (1: must be a text)"),
        (evaluation(curve=[{"threshold": 0.5}]), "damaged in its curve[0].accuracy, which is missing"),
        (
            evaluation(curve=[ROW, {**ROW, "threshold": 0}]),
            "damaged in its curve[1].threshold (0: must be above 0",
        ),
        (evaluation(policy=3), "damaged in its policy (3: must be a text)"),
        (evaluation(usage_per_block=[1, 1]), "damaged in its usage_per_block ([1, 1]: must be 3 numbers"),
        (evaluation(stage_sizes=[1, 1]), "damaged in its stage_sizes ([1, 1]: must add up to 3)"),
        (evaluation(operating_point={}), "damaged in its operating_point.budget, which is missing"),
        (evaluation(statistics=[]), "damaged in its statistics ([]: must be an object)"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_a_damaged_file_is_refused_in_a_line_that_names_the_field(content: Any, message: str) -> None:
    with pytest.raises(BlockdropError) as error:
        Evaluation.from_json(content)
    assert str(error.value).startswith(message)
    assert str(error.value).isprintable()
    with pytest.raises(BlockdropError) as named:
        Evaluation.from_json(content, "results/a.json")
    assert str(named.value) == f"results/a.json: {error.value}"


@pytest.mark.parametrize("text", ["no JSON", "[1]", "{}", '{"checkpoints": 3}', '{"checkpoints": [3]}'])
def test_other_files_are_about_no_checkpoints(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert recorded_checkpoints(tmp_path / "a.json") == []
    assert recorded_checkpoints(tmp_path / "none.json") == []
