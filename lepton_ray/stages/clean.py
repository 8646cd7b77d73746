"""clean: raw rows -> typed rows in three splits, and quarantine with a reason for each row that is removed."""

import json
from collections import Counter
from collections.abc import Iterator
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

VERSION = 1
_BLOCK_ROWS = 131_072
_BLOCK_BYTES = 256 << 20  # of pixels
_MIN_CLASSES = 2


def clean(data: DataSpec, clean: CleanSpec, raw: RawDataset, ctx: RunContext) -> Dataset:
    """Type, check, deduplicate and split the rows.

    Raises:
        DataError: If more rows would be removed than ``clean.max_removed_fraction`` allows, or too few are left.
    """
    table = pa.concat_tables(_check(data, clean, raw))
    reasons = _to_objects(table, REASON)
    details = _to_objects(table, DETAIL)
    _remove_duplicates(table, clean, reasons, details)
    kept = np.flatnonzero(reasons == None)  # noqa: E711  element-wise
    classes, label_N = np.unique(_to_objects(table, data.label)[kept], return_inverse=True)
    _check_classes(classes, label_N, data, clean, ctx, table, reasons, details)
    split_N = assign_splits(
        to_voids(table.column(rules.FEATURE_HASH).take(pa.array(kept))), label_N, data.split, ctx.seed
    )
    _remove_outliers(table, data, clean, kept[split_N == TRAIN], reasons, details)
    removed = Counter(reasons[reasons != None].tolist())  # noqa: E711  element-wise
    ledger = raw.ledger.then(Ledger.of(table.num_rows, removed))
    _write_quarantine(table, raw, reasons, details, ctx)
    _check_loss(ledger, clean, ctx)
    _check_training(classes, label_N[split_N == TRAIN], reasons[kept[split_N == TRAIN]], data)
    return _write_splits(table, data, ledger, classes, kept, split_N, reasons, ctx)


def _check(data: DataSpec, clean: CleanSpec, raw: RawDataset) -> Iterator[pa.Table]:
    file = pq.ParquetFile(raw.folder / "rows.parquet")
    size = min(_BLOCK_ROWS, rows_within(data, _BLOCK_BYTES))
    blocks = (pa.Table.from_batches([batch]) for batch in file.iter_batches(batch_size=size))
    check = partial(rules.check_block, data=data, clean=clean)
    if data.engine == "ray":
        connect()
        from lepton_ray.data import on_ray  # noqa: PLC0415  Ray is imported by connect

        return on_ray.map_blocks(check, list(blocks))
    return map(check, blocks)


def _to_objects(table: pa.Table, name: str) -> NDArray[np.object_]:
    values: NDArray[np.object_] = table.column(name).to_numpy().astype(object)
    return values


def _remove_duplicates(
    table: pa.Table, clean: CleanSpec, reasons: NDArray[np.object_], details: NDArray[np.object_]
) -> None:
    if clean.duplicates == "keep":
        return
    kept = np.flatnonzero(reasons == None)  # noqa: E711  element-wise
    is_first = rules.first_of_duplicates(to_voids(table.column(rules.ROW_HASH).take(pa.array(kept))))
    reasons[kept[~is_first]] = "duplicate"
    details[kept[~is_first]] = "the row is the same as an earlier one in every column"


def _check_classes(
    classes: NDArray[np.object_],
    label_N: NDArray[np.int64],
    data: DataSpec,
    clean: CleanSpec,
    ctx: RunContext,
    table: pa.Table,
    reasons: NDArray[np.object_],
    details: NDArray[np.object_],
) -> None:
    counts = np.bincount(label_N, minlength=len(classes))
    rare = [
        f"{name!r} {count}" for name, count in zip(classes, counts, strict=True) if count < clean.min_rows_per_class
    ]
    if len(classes) >= _MIN_CLASSES and not rare:
        return
    seen = Counter(reasons[reasons != None].tolist())  # noqa: E711  element-wise
    fate = f" Removed: {', '.join(f'{reason} {count}' for reason, count in seen.items())}." if seen else ""
    if len(classes) < _MIN_CLASSES:
        raise DataError(
            f"data.label ({data.label}) must have at least 2 classes in the kept rows, got {list(classes)}.{fate}"
        )
    raise DataError(
        f"each class of data.label ({data.label}) must have at least {clean.min_rows_per_class} rows, got {', '.join(rare)}.{fate} "
        f"Add rows, or lower clean.min_rows_per_class to 1"
    )


def _remove_outliers(
    table: pa.Table,
    data: DataSpec,
    clean: CleanSpec,
    train: NDArray[np.int64],
    reasons: NDArray[np.object_],
    details: NDArray[np.object_],
) -> None:
    if clean.outliers is None:
        return
    for name, column in data.features.items():
        if not isinstance(column, NumberColumn):
            continue
        values = table.column(name).to_numpy()[train]
        is_outlier, rule = rules.find_outliers(values, clean.outliers)
        for row, value in zip(train[is_outlier], values[is_outlier], strict=True):
            if reasons[row] is None:
                reasons[row], details[row] = "outlier", f"{name} {rule}, got {value:.10g}"


def _write_quarantine(
    table: pa.Table, raw: RawDataset, reasons: NDArray[np.object_], details: NDArray[np.object_], ctx: RunContext
) -> None:
    bad = np.flatnonzero(reasons != None)  # noqa: E711  element-wise
    removed = table.take(pa.array(bad))
    fate = {
        TEXT: _original_texts(removed.column(TEXT), bad, raw),
        REASON: pa.array(reasons[bad], pa.string()),
        DETAIL: pa.array(details[bad], pa.string()),
    }
    for name, values in fate.items():
        removed = removed.set_column(removed.schema.get_field_index(name), name, values)
    earlier = pq.read_table(raw.folder / "quarantine.parquet")
    pq.write_table(
        pa.concat_tables([earlier, rules.to_quarantine(removed)]), ctx.folder / "quarantine.parquet", compression="zstd"
    )


def _original_texts(texts: pa.ChunkedArray, bad: NDArray[np.int64], raw: RawDataset) -> pa.ChunkedArray | pa.Array:
    """Return the original texts of removed rows; a source without texts (Parquet) gives the raw cells as JSON."""
    if not texts.null_count:
        return texts
    rows = pq.read_table(raw.folder / "rows.parquet")
    cells = rows.drop_columns(QUARANTINE_SCHEMA.names).take(pa.array(bad)).to_pylist()
    return pa.array([json.dumps(row, ensure_ascii=False) for row in cells], pa.large_string())


def _check_loss(ledger: Ledger, clean: CleanSpec, ctx: RunContext) -> None:
    removed = ledger.rows_in - ledger.rows_kept
    if removed / ledger.rows_in > clean.max_removed_fraction:
        raise DataError(
            f"clean must remove at most {clean.max_removed_fraction:.0%} of the rows (clean.max_removed_fraction), got {ledger}. "
            f"See {ctx.folder / 'quarantine.parquet'}; repair the source, or allow more"
        )


def _check_training(
    classes: NDArray[np.object_], label_N: NDArray[np.int64], reasons_N: NDArray[np.object_], data: DataSpec
) -> None:
    lost = np.setdiff1d(label_N, label_N[reasons_N == None])  # noqa: E711  element-wise
    if len(lost):
        raise DataError(
            f"each class of data.label ({data.label}) must keep a training row when outliers are removed, "
            f"got none of {', '.join(map(repr, classes[lost]))}. Raise clean.outliers.threshold"
        )


def _write_splits(
    table: pa.Table,
    data: DataSpec,
    ledger: Ledger,
    classes: NDArray[np.object_],
    kept: NDArray[np.int64],
    split_N: NDArray[np.int8],
    reasons: NDArray[np.object_],
    ctx: RunContext,
) -> Dataset:
    split_rows: dict[str, int] = {}
    class_rows: dict[str, dict[str, int]] = {}
    is_kept = reasons[kept] == None  # noqa: E711  element-wise
    for index, name in enumerate(SPLITS):
        rows = table.select([*data.columns, SOURCE, LINE]).take(pa.array(kept[is_kept & (split_N == index)]))
        pq.write_table(rows, ctx.folder / f"{name}.parquet", compression="zstd")
        counts = Counter(rows.column(data.label).to_pylist())
        split_rows[name] = rows.num_rows
        class_rows[name] = {label: counts[label] for label in classes}
    return Dataset(ledger=ledger, split_rows=split_rows, classes=tuple(classes), class_rows=class_rows)
