"""Features of several columns: crosses of categories, products and principal components of scaled numbers."""

import math
from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from pydantic import Strict

from lepton_ray.artifacts.statistics import Values
from lepton_ray.core.errors import DataError
from lepton_ray.core.frozen import Floats, Frozen, Ints, Texts
from lepton_ray.features.categories import add_hashed
from lepton_ray.features.columns import Codes, combine_codes
from lepton_ray.features.graph_builder import FAR, ML, Graph
from lepton_ray.features.numbers import Numbers, add_scaled
from lepton_ray.spec.features import CrossFeatures, PcaFeatures, PolynomialFeatures
from lepton_ray.spec.features_category import HashEncoding, OneHotEncoding

_SEPARATOR = "\x1f"  # ASCII's unit separator
_ENOUGH_VARIANCE = 0.95
_SHOWN = "&"
_MOST_COMBINATIONS = 2**63  # the graph numbers them in int64

Factors = Annotated[tuple[Ints, ...], Strict(False)]


# --- crosses ----------------------------------------------------------------------------------------------------------


class CrossState(Frozen):
    """One-hot over combinations of categories."""

    columns: Texts
    vocabularies: Annotated[tuple[Texts, ...], Strict(False)]
    """The categories of each column that occur in ``combinations``."""
    combinations: Factors
    """Positions in the vocabularies; one more than the last is a missing value."""
    has_other: bool

    @property
    def is_binary(self) -> bool:
        """Whether every value is 0 or 1."""
        return True

    @property
    def names(self) -> list[str]:
        """Names of the features."""
        padded = [(*vocabulary, "") for vocabulary in self.vocabularies]
        joined = _SHOWN.join(self.columns)
        shown = [
            _SHOWN.join(texts[place] for texts, place in zip(padded, places, strict=True))
            for places in self.combinations
        ]
        return [*(f"{joined}={text}" for text in shown), *([f"{joined}:other"] if self.has_other else [])]

    def add(self, graph: Graph) -> str:
        """Add (N, features) float32."""
        strides = np.cumprod([1, *_sizes(self.vocabularies)[:0:-1]])[::-1]
        total = ""
        for name, vocabulary, stride in zip(self.columns, self.vocabularies, strides.tolist(), strict=True):
            keys, count = [*vocabulary, ""], len(vocabulary)
            place = graph.lookup(graph.column(name), keys, range(count + 1), count + 1)
            term = graph.add("Mul", place, graph.constant(np.int64(stride)))
            total = graph.add("Add", total, term) if total else term
        depth = len(self.combinations) + self.has_other
        index = graph.add(
            "LabelEncoder",
            total,
            domain=ML,
            keys_int64s=[int(np.dot(places, strides)) for places in self.combinations] or [-1],  # it needs one
            values_int64s=list(range(len(self.combinations))) or [0],
            default_int64=len(self.combinations) if self.has_other else depth,
        )
        return graph.one_hot(index, depth)


class CrossHashState(Frozen):
    """One column of several, by a hash of the combined texts."""

    columns: Texts
    num_buckets: int
    is_signed: bool

    @property
    def is_binary(self) -> bool:
        """Whether every value is 0 or 1."""
        return not self.is_signed

    @property
    def names(self) -> list[str]:
        """Names of the features."""
        return [f"{_SHOWN.join(self.columns)}#{bucket}" for bucket in range(self.num_buckets)]

    def add(self, graph: Graph) -> str:
        """Add (N, num_buckets) float32."""
        text = graph.column(self.columns[0])
        for name in self.columns[1:]:
            text = graph.add(
                "StringConcat", graph.add("StringConcat", text, graph.texts([_SEPARATOR])), graph.column(name)
            )
        return add_hashed(graph, text, self.num_buckets, self.is_signed)


def _sizes(vocabularies: Sequence[Sequence[str]]) -> list[int]:
    """Return how many places each column has: its categories, a missing value, any other."""
    return [len(vocabulary) + 2 for vocabulary in vocabularies]


AnyCrossState = CrossState | CrossHashState


def fit_cross(columns: Sequence[Codes], spec: CrossFeatures) -> AnyCrossState:
    """Fit a cross of columns, in the order of the spec.

    Raises:
        DataError: If what it keeps has too many categories to number their combinations.
    """
    if isinstance(spec.encode, HashEncoding):
        return CrossHashState(columns=spec.columns, num_buckets=spec.encode.num_buckets, is_signed=spec.encode.signed)
    texts_DC, positions_N = combine_codes(columns)
    counts = np.bincount(positions_N, minlength=len(texts_DC)).tolist()
    counted = [(tuple(texts), count) for texts, count in zip(texts_DC.tolist(), counts, strict=True)]
    ranked = sorted((item for item in counted if item[1] >= spec.min_count), key=lambda item: (-item[1], item[0]))
    kept = [texts for texts, _ in ranked[: spec.max_categories]]
    vocabularies = [sorted({texts[i] for texts in kept} - {""}) for i in range(len(columns))]
    places = [{text: place for place, text in enumerate([*vocabulary, ""])} for vocabulary in vocabularies]
    if (count := math.prod(_sizes(vocabularies))) >= _MOST_COMBINATIONS:
        raise DataError(
            f"features: the cross of {', '.join(spec.columns)} must have fewer than 2**63 possible combinations of the categories "
            f"in those it keeps, got {count:.3g}. Lower its max_categories, raise its min_count, or encode it by hash"
        )
    return CrossState(
        columns=spec.columns,
        vocabularies=tuple(map(tuple, vocabularies)),
        combinations=tuple(tuple(places[i][text] for i, text in enumerate(texts)) for texts in kept),
        has_other=isinstance(spec.encode, OneHotEncoding) and spec.encode.other,
    )


# --- numbers ----------------------------------------------------------------------------------------------------------


class PolynomialState(Frozen):
    """Products of scaled numbers: positions among ``columns``, of two or three factors."""

    columns: Texts
    factors: Factors

    @property
    def names(self) -> list[str]:
        """Names of the features: ``a*b``, ``a^2``, ``a^2*b``."""
        return ["*".join(self._power(factors, i) for i in sorted(set(factors))) for factors in self.factors]

    def _power(self, factors: Sequence[int], position: int) -> str:
        count = factors.count(position)
        return self.columns[position] if count == 1 else f"{self.columns[position]}^{count}"

    def add(self, graph: Graph, numbers: Numbers) -> str:
        """Add (N, features) float32."""
        scaled = add_scaled(graph, numbers, self.columns)
        products = []
        for degree in sorted({len(factors) for factors in self.factors}):
            chosen = [factors for factors in self.factors if len(factors) == degree]
            product = graph.take(scaled, [factors[0] for factors in chosen])
            for place in range(1, degree):
                product = graph.add("Mul", product, graph.take(scaled, [factors[place] for factors in chosen]))
            products.append(product)
        return graph.cast(graph.clip(graph.concat(products), -FAR, FAR), TensorProto.FLOAT)


def plan_polynomial(columns: Sequence[str], spec: PolynomialFeatures) -> PolynomialState:
    """Return the products of columns; nothing is learnt."""
    choose = combinations if spec.interaction_only else combinations_with_replacement
    factors = tuple(places for degree in range(2, spec.degree + 1) for places in choose(range(len(columns)), degree))
    return PolynomialState(columns=tuple(columns), factors=factors)


class PcaState(Frozen):
    """(scaled numbers - ``mean``) x ``components``."""

    columns: Texts
    mean: Floats
    components: Annotated[tuple[Floats, ...], Strict(False)]

    @property
    def names(self) -> list[str]:
        """Names of the features."""
        return [f"pca:{index}" for index in range(len(self.components))]

    def add(self, graph: Graph, numbers: Numbers) -> str:
        """Add (N, components) float32."""
        scaled = add_scaled(graph, numbers, self.columns)
        centred = graph.turn(graph.add("Sub", scaled, graph.vector(self.mean)))
        rotated = graph.add("MatMul", centred, graph.constant(np.array(self.components).T.copy()))
        return graph.cast(graph.clip(graph.turn(rotated), -FAR, FAR), TensorProto.FLOAT)


def fit_pca(columns: Sequence[str], scaled_NK: Values, spec: PcaFeatures) -> PcaState:
    """Fit on scaled numbers, whose rows stand in an order that does not depend on how they came.

    Of each component and its negative, the one is taken whose largest weight is positive.
    """
    mean_K = scaled_NK.mean(axis=0)
    centred = scaled_NK - mean_K
    variances, vectors_KC = np.linalg.eigh(centred.T @ centred / max(len(centred), 1))
    components_CK: NDArray[np.float64] = vectors_KC.T[::-1]
    largest = components_CK[np.arange(len(components_CK)), np.abs(components_CK).argmax(axis=1)]
    components_CK = components_CK * np.sign(largest)[:, None]
    count = spec.num_components or _enough(np.maximum(variances[::-1], 0), spec.variance_fraction or _ENOUGH_VARIANCE)
    return PcaState(
        columns=tuple(columns),
        mean=tuple(mean_K.tolist()),
        components=tuple(map(tuple, components_CK[:count].tolist())),
    )


def _enough(variances_C: Values, fraction: float) -> int:
    """Number of components that explain a share of the variance."""
    total = variances_C.sum()
    if total == 0:
        return 1
    explained = np.cumsum(variances_C) / total
    return min(int(np.searchsorted(explained, fraction - 1e-12)) + 1, len(variances_C))
