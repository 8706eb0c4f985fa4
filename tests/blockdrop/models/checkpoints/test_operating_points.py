"""Operating points in checkpoints."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from blockdrop import build, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.errors import CheckpointError
from blockdrop.models.checkpoints.dialects import read_checkpoint

POINT = {"threshold": 0.25, "budget": 0.5, "flops_fraction": 0.49, "held_out_images": 6}


def save_with_point(path: Path, point: Any) -> None:
    resnet, policy_network = build("R8_C10")
    save_checkpoint(
        path,
        model="R8_C10",
        resnet=resnet,
        policy_network=policy_network,
        normalisation=NORMALISATIONS["none"],
        operating_point=point,
    )


def test_an_operating_point_comes_back(tmp_path: Path) -> None:
    curve = [{"threshold": 0.5, "accuracy": 0.0}, {"threshold": 0.75, "accuracy": 1.0}]
    save_with_point(tmp_path / "c.t7", POINT | {"curve": curve})
    assert read_checkpoint(tmp_path / "c.t7").operating_point == POINT | {"curve": curve}
    by_hand = {"threshold": 0.25, "budget": None, "flops_fraction": None, "held_out_images": None}
    save_with_point(tmp_path / "c.t7", {"threshold": 0.25})
    assert read_checkpoint(tmp_path / "c.t7").operating_point == by_hand | {"curve": []}
    save_with_point(tmp_path / "c.t7", None)
    assert read_checkpoint(tmp_path / "c.t7").operating_point is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"threshold": 0.0}, "isn't between 0 and 1"),
        ({"threshold": 1.0}, "isn't between 0 and 1"),
        ({"threshold": math.nan}, "threshold is no finite number"),
        ({"threshold": None}, "threshold is no finite number"),
        ({"threshold": "0.5"}, "threshold is no finite number"),
        ({"threshold": True}, "threshold is no finite number"),
        ({"threshold": torch.tensor(0.5)}, "threshold is no finite number"),
        ({"budget": math.inf}, "budget is no finite number"),
        ({"budget": 10**400}, "budget is no finite number"),
        ({"budget": 0}, "aren't all positive"),
        ({"held_out_images": -1}, "aren't all positive"),
        ({"note": "hello"}, "note is no finite number"),
        ({"curve": {}}, "no dict with a list as its curve"),
        ({"curve": [0.5]}, "curve holds a float"),
        ({"curve": [{"accuracy": 0.5}]}, "isn't between 0 and 1"),
        ({"curve": [{"threshold": 0.5, "accuracy": None}]}, "accuracy is no finite number"),
    ],
    ids=str,
)
def test_a_damaged_operating_point_is_neither_read_nor_written(
    tmp_path: Path, damage: dict[str, Any], message: str
) -> None:
    save_with_point(tmp_path / "c.t7", POINT)
    content = torch.load(tmp_path / "c.t7", weights_only=True)
    torch.save(content | {"operating_point": POINT | damage}, tmp_path / "damaged.t7")
    with pytest.raises(CheckpointError, match=rf"damaged\.t7: .* damaged header .*{message}"):
        read_checkpoint(tmp_path / "damaged.t7")
    with pytest.raises(ValueError, match=message):
        save_with_point(tmp_path / "new.t7", POINT | damage)
    assert not (tmp_path / "new.t7").exists()


def test_an_operating_point_in_a_foreign_file_means_nothing(tmp_path: Path) -> None:
    torch.save({"resnet": build("R8_C10")[0].state_dict(), "operating_point": POINT}, tmp_path / "c.t7")
    assert read_checkpoint(tmp_path / "c.t7").operating_point is None
