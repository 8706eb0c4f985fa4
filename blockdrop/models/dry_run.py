"""Running a network for what happens on the way, not for its numbers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

Result = TypeVar("Result")


def run_for_nothing(network: nn.Module, image_size: int, run: Callable[[nn.Module, Tensor], Result]) -> Result:
    """What `run` makes of a copy of a network in eval mode and one image of image_size × image_size pixels.

    Nothing is computed, unless the network can't run like that: then it runs on the CPU, on a black image.
    """
    shape = (1, 3, image_size, image_size)
    with torch.no_grad():
        try:
            with _Shapes():
                return run(_shapes_alone(network), torch.empty(shape, device="meta"))
        except Exception:  # whatever a network of somebody's does with numbers; what is wrong in truth comes again
            return run(copy.deepcopy(network).cpu().float().eval(), torch.zeros(shape))


class _Shapes(TorchDispatchMode):
    """Answers the commonest operations on tensors without numbers by itself. Torch's own answers to these are
    written in Python, take longer, and import its compiler or a computer algebra system, which takes seconds."""


def _dispatch(_: Any, operation: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if operation in SHAPES and not kwargs and all(x.is_meta and x.dtype == torch.float32 for x in tensors):
        values = torch.empty(SHAPES[operation](*args), device="meta")
        with_indices = operation is aten.max_pool2d_with_indices.default
        return (values, torch.empty(values.shape, dtype=torch.long, device="meta")) if with_indices else values
    return operation(*args, **(kwargs or {}))


_Shapes.__torch_dispatch__ = _dispatch  # type: ignore[method-assign]  # in the class, torch would wrap it


def _same(x: Tensor, *_: Any) -> Sequence[int]:
    return x.shape


def _together(x: Tensor, y: Any) -> Sequence[int]:
    other = y.shape if isinstance(y, Tensor) else ()
    sizes = [*itertools.zip_longest(x.shape[::-1], other[::-1], fillvalue=1)][::-1]
    _check(all(a == b or 1 in (a, b) for a, b in sizes))
    return [b if a == 1 else a for a, b in sizes]


def _mean(x: Tensor, dims: Sequence[int], keepdim: bool = False) -> Sequence[int]:
    _check(bool(dims))
    gone = {dim % x.dim() for dim in dims}
    return [1 if i in gone else size for i, size in enumerate(x.shape) if keepdim or i not in gone]


def _linear(bias: Tensor, x: Tensor, weight: Tensor) -> Sequence[int]:
    _check(x.shape[1] == len(weight) and bias.shape[-1] == weight.shape[1])
    return len(x), weight.shape[1]


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Sequence[int]:
    stride, padding, dilation, transposed, output_padding, groups = geometry
    _check(x.dim() == weight.dim())
    _check(bias is None or len(bias) == (weight.shape[1] * groups if transposed else len(weight)))
    _check(x.shape[1] == (len(weight) if transposed else weight.shape[1] * groups))
    sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding, strict=True)
    if transposed:
        outer = ((size - 1) * s - 2 * p + d * (k - 1) + more + 1 for size, k, s, p, d, more in sides)
        return len(x), weight.shape[1] * groups, *_not_empty(outer)
    inner = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d, _ in sides)
    return len(x), len(weight), *_not_empty(inner)


def _max_pooled(
    x: Tensor,
    kernel: Any,
    stride: Any = (),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    ceil_mode: bool = False,
) -> Sequence[int]:
    reach = [d * (k - 1) + 1 for k, d in zip(_two(kernel), _two(dilation), strict=True)]
    return _pooled(x, reach, stride or kernel, padding, ceil_mode)


def _pooled(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = (0, 0), ceil_mode: bool = False, *_: Any
) -> Sequence[int]:
    def pooled(side: int, size: int, step: int, edge: int) -> int:
        rest = side + 2 * edge - size
        if not ceil_mode:
            return rest // step + 1
        count = -(-rest // step) + 1
        return count - ((count - 1) * step >= side + edge)  # the last window begins inside

    sides = map(pooled, x.shape[-2:], _two(kernel), _two(stride or kernel), _two(padding))
    return *x.shape[:-2], *_not_empty(sides)


def _two(sides: Sequence[int]) -> list[int]:
    return [sides[0], sides[-1]]


def _not_empty(sides: Iterable[int]) -> list[int]:
    found = [*sides]
    _check(min(found) > 0)
    return found


def _check(fits: bool) -> None:
    """Ends the run without numbers; the one with numbers that follows says what is wrong."""
    if not fits:
        raise ValueError("shapes that don't fit")


aten = torch.ops.aten
SHAPES: dict[Any, Callable[..., Sequence[int]]] = {
    aten.relu.default: _same,
    aten.sigmoid.default: _same,
    aten.add.Tensor: _together,
    aten.mul.Tensor: _together,
    aten.mean.dim: _mean,
    aten.avg_pool2d.default: _pooled,
    aten.max_pool2d_with_indices.default: _max_pooled,
    aten.addmm.default: _linear,
    aten.convolution.default: _convolution,
}


def _shapes_alone(network: nn.Module) -> nn.Module:
    """`without_numbers`, in eval mode; BatchNorm does nothing, as it changes no shape and torch takes half of the
    time of a run without numbers for it."""
    network = without_numbers(network).eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.forward = _as_it_is  # type: ignore[method-assign, assignment]
    return network


def _as_it_is(x: Tensor) -> Tensor:
    return x


def without_numbers(network: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes and types but no values, so that no weight is copied."""
    memo: dict[int, Tensor] = {}
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, memo)
