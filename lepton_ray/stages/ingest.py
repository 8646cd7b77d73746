"""ingest: the source's records -> raw rows, and quarantine for what is no row."""

from collections import Counter
from collections.abc import Iterator
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lepton_ray.artifacts.kinds import RawDataset
from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.artifacts.store import open_filesystem
from lepton_ray.core.errors import DataError
from lepton_ray.data import sources
from lepton_ray.data.block import QUARANTINE_SCHEMA, REASON, raw_schema
from lepton_ray.data.clean import to_quarantine
from lepton_ray.engine.session import connect
from lepton_ray.spec.data import DataSpec
from lepton_ray.stages.context import RunContext

VERSION = 1
_LOCAL_LIMIT_BYTES = 1 << 30


def ingest(data: DataSpec, ctx: RunContext) -> RawDataset:
    """Read all records of the source.

    Raises:
        DataError: If there is no record that is a row of the table.
    """
    filesystem, root = open_filesystem(data.source.uri)
    listing = sources.list_source(data, filesystem, root)
    parts = sources.split_into_parts(data, listing)
    read = partial(sources.read_part, data, filesystem, root)
    if uses_ray(data, listing.size_bytes):
        connect()
        from lepton_ray.data import on_ray  # noqa: PLC0415  Ray is imported by connect

        blocks = on_ray.read_parts(read, parts)
    else:
        blocks = (block for part in parts for block in read(part))
    ledger = _write(blocks, data, ctx)
    if ledger.rows_kept == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.removed.items()) or "the source is empty"
        raise DataError(
            f"data.source must hold rows, got {ledger.rows_in} records in {data.source.uri!r} and no usable one ({reasons}). "
            f"See {ctx.location}/quarantine.parquet" + _example(ctx)
        )
    return RawDataset(ledger=ledger, ignored_columns=tuple(sources.unread_columns(data, listing)))


def uses_ray(data: DataSpec, size_bytes: int) -> bool:
    """Whether files of this size go through Ray Data; what fits in memory does not pay for a cluster."""
    return data.engine == "ray" or (data.engine == "auto" and size_bytes >= _LOCAL_LIMIT_BYTES)


def fingerprint(data: DataSpec) -> list[tuple[str, int, int]]:
    """Return what the stage's result depends on outside of the spec: path, size and time of each file."""
    filesystem, root = open_filesystem(data.source.uri)
    listing = sources.list_source(data, filesystem, root)
    return [(file.path, file.size_bytes, file.modified_ns) for file in listing.files]


def _write(blocks: Iterator[pa.Table], data: DataSpec, ctx: RunContext) -> Ledger:
    rows_in = 0
    removed: Counter[str] = Counter()
    with (
        pq.ParquetWriter(ctx.folder / "rows.parquet", raw_schema(data.columns), compression="zstd") as rows,
        pq.ParquetWriter(ctx.folder / "quarantine.parquet", QUARANTINE_SCHEMA, compression="zstd") as quarantine,
    ):
        for block in blocks:
            is_row = pc.is_null(block.column(REASON))
            good, bad = block.filter(is_row), block.filter(pc.invert(is_row))
            rows_in += block.num_rows
            removed.update(bad.column(REASON).to_pylist())
            if good.num_rows:
                rows.write_table(good)
            if bad.num_rows:
                quarantine.write_table(to_quarantine(bad))
            ctx.update(f"{rows_in} records read")
    return Ledger.of(rows_in, removed)


def _example(ctx: RunContext) -> str:
    bad = pq.read_table(ctx.folder / "quarantine.parquet").slice(0, 1).to_pylist()
    return f"; the first: {bad[0]['_source']} line {bad[0]['_line']}: {bad[0]['_detail']}" if bad else ""
