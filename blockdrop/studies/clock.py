"""The networks of a folder of evaluations on one clock: opened as their files say, and timed in turns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.answers import NEVER, Thresholds, is_sure
from agents.policies import map_policy
from blockdrop.data import Data, Normalisation
from blockdrop.errors import require
from blockdrop.evaluation import CurveRow, Evaluation
from blockdrop.inference.executor import Executor
from blockdrop.measure import executor, seconds_in_turns
from blockdrop.models.specs import ForeignSpec, parse_name
from blockdrop.names import EngineName
from blockdrop.output import write_json
from blockdrop.studies.evaluations import Result
from blockdrop.studies.times import TIMES_FILE, NetworkTimes, Times
from blockdrop.training.compute import Compute
from blockdrop.training.config import ModelConfig
from blockdrop.training.opening import Opened, open_networks
from blockdrop.training.policies import open_static_policy

MODEL_FLAGS = ("shortcut", "normalisation", "policy_net", "image_size", "skip_bad_images")
"""What a file's `config` adds to its `model` and `variant`, to open its networks again."""
Batches = Sequence[tuple[Tensor, Tensor]]
"""Row numbers (N,) among the test images, and images (N, 3, H, W), normalised."""


def to_be_timed(results: Iterable[Result]) -> list[Result]:
    """The first of all that share a clock."""
    first: dict[str, Result] = {}
    return [result for result in results if first.setdefault(result.clock, result) is result]


def valid_times(results: Sequence[Result], times: Times | None) -> dict[str, NetworkTimes]:
    """By name of a file, what the clock found for it, or for the one with its clock, as it is now."""
    runs = {} if times is None else times.runs
    by_clock = {
        result.clock: runs[result.name]
        for result in results
        if result.name in runs
        and runs[result.name].digest == result.digest
        and len(runs[result.name].curve) == len(result.evaluation.curve)
    }
    return {result.name: by_clock[result.clock] for result in results if result.clock in by_clock}


@dataclass(frozen=True)
class Clock:
    """How networks are timed."""

    data_dir: str
    cv_dir: str
    """Where decoded images are kept, if not beside the data."""
    compute: Compute
    engine: EngineName = "auto"
    batch_size: int = 256
    images: int = 1024
    """Test images, drawn from all over; whole batches, if there are so many."""

    def measure(self, results: Sequence[Result], folder: Path) -> tuple[Times | None, dict[str, str]]:
        """Opens the networks as their files say and lets all take turns on the same images, policy networks
        included, each learned policy at every threshold of its curve. Networks that share a clock are measured
        once. Writes `times.json` into the folder.

        Returns:
            its content; and by name of a file why a network isn't timed.
        """
        points: list[tuple[str, Thresholds, Callable[[int], object]]] = []
        batches: dict[Any, Batches] = {}
        sources: dict[Any, Data] = {}
        failed: dict[str, str] = {}
        engines = []
        timed = to_be_timed(results)
        for result in timed:
            try:
                opened = self.open(result)
                dynamic = opened.dynamic
                source = sources.setdefault((opened.data.name, dynamic.image_size), opened.data)
                key = (opened.data.name, dynamic.image_size, dynamic.normalisation)
                if key not in batches:
                    batches[key] = self.batches(source, dynamic.normalisation)
                run = executor(dynamic.network, dynamic.policy_network, self.compute, self.engine)
                calls = list(self.calls(result, opened, run, batches[key], len(source.test)))
            except (LookupError, TypeError, ValueError) as error:  # whatever a file may ask for
                failed[result.file.name] = f"not timed: {error}"
                continue
            engines.append(run.engine)
            points += [(result.name, thresholds, call) for thresholds, call in calls]
        if not points:
            return None, failed
        count = min(len(found) for found in batches.values())
        total = sum(len(rows) for rows, _ in next(iter(batches.values()))[:count])
        print(
            f"timing {len(timed) - len(failed)} networks, {len(points)} ways to run them, on {total:,} images of "
            f"{' and '.join(dict.fromkeys(f'{size} px' for _, size, _ in batches))}"
        )
        seconds = seconds_in_turns([call for _, _, call in points], list(range(count)), self.compute.device)
        at: dict[str, dict[Thresholds, float]] = {}
        for (name, thresholds, _), found in zip(points, seconds, strict=True):
            at.setdefault(name, {})[thresholds] = found / total
        times = Times(
            engine=", ".join(dict.fromkeys(engines)),
            compute=str(self.compute),
            threads=torch.get_num_threads(),
            batch_size=self.batch_size,
            images=total,
            runs={result.name: times_of(result, at[result.name]) for result in timed if result.name in at},
        )
        write_json("--results", folder / TIMES_FILE, times.to_json())
        return times, failed

    def open(self, result: Result) -> Opened:
        """The networks of a file.

        Raises:
            BlockdropError: they can't be opened; or a function of somebody's own builds them, which is never
                called because a file says so.
        """
        found = result.evaluation
        spec = parse_name(found.model)
        require(
            not (isinstance(spec, ForeignSpec) and spec.is_function),
            f"its network {found.model} is built by a function, which isn't called because a file says so",
        )
        known = {one.name for one in dataclasses.fields(ModelConfig)}
        flags = {flag: found.config[flag] for flag in MODEL_FLAGS if flag in found.config}
        flags |= {flag: value for flag, value in found.variant.items() if flag in known}
        for flag, value in flags.items():
            require(value is None or isinstance(value, str | int | float), f"its {flag} is damaged")
        config = ModelConfig(model=found.model, data_dir=self.data_dir, cv_dir=self.cv_dir, **flags)
        config.check()
        for path in found.checkpoints:
            require(Path(path).is_file(), f"{path}: no such checkpoint file")
        opened = open_networks(config, found.checkpoints)
        if found.policy is not None:
            opened.static = open_static_policy(found.policy, opened.dynamic, opened.data, self.compute)
            opened.dynamic.policy_network = None
        return opened

    def batches(self, source: Data, normalisation: Normalisation) -> Batches:
        """Whole ones, if there are so many images."""
        count = min(max(self.images // self.batch_size, 1) * self.batch_size, len(source.test))
        rows = torch.randperm(len(source.test), generator=torch.Generator().manual_seed(0))[:count]
        made = source.test.subset(rows).batches(
            self.batch_size, normalisation, self.compute.device, channels_last=self.compute.channels_last
        )
        parts = zip(rows.split(self.batch_size), made, strict=False)
        return [(some[: len(batch)], batch) for some, (batch, _) in parts]

    def calls(
        self, result: Result, opened: Opened, run: Executor, batches: Batches, images: int
    ) -> Iterator[tuple[Thresholds, Callable[[int], object]]]:
        """By thresholds a pass over the batch of a number, programs compiled: the result's, and all of its curve.

        Args:
            images: size of the test set.
        """
        pixels = batches[0][1].shape[-1]
        if opened.dynamic.policy_network is None:
            everything = torch.ones(images, opened.dynamic.num_blocks, dtype=torch.bool)
            generator = torch.Generator().manual_seed(0)
            policy = everything if opened.static is None else opened.static.draw(images, generator)
            given = [policy[rows] for rows, _ in batches]
            for one in given:
                run.warm(one, pixels, self.batch_size)
            yield own_thresholds(result.evaluation), lambda number: run(batches[number][1], policy=given[number])
            return
        glances = [run.glance(batch) for _, batch in batches]
        found = result.evaluation
        for thresholds in dict.fromkeys([own_thresholds(found), *map(own_thresholds, found.curve)]):
            for glance in glances:
                rest = ~is_sure(glance.answer, thresholds.answer, glance.keep_probs)
                run.warm(map_policy(glance.keep_probs, thresholds.keep)[rest], pixels, self.batch_size)
            yield thresholds, functools.partial(_pass, run, batches, thresholds)


def own_thresholds(found: Evaluation | CurveRow) -> Thresholds:
    """Those of an evaluation, or of a point of its curve."""
    return Thresholds(found.threshold, NEVER if found.answer_threshold is None else found.answer_threshold)


def times_of(result: Result, at: Mapping[Thresholds, float]) -> NetworkTimes:
    """A result's seconds, from seconds by thresholds."""
    own, curve = own_thresholds(result.evaluation), result.evaluation.curve
    return NetworkTimes(result.digest, at[own], [at[own_thresholds(row)] for row in curve])


def _pass(run: Executor, batches: Batches, thresholds: Thresholds, number: int) -> object:
    return run.run(batches[number][1], threshold=thresholds.keep, answer_threshold=thresholds.answer)
