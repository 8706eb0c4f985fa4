"""Ctrl-C must reach a process in which compiled programs came and went."""

import sys
from collections.abc import Callable

import pytest
import torch

import blockdrop
from blockdrop.inference.signal_stack import signal_stack
from blockdrop.models.resnet import DroppableResNet


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack is looked at on Linux only")
def test_programs_leave_the_stack_for_signals_alone(make_resnet: Callable[..., DroppableResNet]) -> None:
    pytest.importorskip("openvino")

    def now() -> tuple[int | None, int, int]:
        stack = signal_stack()
        return stack.start, stack.flags, stack.size

    before = now()
    runs = [blockdrop.compile(make_resnet("R8_C10"), dtype=torch.float32, engine="openvino") for _ in range(3)]
    for run in runs:
        run(torch.randn(2, 3, 32, 32))
    assert now() == before
    while runs:
        del runs[0]  # the oldest first
        assert now() == before
