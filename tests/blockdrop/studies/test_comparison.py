"""The statistics of a comparison, by hand-worked cases and on data whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, chi2

from blockdrop.studies.comparison import (
    clustered_z,
    holm,
    mcnemar,
    pareto_front,
    percentile_interval,
    pool_seeds,
    resample_images,
)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def rows(*texts: str) -> np.ndarray:
    return np.array([[character == "1" for character in text] for text in texts])


def test_all_runs_see_the_same_images() -> None:
    right = generator().random((2, 50)) < 0.7
    found = resample_images(np.stack([right[0], right[0], right[1], ~right[0]]), 200, generator())
    assert found.shape == (200, 4)
    assert (found[:, 0] == found[:, 1]).all()
    assert found[:, 0] + found[:, 3] == pytest.approx(1)
    assert len(np.unique(found[:, 0])) > 5
    counts = found * 50
    assert counts == pytest.approx(counts.round(), abs=1e-9)


def test_draws_in_pieces_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    right = generator().random((3, 20)) < 0.5
    whole = resample_images(right, 50, generator())
    monkeypatch.setattr("blockdrop.studies.comparison.CHUNK_BYTES", 7 * 8 * 20)
    assert (resample_images(right, 50, generator()) == whole).all()


def test_images_and_seeds_are_drawn_as_all_possible_draws_say() -> None:
    right = rows("110", "010")
    possible = [
        right[np.ix_(seeds, images)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for images in itertools.product(range(3), repeat=3)
    ]
    draws = generator()
    found = pool_seeds(resample_images(right, 40_000, draws), draws)
    for value in np.unique(np.round(possible, 9)):
        share = np.isclose(possible, value).mean()
        assert np.isclose(found, value).mean() == pytest.approx(share, abs=4 * math.sqrt(share / len(found)))


def test_equal_seeds_are_one() -> None:
    right = generator().random((1, 300)) < 0.8
    accuracies = resample_images(np.repeat(right, 3, axis=0), 100, generator())
    assert pool_seeds(accuracies, generator()) == pytest.approx(accuracies[:, 0])
    assert (pool_seeds(accuracies[:, :1], generator()) == accuracies[:, 0]).all()


def test_seeds_that_differ_widen_the_interval() -> None:
    one, other = generator().random((2, 2000)) < [[0.8], [0.9]]
    accuracies = resample_images(np.stack([one, other]), 1000, generator())
    low, high = percentile_interval(pool_seeds(accuracies, generator()))
    assert low < 0.81
    assert high > 0.89


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    draws, covered = generator(), 0
    for _ in range(300):
        right = draws.random((1, 400)) < 0.85
        low, high = percentile_interval(resample_images(right, 500, draws)[:, 0])
        covered += low <= 0.85 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_paired_differences_are_narrower_than_unpaired_ones() -> None:
    one = generator().random((1, 1000)) < 0.8
    other = one.copy()
    other[0, :20] ^= True
    accuracies = resample_images(np.concatenate([one, other]), 500, generator())
    assert (accuracies[:, 0] - accuracies[:, 1]).std() < 0.5 * accuracies[:, 0].std()


def test_mcnemar_s_exact_test_by_hand() -> None:
    first, second = rows("1000000000" + "1111"), rows("0111111111" + "1111")
    found = mcnemar(first, second)
    assert found.name == "exact"
    assert found.statistic == 1 - 9
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert found.p_value == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert mcnemar(second, first).p_value == found.p_value
    assert mcnemar(first, first).p_value == 1


def test_of_single_runs_the_clustered_statistic_is_mcnemar_s() -> None:
    first, second = rows("1111100000"), rows("1000011110")
    z = clustered_z(first[0].astype(float) - second[0])
    assert z == pytest.approx((4 - 4) / math.sqrt(8))
    first, second = rows("1111110000"), rows("1000001100")
    z = clustered_z(first[0].astype(float) - second[0])
    assert z == pytest.approx((5 - 2) / math.sqrt(5 + 2))


def test_several_seeds_are_clusters() -> None:
    first, second = rows("1101", "1001"), rows("0110", "0001")
    differences = [1, 0, -0.5, 0.5]  # of image 1 both against none, of 2 one against one, …
    found = mcnemar(first, second)
    assert found.name == "clustered"
    assert found.statistic == pytest.approx(1 / math.sqrt(1 + 0.25 + 0.25))
    assert found.p_value == pytest.approx(chi2.sf(sum(differences) ** 2 / 1.5, df=1))
    assert mcnemar(first, first[::-1]).p_value == 1


def test_seeds_that_agree_say_no_more_than_one() -> None:
    draws = generator()
    first, second = draws.random((1, 200)) < 0.8, draws.random((1, 200)) < 0.7
    z = clustered_z(first[0].astype(float) - second[0])
    assert mcnemar(np.repeat(first, 3, axis=0), np.repeat(second, 2, axis=0)).statistic == pytest.approx(z)


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_pareto_front_by_hand() -> None:
    costs, gains = [1, 2, 2, 3, 4, 4], [0.5, 0.5, 0.7, 0.6, 0.8, 0.8]
    assert pareto_front(costs, gains) == [True, False, True, False, True, True]
    assert pareto_front([], []) == []
