"""Train a backbone, or fine-tune one from weights of any dialect.

Cross-entropy, SGD with Nesterov momentum, one-cycle or step schedule; random crops and flips. With --arch a plain
net, a shift net or a ResNet of reduced widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from blockdrop.console import run_command
from blockdrop.errors import require
from blockdrop.ranges import CheckpointName, Positive, Range
from blockdrop.training.config import Groups, SupervisedConfig

if TYPE_CHECKING:
    from blockdrop.data import Data
    from blockdrop.dynamic import DynamicNetwork
    from blockdrop.training.session import Session


@dataclass(kw_only=True)
class PretrainConfig(SupervisedConfig):
    """Flags of `python -m blockdrop.pretrain`."""

    FIRST: ClassVar[tuple[str, ...]] = (
        "model", "data_dir", "download", "init", "new_head", "deepen", "cv_dir", "max_epochs", "batch_size", "lr",
        "resume",
    )  # fmt: skip
    GROUPS: ClassVar[Groups] = {"optimisation": ("label_smoothing",)}

    init: tuple[CheckpointName, ...] = ()
    """Checkpoint to start from: ours, the BlockDrop reference's or torchvision-style; or the word torchvision.
    Default: fresh weights."""
    new_head: bool = False
    """Start with a fresh classifier head, for other classes than the checkpoint's."""
    deepen: bool = False
    """Let --init be a shallower ResNet than --model: its blocks are spread over the deeper network, the new blocks
    between them start as identities, so training starts with the shallower network's accuracy."""
    lr: Positive | None = None  # type: ignore[assignment]
    """Learning rate; with --schedule one_cycle its highest value. Default: 0.1; with --init 0.01, so that weights
    that are good already aren't trained away."""
    label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of the target that is spread evenly over all classes."""

    def __post_init__(self) -> None:
        if self.lr is None:
            self.lr = 0.01 if self.init else 0.1


def main(config: PretrainConfig) -> dict[str, float]:
    """Opens network, data and run directory, and trains; returns the last test's metrics."""
    from blockdrop.training.brought import test_brought  # torch, which --help does without
    from blockdrop.training.closing import beside, close, print_next
    from blockdrop.training.opening import open_training

    config.check()
    require(config.policy_net is None, "--policy_net: pretrain trains no policy network; cl_train and finetune do")
    require(bool(config.init) or not config.deepen, "--deepen: of which network? Pass --init")
    opened, session = open_training(
        config, "pretrain", config.init, policy="none", new_head=config.new_head, deepen=config.deepen
    )
    with session.run:
        session.announce("pretrain", opened.dynamic, opened.data, opened.origins)
        if opened.has_backbone and not config.new_head:
            test_brought(opened.dynamic, opened.data, session, keep=False)
        metrics = train(opened.dynamic, opened.data, session)
        close(session, metrics)
        if opened.dynamic.network.droppable:
            flags = (
                "--recipe",
                "answers",
                "--pretrained",
                config.cv_dir,
                "--cv_dir",
                beside(config.cv_dir, "answers"),
            )
            print_next(config, "finetune", "--model", opened.dynamic.model, *flags)
        else:
            print_next(config, "evaluate", "--load", config.cv_dir)
    return metrics


def train(dynamic: DynamicNetwork, data: Data, session: Session[PretrainConfig]) -> dict[str, float]:
    """Trains the network; returns the last test's metrics."""
    from blockdrop.training.supervised import TestAndSave, cross_entropy_objective, fit

    config = session.config
    network = session.compute.place(dynamic.network)
    fit(
        session,
        data,
        dynamic.normalisation,
        cross_entropy_objective(network, config.label_smoothing),
        module=network,
        parameters=network.parameters(),
        begin_epoch=network.train,
        end_epoch=TestAndSave(session, dynamic, data),
        epochs=config.max_epochs,
    )
    return session.run.finish_with_test()


if __name__ == "__main__":
    run_command(main, PretrainConfig, __doc__)
