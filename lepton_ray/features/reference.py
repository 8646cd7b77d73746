"""The reference sketches of the training rows and of a package's answers, which drift is measured against."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lepton_ray.artifacts import statistics
from lepton_ray.artifacts.reference import brightness, summarise_output
from lepton_ray.artifacts.signature import Feeds
from lepton_ray.artifacts.statistics import Values
from lepton_ray.artifacts.tags import count_tags
from lepton_ray.features.columns import Codes, codes_of, numbers_of, pixels_of, seconds_of, series_of
from lepton_ray.spec.data import DataSpec, FeatureColumn, ImageColumn, SeriesColumn, TagsColumn

_NUM_BINS = 10
_MAX_REFERENCE_CATEGORIES = 100
_NEAR = 1e-5  # of an answer's size, or of the spread of numbers: what another processor may give beside is less


def reference_sketches(sample: pa.Table, data: DataSpec) -> dict[str, Any]:
    """Return a sketch of each feature of the sample, and of the label."""
    names = [name for name, c in data.features.items() if name in sample.column_names and c.kind in _SKETCHES]
    columns = [data.features[name] for name in names]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sketches = pool.map(lambda name, c: _SKETCHES[c.kind](sample.column(name), c), names, columns)
    features = dict(zip(names, sketches, strict=True))
    reference: dict[str, Any] = {"rows": sample.num_rows, "features": features}
    if data.label is not None and data.label in sample.column_names:
        column = data.all_columns[data.label]
        reference["label"] = _SKETCHES[column.kind](sample.column(data.label), column)
    return reference


def output_sketches(outputs: Feeds) -> dict[str, Any]:
    """Return sketches of what a package answers, of held-out rows: those that it has learnt would look surer than any to come."""
    summaries = {name: summarise_output(values) for name, values in outputs.items()}
    rows = len(next(iter(summaries.values())))
    tensors = {
        name: _sketch_texts(column.tolist())
        if column.dtype == object
        else _sketch_values("number", column, _NEAR * _size_of(outputs[name], column))
        for name, column in summaries.items()
    }
    return {"rows": rows, "tensors": tensors}


def _size_of(values: NDArray[Any], summary_N: Values) -> float:
    """Return what answers are exact in shares of: their size, or the spread of numbers, which are unscaled behind the model."""
    if values.dtype == np.float32:
        return statistics.statistic(np.abs(summary_N), "median")
    return statistics.spread(summary_N, statistics.mean(summary_N))


def _sketch_texts(texts: list[str]) -> dict[str, Any]:
    return _sketch_counts(Counter(text for text in texts if text), len(texts))


def _sketch_number(column: pa.ChunkedArray, _: Any) -> dict[str, Any]:
    return _sketch_values("number", numbers_of(column))


def _sketch_time(column: pa.ChunkedArray, _: Any) -> dict[str, Any]:
    """Times count as seconds since 1970 UTC."""
    return _sketch_values("time", seconds_of(column))


def _sketch_series(column: pa.ChunkedArray, spec: FeatureColumn) -> dict[str, Any]:
    """All values of all rows count alike."""
    length = spec.length if isinstance(spec, SeriesColumn) else 1
    return _sketch_values("series", series_of(column, length).ravel())


def _sketch_text(column: pa.ChunkedArray, _: Any) -> dict[str, Any]:
    """Lengths in characters of the texts that are not missing."""
    lengths = pc.utf8_length(column).cast(pa.float64()).to_numpy().copy()
    lengths[lengths == 0] = np.nan
    return _sketch_values("text", lengths)


def _sketch_image(column: pa.ChunkedArray, spec: FeatureColumn) -> dict[str, Any]:
    """Of the mean pixel of each image."""
    shape = (spec.height, spec.width, spec.channels) if isinstance(spec, ImageColumn) else ()
    return _sketch_values("image", brightness(pixels_of(column, shape)))


def _sketch_values(kind: str, values_N: Values, near: float = 0.0) -> dict[str, Any]:
    present = statistics.present(values_N)
    sketch: dict[str, Any] = {"kind": kind, "missing_fraction": 1 - len(present) / max(len(values_N), 1)}
    if len(present) == 0:
        return sketch
    mean = statistics.mean(present)
    inner = _inner_edges(present, near)
    reached = [len(present), *(int(np.count_nonzero(present >= edge)) for edge in inner), 0]
    counts = np.array(reached[:-1]) - reached[1:]
    return sketch | {
        "mean": mean,
        "std": statistics.spread(present, mean),
        "min": float(present.min()),
        "max": float(present.max()),
        "bin_edges": inner,
        "bin_fractions": (counts / len(present)).tolist(),
    }


def _inner_edges(values_N: Values, near: float) -> list[float]:
    """Return where bins of about as many rows each begin, but the first. A value that fills a bin by itself has it for itself.

    Args:
        values_N: At least one.
        near: Values this near to each other are one; a bin then begins halfway between two that are not.
    """
    quantiles = sorted(set(statistics.quantiles(values_N, np.linspace(0, 1, _NUM_BINS + 1).tolist())))
    if len(quantiles) == 1:  # other values have to be seen: below, the same, above
        return [quantiles[0] - near, float(np.nextafter(quantiles[0] + near, np.inf))]
    edges = set(quantiles[1:-1])
    for value in quantiles:
        count = np.count_nonzero((values_N >= value - near) & (values_N <= value + near))
        if count > 1 and count * _NUM_BINS >= len(values_N):
            edges |= {value, float(values_N.min(initial=np.inf, where=values_N > value + near))}
    edges = {edge for edge in edges if quantiles[0] < edge - near < np.inf}
    if near:
        edges = {_halfway(values_N, edge - near) for edge in edges}
    return sorted(edges)


def _halfway(values_N: Values, place: float) -> float:
    """Return the middle between the next values on both sides of a place."""
    below, above = (
        values_N.max(initial=-np.inf, where=values_N < place),
        values_N.min(initial=np.inf, where=values_N >= place),
    )
    return float(below / 2 + above / 2)


def _sketch_category(column: pa.ChunkedArray, _: Any) -> dict[str, Any]:
    codes = codes_of(column)
    return _sketch_counts(_counts(codes), len(codes.positions))


def _sketch_counts(counts: Mapping[str, int], rows: int) -> dict[str, Any]:
    total = max(rows, 1)
    top = sorted(counts, key=lambda value: (-counts[value], value))[:_MAX_REFERENCE_CATEGORIES]
    return {
        "kind": "category",
        "missing_fraction": (rows - sum(counts.values())) / total,
        "fractions": {value: counts[value] / total for value in top},
    }


def _sketch_tags(column: pa.ChunkedArray, spec: TagsColumn) -> dict[str, Any]:
    """Fractions are of the rows that have a tag; they may sum up to more or less than 1."""
    total = max(len(column), 1)
    counts = count_tags(column, spec)
    top = sorted(counts, key=lambda tag: (-counts[tag], tag))[:_MAX_REFERENCE_CATEGORIES]
    return {
        "kind": "tags",
        "missing_fraction": column.null_count / total,
        "fractions": {tag: counts[tag] / total for tag in top},
    }


def _counts(codes: Codes) -> dict[str, int]:
    counted = zip(codes.values, codes.counts().tolist(), strict=True)
    return {value: count for value, count in counted if count}


_SKETCHES: dict[str, Callable[[pa.ChunkedArray, Any], dict[str, Any]]] = {
    "number": _sketch_number,
    "category": _sketch_category,
    "time": _sketch_time,
    "series": _sketch_series,
    "text": _sketch_text,
    "tags": _sketch_tags,
    "image": _sketch_image,
}
