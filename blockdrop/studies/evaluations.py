"""A folder of what `blockdrop.evaluate --json` wrote: which files can be compared, and why others can't."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from blockdrop.errors import BlockdropError
from blockdrop.evaluation import Evaluation
from blockdrop.studies.comparison import Right
from blockdrop.studies.times import ABOUT_TIMES, Times
from blockdrop.typed_json import read_json


@dataclass(frozen=True)
class Result:
    """One file: a network on the test images."""

    file: Path
    method: str
    seed: int | None
    """As the file's name says: `<method>-s<seed>.json`, or `<method>.json`."""
    evaluation: Evaluation
    digest: str
    """Of the file's content."""

    @property
    def name(self) -> str:
        return self.file.stem

    @cached_property
    def right(self) -> Right:
        """bool (N,), whether each prediction is right."""
        return np.frombuffer(self.evaluation.right.encode(), dtype=np.uint8) == ord("1")

    @property
    def decides(self) -> bool:
        """Whether a learned policy runs."""
        return self.evaluation.policy_net is not None

    @property
    def clock(self) -> str:
        """The same for networks that differ in nothing but their weights, which no clock sees; another one for
        each learned policy."""
        policy = {"policy": self.evaluation.policy}  # of each seed's own usage
        return self.name if self.decides else json.dumps(self.design | policy, sort_keys=True)

    @property
    def design(self) -> dict[str, Any]:
        """What all runs of one method have in common."""
        found, policy = self.evaluation, self.evaluation.policy
        if policy is not None and policy.startswith("dist_k:"):
            policy = ":".join(policy.split(":")[:2])  # by each seed's own usage
        return {
            "model": found.model, "variant": found.variant, "policy_net": found.policy_net, "policy": policy
        }  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """The files of a folder."""

    results: list[Result]
    """By name, all on the same images."""
    times: Times | None
    left_out: dict[str, str]
    """By name of a file, why."""


def read_folder(folder: Path) -> Folder:
    """Reads every `*.json`; what can't be used is left out, and said why.

    Raises:
        BlockdropError: no such folder.
    """
    results: list[Result] = []
    left_out: dict[str, str] = {}
    times = None
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix == ".json")
    except OSError as error:
        raise BlockdropError(f"--results {folder}: can't be read ({error.strerror})") from None
    for file in files:
        try:
            content, digest = read_json(file)
            if isinstance(content, dict) and content.get("about") == ABOUT_TIMES:
                times = Times.from_json(content)
                continue
            named = re.fullmatch(r"(.+)-s(\d{1,18})", file.stem)
            method, seed = (named[1], int(named[2])) if named else (file.stem, None)
            results.append(Result(file, method, seed, Evaluation.from_json(content), digest))
        except BlockdropError as error:
            left_out[file.name] = str(error)
    results = _of_one_design(_on_the_same_images(results, left_out), left_out)
    return Folder(results, times, left_out)


def _on_the_same_images(results: list[Result], left_out: dict[str, str]) -> list[Result]:
    """Those on the images that most files are about; of as many, on the larger number of images."""
    counts = Counter((result.evaluation.images_digest, len(result.right)) for result in results)
    if not counts:
        return []
    chosen = max(counts, key=lambda images: (counts[images], images[1], images[0]))
    same = []
    for result in results:
        if (result.evaluation.images_digest, len(result.right)) == chosen:
            same.append(result)
        else:
            half = " (--budget reports on a half)" if result.evaluation.config.get("budget") is not None else ""
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
