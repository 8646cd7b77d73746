"""How much data a run has to do with, as far as it can be known without reading any."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_ray.artifacts.kinds import Dataset, FeatureSet, ModelInput, RawDataset
from lepton_ray.artifacts.store import Store
from lepton_ray.core.errors import LeptonError
from lepton_ray.cost.bounds import Bounds
from lepton_ray.data.connectors import open_connector
from lepton_ray.data.connectors.filesystems import COMPRESSED
from lepton_ray.pipeline import estimate
from lepton_ray.pipeline.fates import Fate, without_prepare
from lepton_ray.spec.run import RunSpec


@dataclass(frozen=True)
class Sizes:
    """How much data there is; None where nobody knows."""

    source_bytes: int | None
    rows: Bounds | None
    """That ``ingest`` keeps."""
    rows_from: str
    typed: Bounds
    """Bytes of those rows, typed."""
    splits: Mapping[str, Bounds]
    """Rows by split; empty where nobody knows."""
    input_bytes: int | None
    """Of the model input of a row."""


def find_sizes(spec: RunSpec, store: Store, fates: list[Fate]) -> Sizes:
    """Find out how much data there is from what is done already, from past runs, and from the source's size."""
    there = {fate.stage.name: fate.artifact for fate in fates}
    source_bytes, kind = _look_at_source(spec)
    raw, dataset, features = there.get("ingest"), there.get("clean"), there.get("featurize")
    of_row = estimate.row_bytes(spec.data.columns)
    if isinstance(raw, RawDataset):
        rows: Bounds | None = Bounds.exactly(raw.ledger.rows_kept)
        return Sizes(
            source_bytes,
            rows,
            "counted by ingest",
            Bounds.exactly(sum(part.num_bytes for part in raw.rows)),
            _splits(spec, rows, dataset),
            _input_bytes(store, features),
        )
    rows, rows_from = _guess_rows(spec, store, source_bytes, kind)
    typed = estimate.typed_bytes(rows, of_row, source_bytes, kind)
    return Sizes(source_bytes, rows, rows_from, typed, _splits(spec, rows, None), _input_bytes(store, None))


def _look_at_source(spec: RunSpec) -> tuple[int | None, str]:
    """Return the size of the source, and its kind; a text that is compressed says little of what is in it."""
    connector = open_connector(without_prepare(spec).data)
    try:
        size = connector.size_bytes()
    except LeptonError:
        return None, spec.data.source.kind  # it is written first, or told of when the run begins
    is_packed = any(file.path.endswith(COMPRESSED) for file in getattr(connector, "files", ()))
    return size, "packed" if is_packed else spec.data.source.kind


def _guess_rows(spec: RunSpec, store: Store, source_bytes: int | None, kind: str) -> tuple[Bounds | None, str]:
    for past in store.manifests("ingest"):
        work = past.get("work") or {}
        if source_bytes and work.get("bytes") and work.get("rows"):
            rows = work["rows"] * source_bytes / work["bytes"]
            return Bounds.exactly(round(rows)), "those of the last ingest, scaled by the source's bytes"
    rows = estimate.rows_within(source_bytes, kind, len(spec.data.columns))
    return rows, "as many as the source's bytes can hold" if rows else "not known before the source is read"


def _splits(spec: RunSpec, rows: Bounds | None, dataset: Any) -> dict[str, Bounds]:
    """Return rows by split; what ``clean`` may take away is bounded, more of it stops the run."""
    if isinstance(dataset, Dataset):
        return {split: Bounds.exactly(count) for split, count in dataset.split_rows.items()}
    if rows is None:
        return {}
    shares = {"train": spec.data.split.train, "val": spec.data.split.val, "test": spec.data.split.test}
    least = 1 - spec.clean.max_removed_fraction
    return {split: rows.times(share * least, share) for split, share in shares.items()}


def _input_bytes(store: Store, features: Any) -> int | None:
    """Return the bytes of a row of model input: of this run's features, or the last ones that were fitted."""
    if isinstance(features, FeatureSet):
        return sum(given.row_bytes for given in features.inputs)
    for past in store.manifests("featurize"):
        try:
            return sum(ModelInput.model_validate(one).row_bytes for one in past["artifact"]["inputs"])
        except (KeyError, TypeError, ValueError):
            continue
    return None
