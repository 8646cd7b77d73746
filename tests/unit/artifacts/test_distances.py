"""Distances between shares: against scipy and closed forms, and how often chance goes beyond what is called chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from lepton_ray.artifacts.distances import increase_beyond_chance, jensen_shannon, psi, psi_by_chance, psi_of_samples

_SHARES = st.integers(2, 12).flatmap(
    lambda size: st.tuples(*[st.lists(st.integers(0, 1000), min_size=size, max_size=size).filter(any)] * 2)
)


def _share(counts: list[int]) -> np.ndarray:
    return np.array(counts) / sum(counts)


@given(_SHARES)
def test_jensen_shannon_is_scipys(counts: tuple[list[int], list[int]]) -> None:
    before, after = map(_share, counts)
    assert jensen_shannon(before, after) == pytest.approx(np.nan_to_num(jensenshannon(before, after, 2)), abs=1e-7)


@given(_SHARES)
def test_psi_is_the_symmetric_relative_entropy(counts: tuple[list[int], list[int]]) -> None:
    before, after = (np.maximum(_share(one), 1e-4) for one in counts)
    expected = (before * np.log(before / after)).sum() + (after * np.log(after / before)).sum()
    assert psi(before, after) == pytest.approx(expected, abs=1e-12)
    assert psi(before, after) == pytest.approx(psi(after, before))


def test_psi_of_equal_shares_is_0_and_empty_bins_are_finite() -> None:
    share = np.array([0.25, 0.75, 0.0])
    assert psi(share, share) == 0
    assert psi(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(2 * (1 - 1e-4) * np.log(1e4))


def test_psi_of_shifted_normal_numbers_is_the_square_of_the_shift() -> None:
    edges = np.linspace(-4, 4.5, 200)
    before, after = (np.diff(stats.norm.cdf(edges, centre)) for centre in (0, 0.5))
    assert psi_of_samples(before, after, 1e9, 1e9) == pytest.approx(0.5**2, rel=0.02)


@pytest.mark.parametrize("num_bins", [2, 3, 4, 10, 21, 101])
def test_chance_is_the_quantile_of_chi_square(num_bins: int) -> None:
    expected = stats.chi2.ppf(1 - 1e-6, num_bins - 1) * (1 / 1000 + 1 / 400)
    assert psi_by_chance(num_bins, 1000, 400) == pytest.approx(expected, rel=0.08)
    assert psi_by_chance(1, 1000, 400) == 0


@pytest.mark.parametrize("weights", [[1] * 10, [50, 30, 10, 5, 3, 1, 0.5, 0.5]], ids=["even", "rare categories"])
@pytest.mark.parametrize(("n", "m"), [(300, 50), (5000, 500), (100_000, 5000)])
def test_chance_bounds_samples_of_one_distribution(weights: list[float], n: int, m: int) -> None:
    rng = np.random.default_rng(1)
    shares = np.array(weights) / sum(weights)
    before, after = rng.multinomial(n, shares, 4000) / n, rng.multinomial(m, shares, 4000) / m
    found = np.array([psi_of_samples(one, other, n, m) for one, other in zip(before, after, strict=True)])
    assert (found > psi_by_chance(len(shares), n, m)).sum() == 0
    at_one_percent = (found > psi_by_chance(len(shares), n, m, chance=0.01)).mean()
    assert at_one_percent < 0.025


def test_an_increase_is_what_chance_does_not_add() -> None:
    assert increase_beyond_chance(0.1, 0.1, 1000, 1000) == 0
    assert increase_beyond_chance(0.1, 0.0, 1000, 1000) == 0
    assert increase_beyond_chance(0.0, 1 / 500, 5000, 500) == 0
    error = np.sqrt(0.15 * 0.85 * 2 / 1000)
    assert increase_beyond_chance(0.0, 0.3, 1000, 1000) == pytest.approx(0.3 - stats.norm.isf(1e-6) * error)
    rng = np.random.default_rng(1)
    shares = rng.binomial(500, 0.3, (4000, 2)) / 500
    assert not any(increase_beyond_chance(one, other, 500, 500) for one, other in shares)
