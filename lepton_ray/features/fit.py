"""Fit all features on one table of training rows. Nothing depends on the order of the rows or on how they are chunked.

Columns are fitted first, each alone. What is made of their results (principal components, the choice of features) is fitted on
the output of the graph that they compile to.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lepton_ray.artifacts.signature import Signature
from lepton_ray.features.categories import AnyCategoryState, Labels, fit_category
from lepton_ray.features.columns import codes_of, numbers_of, pixels_of, seconds_of, series_of, texts_of
from lepton_ray.features.combine import fit_cross, fit_pca, plan_polynomial
from lepton_ray.features.graph import category_ids_of, ids_of
from lepton_ray.features.images import ImageState, fit_image
from lepton_ray.features.numbers import NumberState, fit_number
from lepton_ray.features.parts import Part, kept_of, parts_of
from lepton_ray.features.prepare import FOLD_KEY, Preparer, encode_labels, to_arrays
from lepton_ray.features.select import select_features
from lepton_ray.features.series import AnySeriesState, SeriesState, fit_series
from lepton_ray.features.state import FEATURES, FeatureState
from lepton_ray.features.texts import TextState, fit_text
from lepton_ray.features.times import TimeState, fit_time
from lepton_ray.spec.data import DataSpec, ImageColumn, SeriesColumn
from lepton_ray.spec.features import SECTIONS, FeaturesSpec, PcaFeatures, SelectFeatures
from lepton_ray.spec.features_category import CategoryFeatures, FrequencyEncoding, TargetEncoding
from lepton_ray.spec.features_check import numbers_for
from lepton_ray.spec.features_content import ImageFeatures, SeriesFeatures, TextFeatures, TimeFeatures
from lepton_ray.spec.features_number import GroupImpute, NumberFeatures

_SELECT_BYTES = 1 << 28  # of features that the choice among them looks at
_LEAST_SELECT_ROWS = 10_000


def needs_keys(data: DataSpec, spec: FeaturesSpec) -> bool:
    """Whether the sample must have the column ``_fold_key``: for folds, or for an order that does not depend on how rows come."""
    sections = (spec.of(name, column.kind) for name, column in data.features.items())
    encodings = (section.encode for section in sections if isinstance(section, CategoryFeatures))
    is_folded = any(isinstance(encode, TargetEncoding | FrequencyEncoding) for encode in encodings)
    return is_folded or spec.pca is not None or spec.select is not None


def fit_features(
    sample: pa.Table, data: DataSpec, spec: FeaturesSpec, classes: Sequence[str], seed: int
) -> FeatureState:
    """Return the state fitted on a sample of the training rows.

    Args:
        sample: Typed rows; at least one. They have the column ``_fold_key`` where the spec ``needs_keys``.
        data: What the columns mean.
        spec: The transforms.
        classes: The labels, in the model's order; empty where the label is none of some classes.
        seed: Of the selections that draw at random.

    Raises:
        DataError: If the rows do not allow a transform that the spec asks for.
    """
    given = _Sample(sample, data, spec, _labels(sample, data, classes), _fold_keys(sample))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fitted = dict(zip(data.features, pool.map(given.fit_column, data.features), strict=True))
    of_kind: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS.values()}
    for name, column in data.features.items():
        of_kind[SECTIONS[column.kind]][name] = fitted[name]
    crosses = tuple(fit_cross([codes_of(sample.column(n)) for n in cross.columns], cross) for cross in spec.crosses)
    polynomial = None
    if spec.polynomial is not None:
        polynomial = plan_polynomial(numbers_for(spec.polynomial.columns, spec, data), spec.polynomial)
    state = FeatureState.model_validate({**of_kind, "crosses": crosses, "polynomial": polynomial})
    signature = Signature.of(data, None)
    if spec.pca is not None:
        state = _add_pca(state, given, spec.pca, signature)
    return _select(state, given, spec.select, signature, seed) if spec.select is not None else state


def _labels(sample: pa.Table, data: DataSpec, classes: Sequence[str]) -> Labels | None:
    if data.class_label is None or data.class_label not in sample.column_names:
        return None
    return Labels(tuple(classes), encode_labels(sample, data.class_label, classes))


def _fold_keys(sample: pa.Table) -> NDArray[np.uint64] | None:
    return sample.column(FOLD_KEY).to_numpy() if FOLD_KEY in sample.column_names else None


@dataclass(frozen=True)
class _Sample:
    """The rows to learn from, and what is to be learnt."""

    table: pa.Table
    data: DataSpec
    spec: FeaturesSpec
    labels: Labels | None
    fold_keys: NDArray[np.uint64] | None

    def fit_column(self, name: str) -> Any:
        """Return the state of one column."""
        column = self.data.features[name]
        section = self.spec.of(name, column.kind)
        return _FITS[column.kind](self, name, column, section)

    def order(self) -> NDArray[np.int64]:
        """Return the rows by key, then by label: an order that does not depend on how they came."""
        if self.fold_keys is None:
            raise ValueError(f"the sample must have the column {FOLD_KEY}")
        labels = self.labels.positions if self.labels else np.zeros(len(self.fold_keys), np.int64)
        return np.lexsort((labels, self.fold_keys))


def _fit_number(sample: _Sample, name: str, column: Any, section: NumberFeatures) -> NumberState:
    groups = codes_of(sample.table.column(section.impute.column)) if isinstance(section.impute, GroupImpute) else None
    return fit_number(name, numbers_of(sample.table.column(name)), section, groups)


def _fit_time(sample: _Sample, name: str, column: Any, section: TimeFeatures) -> TimeState:
    return fit_time(name, seconds_of(sample.table.column(name)), section)


def _fit_category(sample: _Sample, name: str, column: Any, section: CategoryFeatures) -> AnyCategoryState:
    return fit_category(codes_of(sample.table.column(name)), section, sample.labels, sample.fold_keys)


def _fit_text(sample: _Sample, name: str, column: Any, section: TextFeatures) -> TextState:
    return fit_text(name, texts_of(sample.table.column(name)), section)


def _fit_series(sample: _Sample, name: str, column: SeriesColumn, section: SeriesFeatures) -> AnySeriesState:
    return fit_series(name, series_of(sample.table.column(name), column.length), section)


def _fit_image(sample: _Sample, name: str, column: ImageColumn, section: ImageFeatures) -> ImageState:
    shape = (column.height, column.width, column.channels)
    is_learnt = section.normalise == "dataset"
    pixels = pixels_of(sample.table.column(name), shape) if is_learnt else np.empty((0, *shape), np.uint8)
    return fit_image(column, pixels, section)


_FITS: dict[str, Callable[[_Sample, str, Any, Any], Any]] = {
    "number": _fit_number,
    "time": _fit_time,
    "category": _fit_category,
    "text": _fit_text,
    "series": _fit_series,
    "image": _fit_image,
}


def _add_pca(state: FeatureState, sample: _Sample, spec: PcaFeatures, signature: Signature) -> FeatureState:
    """Return the state with principal components; the numbers they stand for are left out unless they are kept."""
    columns = numbers_for(spec.columns, sample.spec, sample.data)
    prepared = Preparer(FeatureState(numbers=state.numbers), signature, _threads())(sample.table)
    scaled = np.stack([prepared.column(name).to_numpy() for name in columns], axis=1)[sample.order()]
    pca = fit_pca(columns, scaled.astype(np.float64), spec)
    state = state.model_copy(update={"pca": pca})
    if spec.keep_columns:
        return state
    plain = [name for name, number in state.numbers.items() if number.edges is None]  # the first of all features
    width = sum(len(part.names) for part in parts_of(state))
    kept = tuple(place for place in range(width) if place >= len(plain) or plain[place] not in columns)
    return state.model_copy(update={"kept": kept})


def _select(
    state: FeatureState, sample: _Sample, spec: SelectFeatures, signature: Signature, seed: int
) -> FeatureState:
    """Return the state with the features that stay, by what training rows have of them: encodings out of fold."""
    parts = parts_of(state)
    kept = [place for places in _absolute(kept_of(state, parts), parts) for place in places]
    most = max(_LEAST_SELECT_ROWS, _SELECT_BYTES // (4 * max(len(kept), 1)))
    order = sample.order()[:most]
    table = sample.table.take(pa.array(order)).drop_columns([*state.images])
    flat = state.model_copy(
        update={
            "images": {},
            "texts": {n: t for n, t in state.texts.items() if n not in ids_of(state)},
            "categories": {n: c for n, c in state.categories.items() if n not in category_ids_of(state)},
            "series": {n: s for n, s in state.series.items() if isinstance(s, SeriesState)},
        }
    )
    features = to_arrays(Preparer(flat, signature, _threads())(table, is_training=True), flat)[FEATURES]
    is_binary = [part.is_binary for part in parts for _ in part.names]
    labels = sample.labels.positions[order] if sample.labels else np.empty(0, np.int64)
    chosen = select_features(features, [is_binary[place] for place in kept], labels, spec, seed)
    return state.model_copy(update={"kept": tuple(kept[place] for place in chosen)})


def _absolute(kept: Sequence[Sequence[int]], parts: Sequence[Part]) -> list[list[int]]:
    """Turn places in parts into places among all features."""
    starts = accumulate((len(part.names) for part in parts), initial=0)
    return [[start + place for place in places] for start, places in zip(starts, kept, strict=False)]


def _threads() -> int:
    return os.cpu_count() or 1
