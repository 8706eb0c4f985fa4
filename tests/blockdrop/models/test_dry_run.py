"""A network that is run for what happens on the way is not copied with its weights."""

import torch
from torch import nn

from blockdrop.models.dry_run import run_for_nothing, without_numbers


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
