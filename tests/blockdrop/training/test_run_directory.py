"""Checkpoint names."""

from pathlib import Path

from blockdrop.finetune import FinetuneConfig
from blockdrop.training.run_directory import RunDirectory


def test_checkpoints_are_named_as_the_reference_names_them(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "finetune", FinetuneConfig())
    metrics = {"accuracy": 0.93641, "reward": 0.8549, "blocks": 16.933, "unique_policies": 469}
    assert run.checkpoint_path(60, metrics).name == "ckpt_E_60_A_0.936_R_8.55E-01_S_16.93_#_469.t7"
    assert run.checkpoint_path(3, {"accuracy": 0.5}).name == "ckpt_E_3_A_0.500.t7"
    run.close(metrics)
