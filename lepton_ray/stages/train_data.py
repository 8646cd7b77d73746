"""The prepared rows as training takes them: in memory where they fit, read from their files as it goes on where they do not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from lepton_ray.artifacts.kinds import FeatureSet, PartFile, Target
from lepton_ray.artifacts.signature import Signature
from lepton_ray.core.errors import DataError, SpecError
from lepton_ray.data import in_process
from lepton_ray.data.parts import Folder, read_parts, read_row_group, row_groups
from lepton_ray.features.columns import codes_of
from lepton_ray.features.state import FeatureState
from lepton_ray.spec.model import TrainSpec
from lepton_ray.stages.blocks import folder_of
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.featurize import GROUP, LABEL, Split, feature_names, load_split, split_of
from lepton_ray.train.rows import Inputs, Labels, TrainData
from lepton_ray.train.streamed.data import StreamedData
from lepton_ray.train.streamed.reading import StoredRows

_LABEL_BYTES = 8


def load_data(feature_set: FeatureSet, train: TrainSpec, ctx: RunContext) -> TrainData | StreamedData:
    """Read the splits for training and validation, or find out how to.

    Raises:
        SpecError: If the rows must be streamed and cannot be.
        DataError: If there are only anomalies, or no two rows to compare.
    """
    num_bytes = _num_bytes(feature_set)
    size = f"{num_bytes / (1 << 20):,.1f} MiB of model input"
    limit = f"train.max_memory_bytes ({train.max_memory_bytes / (1 << 20):,.1f} MiB)"
    fits = num_bytes <= train.max_memory_bytes
    if train.data == "memory" or (train.data == "auto" and fits):
        reason = f"within {limit}" if fits else "as train.data says"
        ctx.update(f"rows in memory: {size}, {reason}")
        return _read_all(feature_set, ctx)
    is_ranking = target_of(feature_set).task == "ranking"
    if train.framework == "jax" or is_ranking:
        what = "data.ranking, whose pairs may lie anywhere" if is_ranking else "framework 'jax', which streams nothing"
        rule = f"train.data must be 'memory' with {what}"
        raise SpecError([f"{rule}, got {train.data!r} and {size}, more than {limit}. Raise the limit"])
    ctx.update(f"rows streamed: {size}, {'as train.data says' if fits else f'more than {limit}'}")
    rows, val_rows = (_find_rows(feature_set, split, ctx) for split in ("train", "val"))
    head = _train_data(feature_set, rows.reader.read(0), val_rows.reader.read(0))
    data = StreamedData(rows, val_rows, head, train.shuffle_window_bytes)
    if train.augment is not None:
        data.num_epoch_rows(train.augment.balance)  # what cannot be streamed is said here, not by a worker
    return data


def target_of(feature_set: FeatureSet) -> Target:
    """Return what the model of a run predicts.

    Raises:
        ValueError: If there is no label; the spec is not valid then.
    """
    if feature_set.target is None:
        raise ValueError("a model must have a label")
    return feature_set.target


def _num_bytes(feature_set: FeatureSet) -> int:
    rows = sum(feature_set.split_rows[split] for split in ("train", "val"))
    return rows * (_LABEL_BYTES + sum(given.row_bytes for given in feature_set.inputs))


def _read_all(feature_set: FeatureSet, ctx: RunContext) -> TrainData:
    target = target_of(feature_set)
    train, val = (load_split(feature_set, split, ctx) for split in ("train", "val"))
    if target.task == "anomaly_detection":
        train, val = _only_normal(train, target), _only_normal(val, target)
    data = _train_data(feature_set, _scale(train, target), _scale(val, target))
    return _with_groups(data, feature_set, ctx) if target.task == "ranking" else data


def _with_groups(data: TrainData, feature_set: FeatureSet, ctx: RunContext) -> TrainData:
    """Say which rows are compared."""
    folder = folder_of(feature_set, ctx)
    columns = {
        split: read_parts(folder, feature_set.splits[split], [GROUP]).column(GROUP) for split in ("train", "val")
    }
    codes = {split: codes_of(column).positions for split, column in columns.items()}
    data = replace(data, group_train=codes["train"], group_val=codes["val"])
    for split, num_pairs in (("train", data.num_epoch_rows(None)), ("val", data.num_val_rows)):
        if not num_pairs:
            raise DataError(
                f"data.ranking.group_by must make groups with different labels in the split {split}, got none. "
                "Name another column, or change data.split"
            )
    return data


def _train_data(feature_set: FeatureSet, train: tuple[Inputs, Labels], val: tuple[Inputs, Labels]) -> TrainData:
    """Say what is known of the columns of two splits."""
    signature = Signature.model_validate_json((feature_set.folder / "signature.json").read_bytes())
    numbers = tuple(name if name in signature.of_kind("number") else None for name in feature_names(feature_set))
    ids = tuple(i.name for i in feature_set.inputs if i.kind == "ids")
    task = target_of(feature_set).task
    data = TrainData(*train, *val, task, number_columns=numbers, category_ids=ids)
    tokens = next((i for i in feature_set.inputs if i.kind == "tokens"), None)
    return data if tokens is None else replace(data, unknown_id=tokens.unknown_id, padding_id=tokens.padding_id)


def _only_normal(split: Split, target: Target) -> Split:
    """Return the rows of a split that count as normal.

    Raises:
        DataError: If there are none.
    """
    normal = _normal_rows(split, target)
    if not len(normal[1]):
        raise without_normal(target)
    return normal


def _normal_rows(split: Split, target: Target) -> Split:
    x, y = split
    rows = np.flatnonzero(target.is_normal(y))
    return {name: values[rows] for name, values in x.items()}, np.zeros(len(rows), np.int64)


def without_normal(target: Target) -> DataError:
    """Return the error of a split that has no row that counts as normal."""
    return DataError(
        f"data.anomalies.normal_class ({target.normal_class}) must have rows in each split, got none. Change it, or the split"
    )


def _scale(split: Split, target: Target) -> Split:
    x, y = split
    if target.task == "ranking":  # only their order counts, and float32 would take great ones for equal
        return x, np.unique(y, return_inverse=True)[1].astype(np.float32)
    return (x, ((y - target.mean) / target.std).astype(np.float32)) if target.task == "regression" else split


def _find_rows(feature_set: FeatureSet, split: str, ctx: RunContext) -> StoredRows:
    """Look where row groups begin, and where only some rows count, how many do.

    Raises:
        DataError: If none do.
    """
    target, folder = target_of(feature_set), folder_of(feature_set, ctx)
    parts = feature_set.splits[split]
    counts = dict(in_process.map_parts(partial(_count_rows, folder, target), parts))
    groups = [
        (part, number, rows)
        for index, part in enumerate(parts)
        for number, rows in enumerate(counts[index])
        if rows  # a group without any would be no part of an epoch
    ]
    if not groups:
        raise without_normal(target)
    state = (feature_set.folder / "state.json").read_text(encoding="utf-8")
    reader = PreparedRows(folder, tuple((part, number) for part, number, _ in groups), state, target)
    return StoredRows(reader, tuple(rows for _, _, rows in groups))


def _count_rows(folder: Folder, target: Target, part: PartFile) -> list[int]:
    """Return how many rows of each row group are trained on."""
    rows = row_groups(folder, part)
    if target.normal_class is None:
        return rows
    return list(_count_normal(folder, target, part, len(rows)))


def _count_normal(folder: Folder, target: Target, part: PartFile, num_groups: int) -> Iterator[int]:
    for number in range(num_groups):
        _, y = split_of(read_row_group(folder, part, number, [LABEL]))
        yield int(target.is_normal(y).sum())


@dataclass(frozen=True)
class PreparedRows:
    """Reads the row groups of a prepared split, as ``streamed.reading.Reader`` says; plain data, pickled to where it is done."""

    folder: Folder
    groups: tuple[tuple[PartFile, int], ...]
    """The file of each group, and its number there."""
    state: str
    """Of the features, JSON."""
    target: Target

    def read(self, group: int) -> Split:
        """Return a group's rows, those that are trained on."""
        split = split_of(read_row_group(self.folder, *self.groups[group]), _parse_state(self.state))
        return _scale(self._chosen(split), self.target)

    def read_labels(self, group: int) -> Any:
        """Return their labels alone."""
        split = split_of(read_row_group(self.folder, *self.groups[group], [LABEL]))
        return _scale(self._chosen(split), self.target)[1]

    def _chosen(self, split: Split) -> Split:
        return _normal_rows(split, self.target) if self.target.task == "anomaly_detection" else split


@lru_cache(maxsize=4)
def _parse_state(state: str) -> FeatureState:
    """Return the state that all groups of a split share."""
    return FeatureState.model_validate_json(state)
