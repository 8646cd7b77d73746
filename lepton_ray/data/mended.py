"""Mended records: what a person has made of quarantined ones, kept beside the run and read in their place.

``STORAGE/NAME/mended/0001.jsonl`` and so on hold a line for each record: its place, its values, and the original text that
the person saw. Ingest reads them with the source: a mended record takes the place of the record there, so the rows that come
in stay as many; whether it is kept, the rules decide again. A later file wins over an earlier one. Without the original text
at that place, or the values where these were seen, nothing is replaced: then the source, or how it is read, has changed since,
which ingest tells. To take a file back, delete it.
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lepton_ray.artifacts.times import TIMESTAMP, read_times
from lepton_ray.artifacts.whole import write_whole
from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.files import sha256_json
from lepton_ray.data.block import LINE, RawBlock
from lepton_ray.data.check import check_block
from lepton_ray.data.parts import Folder
from lepton_ray.spec.data import Column, DataSpec, ImageColumn, TimeColumn

MENDED = "mended"
LIMIT = 1 << 63  # of whole numbers in Arrow
_DIGITS = 4  # of a file's number

Place = tuple[str, int]
Value = str | bool | int | float | list[float | None] | None


class MendedRecord(BaseModel):
    """A record as it should have been."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid", allow_inf_nan=False)

    source: str
    line: Annotated[int, Field(ge=1)]
    values: dict[str, Value]
    """Cells by column, as a JSON record has them; a column that is not named is missing."""
    text: str | None = None
    """Original text of the record in quarantine; None where quarantine has the values only."""
    seen: dict[str, Value] | None = None
    """These values, typed."""

    @property
    def place(self) -> Place:
        """Source and line."""
        return self.source, self.line


@dataclass(frozen=True)
class MendedFile:
    """One file of mended records."""

    name: str
    records: tuple[MendedRecord, ...]


def read_mended(filesystem: pafs.FileSystem, root: str) -> list[MendedFile]:
    """Return the files of mended records of a run, in their order.

    Args:
        filesystem: Of the run's storage.
        root: The run's folder, ``STORAGE/NAME``.

    Raises:
        ArtifactError: If a file is damaged.
    """
    folder = Folder(filesystem, f"{root}/{MENDED}")
    return [MendedFile(name, tuple(_read(folder, name))) for name in folder.names() if name.endswith(".jsonl")]


def _read(folder: Folder, name: str) -> Iterator[MendedRecord]:
    with folder.filesystem.open_input_stream(f"{folder.path}/{name}") as stream:
        lines = stream.read().decode("utf-8", "replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield MendedRecord.model_validate_json(line)
        except ValidationError as error:
            raise ArtifactError(
                f"{folder.path}/{name} line {number} must be a mended record, got {error.errors()[0]['msg']}. "
                "Repair the line, or delete the file to leave its records in quarantine"
            ) from error


def write_mended(filesystem: pafs.FileSystem, root: str, records: Iterable[MendedRecord]) -> str:
    """Write another file of mended records; returns its name. It appears whole or not at all."""
    folder = Folder(filesystem, f"{root}/{MENDED}")
    numbers = [int(name.partition(".")[0]) for name in folder.names() if name.partition(".")[0].isdecimal()]
    name = f"{max(numbers, default=0) + 1:0{_DIGITS}d}.jsonl"
    data = "".join(f"{record.model_dump_json()}\n" for record in records).encode()
    write_whole(filesystem, f"{folder.path}/{name}", data)
    return name


def mended_by_place(files: Iterable[MendedFile]) -> dict[Place, MendedRecord]:
    """Return the record of each place; of several the last."""
    return {record.place: record for file in files for record in file.records}


def relocate(mended: Mapping[Place, MendedRecord], sources: Collection[str]) -> dict[Place, MendedRecord]:
    """Return the records as their sources lie now: a file that is gone is the one of its name elsewhere, if there is one only.

    A project that was moved, or sent to a cluster with a job, has its files at other paths.
    """
    named: dict[str, list[str]] = {}
    for source in sources:
        named.setdefault(source.rpartition("/")[2], []).append(source)
    moved = {}
    for record in mended.values():
        found = named.get(record.source.rpartition("/")[2], []) if record.source not in sources else []
        at = record.model_copy(update={"source": found[0]}) if len(found) == 1 else record
        moved[at.place] = at
    return moved


def fingerprint(mended: Mapping[Place, MendedRecord]) -> str | None:
    """Return what ingest's result depends on; None if nothing is mended, so that keys stay as they were."""
    return sha256_json([mended[place].model_dump(mode="json") for place in sorted(mended)]) if mended else None


@dataclass(frozen=True)
class Mender:
    """Checks what a source gives, with mended records in its place; pickled to wherever parts are read."""

    records: Mapping[Place, MendedRecord]
    data: DataSpec

    def __call__(
        self, blocks: Iterable[RawBlock], replaced: list[Place] | None = None
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield what ``check_block`` makes of each block with its mended records where they were: ``first`` and ``last`` ask for it.

        Args:
            blocks: Of one part.
            replaced: Gets the places whose records were replaced.
        """
        for block in blocks:
            rows, bad = self._find(block)
            if not (rows or bad):
                yield check_block(block, self.data)
                continue
            if replaced is not None:
                replaced += [record.place for record in [*rows.values(), *bad.values()]]
            yield self._check_in_place(block, rows, bad)

    def _check_in_place(
        self, block: RawBlock, rows: Mapping[int, MendedRecord], bad: Mapping[int, MendedRecord]
    ) -> tuple[pa.Table, pa.Table]:
        """Check the rows that stay at once, and mended ones by type; then bring all in the order of the source."""
        is_one_source = isinstance(block.source, str)
        left = np.delete(np.arange(len(block.lines)), list(rows))
        mended = [(index + 0.5, record) for index, record in rows.items()]
        for record in bad.values():  # lines rise in a source, and what was no row has no place among rows but its line
            before = np.searchsorted(block.lines, record.line) if is_one_source else len(block.lines)
            mended.append((float(before), record))
        mended.sort(key=lambda pair: pair[0])
        places = np.concatenate([left + 0.5, [place for place, _ in mended]])
        lines = np.concatenate([block.lines[left], np.array([record.line for _, record in mended], np.int64)])
        order = np.argsort(places, kind="stable")
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))  # stand for the lines until all are sorted by them
        pieces = [(_take(block, left.tolist(), []), ranks[: len(left)])]
        pieces += [
            (piece, ranks[len(left) :][chosen]) for piece, chosen in self._to_blocks([record for _, record in mended])
        ]
        checked = [check_block(replace(piece, lines=its_ranks), self.data) for piece, its_ranks in pieces]
        kept, removed = (_in_order(list(tables), lines[order]) for tables in zip(*checked, strict=True))
        unusable = [index for index in range(len(block.bad)) if index not in bad]
        return kept, pa.concat_tables([removed, check_block(_take(block, [], unusable), self.data)[1]])

    def _find(self, block: RawBlock) -> tuple[dict[int, MendedRecord], dict[int, MendedRecord]]:
        """Mended records by position: of the block's rows, and of its bad records."""
        sources = _sources_at(block, candidates := np.flatnonzero(np.isin(block.lines, self._lines)))
        rows: dict[int, MendedRecord] = {}
        for index, source in zip(candidates.tolist(), sources, strict=True):
            if record := self.records.get((source, int(block.lines[index]))):
                rows[index] = record
        texts = block.texts_of(np.array(list(rows), np.int64))
        typed = self._typed(block, [index for index, record in rows.items() if record.seen is not None])
        is_same = [
            record.text in (None, text) and (record.seen is None or _agree(record.seen, typed.get(index)))
            for (index, record), text in zip(rows.items(), texts, strict=True)
        ]
        bad_sources = block.bad_sources or [str(block.source)] * len(block.bad)
        bad = {
            index: record
            for index, (source, wrong) in enumerate(zip(bad_sources, block.bad, strict=True))
            if (record := self.records.get((source, wrong.line))) and record.text in (None, wrong.text)
        }
        return {index: rows[index] for index, same in zip(list(rows), is_same, strict=True) if same}, bad

    def _typed(self, block: RawBlock, rows: list[int]) -> dict[int, dict[str, Value]]:
        """Return the values of some rows by position; of those that no column's rule removes."""
        if not rows:
            return {}
        chosen = replace(_take(block, rows, []), source="", lines=np.arange(len(rows)), texts=None)
        table = check_block(chosen, self.data)[0]
        names = [name for name, column in self.data.columns.items() if not isinstance(column, ImageColumn)]
        return {
            rows[row[LINE]]: {name: to_plain(row[name]) for name in names}
            for row in table.select([*names, LINE]).to_pylist()
        }

    @cached_property
    def _lines(self) -> NDArray[np.int64]:
        return np.array(sorted({line for _, line in self.records}), np.int64)

    def _to_blocks(self, records: Sequence[MendedRecord]) -> Iterator[tuple[RawBlock, list[int]]]:
        """A block for each source and set of types, as cells of one column may have different ones, and which records are in it."""
        groups: dict[tuple[str, str], list[tuple[int, pa.Table]]] = {}
        for number, record in enumerate(records):
            cells = {
                name: _to_array(record.values[name], column)
                for name, column in self.data.columns.items()
                if record.values.get(name) is not None and not isinstance(column, ImageColumn)
            }
            table = pa.table(cells or {next(iter(self.data.columns)): pa.nulls(1, pa.string())})
            groups.setdefault((record.source, str(table.schema)), []).append((number, table))
        for (source, _), group in groups.items():
            yield _to_block(source, [(records[number], table) for number, table in group]), [n for n, _ in group]


def _in_order(tables: Sequence[pa.Table], lines: NDArray[np.int64]) -> pa.Table:
    """Return rows sorted by their ranks, which stand in the place of their lines, with these lines."""
    table = pa.concat_tables(tables).unify_dictionaries()
    ranks = table.column(LINE).to_numpy()
    order = np.argsort(ranks)
    place = table.schema.get_field_index(LINE)
    return table.take(pa.array(order)).set_column(place, table.field(LINE), pa.array(lines[ranks[order]]))


def _to_block(source: str, group: list[tuple[MendedRecord, pa.Table]]) -> RawBlock:
    texts = [json.dumps(record.values, ensure_ascii=False) for record, _ in group]
    return RawBlock(
        source,
        pa.concat_tables([table for _, table in group]),
        np.array([record.line for record, _ in group], np.int64),
        lambda rows: [texts[row] for row in rows],
    )


def _to_array(value: Value, column: Column) -> pa.Array:
    if isinstance(column, TimeColumn) and isinstance(value, str):
        time = read_times(pa.array([value]), "iso")  # as quarantine shows times, however the source writes them
        if not time.null_count:
            return time.cast(TIMESTAMP)
    if isinstance(value, list):
        return pa.array([value], pa.list_(pa.float64()))
    return pa.array([value])


def _sources_at(block: RawBlock, rows: NDArray[np.int64]) -> list[str]:
    if isinstance(block.source, pa.Array):
        sources: list[str] = block.source.take(pa.array(rows)).to_pylist()
        return sources
    return [block.source] * len(rows)


def _agree(seen: Mapping[str, Value], values: Mapping[str, Value] | None) -> bool:
    """Whether a row has the values that were seen, as far as both have a column."""
    return values is not None and all(seen[name] == values[name] for name in seen.keys() & values.keys())


def to_plain(value: Any) -> Value:
    """A value as JSON has it; what JSON has no word for, and nested values, as text."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, list) and all(item is None or _is_number(item) for item in value):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _is_number(value: Any) -> bool:
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, int) and abs(value) < LIMIT


def _take(block: RawBlock, rows: Sequence[int], kept_bad: Sequence[int]) -> RawBlock:
    kept = np.array(rows, np.int64)
    indices, texts = pa.array(kept), block.texts
    return replace(
        block,
        source=block.source.take(indices) if isinstance(block.source, pa.Array) else block.source,
        cells=block.cells.take(indices) if block.cells.num_columns else block.cells,
        lines=block.lines[kept],
        texts=None if texts is None else lambda positions: texts(kept[positions]),
        bad=tuple(block.bad[index] for index in kept_bad),
        bad_sources=tuple(block.bad_sources[index] for index in kept_bad) if block.bad_sources else (),
    )
