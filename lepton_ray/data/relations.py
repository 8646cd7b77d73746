"""How columns go together: correlation of numbers, of categories, of both, and of being missing.

Everything is a sum over rows. Standardised numbers are rounded to multiples of a power of two so coarse that every partial
sum of their products is an exact float64: the result is the same for any order of the rows and any blocks, and the rounding
is far below what is shown. Pairs are taken over the rows where both columns have a value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.profile import Matrix, NumberProfile
from lepton_ray.data.summaries import Numbers, to_floats

# columns that are compared with each other: pairs grow as squares
MAX_NUMBERS, MAX_CATEGORIES, MAX_MISSING = 30, 12, 30
MAX_GROUPS = 200  # a column with more categories is compared with none: it names rows rather than groups them
_CHUNK_ROWS = 131_072
_FLOAT_BITS = 52
_TINY = 1e-300  # a standard deviation by which nothing can be divided
_DIGITS = 4  # of a correlation


@dataclass(frozen=True)
class Codes:
    """A column of categories as codes, -1 where one is missing."""

    codes: NDArray[np.int16]
    size: int
    """Number of categories."""


@dataclass(frozen=True)
class Relations:
    """The matrices; None where there are no two columns to compare."""

    pearson: Matrix | None
    cramers_v: Matrix | None
    correlation_ratio: Matrix | None


def relate(table: pa.Table, numbers: Mapping[str, NumberProfile], categories: Mapping[str, Codes]) -> Relations:
    """Compare numbers and categories, each with each.

    Args:
        table: Holds the number columns.
        numbers: What is known of them; the first ``MAX_NUMBERS`` that vary are compared.
        categories: Codes of the others; the first ``MAX_CATEGORIES`` with 2 to ``MAX_GROUPS`` categories are compared.
    """
    numbers = dict([(name, facts) for name, facts in numbers.items() if facts.distinct > 1][:MAX_NUMBERS])
    categories = dict([(n, c) for n, c in categories.items() if 1 < c.size <= MAX_GROUPS][:MAX_CATEGORIES])
    sums = _Sums(len(numbers), [column.size for column in categories.values()])
    for start in range(0, table.num_rows, _CHUNK_ROWS):
        columns = [
            _standardise(to_floats(table.column(name).slice(start, _CHUNK_ROWS)), facts, table.num_rows)
            for name, facts in numbers.items()
        ]
        groups = [column.codes[start : start + _CHUNK_ROWS].astype(np.int64) for column in categories.values()]
        sums.add(columns, groups)
    number_names, category_names = tuple(numbers), tuple(categories)
    return Relations(
        pearson=_matrix(number_names, number_names, sums.pearson()) if len(numbers) > 1 else None,
        cramers_v=_matrix(category_names, category_names, sums.cramers_v()) if len(categories) > 1 else None,
        correlation_ratio=_matrix(category_names, number_names, sums.correlation_ratio())
        if numbers and categories
        else None,
    )


def _standardise(values: Numbers, facts: NumberProfile, num_rows: int) -> Numbers:
    """Standardise and round, NaN where a number is missing.

    The products of n standardised numbers sum to at most n: of a float's 53 bits, log2(n) stand before the point and the
    rest, half for each factor, behind it.
    """
    summary = facts.numbers
    if summary is None or summary.std is None or summary.std < _TINY:
        return np.where(np.isnan(values), np.nan, 0.0)
    unit = 2.0 ** ((_FLOAT_BITS - num_rows.bit_length()) // 2)
    # of halves: the difference of two huge numbers is out of range
    scaled: Numbers = np.rint((values / 2 - summary.mean / 2) / (summary.std / 2) * unit) / unit
    return scaled


class _Sums:
    """Sums over the rows seen so far, for each pair of columns."""

    def __init__(self, num_numbers: int, sizes: Sequence[int]) -> None:
        self.pairs = np.zeros((4, num_numbers, num_numbers))
        """Over the rows where both are there: of 1, x, x^2, and xy."""
        self.tables = {(i, j): np.zeros((sizes[i], sizes[j]), np.int64) for i in range(len(sizes)) for j in range(i)}
        self.groups = [np.zeros((3, num_numbers, size)) for size in sizes]
        """In each group: of 1, x, x^2."""

    def add(self, numbers: Sequence[Numbers], groups: Sequence[NDArray[np.int64]]) -> None:
        """Add a chunk of rows."""
        there = [~np.isnan(x) for x in numbers]
        values = [np.where(mask, x, 0.0) for mask, x in zip(there, numbers, strict=True)]
        squares = [np.square(x) for x in values]
        if numbers:
            self._add_pairs(
                np.stack(there, axis=1).astype(np.float64), np.stack(values, axis=1), np.stack(squares, axis=1)
            )
        for (i, j), counts in self.tables.items():
            counts += _count_pairs(groups[i], groups[j], counts.shape)
        for group, sums in zip(groups, self.groups, strict=True):
            at = group + 1  # those without a category are counted in front, and left out
            all_there = np.bincount(at, minlength=sums.shape[2] + 1)[1:]
            for column, is_there in enumerate(there):
                sums[0, column] += (
                    all_there if is_there.all() else _add_up(at, is_there.astype(np.float64), sums.shape[2])
                )
                sums[1, column] += _add_up(at, values[column], sums.shape[2])
                sums[2, column] += _add_up(at, squares[column], sums.shape[2])

    def _add_pairs(self, there_NC: Numbers, x_NC: Numbers, xx_NC: Numbers) -> None:
        self.pairs[0] += there_NC.T @ there_NC
        self.pairs[1] += x_NC.T @ there_NC
        self.pairs[2] += xx_NC.T @ there_NC
        self.pairs[3] += x_NC.T @ x_NC

    def pearson(self) -> NDArray[np.float64]:
        """Pearson's correlation of numbers."""
        count, x, xx, xy = self.pairs
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = xx - np.square(x) / count
            result: NDArray[np.float64] = (xy - x * x.T / count) / np.sqrt(spread * spread.T)
        result[(spread <= 0) | (spread.T <= 0)] = np.nan
        return np.clip(result, -1, 1)

    def cramers_v(self) -> NDArray[np.float64]:
        """Cramer's V of categories."""
        result = np.eye(len(self.groups))
        for (i, j), table in self.tables.items():
            result[i, j] = result[j, i] = _corrected_v(table)
        return result

    def correlation_ratio(self) -> NDArray[np.float64]:
        """Correlation ratio of each category (rows) and number (columns)."""
        return np.array(
            [[_corrected_ratio(*sums[:, column]) for column in range(sums.shape[1])] for sums in self.groups]
        )


def _add_up(group: NDArray[np.int64], values: Numbers, size: int) -> NDArray[np.float64]:
    return np.asarray(np.bincount(group, values, minlength=size + 1)[1:], np.float64)


def _count_pairs(left: NDArray[np.int64], right: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    width = shape[1] + 1
    counts = np.bincount((left + 1) * width + right + 1, minlength=(shape[0] + 1) * width)
    result: NDArray[np.int64] = counts.reshape(-1, width)[1:, 1:]
    return result


def _corrected_v(table: NDArray[np.int64]) -> float:
    """Cramer's V with the correction of Bergsma 2013 (doi:10.1016/j.jkss.2012.10.002)."""
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    rows, columns = table.shape
    total = table.sum()
    if min(rows, columns) < 2 or total < 2:  # noqa: PLR2004  one group or row says nothing
        return float("nan")
    expected = np.outer(table.sum(axis=1), table.sum(axis=0) / total)
    phi2 = float((np.square(table - expected) / expected).sum() / total)
    phi2 = max(0.0, phi2 - (rows - 1) * (columns - 1) / (total - 1))
    least = min(rows - (rows - 1) ** 2 / (total - 1), columns - (columns - 1) ** 2 / (total - 1))
    return float(min(1.0, np.sqrt(phi2 / (least - 1)))) if least > 1 else float("nan")


def _corrected_ratio(count: Any, x: Any, xx: Any) -> float:
    """Root of epsilon squared (Kelley 1935): the correlation ratio, corrected for the number of groups."""
    groups, total = np.count_nonzero(count), count.sum()
    all_squares = xx.sum() - x.sum() ** 2 / max(total, 1)
    if groups < 2 or total <= groups or all_squares <= 0:  # noqa: PLR2004
        return float("nan")
    within = xx.sum() - np.divide(np.square(x), count, out=np.zeros_like(x), where=count > 0).sum()
    return float(np.sqrt(np.clip(1 - within / all_squares * (total - 1) / (total - groups), 0, 1)))


def relate_missing(masks: Mapping[str, NDArray[np.bool_]]) -> Matrix | None:
    """Correlate being missing, among the columns that miss most (not all rows)."""
    counts = {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}
    names = [name for name, count in counts.items() if 0 < count < len(masks[name])]
    chosen = set(sorted(names, key=lambda name: -counts[name])[:MAX_MISSING])
    names = [name for name in names if name in chosen]
    if len(names) < 2:  # noqa: PLR2004
        return None
    rows = len(masks[names[0]])
    both = np.zeros((len(names), len(names)))
    for start in range(0, rows, _CHUNK_ROWS):
        mask_NC = np.stack([masks[name][start : start + _CHUNK_ROWS] for name in names], axis=1).astype(np.float32)
        both += mask_NC.T @ mask_NC
    single = np.diag(both)
    spread = single * (rows - single)
    phi = (rows * both - np.outer(single, single)) / np.sqrt(np.outer(spread, spread))
    return _matrix(tuple(names), tuple(names), phi)


def _matrix(rows: tuple[str, ...], columns: tuple[str, ...], values: NDArray[np.float64]) -> Matrix:
    return Matrix(
        rows=rows,
        columns=columns,
        values=tuple(
            tuple(None if np.isnan(value) else round(float(value), _DIGITS) + 0.0 for value in row) for row in values
        ),
    )
