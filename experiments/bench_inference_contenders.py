"""What takes part in `experiments.bench_inference`: the fastest ways to run a full network, and the executor."""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import blockdrop
from agents.policy_network import PolicyNetwork
from blockdrop.flops import FlopTable
from blockdrop.inference.copies import average_pool
from blockdrop.inference.executor import Executor
from blockdrop.inference.exported import onnx_session
from blockdrop.inference.openvino_engine import OpenVINOEngine, Program
from blockdrop.inference.openvino_engine import is_installed as openvino_is_installed
from blockdrop.inference.signal_stack import kept_signal_stack
from blockdrop.models.policy_networks import folded_policy_network
from blockdrop.models.resnet import DroppableResNet

Run = Callable[[], object]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_networks(model: str, image_size: int) -> tuple[DroppableResNet, PolicyNetwork]:
    """A model's networks with fresh weights, in eval mode, for images of that size."""
    resnet, policy_network = blockdrop.build(model)
    resnet.image_size = image_size
    return resnet.eval(), policy_network.eval()


def engines() -> list[Literal["torch", "openvino"]]:
    """Engines of the executor that are installed."""
    return ["torch", "openvino"] if openvino_is_installed() else ["torch"]


def missing_peers() -> list[str]:
    """Packages of contenders that can't be imported."""
    return [name for name in ("openvino", "onnxruntime", "onnx") if importlib.util.find_spec(name) is None]


def full_networks(
    resnet: DroppableResNet, images: Tensor, dtype: torch.dtype, onnx: bytes | None, torch_compile: bool
) -> dict[str, Run]:
    """The static ways to run all blocks, by name; each already compiled and run once.

    Args:
        images: a batch, (N, 3, S, S).
        onnx: see `export_onnx`; None: without ONNX Runtime.
    """
    raw = copy.deepcopy(resnet).to(dtype)
    folded = resnet.folded()
    last: Any = torch.channels_last
    fast = copy.deepcopy(folded).to(dtype).to(memory_format=last)
    x, x_last = images.to(dtype), images.to(dtype).to(memory_format=last)
    runs: dict[str, Run] = {
        "eager": lambda: raw(x),
        "eager, folded, channels_last": lambda: fast(x_last),
    }
    if torch_compile:
        import torch._inductor.config as inductor

        torch._dynamo.reset()
        with inductor.patch(freezing=True), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = torch.compile(copy.deepcopy(fast))
            compiled(x_last)
        runs["torch.compile, freezing"] = lambda: compiled(x_last)
    if onnx is not None and dtype == torch.float32:
        runs["ONNX Runtime"] = onnxruntime_full(onnx, images)
    if openvino_is_installed():
        runs["OpenVINO"] = functools.partial(
            openvino_network(folded, dtype, images.shape[-1], len(images)), images
        )
    return runs


def openvino_network(
    folded: DroppableResNet, dtype: torch.dtype, image_size: int, batch: int = -1
) -> Callable[[Tensor], object]:
    """The full network converted by OpenVINO itself, performance hint LATENCY; -1: for any batch size."""
    import openvino as ov

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = (3, image_size, image_size)
        model = ov.convert_model(folded, example_input=torch.zeros(1, *size), input=[batch, *size])
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    settings["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    with kept_signal_stack():
        request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: request.infer([images.numpy()], share_inputs=True, share_outputs=True)


def export_onnx(resnet: DroppableResNet, image_size: int) -> bytes | None:
    """The full network, folded, as ONNX for any batch size; None where a package is missing."""
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        return None
    example = torch.randn(2, 3, image_size, image_size)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("n")},)
        program = torch.onnx.export(resnet.folded(), (example,), dynamic_shapes=shapes, dynamo=True, verbose=False)
        assert program is not None
        program.save(f"{folder}/full.onnx")
        return Path(folder, "full.onnx").read_bytes()


def onnxruntime_full(onnx: bytes, images: Tensor) -> Run:
    """The full network in ONNX Runtime, float32."""
    session = onnx_session(onnx)
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def draw_policies(
    images: int, blocks: int, kept: float, distinct: int, seed: int = 0, always: float = 0.0, zipf: bool = False
) -> Tensor:
    """Random policies bool (N, K), `distinct` of them, each keeping round(kept · K) blocks.

    Args:
        always: share of the kept blocks that all policies keep, as learned ones do.
        zipf: policy number n is 1 / n times as frequent as the first one (each comes at least once); else all are
            equally frequent.
    """
    generator = np.random.default_rng(seed)
    keep = round(kept * blocks)
    order = generator.permutation(blocks)
    core, others = order[: round(always * keep)], order[round(always * keep) :]
    pool = np.zeros((min(distinct, images), blocks), dtype=bool)
    for policy in pool:
        policy[core] = True
        policy[generator.choice(others, keep - len(core), replace=False)] = True
    number = np.arange(images) % len(pool)
    if zipf:
        often = 1 / np.arange(1, len(pool) + 1)
        number[len(pool) :] = generator.choice(len(pool), len(number[len(pool) :]), p=often / often.sum())
    return torch.from_numpy(pool[generator.permutation(number)])


def dynamic(run: Executor, images: Tensor, policies: Tensor) -> Run:
    """Policy network and network under policies (M, K): those of the batch's images, or for one image in turn."""
    turns = itertools.cycle(policies.split(len(images)))

    def call() -> object:
        policy = next(turns)
        return run(images, policy=lambda _: policy)

    return call


class StraightPrograms:
    """The limit that OpenVINO sets: programs of some policies' own blocks and nothing else, and of the policy
    network, on all threads, as if all images of a batch had one policy.

    Args:
        batch: images per call.
        policy: bool (M, K); of its most frequent ones as many as `policies` stand for all.
    """

    SIZES = (1, 4, 16, 64, 256)

    def __init__(
        self,
        resnet: DroppableResNet,
        policy_network: PolicyNetwork,
        dtype: torch.dtype,
        image_size: int,
        batch: int,
        policy: Tensor,
        policies: int = 2,
    ):
        trunk = folded_policy_network(policy_network)
        pool, trunk.input_pool = trunk.input_pool, 1
        engine = OpenVINOEngine(resnet.folded(), trunk, dtype, torch.get_num_threads())
        shape, blocks = (image_size, image_size, 3), (0, resnet.num_blocks)
        distinct, counts = torch.unique(policy, dim=0, return_counts=True)
        chosen = distinct[counts.argsort(descending=True)[:policies]]
        self.batch = batch
        self.sizes = sorted({min(size, batch) for size in self.SIZES})
        glance = self._run(engine.policy_program((image_size // pool, image_size // pool, 3), batch, alone=True))
        images = torch.zeros(batch, 3, image_size, image_size)
        self.runs: dict[str, Run] = {"policy network": lambda: (average_pool(images, pool), glance())}
        self._rows: list[dict[str, int]] = []
        for number, kept in enumerate(chosen.tolist()):
            names = {f"policy {number} by {size}": size for size in self.sizes}
            self._rows.append(names)
            for name, size in names.items():
                self.runs[name] = self._run(engine.block_program(blocks, kept, shape, size, alone=True))

    @staticmethod
    def _run(program: Program) -> Run:
        program.compile(1)
        out = torch.empty_like(program.outputs, dtype=torch.float32)
        return lambda: program.run(lambda _: None, out)

    def seconds(self, measured: dict[str, float]) -> float:
        """Of a batch, given those of one call of each of `runs`: at the best size for each policy."""
        rows = [min(measured[name] / size for name, size in names.items()) for names in self._rows]
        return measured["policy network"] + self.batch * sum(rows) / len(rows)


def flops_ratio(flops: FlopTable, policy: Tensor) -> float:
    """FLOPs of the full network ÷ mean FLOPs under the policy, policy network included."""
    return flops.full / flops.per_image(policy).double().mean().item()
