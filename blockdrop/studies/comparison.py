"""Statistics of a comparison of classifiers on the same test images, each trained once or with several seeds.

Everywhere `right` is bool (runs, N): whether a run's prediction of each of N images is right. A run is a network
that was trained; a method has one for each seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

Right = NDArray[np.bool_]
Numbers = NDArray[np.float64]
CHUNK_BYTES = 64 << 20
"""Of the largest array that resampling holds."""


def resample_images(right: Right, resamples: int, generator: np.random.Generator) -> Numbers:
    """Accuracies on sets of N images drawn with replacement, each set the same for all runs.

    Because it is, differences of columns are paired: what is hard about an image is hard for both.

    Args:
        right: (runs, N), runs of any methods.
    Returns:
        (resamples, runs).
    """
    images = right.shape[1]
    weights = right.T.astype(np.float32)  # sums of up to 2^24 ones are exact
    found = np.empty((resamples, right.shape[0]))
    chunk = max(1, CHUNK_BYTES // (8 * images))
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = generator.integers(images, size=(rows, images))
        drawn += images * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)  # how often each
        found[start : start + rows] = counts.astype(np.float32) @ weights
    return found / images


def pool_seeds(accuracies: Numbers, generator: np.random.Generator) -> Numbers:
    """Mean accuracies of one method over its seeds, which are drawn with replacement as the images were: the
    pigeonhole bootstrap of Owen 2007, Annals of Applied Statistics 1(2), 386-411.

    It stands for other images and for other seeds at once. Two caveats. Of the variance between S seeds a
    bootstrap sees the share (S - 1) / S only, so with 2 or 3 an interval is too narrow for what seeds do; with one
    it knows nothing of it. And what an image is to one seed but not to another it counts 3 - 2 / S times, which
    makes an interval rather too wide where seeds differ image by image and not on the whole.

    Args:
        accuracies: (resamples, S), columns of `resample_images`.
    Returns:
        (resamples,); with one seed, or equal ones, those of `resample_images`.
    """
    resamples, seeds = accuracies.shape
    if seeds == 1:
        return accuracies[:, 0]
    counts = generator.multinomial(seeds, [1 / seeds] * seeds, size=resamples)
    return (counts * accuracies).sum(1) / seeds


def percentile_interval(values: Numbers, level: float = 0.95) -> tuple[float, float]:
    """The bootstrap's percentile interval (Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13).

    Where all values are the same (an accuracy of 0 or 1) it has no width, though that is not certainty.
    """
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedTest:
    """Of the hypothesis that two methods are as often right, on the same images."""

    name: Literal["exact", "clustered"]
    statistic: float
    """exact: how many more images only the first got right than only the second; clustered: z."""
    p_value: float
    """Two-sided."""


def mcnemar(first: Right, second: Right) -> PairedTest:
    """McNemar's test of two methods; with several seeds images are clusters of paired predictions.

    With one run each, an exact binomial test: of the images that one alone got right, either is as likely to have
    done so. Otherwise Durkalski et al. 2003, Statistics in Medicine 22(15), 2417-2428; see `clustered_z`. Both ask
    whether these networks differ on images like these; what other seeds would bring they don't ask.

    Args:
        first, second: (runs, N), runs may differ in number.
    """
    if len(first) == len(second) == 1:
        only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
        differing = only_first + only_second
        p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
        return PairedTest("exact", only_first - only_second, p_value)
    z = clustered_z(first.mean(0) - second.mean(0))
    return PairedTest("clustered", z, float(2 * norm.sf(abs(z))))


def clustered_z(differences: Numbers) -> float:
    """Durkalski's statistic, normal under the hypothesis: Σ d_i / √Σ d_i².

    With one run each d_i is 1, 0 or -1 and it is the root of McNemar's χ² without correction.

    Args:
        differences: (N,), of each image: share of the first's runs that are right less share of the second's.

    >>> clustered_z(np.array([1.0, 1.0, 1.0, -1.0, 0.0]))  # (3 - 1) / √(3 + 1)
    1.0
    """
    scale = math.sqrt(float(np.square(differences).sum()))
    return float(differences.sum()) / scale if scale else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false finding among them keeps the level (Holm 1979,
    Scandinavian Journal of Statistics 6(2), 65-70).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = list(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Which points no other one dominates, by costing no more and gaining no less, and being better in either.

    >>> pareto_front([3, 1, 2, 3], [0.9, 0.5, 0.4, 0.8])
    [True, True, False, False]
    """
    points = list(zip(costs, gains, strict=True))
    return [
        not any(other != (cost, gain) and other[0] <= cost and other[1] >= gain for other in points)
        for cost, gain in points
    ]
