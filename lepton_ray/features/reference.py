"""The reference sketches of the training rows and of a package's answers, which drift is measured against."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lepton_ray.artifacts import statistics
from lepton_ray.artifacts.reference import brightness, summarise_output
from lepton_ray.artifacts.signature import Feeds
from lepton_ray.artifacts.statistics import Values
from lepton_ray.artifacts.tags import count_tags
from lepton_ray.features.columns import Codes, codes_of, numbers_of, pixels_of, seconds_of, series_of
from lepton_ray.spec.data import DataSpec, FeatureColumn, ImageColumn, SeriesColumn, TagsColumn

_NUM_BINS = 10
_MAX_REFERENCE_CATEGORIES = 100


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
        name: _sketch_texts(column.tolist()) if column.dtype == object else _sketch_values("number", column)
        for name, column in summaries.items()
    }
    return {"rows": rows, "tensors": tensors}


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


def _sketch_values(kind: str, values_N: Values) -> dict[str, Any]:
    present = statistics.present(values_N)
    sketch: dict[str, Any] = {"kind": kind, "missing_fraction": 1 - len(present) / max(len(values_N), 1)}
    if len(present) == 0:
        return sketch
    mean = statistics.mean(present)
    edges = np.unique(statistics.quantiles(present, np.linspace(0, 1, _NUM_BINS + 1).tolist()))
    inner = edges[1:-1]
    reached = [len(present), *(int(np.count_nonzero(present >= edge)) for edge in inner), 0]
    counts = np.array(reached[:-1]) - reached[1:]
    return sketch | {
        "mean": mean,
        "std": statistics.spread(present, mean),
        "min": float(present.min()),
        "max": float(present.max()),
        "bin_edges": inner.tolist(),
        "bin_fractions": (counts / len(present)).tolist(),
    }


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
