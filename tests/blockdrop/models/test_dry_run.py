"""A network that is run for what happens on the way is not copied with its weights."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from blockdrop.models.dry_run import run_for_nothing, without_numbers

ROOT = Path(__file__).parents[3]


def test_a_copy_without_numbers_has_the_shapes_and_shares_what_is_shared() -> None:
    shared = nn.Linear(4, 4)
    network = nn.Sequential(shared, nn.BatchNorm1d(4), shared)
    shared.bias.requires_grad_(False)
    copied = without_numbers(network)
    assert isinstance(copied, nn.Sequential)
    assert copied[0] is copied[2]
    for (name, own), (_, bare) in zip(network.named_parameters(), copied.named_parameters(), strict=True):
        assert (bare.is_meta, bare.shape, bare.requires_grad) == (True, own.shape, own.requires_grad), name
    assert all(buffer.is_meta for buffer in copied.buffers())
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


def test_what_meta_tensors_cannot_do_runs_on_a_black_image() -> None:
    class Looks(nn.Module):
        def forward(self, images: torch.Tensor) -> float:
            return images.sum().item()

    assert run_for_nothing(Looks(), 8, lambda net, images: net(images)) == 0.0


@pytest.mark.parametrize("side", [7, 8, 9])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), nn.Conv2d(4, 8, (3, 1), groups=2, bias=False),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), nn.AvgPool2d(2), nn.AvgPool2d((3, 2)),
        nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, 3, ceil_mode=True), nn.MaxPool2d(3, 1, dilation=2), nn.AdaptiveAvgPool2d(1), nn.ReLU(),
        nn.ReLU(inplace=True), nn.Sigmoid(), nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), nn.Flatten(2),
    ],
    ids=repr,
)  # fmt: skip
def test_a_layer_without_numbers_has_the_shape_that_it_has_with_them(layer: nn.Module, side: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = nn.Conv2d(3, 4, 1), copy.deepcopy(layer)

        def forward(self, images: torch.Tensor) -> tuple[int, ...]:
            x = self.first(images)
            y = self.layer(x * x.mean((2, 3), keepdim=True) + 1)
            seen.append(y.is_meta)
            return tuple((y + y.mean(-1)[..., None]).shape)

    seen: list[bool] = []
    network = Net()
    expected = network(torch.zeros(1, 3, side, side))
    assert run_for_nothing(network, side, lambda net, images: net(images)) == expected
    assert seen == [False, True]


@pytest.mark.parametrize(
    "misfit",
    [
        nn.Linear(5, 2),
        nn.Conv2d(5, 2, 1),
        nn.Conv2d(4, 2, 9),
        nn.AvgPool2d(9),
        nn.MaxPool2d(9),
        nn.Bilinear(4, 4, 1),
    ],
    ids=repr,
)
def test_what_cannot_run_raises_what_it_would_with_numbers(misfit: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), misfit)
    with pytest.raises((RuntimeError, TypeError)) as expected:
        network(torch.zeros(1, 3, 8, 8))
    with pytest.raises(expected.type) as found:
        run_for_nothing(network, 8, lambda net, images: net(images))
    assert str(found.value) == str(expected.value)


def test_loading_and_counting_networks_imports_no_compiler() -> None:
    code = (
        "import sys, blockdrop\n"
        "from blockdrop.flops import count_flops\n"
        "count_flops(*blockdrop.build('R18_ImgNet')), count_flops(*blockdrop.build('R8_C10'))\n"
        "blockdrop.load('digits-r26').flop_table()\n"
        "print([name for name in ('sympy', 'torch._dynamo') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "[]\n", done.stderr
