"""Snapshots: what a stage has finished, read from its manifest alone, and its rows.

Everything goes through pyarrow filesystems. A folder without a manifest is no snapshot: a write that was aborted is never
seen here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lepton_ray.artifacts.kinds import PartFile
from lepton_ray.artifacts.ledger import Ledger
from lepton_ray.artifacts.profile import ColumnProfile, ImageProfile, Profile, SeriesProfile
from lepton_ray.artifacts.store import MANIFEST
from lepton_ray.core.errors import ArtifactError
from lepton_ray.data.hashing import hash_columns
from lepton_ray.data.parts import Folder, read_part
from lepton_ray.data.profile import profile
from lepton_ray.data.sample import in_sample, rows_within
from lepton_ray.spec.data import Column

STAGES = ("ingest", "clean", "featurize")
PROFILE = "profile.json"
"""File of a snapshot with a profile of the rows that the stage took in."""
NOT_SPLIT = "rows"
"""Name of the only split where nothing is split yet."""
_SAMPLE_BYTES = 1 << 30
_AMBIGUOUS = ("text", "ignored", "image")
_COLUMNS: TypeAdapter[dict[str, Column]] = TypeAdapter(dict[str, Column])


class Snapshot(BaseModel):
    """Facts about a finished step that has rows."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid")

    location: str
    """Folder, in its filesystem."""
    run: str
    stage: str
    key: str
    digest: str
    finished: str
    """ISO 8601, UTC."""
    inputs: dict[str, str]
    """Digests of the artifacts that it was made from, by name."""
    ledger: Ledger | None = None
    splits: dict[str, tuple[PartFile, ...]]
    """Files of its rows, by split."""
    quarantine: tuple[PartFile, ...] = ()
    files: dict[str, str]
    """Digest of each of its files."""
    findings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``RUN/STAGE/KEY``."""
        return f"{self.run}/{self.stage}/{self.key}"

    @property
    def parts(self) -> list[PartFile]:
        """Files of all its rows."""
        return [part for parts in self.splits.values() for part in parts]

    @property
    def split_rows(self) -> dict[str, int]:
        """Rows by split."""
        return {name: sum(part.rows for part in parts) for name, parts in self.splits.items()}

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.split_rows.values())

    @property
    def size_bytes(self) -> int:
        """Size of its rows and quarantine."""
        return sum(part.num_bytes for part in (*self.parts, *self.quarantine))

    def to_json(self) -> dict[str, Any]:
        """For programs: without the list of files."""
        facts = self.model_dump(mode="json", exclude={"splits", "quarantine", "files"})
        return {**facts, "rows": self.rows, "split_rows": self.split_rows, "size_bytes": self.size_bytes}


def read_snapshot(folder: Folder) -> Snapshot | None:
    """Return the snapshot in a folder, or None if it has no manifest.

    Raises:
        ArtifactError: If the manifest is damaged or of another version.
    """
    if not folder.has(MANIFEST):
        return None
    try:
        return _to_snapshot(folder, folder.read_json(MANIFEST))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{folder.path}/{MANIFEST} must be a manifest of rows that this version reads, got something else "
            f"({type(error).__name__}). Run its spec again"
        ) from error


def _to_snapshot(folder: Folder, manifest: Mapping[str, Any]) -> Snapshot:
    """Only what is shown here is read, so that snapshots of an earlier version can be listed and compared too."""
    facts = manifest["artifact"]
    return Snapshot.model_validate(
        {
            **{name: manifest[name] for name in ("stage", "key", "digest", "finished", "inputs", "files")},
            "location": folder.path,
            "run": folder.path.split("/")[-3] if folder.path.count("/") > 1 else "",
            "ledger": facts.get("ledger"),
            "splits": facts["splits"] if "splits" in facts else {NOT_SPLIT: facts["rows"]},
            "quarantine": facts.get("quarantine", ()),
            "findings": facts.get("findings", ()),
        }
    )


def list_folders(storage: Folder, run: str | None = None, stages: tuple[str, ...] = STAGES) -> Iterator[Folder]:
    """Yield the folders of steps in a storage, finished or not, by run, stage and key."""
    for run_name in _subfolders(storage) if run is None else [run]:
        for stage in stages:
            steps = storage.below(f"{run_name}/{stage}")
            for key in _subfolders(steps):
                yield steps.below(key)


def _subfolders(folder: Folder) -> list[str]:
    infos = folder.filesystem.get_file_info(pafs.FileSelector(folder.path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def read_rows(folder: Folder, snapshot: Snapshot, max_bytes: int = _SAMPLE_BYTES) -> pa.Table:
    """Return the declared columns of a snapshot's rows: all, or a uniform sample of about so many bytes.

    Raises:
        ArtifactError: If a part is gone, or no part can be read.
    """
    if not snapshot.parts:
        return pa.table({})
    try:
        tables = [_sample(folder, part, snapshot, max_bytes) for part in snapshot.parts]
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(
            f"{snapshot.location} must hold the parts that its manifest names, got: {error}. "
            f"Run its spec with --from {snapshot.stage}"
        ) from error
    return pa.concat_tables(tables)


def _sample(folder: Folder, part: PartFile, snapshot: Snapshot, max_bytes: int) -> pa.Table:
    table = read_part(folder, part)
    table = table.select([name for name in table.column_names if not name.startswith("_")])
    most = rows_within(table.schema, max_bytes, snapshot.parts)
    if snapshot.rows <= most:
        return table
    return table.filter(pa.array(in_sample(hash_columns(table.columns, table.num_rows), snapshot.rows, most)))


def columns_of(schema: pa.Schema, known: Mapping[str, Column] | None = None) -> dict[str, Column]:
    """Return the kinds of columns as their Arrow types tell them.

    Args:
        schema: Types of the columns.
        known: Kinds for what the type cannot tell: text or ignored, and the shape of an image. Without it a text that is
            ignored counts as text, an image as ignored.
    """
    kinds = _COLUMNS.validate_python({field.name: _kind_of(field.type) for field in schema})
    for name in kinds.keys() & (known or {}).keys():
        if kinds[name].kind in _AMBIGUOUS and (column := (known or {})[name]).kind in _AMBIGUOUS:
            kinds[name] = column
    return kinds


def _kind_of(kind: pa.DataType) -> dict[str, Any]:
    types = pa.types
    if types.is_fixed_size_list(kind) and types.is_floating(kind.value_type):
        return {"kind": "series", "length": kind.list_size}
    if types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind):
        return {"kind": "number"}
    if types.is_dictionary(kind) or types.is_boolean(kind):
        return {"kind": "category"}
    if types.is_string(kind) or types.is_large_string(kind):
        return {"kind": "text"}
    return {"kind": "time" if types.is_timestamp(kind) else "ignored"}


def known_columns(folder: Folder, snapshot: Snapshot) -> dict[str, Column]:
    """Return the kinds of columns where a snapshot has a profile, which clean writes of the rows that it took in.

    Raises:
        ArtifactError: If the profile is damaged.
    """
    if PROFILE not in snapshot.files:
        return {}
    try:
        with folder.filesystem.open_input_stream(f"{folder.path}/{PROFILE}") as stream:
            seen = Profile.read(stream.read())
    except (OSError, ValidationError) as error:
        raise ArtifactError(
            f"{folder.path}/{PROFILE} must be a profile that this version wrote, got {type(error).__name__}. "
            f"Run its spec with --from {snapshot.stage}"
        ) from error
    return _COLUMNS.validate_python({name: _kind_as_seen(column) for name, column in seen.columns.items()})


def _kind_as_seen(column: ColumnProfile) -> dict[str, Any]:
    match column:
        case ImageProfile(shape=(height, width, channels)):
            return {"kind": "image", "height": height, "width": width, "channels": channels}
        case SeriesProfile(length=length):
            return {"kind": "series", "length": length}
        case _:
            return {"kind": column.kind}


def profile_snapshot(folder: Folder, snapshot: Snapshot, known: Mapping[str, Column]) -> Profile:
    """Return a profile of all rows of a snapshot, or of a uniform sample of them.

    Args:
        folder: Of the snapshot.
        snapshot: What to look at.
        known: Kinds for what Arrow types cannot tell; see ``columns_of``.

    Raises:
        ArtifactError: If its rows cannot be read.
    """
    table = read_rows(folder, snapshot)
    return profile(table, columns_of(table.schema, known), snapshot.rows)
