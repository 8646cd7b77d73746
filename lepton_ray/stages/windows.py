"""The part of clean that makes windows: each row's series of other rows of its entity, in order of time."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from lepton_ray.artifacts.kinds import PartFile
from lepton_ray.data.check import ROW_HASH
from lepton_ray.data.hashing import to_words
from lepton_ray.data.keys import key_hashes
from lepton_ray.data.parts import part_name
from lepton_ray.data.split import SPLITS, to_order
from lepton_ray.data.verdicts import Removal, Verdicts
from lepton_ray.data.windows import Positions, find_last, find_missing, find_short, make_windows, order_rows
from lepton_ray.spec.clean import WindowSpec
from lepton_ray.stages.context import RunContext


def add_windows(
    verdicts: Verdicts, windows: Mapping[str, WindowSpec], label: str | None, ctx: RunContext
) -> tuple[list[PartFile], Positions | None]:
    """Write the windows of all rows, a file for each part, and remove rows that have too few rows around them.

    A window that is the label must be whole: rows of which it misses a value are removed too.

    The columns that order the rows are held in memory: about 60 bytes a row and window.

    Returns:
        The files; and of a label that is a window, for each row (N,) which of all rows its last value is of.
    """
    kept = np.flatnonzero(verdicts.is_kept)
    if not len(kept):  # then nobody reads a window
        kept = np.arange(len(verdicts.codes))
    made = {name: _make(verdicts, kept, name, window, name == label) for name, window in windows.items()}
    folder = ctx.scratch
    files: list[PartFile] = []
    start = 0
    for index, part in enumerate(verdicts.parts):
        rows = slice(start, start + part.rows)
        table = pa.table({name: read(rows) for name, (read, _) in made.items()})
        files.append(folder.write_arrow(f"windows/{part_name(index, 'arrow')}", table))
        start += part.rows
    return files, made[label][1] if label in made else None


def remove_looking_across(verdicts: Verdicts, label: str, last: Positions, by: str) -> None:
    """Remove rows whose label, a window that looks ahead, has values of the time of a later split (purging).

    A model would learn, or be chosen by, what it is judged by. See Lopez de Prado, "Advances in Financial Machine Learning", 7.4.1.

    Args:
        verdicts: With the splits assigned in the order of ``by``.
        label: Its name.
        last: (N,) of which row each label's last value is.
        by: Column that the rows are split by.
    """
    kept = np.flatnonzero(verdicts.is_kept)
    own, reached = (to_order(verdicts.take(rows, [by]).column(0)) for rows in (kept, last[kept]))
    split = verdicts.codes[kept]
    across = np.zeros(len(kept), bool)
    for code in range(len(SPLITS) - 1):
        later = own[split > code]
        if len(later):
            across |= (split == code) & (reached >= later.min())
    mask = np.zeros(len(verdicts.codes), bool)
    mask[kept[across]] = True
    verdicts.remove(Removal("label_in_later_split", f"{label} ends where a later split has begun by {by}"), mask)


def _make(
    verdicts: Verdicts, kept: Positions, name: str, window: WindowSpec, is_label: bool
) -> tuple[Callable[[slice], pa.Array], Positions | None]:
    """Return what gives the windows of a slice of all rows, and for the label of which of all rows each one's last value is."""
    columns = list(dict.fromkeys([*window.entity, window.time, window.value, ROW_HASH]))
    table = verdicts.take(kept, columns)
    times = _as_numbers(table.column(window.time))
    has_time = table.column(window.time).is_valid().to_numpy()
    entities, hashes = (to_words(array) for array in (key_hashes(table, window.entity), table.column(ROW_HASH)))
    order = order_rows(entities, times, has_time, hashes)
    values = table.column(window.value).to_numpy()
    if window.short == "remove":
        mask = np.zeros(len(verdicts.codes), bool)
        mask[kept[find_short(order, window)]] = True
        before, after = max(window.length - 1 + window.horizon, 0), max(-window.horizon, 0)
        wanted = [f"{count} {when} rows" for count, when in ((before, "earlier"), (after, "later")) if count]
        verdicts.remove(
            Removal("too_short", f"{name} needs {' and '.join(wanted) or 'a time'} of the same entity"), mask
        )
    if is_label:
        mask = np.zeros(len(verdicts.codes), bool)
        mask[kept] = find_missing(order, values, window)
        verdicts.remove(Removal("missing_label", f"{name} is the label and must miss no value"), mask)
    place = np.zeros(len(verdicts.codes), np.int64)  # removed rows get the first row's window, which nobody reads
    place[kept] = np.arange(len(kept))
    last = np.zeros(len(verdicts.codes), np.int64) if is_label else None
    if last is not None:
        last[kept] = kept[find_last(order, window)]
    return lambda rows: make_windows(order, values, window, place[rows])[0], last


def _as_numbers(column: pa.ChunkedArray) -> Any:
    if pa.types.is_floating(column.type):
        return column.fill_null(0.0).to_numpy()
    return column.cast(pa.int64()).fill_null(0).to_numpy()
