"""The step that ends a batch: several batches for one step, clipping, and gradients that aren't finite."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from blockdrop.errors import BlockdropError, NumericalError
from blockdrop.pretrain import PretrainConfig
from blockdrop.training.config import TrainingConfig
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.update import Update


@dataclass(kw_only=True)
class Case:
    """A linear network whose weights move by minus the gradient."""

    run: RunDirectory

    def weights_after(self, losses: list[Tensor], batches: int = 0, **flags: object) -> Tensor:
        network = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(network.weight)
        config = TrainingConfig(**flags)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(network.parameters(), 1.0)
        update = Update(config, self.run, batches or len(losses), [optimizer], {"network": network})
        for batch, direction in enumerate(losses):
            update((network.weight * direction).sum(), 0, batch)
        return network.weight.detach().flatten()


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with RunDirectory(tmp_path, "test", TrainingConfig()) as run:
        yield Case(run=run)


def test_several_batches_make_one_step_by_the_mean_of_their_gradients(case: Case) -> None:
    losses = [torch.tensor([float(n), 1.0]) for n in (2, 4, 6)]
    assert case.weights_after(losses[:1], batches=3, accumulate=2).tolist() == [0, 0], "half of a step is none"
    assert case.weights_after(losses[:2], batches=3, accumulate=2).tolist() == [-3, -1]
    assert case.weights_after(losses, accumulate=2).tolist() == [-9, -2], "an epoch's last step may be of fewer"
    assert case.weights_after(losses).tolist() == [-12, -3]


def test_a_gradient_above_the_limit_is_scaled_down_to_it_and_others_left(case: Case) -> None:
    steep, flat = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    assert case.weights_after([steep], clip_grad=1.0).tolist() == pytest.approx([-0.6, -0.8])
    assert case.weights_after([flat], clip_grad=1.0).tolist() == [-flat[0], -flat[1]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_is_named_and_no_step_taken(case: Case, bad: float) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    update = Update(TrainingConfig(), case.run, 9, [optimizer], {"network": network})
    loss = network(torch.ones(1, 2)).sum()
    network[0].bias.register_hook(lambda gradient: gradient * bad)
    with pytest.raises(
        NumericalError,
        match=rf"the gradient of the network's 0.bias is -?{bad} in epoch 3, batch 5; .* no checkpoint",
    ):
        update(loss, 3, 5)
    assert all(old.equal(new) for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize(("flag", "value"), [("accumulate", 0), ("clip_grad", 0.0), ("clip_grad", math.nan)])
def test_a_flag_out_of_range_is_named(flag: str, value: float) -> None:
    with pytest.raises(BlockdropError, match=f"--{flag} {value}: must be"):
        PretrainConfig(**{flag: value}).check()  # type: ignore[arg-type]
