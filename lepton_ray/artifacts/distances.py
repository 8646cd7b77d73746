"""How far two sets of shares of the same bins are apart, and how far chance alone takes samples of one distribution.

Legend: B bins; n and m rows of two samples.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.float64]

CHANCE = 1e-6
"""Probability with which samples of one distribution go beyond what is called chance here."""
_PSI_LEAST = 1e-4  # share that an empty bin counts as, so that the logarithm stays finite
_Z = NormalDist().inv_cdf(1 - CHANCE)
_HALF = 0.5


def psi(before_B: Shares, after_B: Shares) -> float:
    """Return the population stability index, the symmetric Kullback-Leibler divergence in nats; 0 or more."""
    expected, actual = np.maximum(before_B, _PSI_LEAST), np.maximum(after_B, _PSI_LEAST)
    return float(((actual - expected) * np.log(actual / expected)).sum())


def psi_of_samples(before_B: Shares, after_B: Shares, n: float, m: float) -> float:
    """Return the PSI of two samples, with half a row added to each bin: one row in an empty bin then counts for no more than a row."""
    num_bins = len(before_B)
    expected, actual = (
        (shares * rows + _HALF) / (rows + _HALF * num_bins) for shares, rows in ((before_B, n), (after_B, m))
    )
    return float(((actual - expected) * np.log(actual / expected)).sum())


def jensen_shannon(before_B: Shares, after_B: Shares) -> float:
    """Return the Jensen-Shannon distance to base 2: 0 the same, 1 nothing in common."""
    middle = (before_B + after_B) / 2
    divergence = (_relative_entropy(before_B, middle) + _relative_entropy(after_B, middle)) / 2
    return math.sqrt(min(max(divergence, 0.0), 1.0))


def _relative_entropy(shares_B: Shares, of_B: Shares) -> float:
    is_there = shares_B > 0
    return float((shares_B[is_there] * np.log2(shares_B[is_there] / of_B[is_there])).sum())


def psi_by_chance(num_bins: int, n: float, m: float, chance: float = CHANCE) -> float:
    """Return the PSI that samples of ``n`` and ``m`` rows of one distribution exceed with probability ``chance``.

    Source:
        Yurdakul and Naranjo 2020, Statistical properties of the population stability index, Journal of Risk Model Validation
        14(4): PSI / (1/n + 1/m) has about a chi-square distribution of B - 1 degrees of freedom; its quantile is by
        Wilson and Hilferty 1931.
    """
    return _chi_square(num_bins - 1, chance) * (1 / max(n, 1) + 1 / max(m, 1)) if num_bins > 1 else 0.0


def _chi_square(degrees: int, chance: float) -> float:
    """Return what a chi-square variable exceeds with a probability; for 1 and 2 degrees by their closed forms."""
    if degrees == 1:
        return NormalDist().inv_cdf(1 - chance / 2) ** 2
    if degrees == 2:  # noqa: PLR2004  an exponential distribution
        return -2 * math.log(chance)
    part = 2 / (9 * degrees)
    return degrees * (1 - part + NormalDist().inv_cdf(1 - chance) * math.sqrt(part)) ** 3


def increase_beyond_chance(before: float, after: float, n: float, m: float) -> float:
    """Return by how much a share has grown, less what chance adds with probability ``CHANCE``; at least 0.

    Source:
        The two-sample z-test of proportions with a pooled variance.
    """
    n, m = max(n, 1), max(m, 1)
    pooled = (before * n + after * m) / (n + m)
    return max(0.0, after - before - _Z * math.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / n + 1 / m)))
