"""Networks made dynamic give their own logits, and the table says so."""

from experiments.measurements import door


def test_rows_are_of_what_was_compared() -> None:
    (row,), begun = door.main(door.DoorConfig(networks=("torchvision:resnet18",), images=2, rounds=0))
    assert (row["network"], row["blocks"], row["px"]) == ("torchvision:resnet18", "8", "224")
    assert float(row["converted − own"]) <= 1e-5
    assert float(row["executor − torch"]) <= 1e-4
    assert begun == []
