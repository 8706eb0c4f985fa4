"""Dropping blocks of any network: which rows run which block, and maps of any rank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from blockdrop.models.conversion import convert
from blockdrop.models.droppable import Droppable, block_executions, plan_rows, put_rows, take_rows
from tests.blockdrop.models.brought import BY_NAME, MapNet, TokenNet, images_of, make


def droppable(kind: type[nn.Module]) -> Droppable:
    network, _ = convert(make(kind), **BY_NAME[kind], image_size=16)
    return network.double()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_plan_runs_each_policy_exactly(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, high)) for high in (3, 5, 6))
    bits = data.draw(st.lists(st.booleans(), min_size=shape[0] * shape[1] * shape[2], max_size=90))
    policies = torch.tensor(bits[: shape[0] * shape[1] * shape[2]]).view(shape)
    steps, rows = plan_rows(policies)
    # follow every row by the plan alone: its image and the blocks it ran
    history: list[tuple[int, tuple[bool, ...]]] = [(n, ()) for n in range(shape[1])]
    for step in steps:
        parents = range(len(history)) if step.parents is None else step.parents.tolist()
        running = range(len(parents)) if step.run is None else step.run.tolist()
        history = [(history[p][0], (*history[p][1], row in set(running))) for row, p in enumerate(parents)]
    assert len(set(history)) == len(history), "no prefix is computed twice"
    for s in range(shape[0]):
        for n in range(shape[1]):
            assert history[rows[s, n]] == (n, tuple(policies[s, n].tolist()))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_executions_are_the_distinct_prefixes_that_end_in_a_kept_block(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, high)) for high in (4, 4, 5))
    size = shape[0] * shape[1] * shape[2]
    policies = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(shape)
    prefixes = {
        (n, tuple(policies[s, n, : t + 1].tolist()))
        for s in range(shape[0])
        for n in range(shape[1])
        for t in range(shape[2])
        if policies[s, n, t]
    }
    assert block_executions(policies) == len(prefixes)
    assert block_executions(policies[0]) == policies[0].sum(), "one policy an image shares nothing"
    assert block_executions(policies[:0]) == 0


KINDS = pytest.mark.parametrize("kind", [MapNet, TokenNet])


@KINDS
def test_sparse_and_masked_execution_agree_on_maps_and_tokens(kind: type[nn.Module]) -> None:
    network, images = droppable(kind), images_of(7).double()
    for share in (0.0, 0.3, 0.7, 1.0):
        policy = torch.rand(7, network.num_blocks) < share
        with torch.no_grad():
            masked = network(images, policy, "masked")
        torch.testing.assert_close(network(images, policy), masked)
        with torch.inference_mode():
            torch.testing.assert_close(network(images, policy), masked)


@KINDS
def test_several_policies_of_an_image_give_what_each_gives_alone(kind: type[nn.Module]) -> None:
    network, images = droppable(kind), images_of(4).double()
    policies = torch.rand(3, 4, network.num_blocks) < 0.5
    with torch.no_grad():
        together = network(images, policies)
        torch.testing.assert_close(network(images, policies, "masked"), together)
        for logits, policy in zip(together, policies, strict=True):
            torch.testing.assert_close(network(images, policy), logits)


@KINDS
def test_gates_have_the_same_gradient_sparse_and_masked_on_maps_and_tokens(kind: type[nn.Module]) -> None:
    network, images = droppable(kind), images_of().double()
    policy = torch.rand(5, network.num_blocks) < 0.5
    policy[:, 0], policy[0] = True, True  # a block for all images
    found = []
    for execution in ("sparse", "masked"):
        network.zero_grad()
        gates = policy.double().requires_grad_()
        logits = network(images, policy, execution, gates)  # type: ignore[arg-type]
        torch.testing.assert_close(logits, network(images, policy))
        logits.square().sum().backward()
        assert gates.grad is not None
        found.append((gates.grad[policy], [p.grad for p in network.parameters() if p.grad is not None]))
    (sparse, weights), (masked, others) = found
    torch.testing.assert_close(sparse, masked)
    assert (masked != 0).all()
    torch.testing.assert_close(weights, others)


@pytest.mark.parametrize("shape", [(5, 3), (5, 4, 3), (5, 3, 4, 4)])
def test_rows_are_taken_and_put_along_dimension_0_alone(shape: tuple[int, ...]) -> None:
    x, rows = torch.randn(shape), torch.tensor([3, 1])
    assert take_rows(x, rows).equal(x[[3, 1]])
    expected = x.clone()
    expected[[3, 1]] = 7.0
    values = torch.full((2, *shape[1:]), 7.0)
    assert put_rows(x, rows, values).equal(expected)
    if len(shape) == 4:
        last = x.to(memory_format=torch.channels_last)
        assert put_rows(last, rows, values).is_contiguous(memory_format=torch.channels_last)
