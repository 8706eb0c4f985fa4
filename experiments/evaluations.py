"""A folder of what `blockdrop.evaluate --json` wrote, read as data, and all its networks on one clock."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blockdrop.training.setup import Setup, open_setup
from torch import Tensor

from agents.policies import map_policy
from blockdrop.data import DataSource
from blockdrop.errors import UserError, require
from blockdrop.inference.executor import Executor
from blockdrop.measure import draw_static, executor, seconds_in_turns
from blockdrop.models.specs import parse_model_name
from blockdrop.names import EngineName
from blockdrop.output import write_json
from blockdrop.training.compute import Compute
from blockdrop.training.config import ModelConfig
from blockdrop.training.policies import open_static_policy
from experiments.comparison import Right

LARGEST_FILE = 256 << 20
TIMES_FILE = "times.json"
ABOUT_TIMES = "seconds of networks that took turns"
"""How a file of times is told from others."""
NUMBERS = (
    "images", "accuracy", "block_usage_mean", "num_blocks", "flops_mean", "full_flops", "policy_network_flops",
    "unique_policies", "threshold",
)  # fmt: skip
CURVE_NUMBERS = ("threshold", "accuracy", "flops_mean")
MODEL_FLAGS = ("shortcut", "normalisation", "policy_net", "skip_bad_images")
"""What a file's `config` adds to its `model` and `variant`, to open its networks again."""


# ---- results


@dataclass(frozen=True)
class Result:
    """One file: a network on the test images."""

    file: Path
    method: str
    seed: int | None
    """As the file's name says: `<method>-s<seed>.json`, or `<method>.json`."""
    numbers: dict[str, Any]
    """What evaluate wrote."""
    right: Right
    """bool (N,)."""
    digest: str
    """Of the file's content."""

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def decides(self) -> bool:
        """Whether a learned policy runs."""
        return self.numbers["policy_net"] is not None

    @property
    def clock(self) -> str:
        """The same for networks that differ in nothing but their weights, which no clock sees; another one for
        each learned policy."""
        policy = {"policy": self.numbers["policy"]}  # of each seed's own usage
        return self.name if self.decides else json.dumps(self.design | policy, sort_keys=True)

    @property
    def design(self) -> dict[str, Any]:
        """What all runs of one method have in common."""
        policy = self.numbers["policy"]
        if policy is not None and policy.startswith("dist_k:"):
            policy = ":".join(policy.split(":")[:2])  # by each seed's own usage
        return {**{key: self.numbers[key] for key in ("model", "variant", "policy_net")}, "policy": policy}


@dataclass(frozen=True)
class Folder:
    """The files of a folder."""

    results: list[Result]
    """By name, all on the same images."""
    times: dict[str, Any] | None
    left_out: dict[str, str]
    """By name of a file, why."""


def read_folder(folder: Path) -> Folder:
    """Reads every `*.json`; what can't be used is left out, and said why.

    Raises:
        UserError: no such folder.
    """
    results: list[Result] = []
    left_out: dict[str, str] = {}
    times = None
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix == ".json")
    except OSError as error:
        raise UserError(f"--results {folder}: can't be read ({error.strerror})") from None
    for file in files:
        try:
            content, digest = _read_json(file)
            if content.get("about") == ABOUT_TIMES:
                times = _checked_times(content)
            else:
                results.append(_as_result(file, content, digest))
        except UserError as error:
            left_out[file.name] = str(error)
    results = _of_one_design(_on_the_same_images(results, left_out), left_out)
    return Folder(results, times, left_out)


def _read_json(file: Path) -> tuple[dict[str, Any], str]:
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise UserError(f"larger than {LARGEST_FILE >> 20} MiB")
        raw = file.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise UserError(f"can't be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"damaged, no JSON ({str(error).splitlines()[0][:80]})") from None
    if not isinstance(content, dict):
        raise UserError("not what evaluate --json writes")
    return content, hashlib.sha256(raw).hexdigest()[:16]


def _as_result(file: Path, content: dict[str, Any], digest: str) -> Result:
    if not {"model", "accuracy", "flops_mean", "checkpoints"} <= content.keys():
        raise UserError("not what evaluate --json writes")
    if not {"right", "images_digest"} <= content.keys():
        raise UserError("of an older evaluate, which didn't record the right predictions; evaluate again")
    for name in NUMBERS:
        _check(_is_number(content.get(name)), name)
    for name, kinds in (
        ("model", str), ("images_digest", str), ("right", str), ("variant", dict), ("config", dict),
        ("checkpoints", list), ("curve", list), ("policy", str | None), ("policy_net", str | None),
    ):  # fmt: skip
        _check(name in content and isinstance(content[name], kinds), name)
    _check(all(isinstance(path, str) for path in content["checkpoints"]), "checkpoints")
    for row in content["curve"]:
        _check(isinstance(row, dict) and all(_is_number(row.get(name)) for name in CURVE_NUMBERS), "curve")
    _check(all(0 < row["threshold"] < 1 for row in (content, *content["curve"])), "threshold")
    _check(min(content["flops_mean"], content["full_flops"], content["images"]) > 0, "flops_mean")
    try:
        parse_model_name(content["model"])
    except UserError:
        _check(False, "model")
    _check(content["right"].isascii(), "right")
    bits = np.frombuffer(content["right"].encode(), dtype=np.uint8) - ord("0")
    _check(len(bits) == content["images"] and bool((bits <= 1).all()), "right")
    _check(math.isclose(bits.mean(), content["accuracy"], abs_tol=1e-6), "right, which isn't the accuracy")
    named = re.fullmatch(r"(.+)-s(\d{1,18})", file.stem)
    method, seed = (named[1], int(named[2])) if named else (file.stem, None)
    return Result(file, method, seed, content, bits.astype(bool), digest)


def _check(condition: bool, name: str) -> None:
    if not condition:
        raise UserError(f"damaged in its {name}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _on_the_same_images(results: list[Result], left_out: dict[str, str]) -> list[Result]:
    """Those on the images that most files are about; of as many, on the larger number of images."""
    counts = Counter((result.numbers["images_digest"], len(result.right)) for result in results)
    if not counts:
        return []
    chosen = max(counts, key=lambda images: (counts[images], images[1], images[0]))
    same = []
    for result in results:
        if (result.numbers["images_digest"], len(result.right)) == chosen:
            same.append(result)
        else:
            half = " (--budget reports on a half)" if result.numbers["config"].get("budget") is not None else ""
            left_out[result.file.name] = (
                f"of {len(result.right):,} other images{half} than the {chosen[1]:,} that most files are about"
            )
    return same


def _of_one_design(results: list[Result], left_out: dict[str, str]) -> list[Result]:
    """Without the runs of a method that are of another network or policy than its first one."""
    first: dict[str, Result] = {}
    same = []
    for result in results:
        begun = first.setdefault(result.method, result)
        odd = [key for key, value in begun.design.items() if result.design[key] != value]
        if odd:
            one, other = (_shown(found.design[odd[0]]) for found in (result, begun))
            left_out[result.file.name] = f"its {odd[0]} is {one}, that of {begun.file.name} {other}; rename one"
        else:
            same.append(result)
    return same


def _shown(value: object) -> str:
    return "none" if value in (None, {}) else str(value)[:60]


# ---- times


def _checked_times(content: dict[str, Any]) -> dict[str, Any]:
    runs = content.get("runs")
    _check(isinstance(runs, dict), "runs")
    for run in runs.values():  # type: ignore[union-attr]
        whole = isinstance(run, dict) and _is_number(run.get("seconds")) and isinstance(run.get("curve"), list)
        _check(whole and run["seconds"] > 0 and all(map(_is_number, run["curve"])), "runs")
        _check(isinstance(run.get("digest"), str), "runs")
    for name, kind in (("engine", str), ("compute", str), ("threads", int), ("batch_size", int), ("images", int)):
        _check(isinstance(content.get(name), kind), name)
    return content


def to_be_timed(results: Iterable[Result]) -> list[Result]:
    """The first of all that share a clock."""
    first: dict[str, Result] = {}
    return [result for result in results if first.setdefault(result.clock, result) is result]


def valid_times(results: Sequence[Result], times: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """By name of a file, what `measure_times` found for it, or for the one with its clock, as it is now."""
    runs = {} if times is None else times["runs"]
    by_clock = {
        result.clock: runs[result.name]
        for result in results
        if result.name in runs
        and runs[result.name]["digest"] == result.digest
        and len(runs[result.name]["curve"]) == len(result.numbers["curve"])
    }
    return {result.name: by_clock[result.clock] for result in results if result.clock in by_clock}


def measure_times(
    results: Sequence[Result],
    folder: Path,
    data_dir: str,
    cv_dir: str,
    compute: Compute,
    engine: EngineName,
    batch_size: int,
    images: int,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Opens the networks as their files say and lets all take turns on the same images, policy networks included,
    each learned policy at every threshold of its curve. Networks that share a clock are measured once. Writes
    `times.json` into the folder.

    Args:
        images: how many test images, drawn from all over.
        cv_dir: where decoded images are kept, if not beside the data.
    Returns:
        times.json's content, seconds per image; and by name of a file why a network isn't timed.
    """
    points: list[tuple[str, float, Callable[[int], object]]] = []
    batches: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    sources: dict[Any, DataSource] = {}
    failed: dict[str, str] = {}
    engines = []
    timed = to_be_timed(results)
    for result in timed:
        try:
            setup = _open(result, data_dir, cv_dir, compute)
            source = sources.setdefault((setup.data.name, setup.image_size), setup.data)
            key = (setup.data.name, setup.image_size, setup.normalisation)
            if key not in batches:
                batches[key] = _batches(source, setup, compute, batch_size, images)
            run = executor(setup.resnet, setup.policy_network if setup.has_policy else None, compute, engine)
            calls = list(_calls(result, setup, run, batches[key], batch_size, len(source.test)))
        except (LookupError, TypeError, ValueError) as error:  # whatever a file may ask for
            failed[result.file.name] = f"not timed: {error}"
            continue
        engines.append(run.engine)
        points += [(result.name, threshold, call) for threshold, call in calls]
    if not points:
        return {}, failed
    count = min(len(found) for found in batches.values())
    total = sum(len(rows) for rows, _ in next(iter(batches.values()))[:count])
    print(f"timing {len(timed) - len(failed)} networks, {len(points)} ways to run them, on {total:,} images")
    seconds = seconds_in_turns([call for _, _, call in points], list(range(count)), compute.device)
    digests = {result.name: result.digest for result in timed}
    runs: dict[str, dict[str, Any]] = {}
    for (name, threshold, _), found in zip(points, seconds, strict=True):
        runs.setdefault(name, {"digest": digests[name], "at": {}})["at"][threshold] = found / total
    for result in timed:
        if result.name in runs:
            at = runs[result.name].pop("at")
            runs[result.name]["seconds"] = at[result.numbers["threshold"]]
            runs[result.name]["curve"] = [at[row["threshold"]] for row in result.numbers["curve"]]
    times = {
        "about": ABOUT_TIMES,
        "engine": ", ".join(dict.fromkeys(engines)),
        "compute": str(compute),
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "images": total,
        "runs": runs,
    }
    write_json("--results", folder / TIMES_FILE, times)
    return times, failed


def _open(result: Result, data_dir: str, cv_dir: str, compute: Compute) -> Setup:
    numbers = result.numbers
    known = {one.name for one in dataclasses.fields(ModelConfig)}
    flags = {flag: numbers["config"][flag] for flag in MODEL_FLAGS if flag in numbers["config"]}
    flags |= {flag: value for flag, value in numbers["variant"].items() if flag in known}
    for flag, value in flags.items():
        require(value is None or isinstance(value, str | int | float), f"its {flag} is damaged")
    config = ModelConfig(model=numbers["model"], data_dir=data_dir, cv_dir=cv_dir, **flags)
    config.check()
    for path in numbers["checkpoints"]:
        require(Path(path).is_file(), f"{path}: no such checkpoint file")
    setup = open_setup(config, tuple(numbers["checkpoints"]))
    if numbers["policy"] is not None:
        setup.static = open_static_policy(numbers["policy"], setup, compute)
        setup.has_policy = False
    return setup


def _batches(
    source: DataSource, setup: Setup, compute: Compute, batch_size: int, images: int
) -> list[tuple[Tensor, Tensor]]:
    """Row numbers and images of each batch; whole ones, if there are so many images."""
    count = min(max(images // batch_size, 1) * batch_size, len(source.test))
    rows = torch.randperm(len(source.test), generator=torch.Generator().manual_seed(0))[:count]
    made = source.test.subset(rows).batches(
        batch_size, setup.normalisation, compute.device, channels_last=compute.channels_last
    )
    return [(some[: len(batch)], batch) for some, (batch, _) in zip(rows.split(batch_size), made, strict=False)]


def _calls(
    result: Result,
    setup: Setup,
    run: Executor,
    batches: Sequence[tuple[Tensor, Tensor]],
    batch_size: int,
    images: int,
) -> Iterator[tuple[float, Callable[[int], object]]]:
    """By threshold a pass over the batch of a number, programs compiled: the result's, and all of its curve."""
    pixels = batches[0][1].shape[-1]
    if not setup.has_policy:
        everything = torch.ones(images, setup.resnet.num_blocks, dtype=torch.bool)
        policy = everything if setup.static is None else draw_static(setup.static, images)
        given = [policy[rows] for rows, _ in batches]
        for one in given:
            run.warm(one, pixels, batch_size)
        yield result.numbers["threshold"], lambda number: run(batches[number][1], policy=given[number])
        return
    keep_probs = [run.keep_probs(batch) for _, batch in batches]
    for threshold in dict.fromkeys(row["threshold"] for row in (result.numbers, *result.numbers["curve"])):
        for probs in keep_probs:
            run.warm(map_policy(probs, threshold), pixels, batch_size)
        yield threshold, functools.partial(_pass, run, batches, threshold)


def _pass(run: Executor, batches: Sequence[tuple[Tensor, Tensor]], threshold: float, number: int) -> object:
    return run(batches[number][1], threshold=threshold)
