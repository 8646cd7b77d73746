"""What quarantine holds: removed records with their reason, place, and original text or values."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from lepton_ray.core.errors import ArtifactError
from lepton_ray.data.block import DETAIL, LINE, REASON, SOURCE, TEXT
from lepton_ray.data.mended import Place, Value, to_plain
from lepton_ray.data.parts import Folder

_CELLS = "_cells"  # raw cells as JSON, where a stage keeps them


class QuarantinedRecord(BaseModel):
    """A removed record, as people see and mend it."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid")

    source: str
    line: int
    stage: str
    reason: str
    detail: str
    text: str | None
    """Original text; None where only the values are known."""
    values: dict[str, Value]
    """Cells by column: as the source gives them where that is known, else typed; null is missing or unknown."""

    @property
    def place(self) -> Place:
        """Source and line."""
        return self.source, self.line


@dataclass(frozen=True)
class Step:
    """A stage's quarantine."""

    stage: str
    folder: Folder
    files: tuple[str, ...]
    is_finished: bool

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield what its files hold: some columns, or all but images.

        Raises:
            ArtifactError: If a file cannot be read.
        """
        for name in self.files:
            try:
                with self.folder.open(name) as file:
                    parquet = pq.ParquetFile(file)
                    yield parquet.read(columns=_mendable(parquet.schema_arrow) if columns is None else list(columns))
            except (OSError, pa.ArrowInvalid) as error:
                raise ArtifactError(
                    f"{self.folder.path}/{name} must be as the stage {self.stage} wrote it, got: {error}. "
                    f"Run its spec with --from {self.stage}"
                ) from error


@dataclass(frozen=True)
class Quarantine:
    """All that a run has removed."""

    run: Folder
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run.path.rpartition("/")[2]

    def columns(self) -> list[str]:
        """Columns whose values a person can mend: all but images."""
        for step in self.steps:
            for name in step.files[:1]:
                with step.folder.open(name) as file:
                    names = _mendable(pq.ParquetFile(file).schema_arrow)
                return [name for name in names if not name.startswith("_")]
        return []


def _mendable(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if not pa.types.is_binary(field.type)]


def count_quarantine(
    quarantine: Quarantine, reason: str | None = None, source: str | None = None
) -> list[dict[str, Any]]:
    """Return the number of removed records by stage, reason and source, most first within a stage.

    Args:
        quarantine: The run's.
        reason: As for ``read_quarantine``.
        source: The same.
    """
    is_wanted = _choice(reason, source)
    rows: list[dict[str, Any]] = []
    for step in quarantine.steps:
        counts: Counter[tuple[str, str]] = Counter()
        for table in step.tables([SOURCE, REASON]):
            grouped = (
                table.filter(is_wanted(table)).group_by([REASON, SOURCE]).aggregate([([], "count_all")]).to_pylist()
            )
            counts.update({(row[REASON], row[SOURCE]): row["count_all"] for row in grouped})
        rows += [
            {"stage": step.stage, "reason": reason, "source": source, "rows": count}
            for (reason, source), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]
    return rows


def read_quarantine(
    quarantine: Quarantine, reason: str | None = None, source: str | None = None
) -> Iterator[QuarantinedRecord]:
    """Yield removed records: ingest's first, each stage's in the order of its parts.

    Args:
        quarantine: The run's.
        reason: Only those removed for it.
        source: Only those of a source of this name, or whose path ends with it.
    """
    return _read(quarantine, _choice(reason, source))


def _choice(reason: str | None, source: str | None) -> Callable[[pa.Table], Any]:
    """Return what says which rows of a table have a reason and a source; None takes any."""

    def is_wanted(table: pa.Table) -> Any:
        mask = pa.array(np.ones(table.num_rows, bool))
        if reason is not None:
            mask = pc.and_(mask, pc.equal(table.column(REASON), reason))
        if source is not None:
            names = table.column(SOURCE)
            mask = pc.and_(mask, pc.or_(pc.equal(names, source), pc.ends_with(names, f"/{source}")))
        return mask

    return is_wanted


def _read(quarantine: Quarantine, is_wanted: Callable[[pa.Table], Any]) -> Iterator[QuarantinedRecord]:
    for step in quarantine.steps:
        for table in step.tables():
            chosen = table.filter(is_wanted(table))
            for batch in chosen.to_batches(max_chunksize=1024):
                for row in batch.to_pylist():
                    yield _to_record(step.stage, row)


def _to_record(stage: str, row: Mapping[str, Any]) -> QuarantinedRecord:
    values = {name: to_plain(value) for name, value in row.items() if not name.startswith("_")}
    known = _json_object(row.get(_CELLS)) or _json_object(row[TEXT])
    values.update({name: to_plain(value) for name, value in known.items() if name in values})
    return QuarantinedRecord(
        source=row[SOURCE],
        line=row[LINE],
        stage=stage,
        reason=row[REASON],
        detail=row[DETAIL] or "",
        text=row[TEXT],
        values=values,
    )


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None or not text.lstrip().startswith("{"):
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def find_records(quarantine: Quarantine, places: Iterable[Place]) -> dict[Place, QuarantinedRecord]:
    """Return the removed record of each place that is in quarantine."""
    wanted = set(places)
    sources = pa.array(sorted({source for source, _ in wanted}), pa.string())
    lines = pa.array(sorted({line for _, line in wanted}), pa.int64())

    def may_be_wanted(table: pa.Table) -> Any:
        is_line = pc.is_in(table.column(LINE), value_set=lines)
        return pc.and_(is_line, pc.is_in(table.column(SOURCE), value_set=sources))

    return {record.place: record for record in _read(quarantine, may_be_wanted) if record.place in wanted}
