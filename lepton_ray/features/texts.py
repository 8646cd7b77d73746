"""Texts: tokens by onnxruntime's own tokenizer, then counts, TF-IDF, hashes or padded ids."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
import onnxruntime as ort
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, Strict

from lepton_ray.artifacts.predictor import open_session
from lepton_ray.core.errors import DataError
from lepton_ray.core.frozen import Floats, Frozen, Ints, Texts
from lepton_ray.features.categories import add_bucket, add_sign
from lepton_ray.features.graph_builder import REST, Graph, tensor_info
from lepton_ray.features.subwords import SubwordState, add_matches, state_of
from lepton_ray.spec.features_content import IdsEncoding, SubwordTokens, TextFeatures, TextHashEncoding, TfIdfEncoding
from lepton_ray.spec.tokenizer_file import read_tokenizer

_EXPRESSIONS = {"words": r"[\pL\pM\pN]+", "characters": "(?s)."}
_BATCH_ROWS = 1024
_PAD, _UNKNOWN, _FIRST_ID = 0, 1, 2
_LEAST_NORM = 1e-12

Gram = tuple[str, ...]


class CountState(Frozen):
    """How often each n-gram of ``vocabulary`` occurs; times ``weights``, and to length 1, for TF-IDF."""

    kind: Literal["counts"] = "counts"
    tokens: Literal["words", "characters"]
    vocabulary: Annotated[tuple[Texts, ...], Strict(False)]
    weights: Floats | None = None

    def names_of(self, name: str) -> list[str]:
        """Return the names of the features."""
        joint = " " if self.tokens == "words" else ""
        return [f"{name}={joint.join(gram)}" for gram in self.vocabulary]

    def add(self, graph: Graph, text: str) -> str:
        """Add (N, vocabulary) float32."""
        counts = _add_counts(graph, add_tokens(graph, text, self.tokens), self.vocabulary)
        if self.weights is None:
            return counts
        weighted = graph.add("Mul", counts, graph.constant(np.array(self.weights, np.float32)))
        norm = graph.add("ReduceL2", weighted, graph.constant(np.array([1])))
        return graph.add("Div", weighted, graph.add("Max", norm, graph.constant(np.float32(_LEAST_NORM))))


class TextHashState(Frozen):
    """How many n-grams fall into each bucket."""

    kind: Literal["hash"] = "hash"
    tokens: Literal["words", "characters"]
    num_buckets: int
    is_signed: bool
    ngrams: Ints

    def names_of(self, name: str) -> list[str]:
        """Return the names of the features."""
        return [f"{name}#{bucket}" for bucket in range(self.num_buckets)]

    def add(self, graph: Graph, text: str) -> str:
        """Add (N, num_buckets) float32."""
        tokens = add_tokens(graph, text, self.tokens)
        sizes = range(self.ngrams[0], self.ngrams[1] + 1)
        joint = " " if self.tokens == "words" else ""
        grams = [_add_grams(graph, tokens, size, joint) for size in sizes]
        buckets = graph.concat([self._add_buckets(graph, gram, is_given) for gram, is_given in grams])
        if not self.is_signed:
            return _add_bucket_counts(graph, buckets, self.num_buckets)
        signs = graph.concat([add_sign(graph, gram) for gram, _ in grams])
        is_positive = graph.add("Greater", signs, graph.constant(np.int64(0)))
        nowhere = graph.constant(np.int64(-1))
        plus = graph.add("Where", is_positive, buckets, nowhere)
        minus = graph.add("Where", is_positive, nowhere, buckets)
        counts = [_add_bucket_counts(graph, side, self.num_buckets) for side in (plus, minus)]
        return graph.add("Sub", *counts)

    def _add_buckets(self, graph: Graph, gram: str, is_given: str) -> str:
        bucket = add_bucket(graph, gram, self.num_buckets)
        return graph.add("Where", is_given, bucket, graph.constant(np.int64(-1)))


class IdsState(Frozen):
    """The position of each token in ``vocabulary``, after those for padding and for unknown tokens."""

    kind: Literal["ids"] = "ids"
    tokens: Literal["words", "characters"]
    vocabulary: Texts
    max_length: int

    @property
    def num_ids(self) -> int:
        """All ids are less than it."""
        return _FIRST_ID + len(self.vocabulary)

    @property
    def pad_id(self) -> int:
        """What fills a row up."""
        return _PAD

    @property
    def unknown_id(self) -> int:
        """What stands for a token that is not in the vocabulary."""
        return _UNKNOWN

    def names_of(self, name: str) -> list[str]:
        """Ids are no flat features."""
        return []

    def add(self, graph: Graph, text: str) -> str:
        """Add (N, max_length) int64."""
        tokens = add_tokens(graph, text, self.tokens)
        ids = range(_FIRST_ID, _FIRST_ID + len(self.vocabulary))
        known = graph.lookup(tokens, ["", *self.vocabulary], [_PAD, *ids], _UNKNOWN)
        return add_padding(graph, known, text, self.max_length, _PAD)


TextState = Annotated[CountState | TextHashState | IdsState | SubwordState, Field(discriminator="kind")]


# --- compile ----------------------------------------------------------------------------------------------------------


def add_tokens(graph: Graph, text: str, tokens: str) -> str:
    """Add (N, most tokens of a text) texts, "" where a text has fewer."""
    return add_matches(graph, text, _EXPRESSIONS[tokens])


def add_padding(graph: Graph, ids: str, text: str, length: int, pad: int) -> str:
    """Cut or fill (N, any) int64 to (N, length)."""
    fill = graph.add("Expand", graph.fill(text, pad), graph.constant(np.array([1, length], np.int64)))
    return graph.slice(graph.concat([ids, fill]), 0, length)


def _add_counts(graph: Graph, tokens: str, vocabulary: Sequence[Gram]) -> str:
    longest = max(map(len, vocabulary))
    places = sorted(range(len(vocabulary)), key=lambda place: (len(vocabulary[place]), place))
    starts: list[int] = []
    pool: list[str] = []
    for size in range(1, longest + 1):
        starts.append(len(pool))
        pool += [token for place in places if len(vocabulary[place]) == size for token in vocabulary[place]]
    return graph.add(
        "TfIdfVectorizer",
        tokens,
        mode="TF",
        min_gram_length=min(map(len, vocabulary)),
        max_gram_length=longest,
        max_skip_count=0,
        ngram_counts=starts,
        ngram_indexes=places,
        pool_strings=pool,
    )


def _add_bucket_counts(graph: Graph, buckets: str, num_buckets: int) -> str:
    return graph.add(
        "TfIdfVectorizer",
        buckets,
        mode="TF",
        min_gram_length=1,
        max_gram_length=1,
        max_skip_count=0,
        ngram_counts=[0],
        ngram_indexes=list(range(num_buckets)),
        pool_int64s=list(range(num_buckets)),
    )


def _add_grams(graph: Graph, tokens: str, size: int, joint: str) -> tuple[str, str]:
    """Return n-grams as texts, (N, L), and whether there is one at each place."""
    shifted = [graph.slice(tokens, i, i - size + 1 if i < size - 1 else REST) for i in range(size)]
    gram = shifted[0]
    for token in shifted[1:]:
        prefix = graph.add("StringConcat", gram, graph.texts([joint])) if joint else gram
        gram = graph.add("StringConcat", prefix, token)
    is_missing = graph.add("Equal", shifted[-1], graph.texts([""]))
    return gram, graph.add("Not", is_missing)


# --- fit --------------------------------------------------------------------------------------------------------------


def fit_text(
    name: str, texts_N: NDArray[np.object_], spec: TextFeatures
) -> CountState | TextHashState | IdsState | SubwordState:
    """Fit a column.

    Raises:
        DataError: If no token is frequent enough to have a column.
    """
    encode = spec.encode
    if isinstance(spec.tokens, SubwordTokens):
        if not isinstance(encode, IdsEncoding):
            raise ValueError("subwords must be encoded as ids")
        return state_of(read_tokenizer(spec.tokens.tokenizer_file), encode.max_length)
    tokens = spec.tokens.kind
    if isinstance(encode, TextHashEncoding):
        return TextHashState(
            tokens=tokens, num_buckets=encode.num_buckets, is_signed=encode.signed, ngrams=encode.ngrams
        )
    ngrams = (1, 1) if isinstance(encode, IdsEncoding) else encode.ngrams
    frequency = document_frequency(texts_N, tokens, ngrams)
    kept = sorted(
        (gram for gram, count in frequency.items() if count >= encode.min_count), key=lambda g: (-frequency[g], g)
    )
    vocabulary = tuple(kept[: encode.max_tokens])
    if isinstance(encode, IdsEncoding):
        return IdsState(tokens=tokens, vocabulary=tuple(gram[0] for gram in vocabulary), max_length=encode.max_length)
    if not vocabulary:
        raise DataError(
            f"features: column {name!r} must have a token in at least {encode.min_count} training rows (min_count), got "
            f"{len(frequency)} tokens in fewer. Lower min_count or ignore the column"
        )
    weights = None
    if isinstance(encode, TfIdfEncoding):
        weights = tuple(math.log((1 + len(texts_N)) / (1 + frequency[gram])) + 1 for gram in vocabulary)
    return CountState(tokens=tokens, vocabulary=vocabulary, weights=weights)


def document_frequency(texts_N: NDArray[np.object_], tokens: str, ngrams: tuple[int, int]) -> Counter[Gram]:
    """Return in how many texts each n-gram occurs."""
    frequency: Counter[Gram] = Counter()
    for tokens_BL in _tokenise(texts_N, tokens):
        for size, counted in enumerate(_count_batch(tokens_BL, ngrams[1]), start=1):
            if size >= ngrams[0]:
                frequency.update(counted)
    return frequency


def _tokenise(texts_N: NDArray[np.object_], tokens: str) -> Iterator[NDArray[np.object_]]:
    session = _tokenizer(tokens)
    for start in range(0, len(texts_N), _BATCH_ROWS):
        yield session.run(["tokens"], {"texts": texts_N[start : start + _BATCH_ROWS]})[0]


def _tokenizer(tokens: str) -> ort.InferenceSession:
    graph = Graph({"texts": ("text",)})
    graph.add_named("tokens", "Identity", add_tokens(graph, "texts", tokens))
    model = graph.build([tensor_info("texts", "BYTES", [])], [tensor_info("tokens", "BYTES", ["length"])])
    return open_session(model.SerializeToString())


def _count_batch(tokens_BL: NDArray[np.object_], longest: int) -> Iterator[dict[Gram, int]]:
    """Yield the document frequencies of n-grams of 1, 2, ... tokens; n-grams are numbered, each from the one before it."""
    encoded = pa.array(tokens_BL.ravel(), pa.string()).dictionary_encode()
    words = encoded.dictionary.to_pylist()
    codes_BL = encoded.indices.to_numpy().reshape(tokens_BL.shape).astype(np.int64)
    is_token_BL = tokens_BL != ""
    grams: list[Gram] = [(word,) for word in words]
    ids_BL = codes_BL
    for size in range(1, longest + 1):
        if size > 1:
            keys_BL = ids_BL[:, :-1] * len(words) + codes_BL[:, size - 1 :]
            used, inverse = np.unique(keys_BL, return_inverse=True)
            grams = [(*grams[key // len(words)], words[key % len(words)]) for key in used.tolist()]
            ids_BL = inverse.reshape(keys_BL.shape)
        rows, places = np.nonzero(is_token_BL[:, size - 1 :])
        pairs = np.unique(rows * max(len(grams), 1) + ids_BL[rows, places])
        counts = np.bincount(pairs % max(len(grams), 1), minlength=len(grams))
        yield {gram: count for gram, count in zip(grams, counts.tolist(), strict=True) if count}
