"""The executor: a trained network and its policy network, made to run as fast as the kept blocks allow.

Ahead of time BatchNorm is folded, weights are packed, number format and engine chosen. Per batch the policy
network runs, images that it answers are done, `plan_batch` groups the others' rows by sub-policy, and workers run
the groups: those with a compiled straight-line program through it, all others through the torch engine, which
needs no compilation, or through a program of all blocks that masks (`pieces.py`). Images that come alone go
through a bank of programs (`bank.py`), and so do the rows of small groups where that has turned out faster
(`choice.py`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.answers import NEVER, is_sure, with_answers
from agents.deciders import Decision
from agents.names import DEFAULT_THRESHOLD
from agents.policy_network import Glance, PolicyNetwork
from blockdrop.errors import BlockdropError
from blockdrop.inference import openvino_engine
from blockdrop.inference.account import ANSWERED, GLANCING, LOOKING, MASKED, OWN, RUNNING, TORCH, Account
from blockdrop.inference.bank import BankKey
from blockdrop.inference.choice import Choice
from blockdrop.inference.copies import all_finite, array_of, average_pool, write, write_rows
from blockdrop.inference.openvino_engine import Bank, OpenVINOEngine, Program, UnsupportedLayerError
from blockdrop.inference.pieces import Cutter, Piece
from blockdrop.inference.plan import Plan, Range, SegmentPlan, join_segments, plan_batch
from blockdrop.inference.programs import Programs, Sized
from blockdrop.inference.record import FORMAT, Record, read_record, write_record
from blockdrop.inference.torch_engine import PartsEngine, TorchEngine, copy_to_run, make_engine
from blockdrop.inference.watch import Watch
from blockdrop.inference.workers import Workers
from blockdrop.models.backbone import Backbone, Network, known_image_size
from blockdrop.models.droppable import take_rows
from blockdrop.models.policy_networks import folded_policy_network
from blockdrop.names import EngineName

SMALL_GROUP = 4
"""Rows of a sub-policy, at least, that are worth a program which takes several at once."""
SMALL_BATCH = 32
"""Images of a batch, at most, for which single images may be the faster way; more fill programs by stages."""
CACHE_BYTES = 512 << 20
TORCH_UNUSED = 100
"""Calls without the torch engine after which its copy of the weights is given up until it is needed again."""
COMPILE_AFTER = 128
"""Rows served without a program before one is compiled; that is about what compiling costs (see ProgramCache)."""


Net = TypeVar("Net", bound=nn.Module)


class Result(NamedTuple):
    """What an executor, or a `DynamicNetwork`, made of N images."""

    logits: Tensor
    """float32 (N, classes); of an answered image the answer's log-probabilities."""
    policy: Tensor
    """bool (N, K): the blocks that ran; none for an answered image."""
    answered: Tensor
    """bool (N,): images for which the policy network alone ran."""
    keep_probs: Tensor
    """float32 (N, K)."""
    answer: Tensor | None
    """float32 (N, classes), log-probabilities; None where the policy network has no answer head."""


def compile(
    resnet: Network,
    policy_network: PolicyNetwork | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    threshold: float | None = None,
    answer_threshold: float | None = None,
    engine: EngineName = "auto",
    device: torch.device | None = None,
    cache_bytes: int = CACHE_BYTES,
    compile_after: int = COMPILE_AFTER,
    follow: bool = True,
    programs: str | Path | None = None,
) -> Executor:
    """The fast executor of a trained network, dynamic or static, for inference.

    Args:
        resnet, policy_network: left as they are; any network of the zoo, or a converted one. Without a policy
            network every block runs unless a call brings a policy, which a plain net refuses if it drops blocks.
        dtype: torch.float32, or torch.bfloat16 where the processor has it.
        threshold: run a block where its keep probability is at least this; default: the policy network's own.
        answer_threshold: answer an image where its largest probability is at least this; default: the policy
            network's own.
        engine: "openvino" compiles a program for each frequent sub-policy (CPUs, `pip install
            blockdrop[openvino]`); "torch" needs nothing else; "auto" takes openvino where it is installed and
            knows every layer of the network.
        device: where to run (default: where the network's weights are).
        cache_bytes: memory that programs may take, estimated.
        compile_after: rows of a sub-policy, or images of the policy network, that run without a program before one
            is compiled.
        follow: look for changes of the weights at each call, which costs an image that comes alone up to a tenth
            of its time; False: only `refresh` prepares the networks anew.
        programs: file of `Executor.save_programs`. Its programs of batches are compiled now, those of single
            images in the background. A file that isn't there yet is passed over, one that doesn't fit with a
            warning.
    Raises:
        BlockdropError: engine not installed, or unable to run this network on this device; a policy network for a
            plain net.
        BlockdropError: another dtype, a threshold outside (0, 1), an answer threshold that isn't above 0.

    >>> import blockdrop
    >>> run = blockdrop.compile(*blockdrop.build("R8_C10"))
    >>> logits, policy = run(torch.zeros(4, 3, 32, 32))
    >>> logits.shape, policy.shape, policy.dtype
    (torch.Size([4, 10]), torch.Size([4, 3]), torch.bool)
    """
    if threshold is None:
        threshold = DEFAULT_THRESHOLD if policy_network is None else policy_network.threshold
    if answer_threshold is None:
        answer_threshold = NEVER if policy_network is None else policy_network.answer_threshold
    executor = Executor(
        resnet,
        policy_network,
        dtype,
        threshold,
        answer_threshold,
        engine=engine,
        device=device,
        cache_bytes=cache_bytes,
        compile_after=compile_after,
        follow=follow,
    )
    if programs is not None and Path(programs).exists():
        executor.load_programs(programs)
    return executor


class Executor:
    """See `compile`, which makes it.

    Calling it from several threads is safe; the calls then take turns. It follows changes of the networks'
    weights: the next call prepares them anew (`watch.Watch` says what shows; values of a single layer that are
    written through `p.data` may not). After those, or after replacing a layer, call `refresh`; so after any change
    where it was made with `follow=False`.

    It can be copied and pickled, and then prepares itself anew; in a process that was forked it says that it can't
    run: send it to a process that was spawned, or compile another one.
    """

    def __init__(
        self,
        resnet: Network,
        policy_network: PolicyNetwork | None,
        dtype: torch.dtype,
        threshold: float,
        answer_threshold: float,
        *,
        engine: EngineName,
        device: torch.device | None,
        cache_bytes: int,
        compile_after: int,
        follow: bool = True,
    ):
        if dtype not in (torch.float32, torch.bfloat16):
            raise BlockdropError(f"dtype: got {dtype}; choose torch.float32 or torch.bfloat16")
        _check_thresholds(threshold, answer_threshold)
        if policy_network is not None and not resnet.droppable:
            raise BlockdropError(f"a {type(resnet).__name__} has no blocks that a policy network could drop")
        self.resnet, self.policy_network = resnet, policy_network
        self.dtype, self.threshold, self.answer_threshold = dtype, threshold, answer_threshold
        self.device = torch.empty(
            0, device=device or next(resnet.parameters()).device
        ).device  # "cuda" to "cuda:0"
        self.num_blocks = resnet.num_blocks
        self.block_executions = 0
        """How many times a block has run for a row, over all calls."""
        self.segments = _segments(resnet)
        self.threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self._workers = Workers(self.threads)
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._cache_bytes, self._compile_after = cache_bytes, compile_after
        self._wanted_engine, self._follow = engine, follow
        self._watch: Watch | None = None
        self.account = Account()
        """What ran how, and where the time went; `explain` says it in a line."""
        with _PlainTensors():
            self._prepare()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "resnet": self.resnet, "policy_network": self.policy_network, "dtype": self.dtype,
            "threshold": self.threshold, "answer_threshold": self.answer_threshold, "engine": self._wanted_engine,
            "device": self.device, "cache_bytes": self._cache_bytes, "compile_after": self._compile_after,
            "follow": self._follow,
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        built_from = self.resnet.built_from
        name = type(self.resnet).__name__ if built_from is None else built_from[0]
        what = [f"{name}, {self.num_blocks} blocks"]
        if self.policy_network is not None:
            what.append(f"policy network at threshold {self.threshold:.4g}")
            if self._answers:
                what.append(f"answer threshold {self.answer_threshold:.4g}")
        threads = f", {self.threads} threads" if self.device.type == "cpu" else ""
        what.append(f"{str(self.dtype).removeprefix('torch.')} by {self.engine_name} on {self.device}{threads}")
        return f"Executor({', '.join(what)})"

    def __call__(
        self,
        images: Tensor,
        *,
        policy: Tensor | Callable[[Tensor], Tensor] | None = None,
        threshold: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Runs a batch; `run` says more of it.

        Args:
            images: float32 (N, 3, H, W), normalised, in any memory layout.
            policy: bool (N, K) to run instead of what the policy network decides and answers; or a function from
                keep probabilities (N, K) to it; or bool (S, N, K), S policies for each image, which share their
                work up to the stage in which they first differ.
            threshold: for this call.
        Returns:
            logits float32 (N, classes), or (S, N, classes), and the policy that ran, bool, on the images' device.
        Raises:
            BlockdropError: wrong dtype or shape, both a policy and a threshold, a threshold outside (0, 1).
        """
        if policy is None:
            return self.run(images, threshold=threshold)[:2]
        if threshold is not None:
            raise BlockdropError("policy and threshold: a policy is run as it is; pass one of the two")
        with self._using(images):
            if not isinstance(policy, Tensor):
                policy = policy(self._glance(images).keep_probs)
            self.resnet.check_policy(policy, images)
            return self._run(images, policy), policy

    def run(
        self, images: Tensor, *, threshold: float | None = None, answer_threshold: float | None = None
    ) -> Result:
        """Runs a batch under what the policy network decides, and tells all of it.

        Args:
            images: float32 (N, 3, H, W), normalised, in any memory layout.
            threshold, answer_threshold: for this call; default: the executor's.
        Raises:
            BlockdropError: images of another type or shape, a threshold outside (0, 1), an answer threshold that
                isn't above 0.
        """
        threshold = self.threshold if threshold is None else threshold
        answer_threshold = self.answer_threshold if answer_threshold is None else answer_threshold
        _check_thresholds(threshold, answer_threshold)
        with self._using(images):
            keep_probs, _, answer = self._glance(images)
            policy, answered = keep_probs >= threshold, None
            if answer is not None:
                answered = is_sure(answer, answer_threshold, policy)
                policy = policy & ~answered.unsqueeze(-1)
            logits = self._carry_out(images, policy, answered, answer)
            if answered is None:
                answered = torch.zeros(len(images), dtype=torch.bool, device=images.device)
            return Result(logits, policy, answered, keep_probs, answer)

    def carry_out(self, images: Tensor, decision: Decision) -> Tensor:
        """What was decided for images (N, 3, H, W), whoever decided: logits float32 (N, classes)."""
        with self._using(images):
            self.resnet.check_policy(decision.policy, images)
            return self._carry_out(images, decision.policy, decision.answered, decision.answer)

    def keep_probs(self, images: Tensor) -> Tensor:
        """The policy network's keep probabilities alone: images (N, 3, H, W) to float32 (N, K); 1 without one."""
        return self.glance(images).keep_probs

    def glance(self, images: Tensor) -> Glance:
        """The policy network alone: images (N, 3, H, W) to keep probabilities float32 (N, K), 1 without one, and
        answer float32 (N, classes); no values."""
        with self._using(images):
            return self._glance(images)

    def no_glance(self, images: Tensor) -> Glance:
        """What `glance` gives for no images, (0, 3, H, W)."""
        answer = images.new_empty(0, self._answers) if self._answers else None
        return Glance(images.new_empty(0, self.num_blocks), None, answer)

    @contextlib.contextmanager
    def _using(self, images: Tensor) -> Iterator[None]:
        """One call at a time, with networks that are up to date."""
        self._check_images(images)
        self._check_process()
        with self._lock, _PlainTensors():
            with self.account.timing(LOOKING):
                self._refresh(single=len(images) == 1)
            yield

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        self._check_process()
        with self._lock, _PlainTensors():
            yield

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise BlockdropError(
                "executor: made in another process, whose threads a forked one lacks; compile another one here, "
                "or start the process by spawn"
            )

    def refresh(self) -> None:
        """Prepares the networks anew, as after a change of their weights or layers."""
        with self._running():
            self._prepare()

    def warm(self, policy: Tensor, image_size: int | None = None, batch_size: int = 256) -> None:
        """Compiles the policy network's programs and those of the given policies ahead of time, most used first.

        Args:
            policy: bool (N, K), each as often as it is expected (a validation set's policies, say).
            image_size: side of the square images, in pixels; default: the network's.
            batch_size: images per batch in which they will come.
        """
        self.resnet.check_policy(policy, policy)  # as many rows as itself
        image_size = known_image_size(self.resnet, image_size)
        if self._programs is None:
            return
        with self._running():
            self._refresh()
            with self._openvino_may_fail():
                self._warm(self._programs, policy, (image_size, image_size, 3), batch_size)

    def _warm(self, programs: Programs, policy: Tensor, image_shape: tuple[int, ...], batch_size: int) -> None:
        if self._policy_trunk is not None:
            side = image_shape[0] // self._input_pool
            programs.warm_policy_network((side, side, 3), batch_size)
        batches = np.array_split(policy.cpu().numpy(), range(batch_size, len(policy), batch_size))
        small = [self._has_small_groups(bits) for bits in batches]
        apart = BankKey(image_shape, apart=True)
        if batch_size == 1:
            programs.warm_bank(policy, BankKey(image_shape))
        elif any(small):
            programs.warm_bank(policy, apart)
        if batch_size > 1:
            plans = [self._plan(bits[None]) for bits in batches]
            instead = all(small) and programs.banks.there(apart) is not None
            if not programs.warm_batches(plans, image_shape, batch_size, instead):
                self._choices[image_shape, batch_size] = Choice(only=1)

    def save_programs(self, path: str | Path) -> None:
        """Notes in a file which programs there are, and how many rows pay on this machine, for `compile` in the
        next process. Of a network that runs without OpenVINO there are none.

        Raises:
            BlockdropError: not writable, or something else stands there.
        """
        with self._running():
            record = Record(FORMAT, self.num_blocks, "") if self._programs is None else self._programs.record()
        write_record(path, record)

    def load_programs(self, path: str | Path) -> None:
        """Makes the programs that `save_programs` noted: those of batches now, those of single images in the
        background. A file that is damaged, or of another network, is passed over with a warning."""
        try:
            record = read_record(path, self.num_blocks)
        except BlockdropError as error:
            warnings.warn(f"programs {path}: {error}; programs are found anew", RuntimeWarning, stacklevel=2)
            return
        with self._running():
            self._refresh()
            if self._programs is not None:
                try:
                    self._programs.take_up(record, self.resnet.image_size)
                except RuntimeError as error:
                    why = " ".join(str(error).split())[:200]
                    warnings.warn(f"programs {path}: can't be made ({why})", RuntimeWarning, stacklevel=2)

    def explain(self) -> str:
        """One line: what ran how, and where the time went, since it was made or its `account` was cleared."""
        return f"{self!r}: {self.account}"

    @property
    def engine(self) -> str:
        """Which engine runs it, and why not a faster one."""
        return self.engine_name + (f" ({self.engine_reason})" if self.engine_reason else "")

    # ---- preparation

    def _prepare(self) -> None:
        self._watch = None  # whatever ends this before its end, the next call begins it again
        watch = Watch([self.resnet] if self.policy_network is None else [self.resnet, self.policy_network])
        net = _in_float32(self.resnet).folded().to(self.device)
        trunk, self._input_pool = None, 1
        if self.policy_network is not None:
            trunk = folded_policy_network(_in_float32(self.policy_network)).to(self.device)
            self._input_pool, trunk.input_pool = trunk.input_pool, 1
        self.engine_reason = ""
        self._programs = self._make_programs(net, trunk)
        self.engine_name = "torch" if self._programs is None else "openvino"
        self._net, self._torch_engine, self._torch_unused = net, None, 0
        if self._programs is None:
            self._torch_engine = self._torch
        self._policy_trunk = None
        self._answers, self._answer_weight = 0, 0.0
        if trunk is not None:
            self._policy_trunk = _PolicyRunner(trunk, self.dtype)
            if trunk.answer is not None:
                assert trunk.answer_weight is not None
                self._answers = trunk.answer.out_features
                self._answer_weight = trunk.answer_weight.item()
        self._choices: dict[tuple[tuple[int, ...], int], Choice] = {}
        self._cutter = Cutter(self.threads if self.device.type == "cpu" else None)
        self._known_shapes: dict[tuple[int, ...], dict[int, tuple[int, ...]]] = {}
        self._watch = watch

    def _make_programs(self, net: Network, trunk: PolicyNetwork | None) -> Programs | None:
        wanted = self._wanted_engine
        if wanted not in ("auto", "torch", "openvino"):
            raise BlockdropError(f"engine {wanted}: choose auto, torch or openvino")
        if wanted == "torch":
            return None
        if not openvino_engine.is_installed():
            if wanted == "openvino":
                raise BlockdropError("engine openvino: not installed; pip install blockdrop[openvino]")
            self.engine_reason = (
                "pip install blockdrop[openvino] makes it faster" if self.device.type == "cpu" else ""
            )
            return None
        if self.device.type != "cpu":
            if wanted == "openvino":
                raise BlockdropError(f"engine openvino: runs on the CPU; the network is on {self.device}")
            return None
        try:
            engine = OpenVINOEngine(net, trunk, self.dtype, self.threads)
            return Programs(engine, self._workers, self.segments, self._cache_bytes, self._compile_after)
        except UnsupportedLayerError as error:
            if wanted == "openvino":
                raise BlockdropError(f"engine openvino: can't run {error}; choose torch") from None
            self.engine_reason = f"OpenVINO can't run {error}"
            return None

    @property
    def _torch(self) -> TorchEngine | PartsEngine:
        """The torch engine, made when it is needed: with OpenVINO that may be never, and it packs weights of its
        own."""
        if self._torch_engine is None:
            self._torch_engine = make_engine(copy_to_run(self._net, self.dtype))
        self._torch_unused = 0
        return self._torch_engine

    def _refresh(self, single: bool = False) -> None:
        if self._watch is None or (self._follow and self._watch.changed(single)):
            self._prepare()

    # ---- the policy network

    def _glance(self, images: Tensor) -> Glance:
        if self._policy_trunk is None:
            return Glance(torch.ones(len(images), self.num_blocks, device=images.device))
        with self.account.timing(GLANCING):
            found = self._run_policy_network(images)
        if not self._answers:
            return Glance(found)
        return Glance(found[:, : self.num_blocks], None, found[:, self.num_blocks :])

    def _run_policy_network(self, images: Tensor) -> Tensor:
        """Keep probabilities and answers side by side, float32 (N, K + classes)."""
        count, pool = len(images), self._input_pool
        height, width, channels = _map_shape(images)
        in_shape = (height // pool, width // pool, channels)
        found = torch.empty(count, self.num_blocks + self._answers, dtype=torch.float32, device=images.device)
        if count == 1:  # the path for one image is short: here microseconds count
            program = self._policy_program(in_shape, 1, 1, alone=True)
            if program is not None:
                program.run(functools.partial(write, _pooled(images, pool)), found)
                return found
        if self._programs is None:
            pieces = self._cutter.evenly(count)
        else:
            parts = self._programs.split(count, count, Sized("policy network", in_shape))
            pieces = self._cutter.by_programs(0, parts, functools.partial(self._policy_program, in_shape))

        def work(piece: Piece) -> None:
            x, out = _pooled(images[piece.rows], pool), found[piece.rows]
            if piece.program is None:
                out.copy_(self._policy_trunk(x))  # type: ignore[misc]
            else:
                piece.program.run(functools.partial(write, x), out)

        self._workers.run(work, pieces)
        return found

    def _policy_program(
        self, image_shape: tuple[int, ...], batch: int, rows: int, alone: bool = False
    ) -> Program | None:
        if self._programs is not None:
            with self._openvino_may_fail():
                return self._programs.of_policy(image_shape, batch, rows, alone)
        return None

    # ---- a batch

    def _carry_out(self, images: Tensor, policy: Tensor, answered: Tensor | None, answer: Tensor | None) -> Tensor:
        """Runs the ResNet for what isn't answered."""
        rest = None if answered is None or not bool(answered.any()) else (~answered).nonzero().squeeze(1)
        self.account.images[ANSWERED] += 0 if rest is None else len(images) - len(rest)
        if answer is None or rest is None:
            return with_answers(self._run(images, policy), answer, None, self._answer_weight)
        logits = answer.float().clone()
        if len(rest):
            found = self._run(take_rows(images, rest), policy[rest])
            logits[rest] = with_answers(found, answer[rest], None, self._answer_weight)
        return logits

    def _run(self, images: Tensor, policy: Tensor) -> Tensor:
        with self.account.timing(RUNNING):
            return self._run_blocks(images, policy)

    def _run_blocks(self, images: Tensor, policy: Tensor) -> Tensor:
        bits = policy.cpu().numpy()
        if len(images) == 1 and bits.size == self.num_blocks:
            image_shape = _map_shape(images)
            bank = self._bank(bits.reshape(-1), BankKey(image_shape))
            if bank is None and self._programs is not None:
                bank = self._programs.banks.there(BankKey(image_shape, apart=True))
            if bank is not None:
                self._spare_torch()
                classes = self._shapes(image_shape)[self.num_blocks]
                logits = torch.empty(*policy.shape[:-1], *classes, dtype=torch.float32)
                own = bank.run(functools.partial(write, images), bits.reshape(-1), logits.view(1, -1))
                self._book_single(bits, own)
                return logits
        if policy.dim() == 2 and self._has_small_groups(bits):
            return self._run_small_groups(images, bits)
        return self._run_groups(images, bits)

    def _has_small_groups(self, bits: NDArray[np.bool_]) -> bool:
        """Whether most rows have a sub-policy of too few for a program that takes several at once."""
        if self._programs is None or not 1 < len(bits) <= SMALL_BATCH:
            return False
        return len(bits) < SMALL_GROUP * len({row.tobytes() for row in bits})

    def _run_small_groups(self, images: Tensor, bits: NDArray[np.bool_]) -> Tensor:
        """By groups or one by one, whichever has turned out faster for so many images of this shape."""
        key = BankKey(_map_shape(images), apart=True)
        choice = self._choices.setdefault((key.image_shape, len(images)), Choice())
        bank = None if self._programs is None else self._programs.banks.there(key)
        one_by_one = bank is not None and choice.pick() == 1
        if bank is None or one_by_one:
            for row in bits:
                bank = self._bank(row, key)
        begun, compiled = time.perf_counter(), self._compilations()
        if bank is None or not one_by_one:
            logits = self._run_groups(images, bits)
        else:
            logits = self._run_each(images, bits, bank)
        # While a bank is being made, its threads take time from the groups; and compiling counts for neither.
        if bank is not None and compiled == self._compilations():
            choice.note(int(one_by_one), time.perf_counter() - begun)
        return logits

    def _bank(self, bits: NDArray[np.bool_], key: BankKey) -> Bank | None:
        """What serves images one by one, if it is there."""
        if self._programs is not None:
            with self._openvino_may_fail():
                return self._programs.bank(bits, key)
        return None

    def _compilations(self) -> int:
        return 0 if self._programs is None else self._programs.compilations

    def _spare_torch(self) -> None:
        """Gives the torch engine's weights up once many calls in turn have gone without it."""
        if self._torch_engine is not None and self._programs is not None:
            self._torch_unused += 1
            if self._torch_unused >= TORCH_UNUSED:
                self._torch_engine = None

    def _run_each(self, images: Tensor, bits: NDArray[np.bool_], bank: Bank) -> Tensor:
        """Each image by itself, several side by side."""
        classes = self._shapes(_map_shape(images))[self.num_blocks]
        logits = torch.empty(len(images), *classes, dtype=torch.float32)
        own = [False] * len(images)

        def work(number: int) -> None:
            this = slice(number, number + 1)
            own[number] = bank.run(functools.partial(write, images[this]), bits[number], logits[this])

        self._workers.run(work, range(len(images)))
        for row, has_own in zip(bits, own, strict=True):
            self._book_single(row, has_own)
        return logits

    def _book_single(self, bits: NDArray[np.bool_], own: bool) -> None:
        """An image that ran by itself, by a program of its own policy or by all blocks."""
        self.block_executions += int(np.count_nonzero(bits)) if own else self.num_blocks
        self.account.images[OWN if own else MASKED] += 1

    def _run_groups(self, images: Tensor, bits: NDArray[np.bool_]) -> Tensor:
        """Policies bool (N, K) or (S, N, K): rows of equal sub-policy together."""
        plan = self._plan(bits if bits.ndim == 3 else bits[None])
        logits = self._run_plan(images, plan)
        rows = torch.from_numpy(plan.rows).to(images.device, non_blocking=True)
        return logits[rows if bits.ndim == 3 else rows[0]]

    def _plan(self, policies: NDArray[np.bool_]) -> Plan:
        return plan_batch(policies, join_segments(policies, self.segments))

    def _run_plan(self, images: Tensor, plan: Plan) -> Tensor:
        shapes = self._shapes(_map_shape(images))
        maps = images
        self._spare_torch()
        for segment in plan.segments:
            self.block_executions += int(segment.bits.sum())
            pieces = self._pieces(segment, _map_shape(images))
            if any(piece.program is None for piece in pieces):
                _ = self._torch  # made here, not by several workers at once
            self._book(segment, pieces, plan.rows.size)
            is_last = segment.blocks[1] == self.num_blocks
            dtype = torch.float32 if is_last else self.dtype  # logits at the end, maps before
            out = torch.empty(len(segment.source), *shapes[segment.blocks[1]], dtype=dtype, device=images.device)
            source = torch.from_numpy(segment.source).to(images.device, non_blocking=True)
            work = functools.partial(self._run_piece, segment=segment, source=source, maps=maps, out=out)
            self._workers.run(work, pieces)
            if pieces and pieces[0].without_own is not None:
                pieces[0].without_own.note()
            maps = out
        return maps

    def _book(self, segment: SegmentPlan, pieces: Sequence[Piece], images: int) -> None:
        """Each of the segment's rows stands for as many of the images (times policies) as any other."""
        each = images * (segment.blocks[1] - segment.blocks[0]) / self.num_blocks / max(1, len(segment.source))
        for piece in pieces:
            if piece.masked:
                self.block_executions += int((~segment.bits[piece.rows]).sum())
            way = MASKED if piece.masked else TORCH if piece.program is None else OWN
            self.account.images[way] += each * piece.num_rows

    def _run_piece(self, piece: Piece, segment: SegmentPlan, source: Tensor, maps: Tensor, out: Tensor) -> None:
        """Takes the piece's rows from `maps`, the images (N, 3, H, W) or the last segment's maps (rows, H, W, C),
        and writes their maps (rows, H', W', C') or logits to `out`."""
        begun = time.perf_counter()
        rows = source[piece.rows]
        if piece.program is None:
            self._run_by_torch(piece, segment, rows, maps, out)
        elif piece.masked:
            found = torch.empty_like(out[: len(rows)])
            piece.program.run(functools.partial(write_rows, maps, rows), found, segment.bits[piece.rows])
            array_of(out)[piece.rows] = array_of(found)
        else:
            piece.program.run(functools.partial(write_rows, maps, rows), out[piece.rows])
        if piece.without_own is not None:
            piece.without_own.seconds.append(time.perf_counter() - begun)

    def _run_by_torch(self, piece: Piece, segment: SegmentPlan, rows: Tensor, maps: Tensor, out: Tensor) -> None:
        if segment.blocks[0] == 0:
            x = take_rows(maps, rows).to(self.dtype).contiguous(memory_format=torch.channels_last)
        else:
            x = maps.index_select(0, rows).permute(0, 3, 1, 2)
        y = self._torch.run(segment.blocks, x, segment.bits[piece.rows])
        out[piece.rows] = (y if y.dim() == 2 else y.permute(0, 2, 3, 1)).to(out.dtype)

    def _pieces(self, segment: SegmentPlan, image_shape: tuple[int, ...]) -> list[Piece]:
        """The segment's rows in pieces for the workers, compiling what has become worth it."""
        if self._programs is not None:
            with self._openvino_may_fail():
                return self._cutter.cut(segment, image_shape, self._programs)
        return self._cutter.evenly(len(segment.source))

    def _openvino_may_fail(self) -> _GoOnAfter:
        """Goes on behind a `with` block if OpenVINO couldn't compile a program in it."""
        return _GoOnAfter(self._give_openvino_up)

    def _give_openvino_up(self, error: RuntimeError) -> None:
        """Goes on with torch where OpenVINO couldn't compile a program.

        Raises:
            BlockdropError: OpenVINO was asked for by name.
        """
        why = " ".join(str(error).split())[:200]
        if self._wanted_engine == "openvino":
            raise BlockdropError(f"engine openvino: can't compile a program ({why}); choose torch") from error
        warnings.warn(
            f"OpenVINO can't compile a program, so torch runs the network: {why}", RuntimeWarning, stacklevel=2
        )
        self._programs = None
        self.engine_name, self.engine_reason = "torch", f"OpenVINO can't compile a program: {why}"

    # ---- shapes and checks

    def _shapes(self, image_shape: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
        """(H, W, C) of the images and of the maps at the start of each segment; (classes,) after the last."""
        if self._programs is not None:
            return self._programs.shapes(image_shape)
        if image_shape not in self._known_shapes:
            shapes = {0: image_shape}
            x = torch.zeros(1, *image_shape, dtype=self.dtype, device=self.device).permute(0, 3, 1, 2)
            for first, last in self.segments:
                x = self._torch.run((first, last), x, np.zeros((1, last - first), dtype=bool))
                shapes[last] = _map_shape(x)
            self._known_shapes[image_shape] = shapes
        return self._known_shapes[image_shape]

    def _check_images(self, images: Tensor) -> None:
        if images.dtype != torch.float32 or images.dim() != 4 or images.shape[1] != 3:
            raise BlockdropError(
                f"images: got {images.dtype} of shape {tuple(images.shape)}; expected float32 (N, 3, H, W)"
            )
        side = self.resnet.image_size
        if side is not None and images.shape[2:] != (side, side):
            height, width = images.shape[2:]
            raise BlockdropError(f"images: {height} × {width} pixels; the network is made for {side} × {side}")
        if images.device != self.device:
            raise BlockdropError(f"images: on {images.device}, the network is on {self.device}")
        if self.device.type == "cpu" and not all_finite(images):  # its fused ReLUs hide NaN
            finite = images.flatten(1).isfinite().all(1)
            if not bool(finite.all()):
                number = int((~finite).nonzero()[0])
                raise BlockdropError(f"images: number {number} holds values that aren't finite")


class _PolicyRunner:
    """The policy network in the torch engine."""

    def __init__(self, network: PolicyNetwork, dtype: torch.dtype):
        self.network = copy_to_run(network, dtype)
        self.dtype = dtype
        trunk = self.network.features
        if isinstance(trunk, Backbone):
            self.network.features = _WholeNetwork(TorchEngine(trunk))

    def __call__(self, images: Tensor) -> Tensor:
        x = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        found = self.network.glance(x)
        return found.keep_probs if found.answer is None else torch.cat([found.keep_probs, found.answer], 1)


class _WholeNetwork(nn.Module):
    def __init__(self, engine: TorchEngine):
        super().__init__()
        self.engine = engine

    def forward(self, x: Tensor) -> Tensor:
        blocks = (0, len(self.engine.blocks))
        return self.engine.run(blocks, x, np.ones((len(x), blocks[1]), dtype=bool))


def _in_float32(network: Net) -> Net:
    """The network itself, or a copy of one in other floating-point numbers: float32 is folded and compiled."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    if all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point()):
        return network
    return copy.deepcopy(network).float()


class _PlainTensors:
    """No gradients, but no inference mode either: workers may not write to the inference tensors of a caller's."""

    def __enter__(self) -> None:
        self._parts: list[Any] = [torch.inference_mode(False)] if torch.is_inference_mode_enabled() else []
        self._parts.append(torch.no_grad())
        for part in self._parts:
            part.__enter__()

    def __exit__(self, *error: object) -> None:
        for part in reversed(self._parts):
            part.__exit__(*error)


class _GoOnAfter:
    """Hands a `RuntimeError` of a `with` block to a function, and goes on behind the block. A class, as generators
    take several times as long."""

    def __init__(self, handle: Callable[[RuntimeError], None]):
        self._handle = handle

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, RuntimeError):
            return False
        self._handle(error)
        return True


def _segments(resnet: Network) -> list[Range]:
    """A stage each, cut behind its first block, where maps have become small; of a network by parts the whole."""
    if not isinstance(resnet, Backbone):
        return [(0, resnet.num_blocks)]
    starts = np.cumsum([0, *resnet.stage_sizes]).tolist()
    cuts = [0, *(start + 1 for start in starts[1:-1]), starts[-1]]
    return [(first, last) for first, last in itertools.pairwise(cuts) if first < last]


def _pooled(images: Tensor, factor: int) -> Tensor:
    return images if factor == 1 else average_pool(images, factor)


def _map_shape(x: Tensor) -> tuple[int, ...]:
    """(H, W, C) of maps (m, C, H, W), or (outputs,) of (m, outputs)."""
    return tuple(x.shape[1:] if x.dim() == 2 else (*x.shape[2:], x.shape[1]))


def _check_thresholds(threshold: float, answer_threshold: float) -> None:
    if not 0 < threshold < 1:
        raise BlockdropError(f"threshold: got {threshold}; expected a number above 0 and below 1")
    if not answer_threshold > 0:
        raise BlockdropError(f"answer_threshold: got {answer_threshold}; expected a number above 0")
