"""Carry out what was decided on a part's rows: judge it by the rules of rows, and write what stays and what does not."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import PartFile
from lepton_ray.artifacts.tags import count_tags
from lepton_ray.data.block import CELLS, DETAIL, LINE, REASON, SOURCE, TEXT
from lepton_ray.data.check import NUM_MISSING, ROW_HASH, keep_rows, quarantine_schema
from lepton_ray.data.keys import References
from lepton_ray.data.outliers import FittedOutliers, find_outliers
from lepton_ray.data.parts import Folder, part_name, read_arrow
from lepton_ray.data.rules import row_breaches
from lepton_ray.data.sample import in_sample
from lepton_ray.data.split import SPLITS, TRAIN
from lepton_ray.data.verdicts import FIRST_REASON, Codes, Removal, has_enough
from lepton_ray.spec.clean import CleanSpec
from lepton_ray.spec.data import DataSpec

POSITION = "position"
JUDGED_SCHEMA = pa.schema({POSITION: pa.int64(), REASON: pa.string(), DETAIL: pa.string()})


def judge_part(
    data: DataSpec, clean: CleanSpec, references: References, rows: Folder, judged: Folder, index: int, part: PartFile
) -> dict[str, Any]:
    """Write down which rows of a part break a rule of rows; returns facts about the file.

    Raises:
        DataError: If a rule with ``on_fail: stop`` is broken.
    """
    table = read_arrow(rows, part)
    num_missing_N = table.column(NUM_MISSING).to_numpy()
    is_kept = has_enough(num_missing_N, len(data.read_features), clean.max_missing_fraction)
    found = []
    for breach in row_breaches(table, clean, references, is_kept):
        if breach.is_stop:
            raise breach.error()
        positions = np.flatnonzero(breach.rows)
        reasons = pa.repeat(breach.reason, len(positions))
        found.append(pa.table([positions, reasons, breach.details], schema=JUDGED_SCHEMA))
    broken = pa.concat_tables(found) if found else JUDGED_SCHEMA.empty_table()
    return {"file": judged.write_arrow(part_name(index, "arrow"), broken).model_dump()}


def read_judged(judged: Folder, facts: dict[str, Any]) -> tuple[NDArray[np.int64], pa.Table]:
    """Return the positions in a part of the rows that ``judge_part`` wrote down, and the table."""
    table = read_arrow(judged, PartFile.model_validate(facts["file"]))
    return table.column(POSITION).to_numpy(), table


@dataclass(frozen=True)
class ToWrite:
    """A part to write."""

    part: PartFile
    codes: Codes
    judged: dict[str, Any] | None
    """Facts about the file of ``judge_part``."""
    windows: PartFile | None = None
    """Series that were made for the rows."""
    details: tuple[pa.Table, ...] = ()
    """Position, reason and detail of removed rows whose details differ (``JUDGED_SCHEMA``)."""


@dataclass(frozen=True)
class Writer:
    """Writes parts of a snapshot; pickled to where they are written."""

    data: DataSpec
    rows: Folder
    """Typed rows."""
    work: Folder
    """What ``judge_part`` wrote, and series that were made."""
    target: Folder
    """The snapshot's folder."""
    removals: tuple[Removal, ...]
    """What the codes from ``FIRST_REASON`` mean."""
    outliers: tuple[FittedOutliers, ...] = ()

    def __call__(self, index: int, item: "ToWrite") -> dict[str, Any]:
        """Write a part's splits and quarantine; returns facts about the files, and counts."""
        codes = item.codes
        table = read_arrow(self.rows, item.part)
        if item.windows is not None:
            made = read_arrow(self.work, item.windows)
            table = pa.table({**_columns_of(table), **_columns_of(made)})
        judged = [] if item.judged is None else [read_judged(self.work, item.judged)[1]]
        removed = pa.concat_tables([self._decided(codes), *judged, *item.details, *self._outliers(table, codes)])
        codes = codes.copy()
        codes[removed.column(POSITION).to_numpy()] = FIRST_REASON
        facts: dict[str, Any] = {"removed": count_values(removed.column(REASON)), "classes": {}}
        for split, name in enumerate(SPLITS):
            rows = self._rows_of(table, codes == split)
            if rows.num_rows:
                facts[name] = self.target.write_parquet(f"{name}/{part_name(index, 'parquet')}", rows).model_dump()
                facts["classes"][name] = count_classes(rows, self.data)
        if removed.num_rows:
            name = f"quarantine/{part_name(index, 'parquet')}"
            facts["quarantine"] = self.target.write_parquet(name, self._to_quarantine(table, removed)).model_dump()
        return facts

    def _decided(self, codes: Codes) -> pa.Table:
        """Positions, reasons and details of the rows that were removed before writing."""
        positions = np.flatnonzero(codes >= FIRST_REASON)
        removals = codes[positions] - FIRST_REASON
        has_detail = np.array([removal.detail is not None for removal in self.removals], bool)
        chosen = has_detail[removals] if len(removals) else np.zeros(0, bool)
        indices = pa.array(removals[chosen])
        known = [
            pa.array([getattr(removal, name) for removal in self.removals], pa.string())
            for name in ("reason", "detail")
        ]
        columns = [pa.array(positions[chosen]), *(values.take(indices) for values in known)]
        return pa.table(columns, schema=JUDGED_SCHEMA)

    def _outliers(self, table: pa.Table, codes: Codes) -> list[pa.Table]:
        """The same of training rows outside the fitted bounds."""
        positions = np.flatnonzero(codes == TRAIN) if self.outliers else np.empty(0, np.int64)
        rows = table.take(pa.array(positions)) if self.outliers else table
        found: list[pa.Table] = []
        for fitted in self.outliers:
            is_outlier, details = find_outliers(fitted, rows)
            reasons = pa.repeat("outlier", len(details))
            found.append(pa.table([pa.array(positions[is_outlier]), reasons, details], schema=JUDGED_SCHEMA))
            positions, rows = positions[~is_outlier], rows.filter(pa.array(~is_outlier))
        return found

    def _rows_of(self, table: pa.Table, mask: NDArray[np.bool_]) -> pa.Table:
        chosen = table.select([*self.data.all_columns, SOURCE, LINE])
        return chosen if mask.all() else keep_rows(chosen, mask)

    def _to_quarantine(self, table: pa.Table, removed: pa.Table) -> pa.Table:
        """What is kept of removed rows, in their order: their fate and values."""
        removed = removed.sort_by(POSITION)
        rows = table.take(removed.column(POSITION))
        fate = {
            SOURCE: rows.column(SOURCE).cast(pa.string()),
            LINE: rows.column(LINE),
            REASON: removed.column(REASON),
            DETAIL: removed.column(DETAIL),
            TEXT: pa.nulls(rows.num_rows, pa.large_string()),
            CELLS: pa.nulls(rows.num_rows, pa.large_string()),
        }
        values = {name: rows.column(name) for name in self.data.columns}
        return pa.table({**fate, **values}, schema=quarantine_schema(self.data.columns))


def take_sample(
    folder: Folder, columns: list[str], rows: int, most: int, item: tuple[PartFile, NDArray[np.bool_]]
) -> pa.Table:
    """Return some columns of a part's rows that are chosen by a mask and in a sample of about ``most`` of ``rows``."""
    part, chosen = item
    table = read_arrow(folder, part, [*columns, ROW_HASH])
    if rows > most:
        chosen = chosen & in_sample(table.column(ROW_HASH), rows, most)
    return table.select(columns).filter(pa.array(chosen))


def _columns_of(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def count_classes(rows: pa.Table, data: DataSpec) -> dict[str, int]:
    """Return the rows of each class, or that have each tag; empty where the label is neither a category nor tags."""
    if data.label is not None and data.tags_label is not None:
        return count_tags(rows.column(data.label), data.tags_label)
    return count_values(rows.column(data.class_label)) if data.class_label is not None else {}


def count_values(values: pa.ChunkedArray) -> dict[str, int]:
    """Return how often each value occurs."""
    counts = pc.value_counts(values)
    texts = counts.field("values").to_pylist()
    return dict(zip(texts, counts.field("counts").to_pylist(), strict=True))
