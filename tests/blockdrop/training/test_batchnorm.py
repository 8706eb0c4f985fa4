"""Statistics taken anew are those of the batches under MAP policies."""

import copy

import torch
from torch import nn

from agents.deciders import Learned
from agents.policy_network import Glance
from blockdrop.models.zoo import build
from blockdrop.training.batchnorm import recalibrate


def deciding(keep: list[bool]) -> Learned:
    """The same policy for every image."""
    keep_probs = torch.tensor([0.999 if kept else 0.001 for kept in keep])
    return Learned(lambda images: Glance(keep_probs.expand(len(images), -1)), len(keep))


def test_means_over_the_batches_and_untouched_blocks_as_they_were() -> None:
    resnet, _ = build("R8_C10")
    batches = [torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)]
    running_mean = resnet.bn1.running_mean
    dropped = [p.clone() for p in resnet.blocks[1][0].buffers()]
    recalibrate(resnet, deciding([True, False, True]), batches)

    maps = [resnet.conv1(batch) for batch in batches]
    assert resnet.bn1.running_mean is running_mean
    torch.testing.assert_close(running_mean, sum(m.mean((0, 2, 3)) for m in maps) / 2)
    torch.testing.assert_close(resnet.bn1.running_var, sum(m.var((0, 2, 3)) for m in maps) / 2)
    assert all(a.equal(b) for a, b in zip(dropped, resnet.blocks[1][0].buffers(), strict=True))
    assert resnet.bn1.momentum == 0.1


def test_the_share_kept_whole_runs_every_block() -> None:
    resnet, _ = build("R8_C10")
    before = resnet.blocks[1][0].bn1.running_mean.clone()
    recalibrate(resnet, deciding([False, False, False]), [torch.randn(4, 3, 32, 32)], keep_full=0.5)
    assert not before.equal(resnet.blocks[1][0].bn1.running_mean)


def test_a_decider_that_shares_the_stem_decides_as_before() -> None:
    """Its stem's statistics are taken anew too, and must not be looked at meanwhile."""
    resnet, policy_network = build("R8_C10", policy_net="stem")
    nn.init.normal_(policy_network.logit.weight, std=0.5)
    batches = [torch.randn(16, 3, 32, 32)]
    policy_network.eval()
    wanted = policy_network(batches[0])[0] >= 0.5
    assert wanted.any()
    assert not wanted.all()
    seen = []
    resnet.check_policy = lambda policy, images: seen.append(policy)  # type: ignore[method-assign]
    recalibrate(
        resnet, Learned(copy.deepcopy(policy_network).glance, 3), batches, borrowed=policy_network.borrowed
    )
    assert seen[0].equal(wanted)


def test_the_shared_stem_keeps_the_statistics_that_the_decider_looks_through() -> None:
    resnet, policy_network = build("R8_C10", policy_net="stem")
    before = [buffer.clone() for buffer in resnet.bn1.buffers()]
    inner = resnet.blocks[0][0].bn1.running_mean.clone()
    decide = Learned(copy.deepcopy(policy_network).glance, 3)
    images = [torch.randn(8, 3, 32, 32)]
    recalibrate(resnet, decide, images, borrowed=policy_network.borrowed, keep_full=0.5)
    assert all(a.equal(b) for a, b in zip(before, resnet.bn1.buffers(), strict=True))
    assert not inner.equal(resnet.blocks[0][0].bn1.running_mean)


def test_work_is_counted_as_it_is_done() -> None:
    resnet, _ = build("R8_C10")
    batches = [torch.randn(4, 3, 32, 32)] * 2
    assert recalibrate(resnet, deciding([True, False, True]), batches) == 2 * 4 * 2
    assert recalibrate(resnet, deciding([True, False, True]), batches, keep_full=0.5) == 2 * (2 * 2 + 2 * 3)
    assert recalibrate(resnet, deciding([True, False, True]), batches, execution="masked") == 2 * 4 * 3


def test_the_threshold_says_which_blocks_run() -> None:
    resnet, _ = build("R8_C10")
    batches = [torch.randn(4, 3, 32, 32)]
    decide = deciding([True, False, True])
    for threshold, blocks in ((1e-9, 3), (0.5, 2), (1 - 1e-6, 0)):
        decide.threshold = threshold
        assert recalibrate(resnet, decide, batches) == 4 * blocks
