"""A package's reference sketches, as something that rows are counted into and that counts are held against.

A window of rows comes to a few dozen counts for each column, whatever the number of rows; no value is kept, but the categories
that the package itself names.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lepton_ray.artifacts.distances import Shares, increase_beyond_chance, jensen_shannon, psi_by_chance, psi_of_samples
from lepton_ray.artifacts.package import ModelPackage
from lepton_ray.artifacts.signature import Signature
from lepton_ray.core import metrics as catalogue
from lepton_ray.core.errors import ArtifactError
from lepton_ray.core.files import read_json

Side = Literal["input", "output"]
SIDES: tuple[Side, ...] = get_args(Side)
Tensors = Mapping[str, NDArray[Any]]
Counts = NDArray[np.int64]

REFERENCE = "reference.json"
ALARMS = {"excess_psi": 0.25, "excess_unseen": 0.05, "excess_missing": 0.1}
"""Bounds on fields of ``Drift``, beyond which the alert rules and reports say that a column has drifted."""
METRIC_FIELDS = {
    catalogue.DRIFT_PSI: "excess_psi",
    catalogue.DRIFT_JS: "js_distance",
    catalogue.DRIFT_UNSEEN: "excess_unseen",
    catalogue.DRIFT_MISSING: "excess_missing",
}
"""The field of ``Drift`` that each metric of a column is."""
MAX_OWN_BINS = 20
"""Categories that have a bin of their own; rarer ones share one."""


@dataclass(frozen=True)
class Sketch:
    """One column of the reference. Counts into it are (bins + 1,), the last of them rows or elements without a value.

    Of categories the last two bins are those that the reference names beside the frequent ones, and those that it does not name.
    """

    name: str
    side: Side
    tensor: str
    position: int | None
    """On the tensor's last axis; None takes all of it."""
    read: Callable[[NDArray[Any]], NDArray[Any]]
    """From a column's part of the tensor to numbers, NaN where missing, or to texts."""
    edges: NDArray[np.float64] | None
    """Inner edges of bins, each of which belongs to the bin that it starts; None of categories."""
    places: Mapping[str, int]
    """Bin of each category that the reference names."""
    shares: Shares
    """Of the bins, among the rows with a value."""
    missing: float
    """Share of the rows without one."""
    rows: int
    """That the reference is of."""

    def count(self, tensors: Tensors) -> Counts:
        """Return the counts of some rows."""
        values = tensors[self.tensor]
        column = self.read(values if self.position is None else values[:, self.position])
        num_bins = len(self.shares)
        if self.edges is not None:
            present = column[~np.isnan(column)]
            counts = np.bincount(np.searchsorted(self.edges, present, side="right"), minlength=num_bins)
            return np.append(counts, column.size - present.size)
        counted = np.zeros(num_bins + 1, np.int64)
        for text, count in Counter(column.tolist()).items():
            counted[self.places.get(text, num_bins - 1) if text else num_bins] += count
        return counted

    @property
    def bin_names(self) -> list[str]:
        """What the bins are, in words, in the order of ``shares``."""
        if self.edges is None:
            own = [value for value, place in self.places.items() if place < len(self.shares) - 2]
            return [*own, "(rarer)", "(unseen)"]
        edges = [f"{edge:.4g}" for edge in self.edges]
        if not edges:
            return ["all"]
        return [f"< {edges[0]}", *(f"{low} – {high}" for low, high in pairwise(edges)), f"≥ {edges[-1]}"]

    def judge(self, counts: Counts, rows: int) -> "Drift":
        """Hold the counts of a window of ``rows`` against the reference."""
        total, present = int(counts.sum()), int(counts[:-1].sum())
        after = counts[:-1] / max(present, 1)
        n = self.rows * (1 - self.missing)
        m = min(present, rows)  # the elements of one series are not as many observations
        before, merged = self.shares, after
        unseen = 0.0
        if self.edges is None:
            unseen = increase_beyond_chance(float(before[-1]), float(after[-1]), n, m)
            before, merged = (np.append(shares[:-2], shares[-2:].sum()) for shares in (before, after))
        is_used = (before > 0) | (merged > 0)
        before, merged = before[is_used], merged[is_used]
        measured = psi_of_samples(before, merged, n, m) if present and n else 0.0
        missing = counts[-1] / max(total, 1)
        return Drift(
            name=self.name,
            side=self.side,
            rows=rows,
            psi=measured,
            excess_psi=max(0.0, measured - psi_by_chance(len(before), n, m)),
            js_distance=jensen_shannon(before, merged) if present and n else 0.0,
            unseen=float(after[-1]) if self.edges is None else 0.0,
            excess_unseen=unseen,
            missing=float(missing),
            excess_missing=increase_beyond_chance(self.missing, float(missing), self.rows, rows),
        )


@dataclass(frozen=True, kw_only=True)
class Excess:
    """How far a column is from the reference beyond what chance explains (``distances.CHANCE``)."""

    name: str
    side: Side
    excess_psi: float = 0.0
    js_distance: float = 0.0
    """Jensen-Shannon, 0 to 1."""
    excess_unseen: float = 0.0
    """By how much more values than in the reference are such that it does not name."""
    excess_missing: float = 0.0

    @property
    def alarms(self) -> tuple[str, ...]:
        """The fields that are beyond their bounds."""
        return tuple(name for name, bound in ALARMS.items() if getattr(self, name) > bound)

    @property
    def size(self) -> float:
        """To sort by: the worst of the three in excess."""
        return max(self.excess_psi, self.excess_unseen, self.excess_missing)


@dataclass(frozen=True, kw_only=True)
class Drift(Excess):
    """A column of a window, as it was measured."""

    rows: int
    psi: float
    unseen: float
    """Share of the values that the reference does not name."""
    missing: float


@dataclass(frozen=True)
class Window:
    """Counts of rows by column, in the order of the sketches; windows of one package add up."""

    rows: int
    counts: tuple[Counts, ...]

    def plus(self, other: "Window") -> "Window":
        """Return the sum."""
        counts = tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True))
        return Window(self.rows + other.rows, counts)


class Reference:
    """All sketches of a package."""

    def __init__(self, sketches: Sequence[Sketch]) -> None:
        self.sketches = tuple(sketches)
        self.tensors = frozenset(sketch.tensor for sketch in sketches)
        """Names of those that are looked at."""

    def empty(self) -> Window:
        """Return a window without rows."""
        return Window(0, tuple(np.zeros(len(sketch.shares) + 1, np.int64) for sketch in self.sketches))

    def count(self, tensors: Tensors) -> Window:
        """Return the window of some rows.

        Args:
            tensors: Inputs and outputs together, rows first.
        """
        rows = len(next(iter(tensors.values())))
        return Window(rows, tuple(sketch.count(tensors) for sketch in self.sketches))

    def judge(self, window: Window) -> list[Drift]:
        """Return how far each column has moved, the worst first."""
        found = [sketch.judge(counts, window.rows) for sketch, counts in zip(self.sketches, window.counts, strict=True)]
        return sorted(found, key=lambda drift: (-drift.size, -drift.psi, drift.side, drift.name))


def read_reference(package: ModelPackage) -> Reference:
    """Return the reference of a package.

    Raises:
        ArtifactError: If it has none that tells of any column, as one that was exported before there was such a thing.
    """
    path = package.path / REFERENCE
    stored: dict[str, Any] = read_json(path) if path.is_file() else {}
    try:
        sketches = [*_inputs(package.signature, stored), *_outputs(package.signature, stored)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refuse(package) from error
    if not sketches:
        raise _refuse(package)
    return Reference(sketches)


def _refuse(package: ModelPackage) -> ArtifactError:
    return ArtifactError(
        f"{package.path / REFERENCE} must have sketches of columns for drift. Export the package again"
    )


def _inputs(signature: Signature, stored: Mapping[str, Any]) -> list[Sketch]:
    """Sketches of the features; times have none, as they always move on."""
    found = []
    for tensor in signature.inputs:
        for position, name in enumerate(tensor.columns):
            kind, sketch = signature.columns[name].kind, stored.get("features", {}).get(name)
            if sketch is not None and kind in _READERS:
                place = None if kind in ("series", "image") else position
                found.append(_sketch(name, "input", tensor.name, place, _READERS[kind], sketch, stored["rows"]))
    return [one for one in found if one is not None]


def _outputs(signature: Signature, stored: Mapping[str, Any]) -> list[Sketch]:
    outputs = stored.get("outputs")
    if outputs is None:
        return []
    found = [
        _sketch(name, "output", name, None, summarise_output, sketch, outputs["rows"])
        for name, sketch in outputs["tensors"].items()
        if name in {tensor.name for tensor in signature.outputs}
    ]
    return [one for one in found if one is not None]


def _sketch(
    name: str,
    side: Side,
    tensor: str,
    position: int | None,
    read: Callable[[NDArray[Any]], NDArray[Any]],
    stored: Mapping[str, Any],
    rows: int,
) -> Sketch | None:
    missing = float(stored["missing_fraction"])
    if stored["kind"] == "category":
        fractions: dict[str, float] = stored["fractions"]
        present = max(1 - missing, 1e-12)
        own = list(fractions)[:MAX_OWN_BINS]
        places = {value: min(place, len(own)) for place, value in enumerate(fractions)}
        rare = sum(list(fractions.values())[MAX_OWN_BINS:]) / present
        shares = np.array([*(fractions[value] / present for value in own), rare, 0.0])
        shares[-1] = max(0.0, 1 - shares.sum())
        if shares[-1] < 1 / max(2 * rows, 1):  # less than a row: rounding
            shares[-1] = 0.0
        return Sketch(name, side, tensor, position, read, None, places, shares, missing, rows)
    if "bin_edges" not in stored:  # no row had a value
        return Sketch(name, side, tensor, position, read, np.empty(0), {}, np.ones(1), missing, rows)
    edges, shares = np.array(stored["bin_edges"], float), np.array(stored["bin_fractions"], float)
    return Sketch(name, side, tensor, position, read, edges, {}, shares, missing, rows)


def _as_they_are(values: NDArray[Any]) -> NDArray[Any]:
    return values


def _all_elements(values: NDArray[Any]) -> NDArray[Any]:
    return values.ravel()


def text_lengths(texts: NDArray[Any]) -> NDArray[np.float64]:
    """Return the characters of texts, NaN of missing ones."""
    lengths = np.fromiter(map(len, texts.tolist()), np.float64, len(texts))
    lengths[lengths == 0] = np.nan
    return lengths


def brightness(images: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean pixel of each image."""
    means: NDArray[np.float64] = images.mean(axis=tuple(range(1, images.ndim)))
    return means


def summarise_output(values: NDArray[Any]) -> NDArray[Any]:
    """Return what an output comes to for drift, one value a row: a label or truth value as text, the highest probability, the mean."""
    if values.dtype == np.bool_:
        return np.where(values, "true", "false").astype(object)
    if values.dtype == object:
        return values
    if values.ndim == 1:
        return values.astype(np.float64)
    of_row = tuple(range(1, values.ndim))
    numbers: NDArray[np.float64] = values.astype(np.float64)
    summary: NDArray[np.float64] = numbers.max(axis=of_row) if values.dtype == np.float32 else numbers.mean(axis=of_row)
    return summary


_READERS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "number": _as_they_are,
    "category": _as_they_are,
    "text": text_lengths,
    "series": _all_elements,
    "image": brightness,
}
