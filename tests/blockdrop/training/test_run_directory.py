"""Checkpoint names, and whose folder it is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blockdrop import pretrain
from blockdrop.errors import BlockdropError
from blockdrop.finetune import FinetuneConfig
from blockdrop.training.run_directory import RunDirectory


def test_checkpoints_are_named_as_the_reference_names_them(tmp_path: Path) -> None:
    metrics = {"accuracy": 0.93641, "reward": 0.8549, "blocks": 16.933, "unique_policies": 469}
    with RunDirectory(tmp_path, "finetune", FinetuneConfig()) as run:
        assert run.checkpoint_path(60, metrics).name == "ckpt_E_60_A_0.936_R_8.55E-01_S_16.93_#_469.t7"
        assert run.checkpoint_path(3, {"accuracy": 0.5}).name == "ckpt_E_3_A_0.500.t7"


def test_a_folder_in_use_is_nobody_elses(tmp_path: Path) -> None:
    config = FinetuneConfig()
    with RunDirectory(tmp_path, "finetune", config):
        first = (tmp_path / "config.json").read_text()
        with pytest.raises(BlockdropError, match="another process trains there"):
            RunDirectory(tmp_path, "finetune", config)
        for how in ("overwrite", "resume"):
            with pytest.raises(BlockdropError, match="another process trains there"):
                RunDirectory(tmp_path, "cl_train", config, **{how: True})
        assert (tmp_path / "config.json").read_text() == first
    with RunDirectory(tmp_path, "cl_train", config, overwrite=True):
        assert (tmp_path / "config.json").read_text() != first


@pytest.mark.parametrize("how", ["overwrite", "resume", ""])
@pytest.mark.parametrize("content", ['{"hidden_size": 3}', "[1]"])
def test_another_programs_config_is_never_deleted(tmp_path: Path, how: str, content: str) -> None:
    files = {"config.json": content, "report.json": "mine", "profile.txt": "mine", "metrics.jsonl": "mine"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BlockdropError, match=r"a config\.json that is no run's of blockdrop; name another folder"):
        RunDirectory(tmp_path, "finetune", FinetuneConfig(), **{how: True} if how else {})
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == files


def test_a_run_that_failed_in_its_first_epoch_does_not_block_the_next(
    tmp_path: Path, image_tree: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    flags = ("--model", "R8_Folder", "--data_dir", image_tree, "--cv_dir", tmp_path / "p", "--max_epochs", 1)
    good = (image_tree / "train" / "cat" / "0000.png").read_bytes()
    (image_tree / "train" / "cat" / "0000.png").write_bytes(good[:40])
    assert command(pretrain, *flags)[0] == 2
    (image_tree / "train" / "cat" / "0000.png").write_bytes(good)
    assert command(pretrain, *flags)[0] == 0
    code, _, error = command(pretrain, *flags)
    assert code == 2
    assert "already holds a run" in error
