"""From nothing to a network that drops blocks by itself, on handwritten digits, in a few minutes.

Pretrain a backbone, teach a policy network by curriculum, fine-tune both jointly; teach another policy network to
answer easy digits by itself; evaluate both; then a table and a figure. Needs no data, no network and no GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from blockdrop import cl_train, finetune, pretrain
from blockdrop.console import run_command
from blockdrop.data import MemoryImages
from blockdrop.errors import BlockdropError, require
from blockdrop.evaluate import EvaluateConfig, Evaluated
from blockdrop.evaluate import main as evaluate
from blockdrop.evaluation import Evaluation
from blockdrop.figures import draw_images, draw_usage_per_block, rank_by_blocks
from blockdrop.policy_stats import Outcomes


@dataclass(kw_only=True)
class QuickstartConfig:
    """Flags of `python -m experiments.quickstart`."""

    model: str = "R26_Digits"
    """R<depth>_Digits."""
    cv_dir: str | None = None
    """Where the four runs and the figure go; default: cv/quickstart, or cv/quickstart-2, … if there is one."""
    pretrain_epochs: int = 12
    """Epochs of the backbone."""
    curriculum_epochs: int = 16
    """Epochs of curriculum learning."""
    finetune_epochs: int = 22
    """Epochs of joint fine-tuning."""
    answer_epochs: int = 8
    """Epochs in which the other policy network learns to answer; half as many follow for its policies."""
    batch_size: int = 64
    """Images per batch of the policy's training."""
    overwrite: bool = False
    """Delete the quickstart that cv_dir already holds."""
    seed: int = 0
    """Same seed, machine and thread count: same numbers."""

    def check(self) -> None:
        """Raises `BlockdropError` for a value out of range."""
        if not self.model.endswith("_Digits"):
            raise BlockdropError(f"--model {self.model}: the quickstart runs on Digits; choose R<depth>_Digits")
        for flag in ("pretrain_epochs", "curriculum_epochs", "finetune_epochs", "answer_epochs", "batch_size"):
            require(getattr(self, flag) >= 1, f"--{flag} {getattr(self, flag)}: must be at least 1")


def figure_of_digits(
    usage: Sequence[float],
    stage_sizes: Sequence[int],
    images: Tensor,
    policy: Tensor,
    keep_probs: Tensor,
    answering: Outcomes,
    columns: int = 7,
) -> Figure:
    """Usage per block beside the easiest and hardest images, by blocks and by how sure of them an answer is.

    Args:
        usage: K shares of images that run each block.
        stage_sizes: blocks per stage.
        images: uint8 (N, 3, H, W).
        policy: bool (N, K); images that use few blocks count as easy, those that use many as hard.
        keep_probs: float (N, K); among images of equally many blocks, their sum decides.
        answering: of a policy network that answers, on the same N images.
        columns: how many images to show of each.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    ((left, right),) = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.15))
    draw_usage_per_block(left.subplots(), usage, stage_sizes)
    order, blocks_used = rank_by_blocks(policy, keep_probs), policy.sum(1)
    by_blocks, by_answers = right.subfigures(2, 1)
    rows = {"fewest blocks": order[:columns], "most blocks": order.flip(0)[:columns]}
    for axes_row, (title, chosen) in zip(by_blocks.subplots(2, columns), rows.items(), strict=True):
        draw_images(axes_row, images[chosen], [str(used) for used in blocks_used[chosen].tolist()], title)
    by_blocks.suptitle("easiest and hardest digits, with the blocks that each one used", fontsize=10)
    assert answering.answer is not None
    assert answering.answered is not None
    surest = answering.answer.amax(1).argsort(descending=True, stable=True)
    used = [
        "answered" if answered else str(blocks)
        for answered, blocks in zip(answering.answered.tolist(), answering.policy.sum(1).tolist(), strict=True)
    ]
    rows = {"most sure": surest[:columns], "least sure": surest.flip(0)[:columns]}
    for axes_row, (title, chosen) in zip(by_answers.subplots(2, columns), rows.items(), strict=True):
        draw_images(axes_row, images[chosen], [used[row] for row in chosen.tolist()], title)
    by_answers.suptitle("answered by the policy network alone, or with the blocks used", fontsize=10)
    return figure


def closing_table(found: Evaluation, answering: Evaluation, pretrained_accuracy: float) -> str:
    """The full network, before and after fine-tuning, beside the dynamic ones.

    Args:
        found: of the fine-tuned networks.
        answering: of the network whose policy network answers.
        pretrained_accuracy: test accuracy in [0, 1] of the backbone before it was fine-tuned.
    """
    blocks, flops = found.num_blocks, found.full_flops
    rows = [
        ("", "accuracy", "blocks", "FLOPs/img", "of full", f"images/s (batch {found.batch_size})"),
        ("full, as pretrained", f"{pretrained_accuracy:.2%}", f"{blocks:.2f}", f"{flops:.3e}", "100.0%", ""),
        (
            "full, fine-tuned",
            f"{found.full_accuracy:.2%}",
            f"{blocks:.2f}",
            f"{flops:.3e}",
            "100.0%",
            f"{found.full_images_per_second:.0f}",
        ),
        *(
            (
                name,
                f"{one.accuracy:.2%}",
                f"{one.block_usage_mean:.2f}",
                f"{one.flops_mean:.3e}",
                f"{one.flops_mean / flops:.1%}",
                f"{one.images_per_second:.0f}",
            )
            for name, one in (("dynamic", found), ("dynamic, with answers", answering))
        ),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )
    return "\n".join(lines)


def free_folder(wanted: str | None) -> Path:
    """The folder asked for, or the first of cv/quickstart, cv/quickstart-2, … that doesn't exist."""
    if wanted is not None:
        return Path(wanted)
    folder, number = Path("cv/quickstart"), 1
    while folder.exists():
        number += 1
        folder = Path(f"cv/quickstart-{number}")
    return folder


def main(config: QuickstartConfig) -> Evaluated:
    """Runs everything; returns the evaluation."""
    config.check()
    start = time.perf_counter()
    folder = free_folder(config.cv_dir)
    model, seed = config.model, config.seed

    def headline(text: str) -> None:
        print(f"\n=== {text} ({time.perf_counter() - start:.0f} s so far)")

    headline("1/5 pretrain: a ResNet learns to read digits")
    pretrained = pretrain.main(
        pretrain.PretrainConfig(
            model=model,
            seed=seed,
            overwrite=config.overwrite,
            cv_dir=f"{folder}/pretrain",
            max_epochs=config.pretrain_epochs,
            batch_size=64,
            lr=0.1,
        )
    )
    headline("2/5 cl_train: a policy network learns which blocks the frozen ResNet can spare")
    cl_train.main(
        cl_train.CurriculumConfig(
            model=model,
            seed=seed,
            load=(f"{folder}/pretrain",),
            overwrite=config.overwrite,
            cv_dir=f"{folder}/curriculum",
            max_epochs=config.curriculum_epochs,
            batch_size=config.batch_size,
            policy_net="pooled4",  # the digits were 8 × 8 pixels, so nothing is lost
        )
    )
    headline("3/5 finetune: both networks learn together")
    finetune.main(
        finetune.FinetuneConfig(
            model=model,
            seed=seed,
            pretrained=(f"{folder}/curriculum",),
            overwrite=config.overwrite,
            cv_dir=f"{folder}/finetune",
            max_epochs=config.finetune_epochs,
            batch_size=config.batch_size,
            lr=5e-4,
            alpha=0.9,
            epoch_step=max(1, config.finetune_epochs * 6 // 7),
            penalty=-1.0,
        )
    )
    headline("4/5 finetune --recipe answers: a policy network learns to answer easy digits by itself")
    finetune.main(
        finetune.FinetuneConfig(
            recipe="answers",
            model=model,
            seed=seed,
            pretrained=(f"{folder}/pretrain",),
            overwrite=config.overwrite,
            cv_dir=f"{folder}/answers",
            policy_net="pooled4",
            batch_size=config.batch_size,
            answer_epochs=config.answer_epochs,
        )
    )
    headline("5/5 evaluate: test images that no network has seen")
    found, answering = (
        evaluate(
            EvaluateConfig(
                model=model, seed=seed, load=(f"{folder}/{run}",), json=f"{folder}/{file}", overwrite=True
            )
        )
        for run, file in (("finetune", "evaluation.json"), ("answers", "evaluation-answers.json"))
    )

    test = found.opened.data.test
    assert isinstance(test, MemoryImages)
    assert found.outcomes.keep_probs is not None
    figure = figure_of_digits(
        found.evaluation.usage_per_block,
        found.evaluation.stage_sizes,
        test.images,
        found.outcomes.policy,
        found.outcomes.keep_probs,
        answering.outcomes,
    )
    figure.savefig(folder / "quickstart.png", dpi=150)
    print(f"\n{closing_table(found.evaluation, answering.evaluation, pretrained['accuracy'])}\n")
    print(f"{answering.evaluation.answered:.1%} of the digits were answered by a policy network alone.")
    print(
        f"FLOPs of the dynamic networks include their policy networks. {time.perf_counter() - start:.0f} s in all."
    )
    print(f"figure: {folder / 'quickstart.png'}; curves: tensorboard --logdir {folder}")
    return found


if __name__ == "__main__":
    run_command(main, QuickstartConfig, __doc__)
