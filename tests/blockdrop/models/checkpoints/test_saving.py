"""What isn't saved, as it couldn't be read back."""

from pathlib import Path
from typing import Any

import pytest

from blockdrop import build, save_checkpoint
from blockdrop.data import NORMALISATIONS
from blockdrop.errors import NumericalError
from blockdrop.models.zoo import build_static


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    resnet, _ = build("R8_C10")
    resnet.blocks[1][0].bn1.running_var[0] = float("inf")
    with pytest.raises(NumericalError, match=r"blocks\.1\.0\.bn1\.running_var is no longer finite after epoch 4"):
        save_checkpoint(
            tmp_path / "c.t7", model="R8_C10", resnet=resnet, normalisation=NORMALISATIONS["none"], epoch=4
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "built", "options"),
    [
        ("R8_C10", "R14_C10", {}),
        ("R8_C10", "plain8_C10", {}),
        ("plain8_C10", "dsplain8_C10", {}),
        ("shiftresnet8_C10", "shiftresnet8_C10", {"expansion": 3.0}),
        ("resnet8_C10", "resnet8_C10", {"reduction": 2.0, "reduction_mode": "net"}),
    ],
)
def test_a_name_that_describes_another_network_is_not_saved(
    tmp_path: Path, model: str, built: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"model {model} .*: describes another network"):
        save_checkpoint(
            tmp_path / "c.t7",
            model=model,
            resnet=build_static(built, **options),
            normalisation=NORMALISATIONS["none"],
        )
    assert not list(tmp_path.iterdir())
