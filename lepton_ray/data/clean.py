"""Cleaning: raw block in, typed block out, each row with the reason that removes it or none.

``check_block`` looks at one row at a time and runs on any block anywhere. What needs all rows (duplicates, the split,
outliers) works on the hashes and numbers of all kept rows, in ``split`` and below.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.artifacts.rules import Breach, category_breaches, number_breaches
from lepton_ray.core.text import show
from lepton_ray.data.block import DETAIL, LINE, QUARANTINE_SCHEMA, REASON, SOURCE, TEXT
from lepton_ray.data.hashing import hash_columns
from lepton_ray.spec.data import CategoryColumn, CleanSpec, Column, DataSpec, ImageColumn, NumberColumn, OutlierSpec

ROW_HASH, FEATURE_HASH = "_row_hash", "_feature_hash"
_NUMBER = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
_INFINITE = ("inf", "+inf", "-inf", "infinity", "+infinity", "-infinity")

Mask = NDArray[np.bool_]


def check_block(block: pa.Table, data: DataSpec, clean: CleanSpec) -> pa.Table:
    """Type a raw block's cells and say which rows break a rule.

    Returns:
        The declared columns (numbers float64 with NaN for missing, categories text with "" for missing, images binary),
        the fate columns, and two hashes as 16 bytes: of the whole row, and of its features.
    """
    verdict = _Verdict(block.num_rows)
    typed: dict[str, pa.Array] = {}
    num_missing = np.zeros(block.num_rows, np.int64)
    for name, column in data.columns.items():
        cells = block.column(name).combine_chunks()
        typed[name], is_missing = _type_cells(name, column, cells, data, verdict)
        if name in data.features:
            num_missing += is_missing
        if name == data.label:
            verdict.remove("missing_label", is_missing, f"{name} is the label and must be given", None)
    limit = clean.max_missing_fraction
    rule = f"at most {limit * len(data.features):g} of {len(data.features)} features may be missing"
    verdict.remove("too_many_missing", num_missing / len(data.features) > limit, rule, num_missing)
    features = [typed[name] for name in data.features]
    fate = {
        SOURCE: block.column(SOURCE),
        LINE: block.column(LINE),
        TEXT: block.column(TEXT),
        REASON: pa.array(verdict.reasons, pa.string()),
        DETAIL: pa.array(verdict.details, pa.string()),
        ROW_HASH: hash_columns(list(typed.values())),
        FEATURE_HASH: hash_columns(features),
    }
    return pa.table({**typed, **fate})


class _Verdict:
    """Collects the first reason against each row of a block."""

    def __init__(self, rows: int) -> None:
        self.reasons = np.full(rows, None, object)
        self.details = np.full(rows, None, object)

    def remove(self, reason: str, rows: Mask, rule: str, values: NDArray[np.generic] | None) -> None:
        """Remove rows that nothing has removed yet."""
        for row in np.flatnonzero(rows):
            if self.reasons[row] is None:
                self.reasons[row] = reason
                self.details[row] = rule if values is None else f"{rule}, got {_show(values[row])}"

    def remove_breach(self, name: str, breach: Breach, cells: NDArray[np.object_]) -> None:
        """Remove the rows that break a column's rule."""
        self.remove(breach.reason, breach.rows, f"{name} {breach.rule}", cells)


def _show(value: object) -> str:
    return show(value.item() if isinstance(value, np.generic) else value)


def _type_cells(name: str, column: Column, cells: pa.Array, data: DataSpec, verdict: _Verdict) -> tuple[pa.Array, Mask]:
    """Return the typed cells and which are missing."""
    if isinstance(column, ImageColumn):
        return cells, cells.is_null().to_numpy(zero_copy_only=False)
    text = pc.utf8_trim_whitespace(pc.fill_null(cells, ""))
    is_missing = pc.is_in(text, value_set=pa.array(["", *data.missing_words], pa.string()))
    missing = is_missing.to_numpy(zero_copy_only=False)
    original = cells.to_numpy(zero_copy_only=False)
    if isinstance(column, NumberColumn):
        numbers, is_number = parse_numbers(text)
        verdict.remove("type_error", ~is_number & ~missing, f"{name} must be a number", original)
        for breach in number_breaches(column, np.where(missing, np.nan, numbers)):
            verdict.remove_breach(name, breach, original)
        return pa.array(np.where(missing, np.nan, numbers)), missing
    values = pc.if_else(is_missing, "", text)
    if isinstance(column, CategoryColumn):
        for breach in category_breaches(column, values.to_numpy(zero_copy_only=False)):
            verdict.remove_breach(name, breach, original)
    return values, missing


def parse_numbers(text: pa.Array) -> tuple[NDArray[np.float64], Mask]:
    """Return the numbers of trimmed texts (NaN where there is none) and which texts are numbers, infinite ones included."""
    is_number = pc.match_substring_regex(text, _NUMBER)
    is_infinite = pc.is_in(pc.utf8_lower(text), value_set=pa.array(_INFINITE))
    numbers = pc.if_else(is_number, text, None).cast(pa.float64())
    values = np.nan_to_num(numbers.to_numpy(zero_copy_only=False), nan=np.nan, posinf=np.inf, neginf=-np.inf)
    values = np.where(is_infinite.to_numpy(zero_copy_only=False), np.inf, values)
    return values + 0.0, pc.or_(is_number, is_infinite).to_numpy(zero_copy_only=False)


def first_of_duplicates(row_hash_N: NDArray[np.void]) -> Mask:
    """Return which rows are the first with their hash."""
    _, first = np.unique(row_hash_N, return_index=True)
    is_first = np.zeros(len(row_hash_N), bool)
    is_first[first] = True
    return is_first


def find_outliers(values_N: NDArray[np.float64], spec: OutlierSpec) -> tuple[Mask, str]:
    """Return which training values lie outside the fitted bounds, and the rule in words; missing ones never do."""
    present = values_N[~np.isnan(values_N)]
    if len(present) == 0:
        return np.zeros(len(values_N), bool), ""
    with np.errstate(over="ignore", invalid="ignore"):
        if spec.method == "iqr":
            low_end, high_end = np.quantile(present, [0.25, 0.75])
            reach = spec.threshold * (high_end - low_end)
        else:
            low_end = high_end = present.mean()
            reach = spec.threshold * present.std()
    # No distance is known to judge by: most values are equal (rounding may leave a trace), or it overflows.
    if present.min() == present.max() or not 0 < reach < np.inf:
        return np.zeros(len(values_N), bool), ""
    low, high = low_end - reach, high_end + reach
    return (values_N < low) | (values_N > high), f"must lie in {low:.10g}..{high:.10g}"


def to_quarantine(table: pa.Table) -> pa.Table:
    """Return what a removed row leaves behind: source, line, original text, reason, detail."""
    return table.select(QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA)
