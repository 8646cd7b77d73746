"""Compare two results of the data benchmark: python benchmarks/data/check.py A B. The order of rows and columns is free."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from job import CATEGORIES, NUMBERS, TEXTS

TOLERANCE = 1e-6  # absolute, of values with standard deviation 1


def check_equal(a: Path, b: Path) -> str:
    """Return what was compared, column by column, so that 20 million rows fit.

    Raises:
        ValueError: If the rows, a text, or a number by more than ``TOLERANCE``, differ; names the first such column.
    """
    order_a, order_b = _order(a), _order(b)
    if len(order_a) != len(order_b):
        raise ValueError(f"rows differ: {len(order_a)} in {a}, {len(order_b)} in {b}")
    for name in TEXTS:
        if not _read(a, name).take(order_a).equals(_read(b, name).take(order_b)):
            raise ValueError(f"{name} differs: {a} and {b}")
    for name in NUMBERS:
        _check_numbers(name, _numbers(a, name)[order_a], _numbers(b, name)[order_b])
    for name, values in CATEGORIES.items():
        for place, value in enumerate(values):
            left, right = (_indicator(path, name, place)[order] for path, order in ((a, order_a), (b, order_b)))
            _check_numbers(f"{name}_{value}", left, right)
    width = len(NUMBERS) + sum(map(len, CATEGORIES.values())) + 2
    return f"{len(order_a)} rows, {width} columns, equal within {TOLERANCE:g}"


def _check_numbers(name: str, a: np.ndarray, b: np.ndarray) -> None:
    difference = np.abs(a - b)
    if not (difference <= TOLERANCE).all():
        raise ValueError(
            f"{name} differs by up to {np.nanmax(difference):g}; missing: {np.isnan(a).sum()}, {np.isnan(b).sum()}"
        )


def _order(path: Path) -> np.ndarray:
    names = _read(path, "id")
    if pc.count_distinct(names).as_py() != len(names):
        raise ValueError(f"id must be unique once duplicates are gone: {path}")
    return pc.sort_indices(names).to_numpy()


def _indicator(path: Path, name: str, place: int) -> np.ndarray:
    """Return the one-hot column of a value: a column of its own, or a place in a list column."""
    names = _open(path, name).schema.names
    if name not in names:
        value = CATEGORIES[name][place]
        return _numbers(path, next(column for column in (f"{name}_{value}", f"{name}={value}") if column in names))
    lists = _read(path, name)
    if set(pc.list_value_length(lists).unique().to_pylist()) != {len(CATEGORIES[name])}:
        raise ValueError(f"{name} must have {len(CATEGORIES[name])} places in {path}")
    return pc.list_element(lists, place).cast(pa.float64()).to_numpy(zero_copy_only=False)


def _numbers(path: Path, name: str) -> np.ndarray:
    return _read(path, name).cast(pa.float64()).to_numpy(zero_copy_only=False)


def _open(path: Path, name: str) -> ds.Dataset:
    """Open a file, or the files of a folder in the order of their names; ours has texts and features in two folders."""
    latest = path / "bench" / "latest"
    if latest.is_dir():
        path = latest / ("clean" if name in TEXTS else "featurize") / "train"
    return ds.dataset(sorted(path.glob("*.parquet")) if path.is_dir() else path)


def _read(path: Path, name: str) -> pa.Array:
    column = _open(path, name).to_table(columns=[name]).column(0).combine_chunks()
    return column.cast(pa.large_string()) if name in TEXTS else column


if __name__ == "__main__":
    print(check_equal(Path(sys.argv[1]), Path(sys.argv[2])))
