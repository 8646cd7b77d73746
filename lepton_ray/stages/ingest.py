"""ingest: the source's records -> typed rows in parts, and quarantine for what cannot be a row."""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from lepton_ray.artifacts.kinds import PartFile, RawDataset
from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.artifacts.store import open_filesystem
from lepton_ray.core.errors import DataError
from lepton_ray.core.imports import source_digest
from lepton_ray.data.block import DETAIL, LINE, REASON, SOURCE
from lepton_ray.data.connectors import check_source, fingerprint_of, open_connector
from lepton_ray.data.connectors.base import Connector, Part
from lepton_ray.data.connectors.faults import describe
from lepton_ray.data.connectors.files import FileConnector
from lepton_ray.data.mended import Mender, Place, mended_by_place, read_mended, relocate
from lepton_ray.data.mended import fingerprint as mended_fingerprint
from lepton_ray.data.parts import Folder, read_parquet
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.sources import CustomSource
from lepton_ray.stages.blocks import Mapper, in_groups
from lepton_ray.stages.context import RunContext

VERSION = 8
WITHOUT_EFFECT = {"data": {"engine": True, "profile": True, "split": True, "source": {"timeout_s"}}}
_PLAN = "plan.json"


def ingest(data: DataSpec, ctx: RunContext) -> RawDataset:
    """Read all records of the source.

    Raises:
        DataError: If there is no record that is a row of the table, or a file changes while it is read.
    """
    connector = open_connector(data)
    parts = _plan(connector, ctx)
    mended = mended_by_place(read_mended(ctx.filesystem, ctx.run_folder))
    if mended and isinstance(connector, FileConnector):
        mended = relocate(mended, {file.path for file in connector.files})
    mender = Mender(mended, data)
    read = partial(read_part, connector, mender, ctx.output)
    size_bytes = connector.size_bytes()
    facts = Mapper(data, size_bytes, ctx).map_resumable("reading", read, parts)
    if isinstance(connector, FileConnector):
        _check_unchanged(connector, ctx)
    rows, quarantine = (_part_files(facts, name) for name in ("rows", "quarantine"))
    removed = sum((Counter(fact["removed"]) for fact in facts), Counter())
    ledger = Ledger.of(sum(part.rows for part in rows) + removed.total(), removed)
    if ledger.rows_kept == 0:
        raise _no_rows(ledger, quarantine, ctx)
    ctx.work.update(rows=ledger.rows_in, bytes=size_bytes or 0)
    known = connector.columns() or {}
    ignored = tuple(name for name in known if name not in data.columns)
    num_used = sum(fact.get("mended", 0) for fact in facts)
    return RawDataset(
        rows=rows,
        quarantine=quarantine,
        ledger=ledger,
        ignored_columns=ignored,
        mended_used=num_used,
        mended_unused=len(mended) - num_used,
    )


def preflight(data: DataSpec) -> None:
    """Hold the spec's columns against the source's, before anything is read.

    Raises:
        SpecError: If the source does not have them, or of a type that cannot be read so.
        DataError: If there is no source.
    """
    check_source(data, open_connector(data))


def fingerprint(data: DataSpec, storage: str, name: str) -> Any:
    """Return what the stage's result depends on outside of the spec: for files path, size and time of each; what is mended."""
    filesystem, path = open_filesystem(storage)
    mended = mended_by_place(read_mended(filesystem, f"{path.rstrip('/')}/{name}"))
    code = source_digest(data.source.connector) if isinstance(data.source, CustomSource) else None
    return {"source": fingerprint_of(data), "mended": mended_fingerprint(mended), **({"code": code} if code else {})}


def _plan(connector: Connector, ctx: RunContext) -> Iterable[Part]:
    """Return the parts; a run that goes on takes those of the killed one, without looking for them again."""
    work = ctx.scratch
    if work.has(_PLAN):
        return [Part(where) for where in work.read_json(_PLAN)]
    if isinstance(connector, FileConnector):
        return _noted(connector.find_parts(), work)
    return list(_noted(connector.parts(), work))


def _noted(parts: Iterable[Part], work: Folder) -> Iterator[Part]:
    """Yield parts, and write them down when all are found; files that have not changed give the same until then."""
    found = []
    for part in parts:
        found.append(part.where)
        yield part
    work.write_json(_PLAN, found)


def _check_unchanged(connector: FileConnector, ctx: RunContext) -> None:
    """See that the parts are of one state of the files; else a later run that finds the old ones again must not go on from them.

    Raises:
        DataError: If they are not.
    """
    try:
        connector.check_unchanged()
    except DataError:
        ctx.filesystem.delete_dir(ctx.work_path)
        raise


def read_part(connector: Connector, mender: Mender, folder: Folder, index: int, part: Part) -> dict[str, Any]:
    """Read, mend, type and write one part; returns facts about its files, of which a part that cannot be cut has several.

    Raises:
        DataError: If it holds values of a type that pyarrow itself cannot read, such as times of a zone that there is not.
    """
    try:
        return _read_part(connector, mender, folder, index, part)
    except pa.ArrowMemoryError:
        raise
    except pa.ArrowException as error:
        raise DataError(
            f"data.source must hold values that can be read, got: {describe(error)}. Convert them"
        ) from error


def _read_part(connector: Connector, mender: Mender, folder: Folder, index: int, part: Part) -> dict[str, Any]:
    removed: Counter[str] = Counter()
    files: dict[str, list[dict[str, Any]]] = {"rows": [], "quarantine": []}
    mended: list[Place] = []
    for number, (rows, bad) in enumerate(in_groups(mender(connector.read(part), mended))):
        name = f"{index:05d}" + (f"-{number:05d}" if number else "")
        removed.update(bad.column(REASON).to_pylist())
        if rows.num_rows:
            files["rows"].append(folder.write_arrow(f"rows/{name}.arrow", rows).model_dump())
        if bad.num_rows:
            files["quarantine"].append(folder.write_parquet(f"quarantine/{name}.parquet", bad).model_dump())
    return {"removed": removed, "mended": len(mended), **files}


def _part_files(facts: list[dict[str, Any]], name: str) -> tuple[PartFile, ...]:
    return tuple(PartFile.model_validate(file) for fact in facts for file in fact[name])


def _no_rows(ledger: Ledger, quarantine: tuple[PartFile, ...], ctx: RunContext) -> DataError:
    reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.removed.items()) or "the source is empty"
    message = f"data.source must hold rows, got {ledger.rows_in} records and no usable one ({reasons})"
    if not quarantine:
        return DataError(f"{message}. Check data.source")
    first = read_parquet(ctx.output, quarantine[0], [SOURCE, LINE, DETAIL]).slice(0, 1).to_pylist()[0]
    place = f"{first[SOURCE]} line {first[LINE]}: {first[DETAIL]}"
    return DataError(f"{message}. See {ctx.location}/quarantine; the first: {place}")
