"""The OpenVINO engine: the network of one sub-policy's kept blocks and nothing else, as one compiled program.

Graphs are built straight from the folded weights (a few milliseconds), without a conversion through torch.
"""

from __future__ import annotations

import functools
import itertools
import operator
import queue
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.policy_network import PolicyNetwork
from blockdrop.inference.bank import BankKey
from blockdrop.inference.copies import array_of, write
from blockdrop.inference.plan import Range
from blockdrop.inference.signal_stack import kept_signal_stack
from blockdrop.models.backbone import (
    Backbone,
    Branch,
    EndedBranch,
    Network,
    NoShortcut,
    PadShortcut,
    is_plain_conv,
)
from blockdrop.models.compact import ShuffleBranch
from blockdrop.models.policy_networks import NoFeatures
from blockdrop.models.shift import Shift, ShiftBranch

try:
    import openvino as ov
    from openvino import opset8
    from openvino import opset13 as op
except ImportError:
    ov = op = opset8 = None

PROGRAM_BYTES = (
    500_000  # what a compiled program holds beside weights and maps (resident set, measured, rounded up)
)
MAPS_HELD = 3  # of the first block's size, at a time
# What a bank holds beside the weights, fitted to the resident set (within 15 % for R32, R110, R18, R50 and R101).
BODY_BYTES = 500_000  # each of its programs
LAYER_BYTES = 60_000  # each convolution of a program
MOST_STREAMS = 32  # of a bank: small batches have no more images
BANK_MAPS = 5  # so many maps as the first block gives, once for all programs


class UnsupportedLayerError(Exception):
    """A layer that this engine can't express; the message names it."""


def is_installed() -> bool:
    """Whether the `openvino` package can be imported."""
    return ov is not None


def version() -> str:
    """Of OpenVINO; empty where it isn't installed."""
    return "" if ov is None else str(ov.__version__)


class _Copy(NamedTuple):
    """A compiled graph with its own input and output."""

    infer: Callable[[], Any]
    inputs: NDArray[Any]
    kept: NDArray[np.float32] | None
    outputs: Tensor


class Program:
    """A graph for batches of one size, and as many copies of it, which share weights, as workers run it at once.

    Sizes are fixed because OpenVINO prepares every layer anew when a batch has another size than the last one.

    Args:
        make: compiles the graph for so many copies.
        shared_bytes, bytes_each: memory of what its copies share and of a copy's own, estimated.
    """

    def __init__(self, make: Callable[[int], Any], shared_bytes: int, bytes_each: int):
        self._make = make
        self._shared_bytes, self._bytes_each = shared_bytes, bytes_each
        self._idle: queue.SimpleQueue[_Copy] = queue.SimpleQueue()
        self.copies = 0
        """That are there, or that are planned."""
        self._compiled: list[_Copy] = []

    @property
    def num_bytes(self) -> int:
        """Memory of all copies."""
        return self.bytes_of(self.copies)

    def bytes_of(self, copies: int) -> int:
        """Memory of so many copies."""
        return self._shared_bytes + self._bytes_each * copies if copies else 0

    @property
    def compiled(self) -> int:
        """How many copies are there."""
        return len(self._compiled)

    @property
    def outputs(self) -> Tensor:
        """The maps or logits of the first copy, which a run overwrites."""
        return self._compiled[0].outputs

    def compile(self, copies: int) -> None:
        """Compiles the graph for so many copies, in place of those that there are; nobody may be using one."""
        model = self._make(copies)
        made = []
        for _ in range(copies):
            request = model.create_infer_request()
            inputs, kept, outputs = _empty(model.input(0)), None, _empty(model.output(0))
            request.set_input_tensor(0, _shared(inputs))
            if len(model.inputs) > 1:
                kept = _empty(model.input(1)).zero_()
                request.set_input_tensor(1, _shared(kept))
            request.set_output_tensor(0, _shared(outputs))
            infer = functools.partial(request.infer, share_outputs=True)
            made.append(_Copy(infer, array_of(inputs), None if kept is None else kept.numpy(), outputs))
        self._compiled, self._idle = made, queue.SimpleQueue()
        for copy in made:
            self._idle.put(copy)

    def run(
        self, fill: Callable[[NDArray[Any]], object], out: Tensor, kept: NDArray[np.bool_] | None = None
    ) -> None:
        """Runs as many rows as `out` has, which may be fewer than the batch size.

        Args:
            fill: writes the input, images float32 (m, 3, H, W) or maps (m, H, W, C).
            out: gets the output, maps (m, H', W', C') or float32 (m, outputs).
            kept: for a program that runs all blocks: bool (m, blocks), those that count.
        """
        copy = self._idle.get()
        try:
            fill(copy.inputs[: len(out)])
            if kept is not None:
                assert copy.kept is not None
                copy.kept[: len(out)] = kept
            copy.infer()
            write(copy.outputs[: len(out)], array_of(out))
        finally:
            self._idle.put(copy)


class _Stream(NamedTuple):
    """One user of a bank at a time, with inputs and output of its own."""

    infer: Callable[[], Any]
    images: NDArray[np.float32]
    number: NDArray[np.int32]
    kept: NDArray[np.float32] | None
    outputs: Tensor


class Bank:
    """Programs of several policies for one image, in one compiled model, which holds packed weights once.

    A policy without a program of its own goes through one that runs all blocks and masks those that it drops, in
    about the time of the full network.

    Args:
        compiled: of `OpenVINOEngine.bank`.
        policies: bytes of bool (K,) each, in the order of their programs.
        streams: how many images may run at once.
    """

    def __init__(self, compiled: Any, policies: Sequence[bytes], streams: int):
        self._numbers = {policy: number for number, policy in enumerate(policies, start=1)}
        self._compiled = compiled
        self._idle = deque(self._stream(compiled) for _ in range(streams))

    @staticmethod
    def _stream(compiled: Any) -> _Stream:
        names = {name: port for port in compiled.inputs for name in port.names}
        images, outputs = _empty(names["images"]), _empty(compiled.output(0))
        number = np.zeros((), dtype=np.int32)
        kept = _empty(names["kept"]) if "kept" in names else None
        request = compiled.create_infer_request()
        request.set_tensor(names["images"], _shared(images))
        if "number" in names:
            request.set_tensor(names["number"], ov.Tensor(number, shared_memory=True))
        if kept is not None:
            request.set_tensor(names["kept"], _shared(kept))
        request.set_output_tensor(0, _shared(outputs))
        infer = functools.partial(request.infer, share_outputs=True)
        return _Stream(infer, images.numpy(), number, None if kept is None else kept.numpy(), outputs)

    def run(self, fill: Callable[[NDArray[np.float32]], object], policy: NDArray[np.bool_], out: Tensor) -> bool:
        """Runs one image.

        Args:
            fill: writes the image, float32 (1, 3, H, W).
            policy: bool (K,).
            out: gets the logits, float32 (1, classes).
        Returns:
            Whether the policy has a program of its own, so that no other block ran.
        """
        number = self._numbers.get(policy.tobytes(), 0)
        try:
            stream = self._idle.pop()
        except IndexError:  # its last user was interrupted before it could give it back
            stream = self._stream(self._compiled)
        try:
            stream.number[...] = number
            if not number and stream.kept is not None:
                stream.kept[...] = policy
            fill(stream.images)
            stream.infer()
            write(stream.outputs, out.numpy())
        finally:
            self._idle.append(stream)
        return number > 0


class OpenVINOEngine:
    """Makes programs of segments and of policy networks, and banks of programs.

    Args:
        net: a `Backbone.folded()` copy, float32, on the CPU.
        policy_network: its trunk folded, float32, on the CPU, for images that are pooled already, which takes a
            program as long as two convolutions; or None.
        dtype: torch.float32 or torch.bfloat16, of the arithmetic and of the maps between segments.
        threads: for programs that use the whole processor.
    Raises:
        UnsupportedLayerError: the network has a layer that this engine can't express.
    """

    def __init__(
        self,
        net: Network,
        policy_network: PolicyNetwork | None,
        dtype: torch.dtype,
        threads: int,
    ):
        if not isinstance(net, Backbone):
            raise UnsupportedLayerError("a network that is given by its parts")
        self.net, self.policy_network, self.dtype, self.threads = net, policy_network, dtype, threads
        self.core = ov.Core()
        branches = [branch for branch, _ in net.branches()]
        self._weights = [sum(p.numel() for p in branch.parameters()) for branch in branches]
        self._layers = [sum(isinstance(module, nn.Conv2d) for module in branch.modules()) for branch in branches]
        self._first_maps: dict[tuple[int, tuple[int, ...]], int] = {}
        keeps_sign = [ds is None or isinstance(ds, nn.Identity | PadShortcut) for _, ds in net.branches()]
        # Of each block, whether what its shortcut gives is never negative, whatever blocks run before it.
        self._never_negative = list(itertools.accumulate([net.relu_after_sum, *keeps_sign], operator.and_))[1:]
        self._num_weights: int = sum(p.numel() for p in net.parameters())
        self._type = ov.Type.bf16 if dtype == torch.bfloat16 else ov.Type.f32
        # Notices unsupported layers now and not in the middle of a batch.
        self._block_graph((0, net.num_blocks), [True] * net.num_blocks, (64, 64, 3), 1)
        if policy_network is not None:
            self._policy_graph((64, 64, 3), 1)

    def block_program(
        self, blocks: Range, kept: list[bool], in_shape: tuple[int, ...], batch: int, alone: bool = False
    ) -> Program:
        """The straight-line program of some consecutive blocks, not yet compiled.

        Args:
            blocks: first and last + 1; stem and head belong to the network's first and last block.
            kept: which of them run.
            in_shape: (H, W, C) of the input.
            batch: its batch size.
            alone: use all threads; otherwise one for each copy (workers run several programs side by side).
        """
        graph = functools.partial(self._block_graph, blocks, kept, in_shape, batch)
        weights = sum(itertools.compress(self._weights[slice(*blocks)], kept))
        return self._program(graph, alone, weights, self._maps(blocks, in_shape, batch))

    def masking_program(self, blocks: Range, in_shape: tuple[int, ...], batch: int) -> Program:
        """All of some consecutive blocks for rows of any sub-policies, in about the time of the full network. Rows
        that drop a block pass it through its shortcut. Not yet compiled; see `block_program`."""
        graph = functools.partial(self._masking_graph, blocks, in_shape, batch)
        weights = sum(self._weights[slice(*blocks)])
        return self._program(graph, False, weights, self._maps(blocks, in_shape, batch))

    def _maps(self, blocks: Range, in_shape: tuple[int, ...], batch: int) -> int:
        """Values of the maps that a program holds at a time."""
        return MAPS_HELD * batch * self._first_map(blocks[0], in_shape)

    def _first_map(self, block: int, in_shape: tuple[int, ...]) -> int:
        """Values of the map behind a block, or logits behind the last one."""
        if (block, in_shape) not in self._first_maps:
            self._first_maps[block, in_shape] = int(np.prod(self.map_shape((block, block + 1), in_shape)))
        return self._first_maps[block, in_shape]

    def bank(self, policies: Sequence[bytes], key: BankKey) -> Bank:
        """Compiles one model of the programs of these policies, bool (K,) each.

        The programs hang on a balanced tree of conditions over their number: the bodies of conditions share the
        packed copies of equal constants.
        """
        in_shape, apart = key
        everything = (0, self.net.num_blocks)
        bodies = [self._masking_graph(everything, in_shape, 1)]
        for policy in policies:
            kept = np.frombuffer(policy, dtype=bool).tolist()
            bodies.append(self._block_graph(everything, kept, in_shape, 1))
        streams = min(self.threads, MOST_STREAMS) if apart else None
        return Bank(self._compile(self._tree(bodies, in_shape), streams), policies, streams or 1)

    def bank_bytes(self, policies: Sequence[bytes], key: BankKey) -> int:
        """Memory of a bank of these policies, estimated. Two streams of one for images side by side took as much
        as one stream, within 6 % (R101, R110); more were not measured."""
        once = self._num_weights + BANK_MAPS * self._first_map(0, key.image_shape)
        layers = sum(self._layers)  # of the program that runs all blocks
        for policy in policies:
            layers += sum(itertools.compress(self._layers, policy))  # bytes 0 and 1
        return once * self.dtype.itemsize + (1 + len(policies)) * BODY_BYTES + layers * LAYER_BYTES

    def _tree(self, bodies: list[Any], in_shape: tuple[int, ...], first: int = 0) -> Any:
        """The model that runs body number `number` - `first` of these."""
        if len(bodies) == 1:
            return bodies[0]
        half = len(bodies) // 2
        below = self._tree(bodies[:half], in_shape, first)
        above = self._tree(bodies[half:], in_shape, first + half)
        number = _named(op.parameter([], ov.Type.i32), "number")
        inputs = [self._images_input(in_shape, 1), self._kept_input(1, self.net.num_blocks), number]
        condition = opset8.if_op(op.less(number, _constant(np.int32(first + half))).output(0))
        condition.set_then_body(below)
        condition.set_else_body(above)
        for value in inputs:
            (name,) = value.output(0).names
            ports = [_input_of(body, name) for body in (below, above)]
            if any(port is not None for port in ports):
                condition.set_input(value.output(0), *ports)
        result = condition.set_output(below.get_results()[0], above.get_results()[0])
        return ov.Model([result], inputs, "bank")

    def map_shape(self, blocks: Range, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(H, W, C) behind some consecutive blocks, or (classes,) behind the last one."""
        graph = self._block_graph(blocks, [not self.net.droppable] * (blocks[1] - blocks[0]), in_shape, 1)
        return tuple(graph.output(0).shape)[1:]

    def policy_program(self, in_shape: tuple[int, ...], batch: int, alone: bool = False) -> Program:
        """The policy network: images (batch, C, H, W) to keep probabilities and, of one that answers, the answer's
        log-probabilities side by side, float32 (batch, K + classes); not yet compiled."""
        assert self.policy_network is not None
        weights = sum(p.numel() for p in self.policy_network.parameters())
        graph = functools.partial(self._policy_graph, in_shape, batch)
        return self._program(graph, alone, weights, 0)

    def _program(self, graph: Callable[[], Any], alone: bool, weights: int, maps: int) -> Program:
        """Of so many weights, as given and packed, and values of maps for each copy."""

        def make(copies: int) -> Any:
            return self._compile(graph(), None if alone else copies)

        itemsize = self.dtype.itemsize
        return Program(make, weights * (4 + itemsize), PROGRAM_BYTES + maps * itemsize)

    def _compile(self, graph: Any, copies: int | None = None) -> Any:
        """For one user on all threads, or for `copies` on a thread each."""
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.dtype == torch.bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(copies or 1),
            "INFERENCE_NUM_THREADS": str(copies or self.threads),
        }
        if copies is not None:  # pinned, the programs of all workers would sit on the same core
            config["ENABLE_CPU_PINNING"] = "NO"
        with kept_signal_stack():
            return self.core.compile_model(graph, "CPU", config)

    def _images_input(self, in_shape: tuple[int, ...], batch: int) -> Any:
        height, width, channels = in_shape
        return _named(op.parameter([batch, channels, height, width], ov.Type.f32), "images")

    def _kept_input(self, batch: int, blocks: int) -> Any:
        return _named(op.parameter([batch, blocks], ov.Type.f32), "kept")

    def _block_graph(self, blocks: Range, kept: list[bool], in_shape: tuple[int, ...], batch: int) -> Any:
        inputs, x = self._enter(blocks, in_shape, batch)
        for (branch, ds), keep in zip(self.net.branches()[slice(*blocks)], kept, strict=True):
            if keep:
                x = _block(self.net, branch, ds, x)
            elif ds is not None:
                x = _layer(ds, x)
        return ov.Model([self._leave(blocks, x)], [inputs], "blocks")

    def _masking_graph(self, blocks: Range, in_shape: tuple[int, ...], batch: int) -> Any:
        """All of some consecutive blocks, with a second input, float32 (batch, blocks): 0 where a row drops one.
        Of a network that drops none, all blocks alone."""
        count = blocks[1] - blocks[0]
        if not self.net.droppable:
            return self._block_graph(blocks, [True] * count, in_shape, batch)
        (inputs, x), kept = self._enter(blocks, in_shape, batch), self._kept_input(batch, count)
        masks = op.split(kept, _constant(1), count).outputs()
        parts = zip(self.net.branches()[slice(*blocks)], masks, self._never_negative[slice(*blocks)], strict=True)
        for (branch, ds), mask, never_negative in parts:
            mask = op.reshape(mask, _constant([batch, 1, 1, 1]), False)
            # ReLU changes nothing of what is never negative, so adding 0 will do: a tenth faster than selecting.
            if never_negative:
                x = op.relu(op.add(x if ds is None else _layer(ds, x), op.multiply(_layer(branch, x), mask)))
            else:
                keep = op.greater(mask, _constant(np.float32(0)))
                x = op.select(keep, _block(self.net, branch, ds, x), x if ds is None else _layer(ds, x))
        return ov.Model([self._leave(blocks, x)], [inputs, kept], "blocks, masked")

    def _enter(self, blocks: Range, in_shape: tuple[int, ...], batch: int) -> tuple[Any, Any]:
        """The input of some consecutive blocks, and what their first one gets."""
        if blocks[0] == 0:
            inputs = self._images_input(in_shape, batch)
            return inputs, _stem(self.net, inputs)
        inputs = op.parameter([batch, *in_shape], self._type)
        return inputs, op.convert(op.transpose(inputs, _constant([0, 3, 1, 2])), ov.Type.f32)

    def _leave(self, blocks: Range, x: Any) -> Any:
        """Logits behind the last block of the network, maps (batch, H, W, C) behind another one."""
        if blocks[1] == self.net.num_blocks:
            return _head(self.net, x)
        return op.convert(op.transpose(x, _constant([0, 2, 3, 1])), self._type)

    def _policy_graph(self, in_shape: tuple[int, ...], batch: int) -> Any:
        network = self.policy_network
        assert network is not None
        assert network.input_pool == 1
        trunk = network.features
        inputs = self._images_input(in_shape, batch)
        if isinstance(trunk, NoFeatures):
            found = network.logit.bias.sigmoid()
            if network.answer is not None:
                found = torch.cat([found, network.answer.bias.log_softmax(-1)])
            return ov.Model([_constant(found.expand(batch, -1).numpy())], [inputs], "policy network")
        if not isinstance(trunk, Backbone):
            raise UnsupportedLayerError(type(trunk).__name__)
        x = _stem(trunk, inputs)
        for branch, ds in trunk.branches():
            x = _block(trunk, branch, ds, x)
        features = _head(trunk, x)
        x = op.sigmoid(_layer(network.logit, features))
        if network.answer is not None:
            answer = op.log_softmax(_layer(network.answer, features), 1)
            x = op.concat([x, answer], 1)
        return ov.Model([x], [inputs], "policy network")


def _empty(port: Any) -> Tensor:
    """Memory for an input or output."""
    dtype = torch.bfloat16 if port.element_type == ov.Type.bf16 else torch.float32
    return torch.empty(tuple(port.shape), dtype=dtype)


def _shared(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        return ov.Tensor(tensor.view(torch.uint16).numpy(), ov.Shape(tensor.shape), ov.Type.bf16)
    return ov.Tensor(tensor.numpy(), shared_memory=True)


def _constant(value: Any) -> Any:
    return op.constant(np.asarray(value))


def _named(parameter: Any, name: str) -> Any:
    parameter.output(0).set_names({name})
    return parameter


def _input_of(model: Any, name: str) -> Any:
    return next((one for one in model.get_parameters() if name in one.output(0).names), None)


def _weights(tensor: Tensor, *shape: int) -> Any:
    """A constant that shares the tensor's memory."""
    return op.constant(tensor.detach().contiguous().view(*shape).numpy(), shared_memory=True)


def _stem(net: Backbone, x: Any) -> Any:
    return _layer(net.maxpool, op.relu(_layer(net.bn1, _layer(net.conv1, x))))


def _block(net: Backbone, branch: nn.Module, ds: nn.Module | None, x: Any) -> Any:
    total = _layer(branch, x)
    if not isinstance(ds, NoShortcut):
        total = op.add(x if ds is None else _layer(ds, x), total)
    return op.relu(total) if net.relu_after_sum else total


def _head(net: Backbone, x: Any) -> Any:
    if not isinstance(net.avgpool, nn.AdaptiveAvgPool2d) or net.avgpool.output_size not in (1, (1, 1)):
        raise UnsupportedLayerError(f"{net.avgpool} before the head")
    return _layer(net.fc, op.reduce_mean(x, _constant([2, 3]), False))


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _layer(layer: nn.Module, x: Any) -> Any:
    """A torch layer in eval mode as OpenVINO nodes."""
    match layer:
        case nn.Identity() | nn.Dropout():
            return x
        case nn.Sequential() if type(layer) is nn.Sequential:
            for part in layer:
                x = _layer(part, x)
            return x
        case nn.ReLU():
            return op.relu(x)
        case ShiftBranch():
            x = op.relu(_layer(layer.bn1, _layer(layer.conv1, x)))
            return op.relu(_layer(layer.bn2, _layer(layer.conv2, _layer(layer.shift, x))))
        case Shift():
            return _convolution(layer.as_convolution(), x)
        case ShuffleBranch():
            conv, norm = layer.layers()[0]
            x = _shuffle_channels(op.relu(_layer(norm, _layer(conv, x))), layer.shuffle.groups)
            return _layer(Branch(*zip(*layer.layers()[1:], strict=True)), x)
        case EndedBranch():
            branch = Branch(*zip(*layer.layers(), strict=True))
            return _squeeze_and_excite(layer.end, _layer(branch, x))
        case Branch() if type(layer) is Branch:
            for i, (conv, norm) in enumerate(layer.layers(), start=1):
                x = _layer(norm, _layer(conv, x))
                x = op.relu(x) if i < layer.depth else x
            return x
        case nn.Conv2d(padding_mode="zeros") if is_plain_conv(layer) and not isinstance(layer.padding, str):
            return _convolution(layer, x)
        case nn.Linear():
            x = op.matmul(x, _weights(layer.weight, *layer.weight.shape), False, True)
            return x if layer.bias is None else op.add(x, _weights(layer.bias, 1, -1))
        case PadShortcut():
            return _pad_shortcut(layer, x)
        case nn.MaxPool2d(return_indices=False) if type(layer) is nn.MaxPool2d:
            padding, rounding = _pair(layer.padding), "ceil_torch" if layer.ceil_mode else "floor"
            strides, dilation = _pair(layer.stride), _pair(layer.dilation)
            pool = ov.opset14.max_pool if layer.ceil_mode else op.max_pool
            return pool(x, strides, dilation, padding, padding, _pair(layer.kernel_size), rounding).output(0)
        case nn.AvgPool2d(padding=0, divisor_override=None) if type(layer) is nn.AvgPool2d:
            rounding = "ceil" if layer.ceil_mode else "floor"  # without padding torch rounds up like others
            pool = op.avg_pool(x, _pair(layer.stride), [0, 0], [0, 0], _pair(layer.kernel_size), True, rounding)
            return pool.output(0)
    raise UnsupportedLayerError(str(layer).splitlines()[0])


def _convolution(conv: nn.Conv2d, x: Any) -> Any:
    padding = _pair(conv.padding)  # type: ignore[arg-type]
    geometry = (_pair(conv.stride), padding, padding, _pair(conv.dilation))
    if conv.groups == 1:
        x = op.convolution(x, _weights(conv.weight, *conv.weight.shape), *geometry)
    else:
        x = op.group_convolution(x, _weights(conv.weight, conv.groups, -1, *conv.weight.shape[1:]), *geometry)
    return x if conv.bias is None else op.add(x, _weights(conv.bias, 1, -1, 1, 1))


def _shuffle_channels(x: Any, groups: int) -> Any:
    shape = x.get_output_partial_shape(0)
    channels, height, width = (shape[axis].get_length() for axis in (1, 2, 3))
    x = op.reshape(x, _constant([0, groups, channels // groups, height, width]), True)
    x = op.transpose(x, _constant([0, 2, 1, 3, 4]))
    return op.reshape(x, _constant([0, channels, height, width]), True)


def _squeeze_and_excite(layer: Any, x: Any) -> Any:
    """timm's `SEModule` of the usual kind."""
    usual = type(layer).__name__ == "SEModule" and not layer.add_maxpool and type(layer.act) is nn.ReLU
    if not usual or type(layer.gate).__name__ != "Sigmoid":
        raise UnsupportedLayerError(f"{type(layer).__name__} at the end of a branch")
    scale = _layer(layer.bn, _layer(layer.fc1, op.reduce_mean(x, _constant([2, 3]), True)))
    return op.multiply(x, op.sigmoid(_layer(layer.fc2, op.relu(scale))))


def _pad_shortcut(shortcut: PadShortcut, x: Any) -> Any:
    size = [shortcut.stride, shortcut.stride]
    if shortcut.stride > 1 and shortcut.kind == "pad_avgpool":
        x = op.avg_pool(x, size, [0, 0], [0, 0], size, True, "ceil")
    elif shortcut.stride > 1:
        x = op.slice(x, _constant([0, 0]), _constant([2**31 - 1] * 2), _constant(size), _constant([2, 3]))
    before, after = shortcut.channel_padding
    return op.pad(
        x, _constant([0, before, 0, 0]), _constant([0, after, 0, 0]), "constant", _constant(np.float32(0))
    )
