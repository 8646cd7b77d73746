"""Estimates before a run: memory and spilling from rows and their types, time from past runs. Bounds, not promises.

Memory is what the rows of a stage take in all processes of a machine at once, beside the libraries, which take 0.3 to 1 GiB a
process. Each rule is stated with its estimate. No bound falls when there are more rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lepton_ray.cost.bounds import Bounds
from lepton_ray.data.connectors.files import MAX_PARTS, PART_BYTES
from lepton_ray.data.sample import SAMPLE_BYTES
from lepton_ray.spec.data import Column, ImageColumn, SeriesColumn, TextColumn
from lepton_ray.stages.held_out import BASELINE_BYTES

_NUMBER_BYTES, _TIME_BYTES, _CODE_BYTES, _OFFSET_BYTES = 8, 8, 4, 4
_CHARACTER_BYTES = 4  # of UTF-8, at most
_PLACE_BYTES = 4 + 8 + 16 + 16 + 2  # beside each typed row: file, line, two hashes, the count of missing values
_VERDICT_BYTES = 1 + 16 + 16  # of each row, while repeats are looked for: a code, two hashes
_LABEL_BYTES = 8
_JSON_ROW_BYTES, _LINE_BYTES = 3, 2  # of the shortest rows, with the line's end
_TABULAR = ("csv", "jsonl", "text")


@dataclass(frozen=True)
class Estimate:
    """Bytes, and the rule that they follow from."""

    num_bytes: Bounds
    rule: str


def row_bytes(columns: Mapping[str, Column]) -> Bounds:
    """Return how many bytes a typed row takes, beside the texts of categories, each of which is held once."""
    low, high = float(_PLACE_BYTES), float(_PLACE_BYTES)
    is_bounded = True
    for column in columns.values():
        least, most = _value_bytes(column)
        low += least
        high += most or 0
        is_bounded = is_bounded and most is not None
    return Bounds(low, high if is_bounded else None)


def _value_bytes(column: Column) -> tuple[int, int | None]:
    if isinstance(column, SeriesColumn):
        return _NUMBER_BYTES * column.length, _NUMBER_BYTES * column.length
    if isinstance(column, ImageColumn):
        size = _OFFSET_BYTES + column.height * column.width * column.channels
        return _OFFSET_BYTES, size
    if isinstance(column, TextColumn) and column.max_length is not None:
        return _OFFSET_BYTES, _OFFSET_BYTES + _CHARACTER_BYTES * column.max_length
    fixed = {"number": _NUMBER_BYTES, "time": _TIME_BYTES, "category": _CODE_BYTES, "tags": _CODE_BYTES}.get(
        column.kind
    )
    return (fixed, fixed) if fixed is not None else (_OFFSET_BYTES, None)


def rows_within(source_bytes: int | None, kind: str, num_columns: int) -> Bounds | None:
    """Return bounds of the rows of a source that nobody has read; None where its size says nothing.

    Each value of CSV has at least the sign that ends it.
    """
    if source_bytes is None or kind not in _TABULAR:
        return None
    shortest = {"csv": max(1, num_columns), "jsonl": _JSON_ROW_BYTES}.get(kind, _LINE_BYTES)
    return Bounds(0.0, source_bytes / shortest)


def typed_bytes(rows: Bounds | None, of_row: Bounds, source_bytes: int | None, kind: str) -> Bounds:
    """Return how many bytes the typed rows take; texts of a text file take no more than the file."""
    if rows is None:
        return Bounds(0.0, None)
    whole = rows * of_row
    if whole.high is None and rows.high is not None and source_bytes is not None and kind in _TABULAR:
        return Bounds(whole.low, rows.high * (of_row.low + _OFFSET_BYTES) + source_bytes)
    return whole


def reading(source_bytes: int | None, num_parallel: int) -> Estimate:
    """Estimate ``ingest``: each reader holds a part as it lies and as rows."""
    rule = f"{num_parallel} parts at once, each held 1 to 6 times (text, cells, typed rows, hashes)"
    if source_bytes is None:
        return Estimate(Bounds(0.0, None), rule)
    part = max(PART_BYTES, -(-source_bytes // MAX_PARTS))
    return Estimate(Bounds.exactly(min(source_bytes, num_parallel * part)).times(1, 6), rule)


def judging(rows: Bounds | None, typed: Bounds, num_parallel: int) -> Estimate:
    """Estimate ``clean``: 33 bytes for each row while repeats are looked for, a sample, parts that are written."""
    known = (rows or Bounds(0.0, None)).times(_VERDICT_BYTES, 2 * _VERDICT_BYTES)
    held = typed.at_most(SAMPLE_BYTES).times(0, 2) + typed.at_most(num_parallel * PART_BYTES).times(1, 4)
    return Estimate(known + held, "33 to 66 B a row, 0 to 2 samples of 256 MiB at most, parts 1 to 4 times")


def fitting(typed: Bounds, num_parallel: int) -> Estimate:
    """Estimate ``featurize``: a sample of the training rows while it is fitted on, parts that are prepared."""
    held = typed.at_most(SAMPLE_BYTES).times(0.5, 3) + typed.at_most(num_parallel * PART_BYTES).times(1, 8)
    return Estimate(held, "a sample of 256 MiB at most, 0.5 to 3 times; parts 1 to 8 times")


def model_bytes(rows: Bounds | None, input_bytes: int | None, num_inputs: int) -> Bounds:
    """Return how many bytes the model input of rows takes.

    Args:
        rows: How many.
        input_bytes: Of a row, where the features have been fitted.
        num_inputs: Columns that are features: each gives a number of 4 bytes at the least.
    """
    of_row = Bounds(num_inputs * 4.0, None) if input_bytes is None else Bounds.exactly(input_bytes)
    return (rows or Bounds(0.0, None)) * (of_row + Bounds.exactly(_LABEL_BYTES))


def training(whole: Bounds, max_memory_bytes: int | None, window_bytes: int, num_processes: int) -> Estimate:
    """Estimate ``train`` and ``tune``: all rows in memory, or windows of them.

    Args:
        whole: Bytes of the model input of both splits.
        max_memory_bytes: Above it rows are streamed; None never streams, 0 always.
        window_bytes: Of one window.
        num_processes: That train at once.
    """
    windows = Bounds.exactly(2.0 * window_bytes * num_processes)
    in_memory = whole.times(1, 2)
    if max_memory_bytes is None:
        return Estimate(in_memory, "all rows 1 to 2 times (as they are read, as they are trained on)")
    rule = f"all rows 1 to 2 times up to {max_memory_bytes:,} B of them, above that 2 windows a process"
    kept = in_memory.at_most(2.0 * max_memory_bytes).high or 0.0
    is_kept = whole.high is not None and whole.high <= max_memory_bytes
    return Estimate(Bounds(min(in_memory.low, windows.low), kept if is_kept else max(windows.low, kept)), rule)


def scoring(training: Bounds) -> Estimate:
    """Estimate ``evaluate``: the model input of the training rows that the baseline is fitted on, which takes it as doubles."""
    held = training.at_most(BASELINE_BYTES).times(1, 4)
    return Estimate(
        held, "training rows of the baseline, 512 MiB at most, 1 to 4 times; held-out rows a group at a time"
    )


def spilled(whole: Bounds, max_memory_bytes: int | None, store_bytes: float) -> Bounds:
    """Return how much of the rows of ``training`` goes to a machine's disk: what its object store does not hold.

    Rows that are streamed do not go through it, so where that may happen nothing may be spilled.
    """
    if max_memory_bytes is None:
        return whole.beyond(store_bytes)
    return Bounds(0.0, whole.at_most(max_memory_bytes).beyond(store_bytes).high)


@dataclass(frozen=True)
class PastRun:
    """A stage that was done before, from its manifest."""

    seconds: float
    work: Mapping[str, float]
    """``rows``, ``epochs``, ``processes`` and so on, as the stage noted them."""


def seconds_of(past: Sequence[PastRun], work: Mapping[str, Bounds]) -> Bounds | None:
    """Return how long a stage will take, judged by past ones; None where no past one says.

    A part of the time is the same whatever there is to do, a part grows with it: the truth lies between the time of then and that
    time in proportion. The same holds for processes, the other way round.

    Args:
        past: Of the same stage, only those that were done in one go.
        work: How much there is to do now, by what the stage notes; a past run that lacks one of them says nothing.
    """
    known = [one for one in past if all(one.work.get(name, 0) > 0 for name in work)]
    if not known or any(amount.high is None for amount in work.values()):
        return None
    each = [_scaled(one, work) for one in known]
    return Bounds(min(one.low for one in each), max(one.high or 0.0 for one in each))


def _scaled(past: PastRun, work: Mapping[str, Bounds]) -> Bounds:
    low = high = 1.0
    for name, amount in work.items():
        least, most = amount.low / past.work[name], (amount.high or 0.0) / past.work[name]
        if name == "processes":
            least, most = 1 / max(most, 1e-9), 1 / max(least, 1e-9)
        low, high = low * least, high * most
    return Bounds(past.seconds * min(1.0, low), past.seconds * max(1.0, high))
