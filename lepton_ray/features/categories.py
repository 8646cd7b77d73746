"""Categories: one-hot, ordinal, target, frequency and hash encodings, and ids. Each starts from the text of one column."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from pydantic import Field, Strict

from lepton_ray.core.frozen import Floats, Frozen, Texts
from lepton_ray.features.columns import Codes
from lepton_ray.features.graph_builder import CONTRIB, Graph
from lepton_ray.spec.features_category import (
    CategoryFeatures,
    CategoryIdsEncoding,
    FrequencyEncoding,
    HashEncoding,
    OneHotEncoding,
    OrdinalEncoding,
    TargetEncoding,
)

Rows = Annotated[tuple[Floats, ...], Strict(False)]
_SIGN_SEED = 0x5EED  # of the hash that gives the sign, so that it tells nothing of the bucket


class CategoryState(Frozen):
    """One-hot over ``vocabulary``; a missing value counts as the category at ``missing_index``."""

    kind: Literal["one_hot"] = "one_hot"
    vocabulary: Texts
    missing_index: int
    other_index: int | None = None
    """Column of the categories that are not in the vocabulary; they are all zeros without one."""

    @property
    def depth(self) -> int:
        """Number of columns."""
        return max(len(self.vocabulary), self.missing_index + 1, (self.other_index or 0) + 1)

    def names_of(self, name: str) -> list[str]:
        """Return the names of the features."""
        names = [f"{name}={value}" for value in self.vocabulary]
        names += [f"{name}:missing"] if self.missing_index == len(names) else []
        return names + ([f"{name}:other"] if self.other_index is not None else [])

    def add(self, graph: Graph, text: str) -> str:
        """Add (N, depth) float32."""
        default = self.depth if self.other_index is None else self.other_index
        keys, values = [*self.vocabulary, ""], [*range(len(self.vocabulary)), self.missing_index]
        return graph.one_hot(graph.lookup(text, keys, values, default), self.depth)


class TableState(Frozen):
    """A row of numbers for each category: ordinal, target and frequency encodings."""

    kind: Literal["table"] = "table"
    columns: Texts
    """What each number is, as the feature's name has it after the column's."""
    vocabulary: Texts
    rows: Rows
    """By category, then of the missing ones, then of the unseen ones."""
    folds: Annotated[tuple[Rows, ...], Strict(False)] = ()
    """The same learnt without each fold: a training row of fold k takes ``folds[k]``."""

    def names_of(self, name: str) -> list[str]:
        """Return the names of the features."""
        return [name + column for column in self.columns]

    def add(self, graph: Graph, text: str) -> str:
        """Add (N, columns) float32."""
        count = len(self.vocabulary)
        index = graph.lookup(text, [*self.vocabulary, ""], range(count + 1), count + 1)
        return graph.add("Gather", graph.constant(np.array(self.rows, np.float32)), index, axis=0)

    def without_fold(self, fold: int) -> "TableState":
        """Return the state that a training row of a fold is encoded with."""
        return TableState(columns=self.columns, vocabulary=self.vocabulary, rows=self.folds[fold])


class HashState(Frozen):
    """One column of several, by a hash of the text."""

    kind: Literal["hash"] = "hash"
    num_buckets: int
    is_signed: bool
    impute: str = ""
    """Text that stands for a missing one."""

    def names_of(self, name: str) -> list[str]:
        """Return the names of the features."""
        return [f"{name}#{bucket}" for bucket in range(self.num_buckets)]

    def add(self, graph: Graph, text: str) -> str:
        """Add (N, num_buckets) float32."""
        if self.impute:
            empty, impute = graph.texts([""]), graph.texts([self.impute])
            text = graph.add("Where", graph.add("Equal", text, empty), impute, text)
        return add_hashed(graph, text, self.num_buckets, self.is_signed)


class CategoryIdsState(Frozen):
    """The place of each category in ``vocabulary``; the last id stands for the unseen ones."""

    kind: Literal["ids"] = "ids"
    vocabulary: Texts
    missing_id: int
    num_ids: int
    """All ids are less than it."""

    def names_of(self, name: str) -> list[str]:
        """Ids are no flat features."""
        return []

    def add(self, graph: Graph, text: str, first: int = 0) -> str:
        """Add (N,) int64, counted from ``first``."""
        places = [*range(len(self.vocabulary)), self.missing_id]
        return graph.lookup(text, [*self.vocabulary, ""], [first + place for place in places], first + self.num_ids - 1)


AnyCategoryState = Annotated[CategoryState | TableState | HashState | CategoryIdsState, Field(discriminator="kind")]


def add_hashed(graph: Graph, text: str, num_buckets: int, is_signed: bool) -> str:
    """Add (N, num_buckets) float32: 1, or if signed 1 or -1, in the bucket of each text."""
    hot = graph.one_hot(add_bucket(graph, text, num_buckets), num_buckets)
    if not is_signed:
        return hot
    sign = graph.cast(add_sign(graph, text), TensorProto.FLOAT)
    return graph.add("Mul", hot, graph.add("Unsqueeze", sign, graph.constant(np.array([1]))))


def add_bucket(graph: Graph, text: str, num_buckets: int) -> str:
    """Add the bucket, int64, of each text: MurmurHash3 (32 bits, seed 0) modulo their number."""
    hashed = graph.add("MurmurHash3", text, domain=CONTRIB, positive=1, seed=0)
    return graph.add("Mod", graph.cast(hashed, TensorProto.INT64), graph.constant(np.int64(num_buckets)))


def add_sign(graph: Graph, text: str) -> str:
    """Add 1 or -1, int64, for each text: the lowest bit of a hash with another seed."""
    hashed = graph.add("MurmurHash3", text, domain=CONTRIB, positive=1, seed=_SIGN_SEED)
    bit = graph.add("Mod", graph.cast(hashed, TensorProto.INT64), graph.constant(np.int64(2)))
    return graph.add("Sub", graph.constant(np.int64(1)), graph.add("Mul", bit, graph.constant(np.int64(2))))


# --- fit --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """What target encoding learns from."""

    classes: tuple[str, ...]
    positions: NDArray[np.int64]


def fit_category(
    codes: Codes, spec: CategoryFeatures, labels: Labels | None, fold_key_N: NDArray[np.uint64] | None
) -> CategoryState | TableState | HashState | CategoryIdsState:
    """Fit a column; target encoding needs the labels, it and frequency encoding the key that folds come from."""
    encode = spec.encode
    ranked = _rank(codes)
    is_own = spec.impute == "own_category" or not ranked
    if isinstance(encode, HashEncoding):
        impute = "" if is_own else codes.values[ranked[0]]
        return HashState(num_buckets=encode.num_buckets, is_signed=encode.signed, impute=impute)
    counts = codes.counts()
    kept = [position for position in ranked[: spec.num_categories] if counts[position] >= spec.min_count]
    vocabulary = tuple(codes.values[position] for position in kept)
    if isinstance(encode, OneHotEncoding):
        return one_hot_state(vocabulary, is_own or not vocabulary, encode.other)
    if isinstance(encode, CategoryIdsEncoding):
        return _fit_ids(vocabulary, is_own, has_missing=bool((codes.positions < 0).any()))
    if isinstance(encode, OrdinalEncoding):
        return _fit_ordinal(vocabulary, encode.order, None if is_own else codes.values[ranked[0]])
    if fold_key_N is None:
        raise ValueError("the key that folds come from must be given")
    places = np.full(len(codes.values) + 1, len(kept) + 1)  # unseen
    places[kept] = np.arange(len(kept))
    places[-1] = len(kept) if is_own else places[ranked[0]]
    rows_N = places[codes.positions]
    folds_N = (fold_key_N % np.uint64(encode.num_folds)).astype(np.int64)
    missing = len(kept) if is_own else int(places[-1])
    if isinstance(encode, FrequencyEncoding):
        return _fit_frequency(vocabulary, rows_N, folds_N, encode, missing)
    if labels is None:
        raise ValueError("the labels must be given")
    return _fit_target(vocabulary, rows_N, folds_N, encode, missing, labels)


def one_hot_state(vocabulary: Sequence[str], is_own: bool, has_other: bool) -> CategoryState:
    """Return the state with a column for missing values (``is_own``), and one for other categories."""
    depth = len(vocabulary) + is_own
    return CategoryState(
        vocabulary=tuple(vocabulary),
        missing_index=len(vocabulary) if is_own else 0,
        other_index=depth if has_other else None,
    )


def _rank(codes: Codes) -> list[int]:
    """Positions of the values, the most frequent first, equally frequent ones as sorted texts."""
    counts = codes.counts().tolist()
    return sorted((p for p in range(len(counts)) if counts[p]), key=lambda p: (-counts[p], codes.values[p]))


def _fit_ids(vocabulary: tuple[str, ...], is_own: bool, has_missing: bool) -> CategoryIdsState:
    """Return the state in which every id but the last has training rows."""
    own_id = is_own and has_missing
    missing_id = len(vocabulary) if is_own else 0
    return CategoryIdsState(vocabulary=vocabulary, missing_id=missing_id, num_ids=len(vocabulary) + own_id + 1)


def _fit_ordinal(vocabulary: Sequence[str], order: Sequence[str] | None, impute: str | None) -> TableState:
    texts = tuple(order) if order is not None else tuple(sorted(vocabulary))
    missing = float(texts.index(impute)) if impute in texts else -1.0
    rows = [(float(rank),) for rank in range(len(texts))]
    return TableState(columns=("",), vocabulary=texts, rows=(*rows, (missing,), (-1.0,)))


def _fit_frequency(
    vocabulary: tuple[str, ...],
    rows_N: NDArray[np.int64],
    folds_N: NDArray[np.int64],
    encode: FrequencyEncoding,
    missing: int,
) -> TableState:
    size = len(vocabulary) + 2
    counts_FC = np.bincount(folds_N * size + rows_N, minlength=encode.num_folds * size).reshape(-1, size)

    def rows(counts_C: NDArray[np.int64]) -> NDArray[np.float64]:
        shares = counts_C / max(int(counts_C.sum()), 1)
        shares[-1] = 0.0
        return shares[:, None]

    return _table(":frequency", [""], vocabulary, counts_FC, rows, missing)


def _fit_target(
    vocabulary: tuple[str, ...],
    rows_N: NDArray[np.int64],
    folds_N: NDArray[np.int64],
    encode: TargetEncoding,
    missing: int,
    labels: Labels,
) -> TableState:
    size, num_classes = len(vocabulary) + 2, len(labels.classes)
    flat = (folds_N * size + rows_N) * num_classes + labels.positions
    counts_FCL = np.bincount(flat, minlength=encode.num_folds * size * num_classes).reshape(-1, size, num_classes)
    shown = [1] if num_classes == 2 else list(range(num_classes))  # noqa: PLR2004  of two shares one says all
    suffixes = [""] if num_classes == 2 else [f"={name}" for name in labels.classes]  # noqa: PLR2004

    def rows(counts_CL: NDArray[np.int64]) -> NDArray[np.float64]:
        totals_L = counts_CL.sum(axis=0)
        prior_L = totals_L / totals_L.sum() if totals_L.sum() else np.full(num_classes, 1 / num_classes)
        share_CL = (counts_CL + encode.smoothing * prior_L) / (counts_CL.sum(axis=1, keepdims=True) + encode.smoothing)
        share_CL[-1] = prior_L
        shown_CL: NDArray[np.float64] = share_CL[:, shown]
        return shown_CL

    return _table(":target", suffixes, vocabulary, counts_FCL, rows, missing)


def _table(
    name: str,
    suffixes: Sequence[str],
    vocabulary: tuple[str, ...],
    counts_FC: NDArray[np.int64],
    rows: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    missing: int,
) -> TableState:
    """Return the table of all folds together and those without each; ``missing`` is the row that missing values take."""
    total_C = counts_FC.sum(axis=0)

    def with_missing(rows_C: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
        rows_C[-2] = rows_C[missing]
        return tuple(map(tuple, rows_C.tolist()))

    return TableState(
        columns=tuple(name + suffix for suffix in suffixes),
        vocabulary=vocabulary,
        rows=with_missing(rows(total_C)),
        folds=tuple(with_missing(rows(total_C - fold_C)) for fold_C in counts_FC),
    )
