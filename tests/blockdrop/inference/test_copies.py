"""The calling thread's own operations do what torch's do."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from blockdrop.inference.copies import all_finite, array_of, average_pool, write, write_rows

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_are_equal(layout: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, 4, 6).to(dtype).contiguous(memory_format=layout).requires_grad_()
    out, some = torch.zeros(5, 3, 4, 6, dtype=dtype), torch.zeros(3, 3, 4, 6, dtype=dtype)
    write(x, array_of(out))
    write_rows(x, torch.tensor([4, 0, 4]), array_of(some))
    assert out.equal(x)
    assert some.equal(x[[4, 0, 4]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "factor"), [((8, 8), 2), ((7, 9), 2), ((12, 8), 4), ((11, 13), 3)])
def test_pooling_is_that_of_torch(layout: torch.memory_format, size: tuple[int, int], factor: int) -> None:
    images = torch.randn(2, 3, *size).contiguous(memory_format=layout)
    before = images.clone()
    torch.testing.assert_close(average_pool(images, factor), F.avg_pool2d(images, factor))
    assert images.equal(before)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_seen(bad: float) -> None:
    x = torch.full((2, 3, 4, 4), 1e30)
    assert all_finite(x)
    x[1, 2, 3, 3] = bad
    assert not all_finite(x)
    x[0, 0, 0, 0] = -bad
    assert not all_finite(x)
