"""Statistics of values, independent of their order to the last bit: means come from exact sums, quantiles from ranks."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

LEAST_SPREAD = 1e-300  # dividing by less overflows
_MAD_OF_NORMAL = 1.4826  # standard deviation of normal values over their median absolute deviation
_SUM_BITS = 62  # of int64, less the sign and one to spare
_MAX_SHIFT = 1000  # 2.0**1000 is a float64
_BLOCK = 1 << 15  # values that stay in a core's cache
_MAX_LIKELIHOOD_POINTS = 10_000
_QUARTILES = (0.25, 0.5, 0.75)


def present(values_N: Values) -> Values:
    """Return the values that are not missing."""
    return values_N[~np.isnan(values_N)]


def mean(values_N: Values) -> float:
    """Return the mean, rounded once."""
    largest = max(float(values_N.max()), -float(values_N.min()))
    return _mean(values_N, _as_they_are, largest)


def spread(values_N: Values, centre: float) -> float:
    """Return the population standard deviation around the mean; infinite where the values lie too far apart."""
    largest = max(float(values_N.max()) - centre, centre - float(values_N.min()))
    if largest == 0 or not np.isfinite(largest):
        return largest
    # In shares of the largest, as squares may overflow or vanish.
    return float(largest * np.sqrt(_mean(values_N, lambda block: np.square((block - centre) / largest), 1.0)))


def _as_they_are(block: Values) -> Values:
    return block


def _mean(values_N: Values, function: Callable[[Values], Values], largest: float) -> float:
    """Return the mean of a function of the values, rounded once: added as whole numbers of 2**-80 of the largest, in two halves.

    Args:
        values_N: The values.
        function: Of some of them, one by one; so all results need not be held.
        largest: The largest magnitude of a result.
    """
    if largest == 0 or not np.isfinite(largest):
        return largest
    bits = _SUM_BITS - len(values_N).bit_length()
    shift = bits - int(np.frexp(largest)[1])
    blocks = (function(values_N[start : start + _BLOCK]) for start in range(0, len(values_N), _BLOCK))
    totals = [_whole_sums(block, shift, bits) for block in blocks]
    total = (sum(high for high, _ in totals) << bits) + sum(low for _, low in totals)
    exponent = bits + shift
    if exponent >= 0:
        return total / (len(values_N) << exponent)
    return (total << -exponent) / len(values_N)


def _whole_sums(values_N: Values, shift: int, bits: int) -> tuple[int, int]:
    """Return the sum of the values in units of 2**-shift, whole, and what is left of it in units of 2**-bits of that."""
    scaled = values_N * 2.0**shift if abs(shift) < _MAX_SHIFT else np.ldexp(values_N, shift)
    high = np.rint(scaled)
    low = np.rint((scaled - high) * 2.0**bits)
    return int(high.astype(np.int64).sum()), int(low.astype(np.int64).sum())


def quantiles(values_N: Values, fractions: Sequence[float]) -> list[float]:
    """Return quantiles, linear between neighbours; of values that ascend they cost next to nothing."""
    is_ascending = bool((values_N[1:] >= values_N[:-1]).all())
    ordered = values_N if is_ascending else np.sort(values_N)  # NumPy sorts by vectors: no slower than np.partition
    return [_between(ordered, fraction * (len(values_N) - 1)) for fraction in fractions]


def _between(ordered_N: Values, place: float) -> float:
    low = int(place)
    a, b, t = ordered_N[low], ordered_N[min(low + 1, len(ordered_N) - 1)], place - low
    return float(np.clip(a * (1 - t) + b * t, a, b))


def most_frequent(values_N: Values) -> float:
    """Return the value that occurs most often; the least of several."""
    values, counts = np.unique(values_N, return_counts=True)
    return float(values[np.argmax(counts)])


def statistic(values_N: Values, name: str) -> float:
    """Return ``mean``, ``median`` or ``most_frequent`` of values; 0 for ``zero`` and where there are no values."""
    if name == "zero" or len(values_N) == 0:
        return 0.0
    if name == "mean":
        return mean(values_N)
    return quantiles(values_N, [0.5])[0] if name == "median" else most_frequent(values_N)


def bounds(
    values_N: Values,
    method: Literal["iqr", "z_score", "mad", "quantile"],
    distance: float = 0.0,
    fractions: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float] | None:
    """Return the bounds beyond which values lie apart from the others, or None if no distance is known to judge by.

    None is known where all or most values are equal, so that the bounds coincide, or where it is beyond the largest number.

    Args:
        values_N: The values, none of them missing.
        method: ``quantile``: two quantiles. ``iqr``: the quartiles, widened by their distance. ``z_score``: around the mean, in
            standard deviations. ``mad``: around the median, in scaled median absolute deviations.
        distance: How many of these; of no meaning to ``quantile``.
        fractions: The quantiles of ``quantile``.

    Source:
        Tukey 1977 (quartiles and interquartile range); Iglewicz and Hoaglin 1993 (median absolute deviation). Quantiles are
        interpolated linearly (Hyndman and Fan 1996, type 7), the standard deviation is the population's.
    """
    if len(values_N) == 0 or values_N.min() == values_N.max():  # equal values may leave a spread by rounding
        return None
    if method == "quantile":
        low, high = quantiles(values_N, fractions)
        return (low, high) if low < high else None
    low, high, unit = _FITS[method](values_N)
    reach = distance * unit
    low, high = low - reach, high + reach
    return (low, high) if low < high and np.isfinite(reach) else None


def _fit_quartiles(values_N: Values) -> tuple[float, float, float]:
    low, high = quantiles(values_N, (0.25, 0.75))
    return low, high, high - low


def _fit_moments(values_N: Values) -> tuple[float, float, float]:
    centre = mean(values_N)
    return centre, centre, spread(values_N, centre)


def _fit_median(values_N: Values) -> tuple[float, float, float]:
    centre = quantiles(values_N, [0.5])[0]
    with np.errstate(over="ignore"):
        return centre, centre, _MAD_OF_NORMAL * quantiles(np.abs(values_N - centre), [0.5])[0]


_FITS = {"iqr": _fit_quartiles, "z_score": _fit_moments, "mad": _fit_median}


def location_and_scale(values_N: Values, kind: str) -> tuple[float, float]:
    """Return what to subtract from values and what to divide them by; a scale of 1 where they have no spread."""
    offset, scale = 0.0, 1.0
    with np.errstate(over="ignore"):
        if kind == "standard":
            offset = mean(values_N)
            scale = spread(values_N, offset)
        elif kind == "min_max":
            offset = float(values_N.min())
            scale = float(values_N.max() - offset)
        elif kind == "robust":
            low, offset, high = quantiles(values_N, _QUARTILES)
            scale = high - low
        elif kind == "max_abs":
            scale = float(np.abs(values_N).max())
    is_usable = np.isfinite(offset) and np.isfinite(scale) and scale > LEAST_SPREAD
    return (offset if np.isfinite(offset) else 0.0), (scale if is_usable else 1.0)


def spaced(values_N: Values) -> Values:
    """Return at most 10,000 of the values, evenly spaced by rank: enough for a likelihood, however many rows there are."""
    ordered = np.sort(values_N)
    if len(ordered) <= _MAX_LIKELIHOOD_POINTS:
        return ordered
    return ordered[np.linspace(0, len(ordered) - 1, _MAX_LIKELIHOOD_POINTS).round().astype(np.int64)]
