"""The held-out rows, however many there are: read group by group; what is kept of a row is its label and its answer."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import Dataset, FeatureSet, PartFile
from lepton_ray.artifacts.predictor import Predictor
from lepton_ray.artifacts.signature import Feeds
from lepton_ray.artifacts.tables import to_feeds
from lepton_ray.data import in_process
from lepton_ray.data.hashing import hash_columns
from lepton_ray.data.parts import Folder, read_groups, read_parquet
from lepton_ray.data.sample import RowSample
from lepton_ray.features.state import FeatureState
from lepton_ray.stages.blocks import folder_of
from lepton_ray.stages.context import RunContext
from lepton_ray.stages.featurize import LABEL, Split, load_state, split_of

BASELINE_BYTES = 512 << 20
"""Of model input, for a model that takes all its rows at once."""
_TYPED_BYTES = 256 << 20  # of rows as they are after cleaning
_PLACE = "_place"


def answer(predictor: Predictor, dataset: Dataset, split: str, ctx: RunContext) -> Feeds:
    """Return the numbers that a package gives for all rows of a split, in their order; no texts, which its numbers decide."""
    return _each_part(partial(_answer_part, predictor, folder_of(dataset, ctx)), dataset.splits[split])


def _answer_part(predictor: Predictor, folder: Folder, part: PartFile) -> Feeds:
    found = [predictor.run(to_feeds(rows, predictor.signature)) for rows in read_groups(folder, part)]
    return _join([{name: values for name, values in feeds.items() if values.dtype != object} for feeds in found])


def answer_prepared(
    predict: Callable[[dict[str, NDArray[Any]]], Feeds], feature_set: FeatureSet, split: str, ctx: RunContext
) -> Feeds:
    """Return what a function of the model inputs gives for all rows of a split, in their order."""
    state = load_state(feature_set)
    return _each_part(partial(_predict_part, predict, folder_of(feature_set, ctx), state), feature_set.splits[split])


def _predict_part(
    predict: Callable[[dict[str, NDArray[Any]]], Feeds], folder: Folder, state: FeatureState, part: PartFile
) -> Feeds:
    return _join([predict(split_of(rows, state)[0]) for rows in read_groups(folder, part)])


def labels(feature_set: FeatureSet, split: str, ctx: RunContext) -> NDArray[Any]:
    """Return the labels of a split."""
    folder = folder_of(feature_set, ctx)
    return np.concatenate([split_of(read_parquet(folder, part, [LABEL]))[1] for part in feature_set.splits[split]])


def sample(dataset: Dataset, split: str, ctx: RunContext) -> tuple[pa.Table, NDArray[np.int64]]:
    """Return the rows of a split with their places in it, which ascend: all, or a uniform sample of more than memory should hold.

    Sources are often sorted, by time or class for one: their first rows would say nothing of the others.
    """
    kept, first = RowSample(_TYPED_BYTES), 0
    for rows in _groups(folder_of(dataset, ctx), dataset.splits[split]):
        hashes = hash_columns([rows.column(name) for name in rows.column_names if not name.startswith("_")], len(rows))
        kept.add(rows.append_column(_PLACE, pa.array(np.arange(first, first + len(rows)))), hashes)
        first += len(rows)
    chosen = kept.rows.unify_dictionaries()
    return chosen.drop_columns([_PLACE]), chosen.column(_PLACE).to_numpy()


def take(artifact: Dataset | FeatureSet, split: str, places: Sequence[int], ctx: RunContext) -> pa.Table:
    """Return some rows of a split by their places in it, which ascend."""
    folder, first, tables = folder_of(artifact, ctx), 0, []
    wanted = np.asarray(places)
    for rows in _groups(folder, artifact.splits[split]):
        here = wanted[(wanted >= first) & (wanted < first + len(rows))] - first
        tables.append(rows.take(pa.array(here)))
        first += len(rows)
        if first > wanted[-1]:
            break
    return pa.concat_tables(tables).unify_dictionaries()


def take_prepared(feature_set: FeatureSet, split: str, places: Sequence[int], ctx: RunContext) -> Split:
    """Return the model inputs and labels of some rows of a split, as ``take`` does."""
    return split_of(take(feature_set, split, places, ctx), load_state(feature_set))


def sample_prepared(feature_set: FeatureSet, split: str, ctx: RunContext) -> Split:
    """Return the model inputs and labels of a split: of all rows, or of as many, evenly spread, as memory should hold."""
    row_bytes = sum(given.row_bytes for given in feature_set.inputs)
    step = -(-feature_set.split_rows[split] * row_bytes // BASELINE_BYTES) or 1
    folder, first, tables = folder_of(feature_set, ctx), 0, []
    for rows in _groups(folder, feature_set.splits[split]):
        tables.append(rows if step == 1 else rows.take(pa.array(np.arange(-first % step, len(rows), step))))
        first += len(rows)
    return split_of(pa.concat_tables(tables), load_state(feature_set))


def _groups(folder: Folder, parts: Sequence[PartFile]) -> Iterator[pa.Table]:
    return (rows for part in parts for rows in read_groups(folder, part))


def _each_part(function: Callable[[PartFile], Feeds], parts: Sequence[PartFile]) -> Feeds:
    filled = [part for part in parts if part.rows]  # one without rows has no group that could be answered
    found = dict(in_process.map_parts(function, filled))
    return _join([found[index] for index in range(len(filled))])


def _join(found: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([feeds[name] for feeds in found]) for name in found[0]}
