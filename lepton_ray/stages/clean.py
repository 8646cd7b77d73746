"""clean: raw rows -> typed rows in three splits, and quarantine with a reason for each row that is removed."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import Dataset, RawDataset
from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.core.errors import DataError
from lepton_ray.data import clean as rules
from lepton_ray.data.block import DETAIL, LINE, QUARANTINE_SCHEMA, REASON, SOURCE, TEXT
from lepton_ray.data.hashing import to_voids
from lepton_ray.data.sources import rows_within
from lepton_ray.data.split import SPLITS, TRAIN, assign_splits
from lepton_ray.engine.session import connect
from lepton_ray.spec.data import CleanSpec, DataSpec, NumberColumn
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.ingest import uses_ray

VERSION = 1
_BLOCK_ROWS = 131_072
_BLOCK_BYTES = 256 << 20  # of pixels
_MIN_CLASSES = 2


@dataclass(frozen=True)
class _Rows:
    """All typed rows, and what has removed each of them: its reason and detail, None while it is kept."""

    table: pa.Table
    reasons: NDArray[np.object_]
    details: NDArray[np.object_]

    @property
    def is_kept(self) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self.reasons == None  # noqa: E711  element-wise
        return mask

    @property
    def kept(self) -> NDArray[np.int64]:
        """Positions of the kept rows."""
        return np.flatnonzero(self.is_kept)

    def count_removed(self) -> Counter[str]:
        """Number of removed rows by reason."""
        return Counter(self.reasons[~self.is_kept].tolist())

    def column(self, name: str) -> NDArray[np.object_]:
        """A column of all rows, as objects."""
        values: NDArray[np.object_] = self.table.column(name).to_numpy().astype(object)
        return values

    def hashes(self, name: str, positions: NDArray[np.int64]) -> NDArray[np.void]:
        """A column of hashes at some positions."""
        return to_voids(self.table.column(name).take(pa.array(positions)))


def clean(data: DataSpec, clean: CleanSpec, raw: RawDataset, ctx: RunContext) -> Dataset:
    """Type, check, deduplicate and split the rows.

    Raises:
        DataError: If more rows would be removed than ``clean.max_removed_fraction`` allows, or too few are left; all
            removed rows are in quarantine then too.
    """
    table = pa.concat_tables(_check(data, clean, raw))
    unjudged = _Rows(table, np.empty(0, object), np.empty(0, object))
    rows = _Rows(table, unjudged.column(REASON), unjudged.column(DETAIL))
    if clean.duplicates == "drop":
        _remove_duplicates(rows)
    kept = rows.kept
    classes, label_N = np.unique(rows.column(data.label)[kept], return_inverse=True)
    problem = _find_class_problem(classes, label_N, data, clean)
    split_N = np.full(len(kept), TRAIN, np.int8)
    if problem is None:
        split_N = assign_splits(rows.hashes(rules.FEATURE_HASH, kept), label_N, data.split, ctx.seed)
        _remove_outliers(rows, data, clean, kept[split_N == TRAIN])
        problem = _find_lost_class(classes, label_N[split_N == TRAIN], rows.is_kept[kept[split_N == TRAIN]], data)
    ledger = raw.ledger.then(Ledger.of(table.num_rows, rows.count_removed()))
    _write_quarantine(rows, raw, ctx)
    if problem := problem or _find_loss(ledger, clean):
        raise DataError(f"{problem} {ledger}. See {ctx.location}/quarantine.parquet")
    return _write_splits(rows, data, ledger, classes, kept, split_N, ctx)


def _check(data: DataSpec, clean: CleanSpec, raw: RawDataset) -> Iterator[pa.Table]:
    path = raw.folder / "rows.parquet"
    size = min(_BLOCK_ROWS, rows_within(data, _BLOCK_BYTES))
    blocks = (pa.Table.from_batches([batch]) for batch in pq.ParquetFile(path).iter_batches(batch_size=size))
    check = partial(rules.check_block, data=data, clean=clean)
    if uses_ray(data, path.stat().st_size):
        connect()
        from lepton_ray.data import on_ray  # noqa: PLC0415  Ray is imported by connect

        return on_ray.map_blocks(check, list(blocks))
    return map(check, blocks)


def _remove_duplicates(rows: _Rows) -> None:
    kept = rows.kept
    is_first = rules.first_of_duplicates(rows.hashes(rules.ROW_HASH, kept))
    rows.reasons[kept[~is_first]] = "duplicate"
    rows.details[kept[~is_first]] = "the row is the same as an earlier one in every column"


def _find_class_problem(
    classes: NDArray[np.object_], label_N: NDArray[np.int64], data: DataSpec, clean: CleanSpec
) -> str | None:
    if len(classes) < _MIN_CLASSES:
        return f"data.label ({data.label}) must have at least 2 classes in the kept rows, got {list(classes)}."
    counts = zip(classes, np.bincount(label_N, minlength=len(classes)), strict=True)
    rare = [f"{name!r} {count}" for name, count in counts if count < clean.min_rows_per_class]
    if not rare:
        return None
    return (
        f"each class of data.label ({data.label}) must have at least {clean.min_rows_per_class} rows, "
        f"got {', '.join(rare)}. Add rows, or lower clean.min_rows_per_class."
    )


def _remove_outliers(rows: _Rows, data: DataSpec, clean: CleanSpec, train: NDArray[np.int64]) -> None:
    if clean.outliers is None:
        return
    for name, column in data.features.items():
        if not isinstance(column, NumberColumn):
            continue
        values = rows.table.column(name).to_numpy()[train]
        is_outlier, rule = rules.find_outliers(values, clean.outliers)
        for row, value in zip(train[is_outlier], values[is_outlier], strict=True):
            if rows.reasons[row] is None:
                rows.reasons[row], rows.details[row] = "outlier", f"{name} {rule}, got {value:.10g}"


def _write_quarantine(rows: _Rows, raw: RawDataset, ctx: RunContext) -> None:
    bad = np.flatnonzero(~rows.is_kept)
    removed = rows.table.take(pa.array(bad))
    fate = {
        TEXT: _original_texts(removed.column(TEXT), bad, raw),
        REASON: pa.array(rows.reasons[bad], pa.string()),
        DETAIL: pa.array(rows.details[bad], pa.string()),
    }
    for name, values in fate.items():
        removed = removed.set_column(removed.schema.get_field_index(name), name, values)
    earlier = pq.read_table(raw.folder / "quarantine.parquet")
    all_removed = pa.concat_tables([earlier, rules.to_quarantine(removed)])
    pq.write_table(all_removed, ctx.folder / "quarantine.parquet", compression="zstd")


def _original_texts(texts: pa.ChunkedArray, bad: NDArray[np.int64], raw: RawDataset) -> pa.ChunkedArray | pa.Array:
    """Return the original texts of removed rows; a source without texts (Parquet) gives the raw cells as JSON."""
    if not texts.null_count:
        return texts
    rows = pq.read_table(raw.folder / "rows.parquet")
    cells = rows.drop_columns(QUARANTINE_SCHEMA.names).take(pa.array(bad)).to_pylist()
    return pa.array([json.dumps(row, ensure_ascii=False) for row in cells], pa.large_string())


def _find_loss(ledger: Ledger, clean: CleanSpec) -> str | None:
    removed = ledger.rows_in - ledger.rows_kept
    if removed / ledger.rows_in <= clean.max_removed_fraction:
        return None
    return (
        f"clean must remove at most {clean.max_removed_fraction:.0%} of the rows (clean.max_removed_fraction). "
        "Repair the source, or allow more."
    )


def _find_lost_class(
    classes: NDArray[np.object_], label_N: NDArray[np.int64], is_kept_N: NDArray[np.bool_], data: DataSpec
) -> str | None:
    lost = np.setdiff1d(label_N, label_N[is_kept_N])
    if not len(lost):
        return None
    return (
        f"each class of data.label ({data.label}) must keep a training row when outliers are removed, "
        f"got none of {', '.join(map(repr, classes[lost]))}. Raise clean.outliers.threshold."
    )


def _write_splits(
    rows: _Rows,
    data: DataSpec,
    ledger: Ledger,
    classes: NDArray[np.object_],
    kept: NDArray[np.int64],
    split_N: NDArray[np.int8],
    ctx: RunContext,
) -> Dataset:
    split_rows: dict[str, int] = {}
    class_rows: dict[str, dict[str, int]] = {}
    for index, name in enumerate(SPLITS):
        positions = kept[rows.is_kept[kept] & (split_N == index)]
        table = rows.table.select([*data.columns, SOURCE, LINE]).take(pa.array(positions))
        pq.write_table(table, ctx.folder / f"{name}.parquet", compression="zstd")
        counts = Counter(table.column(data.label).to_pylist())
        split_rows[name] = table.num_rows
        class_rows[name] = {label: counts[label] for label in classes}
    if empty := [name for name, count in split_rows.items() if count == 0]:
        distinct = len(np.unique(rows.hashes(rules.FEATURE_HASH, kept)))
        raise DataError(
            f"each split must hold rows, got none for {', '.join(empty)}: {len(kept)} rows have {distinct} distinct feature "
            "values, and equal ones stay together. Add features or rows"
        )
    return Dataset(ledger=ledger, split_rows=split_rows, classes=tuple(classes), class_rows=class_rows)
