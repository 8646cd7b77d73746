"""Write the work table of the data benchmark: python benchmarks/data/generate.py FOLDER [--rows 2000000].

Each cell is a function of the row's key and its column alone, so the table is the same on any machine, has any length in
bounded memory, and 5% of its rows are copies of an earlier row anywhere before them. Besides, 2 to 14% of the cells are
missing in all columns but ``id``, 0.5% of the numbers are outliers, and some texts hold commas and quotes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from job import CATEGORIES, COLUMNS
from numpy.typing import NDArray

ROWS = 2_000_000
_CHUNK_ROWS = 250_000  # also a Parquet row group
_DUPLICATE_FRACTION, _OUTLIER_FRACTION = 0.05, 0.005
_SHARES = {  # of the values of job.CATEGORIES
    "region": (0.07, 0.17, 0.1, 0.31, 0.22, 0.13),
    "plan": (0.27, 0.07, 0.14, 0.52),
    "channel": (0.06, 0.13, 0.17, 0.05, 0.03, 0.04, 0.07, 0.11, 0.09, 0.25),
}
_WORDS = (
    *(
        "late",
        "delivery",
        "asked",
        "for",
        "a",
        "refund",
        "no",
        "answer",
        "called, again",
        "very",
        "pleased",
        "with",
        "new",
    ),
    *(
        "tariff",
        "moved",
        "house",
        'said "thanks"',
        "wants",
        "paper",
        "invoice",
        "über",
        "café",
        "tomorrow",
        "router",
        "cut",
    ),
)

Floats = NDArray[np.float64]


def write_table(folder: Path, rows: int) -> tuple[Path, Path]:
    """Write ``rows_N.csv`` and ``rows_N.parquet`` unless they are there, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    csv, parquet = (folder / f"rows_{rows}.{suffix}" for suffix in ("csv", "parquet"))
    if not (csv.exists() and parquet.exists()):
        drafts = [path.with_name(path.name + ".tmp") for path in (csv, parquet)]
        schema = make_rows(0, 1).schema
        with drafts[0].open("wb") as text, pq.ParquetWriter(drafts[1], schema) as writer:
            text.write((",".join(COLUMNS) + "\n").encode())
            for chunk in _chunks(rows):
                text.write(_to_csv(chunk))
                writer.write_table(chunk)
        drafts[0].replace(csv)
        drafts[1].replace(parquet)
    return csv, parquet


def _chunks(rows: int) -> Iterator[pa.Table]:
    for start in range(0, rows, _CHUNK_ROWS):
        yield make_rows(start, min(start + _CHUNK_ROWS, rows))


def make_rows(start: int, stop: int) -> pa.Table:
    """Return the rows from ``start`` up to ``stop``."""
    position = np.arange(start, stop, dtype=np.uint64)
    is_copy = _uniform(position, 100) < _DUPLICATE_FRACTION
    original = (_uniform(position, 101) * position).astype(np.uint64)
    # A copy of a copy would have to be followed to its end; such rows stay themselves.
    is_copy &= _uniform(original, 100) >= _DUPLICATE_FRACTION
    key = np.where(is_copy, original, position)
    u = [_uniform(key, column) for column in range(8)]
    normal = np.sqrt(-2 * np.log1p(-u[0])) * np.cos(2 * np.pi * u[1])
    numbers = {
        "age": np.floor(18 + 60 * u[2] ** 1.5),
        "income": np.round(np.exp(7.5 + 0.6 * normal), 2),
        "balance": np.round(500 * np.sqrt(-2 * np.log1p(-u[3])) * np.cos(2 * np.pi * u[4]), 2),
        "usage": np.round(u[5] * u[6] * 100, 4),
        "latency": np.round(-20 * np.log1p(-u[7]), 3),
        "visits": np.floor(-4 * np.log1p(-u[6])),
        "rating": np.round(5 * u[2] ** 0.4, 1),
    }
    columns: dict[str, pa.Array] = {"id": _names(key)}
    for number, (name, values) in enumerate(numbers.items()):
        is_outlier = _uniform(key, 20 + number) < _OUTLIER_FRACTION
        values = np.where(is_outlier, values * 1000 + 7, values)
        whole = name in ("age", "visits")
        array = pa.array(values.astype(np.int64) if whole else values)
        columns[name] = _with_missing(array, key, 40 + number, 0.02 * (number + 1))
    for number, (name, values) in enumerate(CATEGORIES.items()):
        index = np.searchsorted(np.cumsum(_SHARES[name])[:-1], _uniform(key, 60 + number), side="right")
        columns[name] = _with_missing(pa.array(values).take(pa.array(index)), key, 70 + number, 0.03)
    columns["note"] = _with_missing(_notes(key), key, 80, 0.1)
    return pa.table(columns)


def _uniform(key: NDArray[np.uint64], column: int) -> Floats:
    """Return numbers from 0 up to 1 that look random: SplitMix64 (Steele, Lea, Flood 2014) of key and column."""
    with np.errstate(over="ignore"):
        z = key * np.uint64(0x9E3779B97F4A7C15) + np.uint64((column + 1) * 0xD1B54A32D192ED03 % 2**64)
        for _ in range(2):
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


def _names(key: NDArray[np.uint64]) -> pa.Array:
    return pc.binary_join_element_wise("c", pa.array(key.astype(np.int64) + 10_000_000).cast(pa.string()), "")


def _notes(key: NDArray[np.uint64]) -> pa.Array:
    """Return texts of four words."""
    words = pa.array(_WORDS)
    picks = [words.take(pa.array((_uniform(key, 90 + place) * len(words)).astype(np.int64))) for place in range(4)]
    return pc.binary_join_element_wise(*picks, " ")


def _with_missing(array: pa.Array, key: NDArray[np.uint64], column: int, fraction: float) -> pa.Array:
    return pc.if_else(pa.array(_uniform(key, column) >= fraction), array, None)


def _to_csv(table: pa.Table) -> bytes:
    """Return the lines of the rows; a text is quoted where RFC 4180 asks for it, as most programs write it."""
    cells = []
    for column in table.columns:
        text = column.combine_chunks().cast(pa.string())
        quoted = pc.binary_join_element_wise('"', pc.replace_substring(text, '"', '""'), '"', "")
        text = pc.if_else(pc.match_substring_regex(text, '[",]'), quoted, text)
        cells.append(pc.fill_null(text, ""))
    lines = pc.binary_join_element_wise(*cells, ",")
    return pc.binary_join_element_wise(lines, "\n", "").buffers()[2].to_pybytes()


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    arguments = parser.parse_args()
    for path in write_table(arguments.folder, arguments.rows):
        print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
