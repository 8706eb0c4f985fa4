"""A flat folder of classes, split by a flag."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blockdrop import evaluate, pretrain
from blockdrop.data import DataSource
from blockdrop.data.splitting import split_rows
from blockdrop.errors import DataError
from tests.conftest import write_image_tree


@pytest.mark.parametrize(("share", "count"), [(0.2, 2), (0.01, 1), (0.99, 9), (0.5, 5)])
def test_each_class_gives_its_share_and_keeps_one_at_least(share: float, count: int) -> None:
    labels = np.repeat([0, 1, 2], 10)
    train, test = split_rows([f"{label}/{n}" for n, label in enumerate(labels)], labels, share)
    assert sorted([*train, *test]) == list(range(30))
    assert np.bincount(labels[test]).tolist() == [count] * 3


def test_an_image_stays_in_its_part_when_others_come() -> None:
    names = [f"a/{n}" for n in range(40)]
    few = {names[row] for row in split_rows(names[:20], np.zeros(20), 0.5)[1]}
    many = {names[row] for row in split_rows(names, np.zeros(40), 0.5)[1]}
    assert len(few & many) >= 8, "but for those at the border"


def test_a_class_of_one_image_is_refused() -> None:
    with pytest.raises(DataError, match="b/1: the only image of its class"):
        split_rows(["a/1", "a/2", "b/1"], np.array([0, 0, 1]), 0.5)


@pytest.mark.parametrize("size", [32, 72])
def test_a_flat_folder_is_split_into_parts_that_share_no_image(tmp_path: Path, size: int) -> None:
    write_image_tree(tmp_path / "tree", count=10, size=80)
    source = DataSource("Folder", tmp_path / "tree" / "train", size, split=0.3, workers=0)
    assert (len(source.train), len(source.test)) == (14, 6)
    assert source.test.labels.bincount().tolist() == [3, 3]
    files = [source.files(train) for train in (True, False)]
    names = [{part.name(row) for row in range(len(part.labels))} for part in files if part is not None]
    assert not names[0] & names[1]
    again = DataSource("Folder", tmp_path / "tree" / "train", size, split=0.3, workers=0)
    assert [part.fingerprint() for part in files if part is not None] == [
        part.fingerprint() for part in (again.files(True), again.files(False)) if part is not None
    ]


def test_the_flag_goes_from_training_to_evaluation_and_is_hinted_at(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    write_image_tree(tmp_path / "tree", count=10)
    flat = tmp_path / "photos"
    shutil.move(tmp_path / "tree" / "train", flat)
    flags = ("--model", "R8_Folder", "--data_dir", flat)
    code, _, error = command(pretrain, *flags, "--max_epochs", 1, "--cv_dir", tmp_path / "p")
    assert code == 2
    assert error.endswith("; --split 0.2 keeps a fifth of the images of class folders for tests")
    code, out, _ = command(pretrain, *flags, "--split", 0.2, "--max_epochs", 1, "--cv_dir", tmp_path / "p")
    assert code == 0
    assert "16 training, 4 test images" in out
    code, out, error = command(evaluate, *flags, "--split", 0.2, "--load", tmp_path / "p", "--no_speed")
    assert code == 0, error
    assert "on 4 test images" in out
    code, _, error = command(evaluate, "--model", "R8_Folder", "--data_dir", tmp_path / "tree", "--split", 0.2)
    assert code == 2
    assert "has parts already; leave it out" in error
