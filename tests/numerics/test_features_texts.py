"""Texts through the compiled graph, against scikit-learn and plain Python."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.utils import murmurhash3_32

from lepton_ray.core.errors import DataError

from .feature_case import fit

TEXT = {"t": "text"}
WORDS = ["the", "cat", "sat", "Café", "e\u0301tude", "東京", "x2", "नमस्ते", "a", "Ünïcode"]
SENTENCES = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
DOCUMENTS = st.lists(SENTENCES, min_size=1, max_size=10)
SIGN_SEED = 0x5EED


def words_of(text):
    """Runs of letters, marks and digits, by the Unicode database."""
    spaced = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return [word for word in spaced.split(" ") if word]


def vectorizer(encode, ngrams, tokens):
    kind = TfidfVectorizer if encode == "tf_idf" else CountVectorizer
    analyzer = {"analyzer": "char"} if tokens == "characters" else {"tokenizer": words_of, "token_pattern": None}
    return kind(lowercase=False, ngram_range=ngrams, **analyzer)


@settings(max_examples=30, deadline=None)
@given(
    DOCUMENTS,
    DOCUMENTS,
    st.sampled_from(["bag", "tf_idf"]),
    st.sampled_from([(1, 1), (1, 2), (2, 3)]),
    st.sampled_from(["words", "characters"]),
)
def test_counts_and_tf_idf_are_those_of_sklearn(train, test, encode, ngrams, tokens):
    reference = vectorizer(encode, ngrams, tokens)
    try:
        reference.fit(train)
    except ValueError:  # no token at all
        with pytest.raises(DataError, match="column 't' must have a token in at least 1 training rows"):
            fit(
                TEXT,
                {"t": train},
                texts={"encode": {"kind": encode, "ngrams": ngrams, "min_count": 1}, "tokens": tokens},
            )
        return
    sections = {"encode": {"kind": encode, "ngrams": ngrams, "min_count": 1, "max_tokens": 10**5}, "tokens": tokens}
    fitted = fit(TEXT, {"t": train}, texts=sections)
    result = dict(zip(fitted.names, fitted.features({"t": test}).T, strict=True))
    expected = dict(zip(reference.get_feature_names_out(), reference.transform(test).toarray().T, strict=True))
    assert sorted(result) == sorted(f"t={name}" for name in expected)
    for name, column in expected.items():
        np.testing.assert_allclose(result[f"t={name}"], column, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=6))
def test_any_unicode_is_cut_as_the_database_says(texts):
    """RE2's tables may be of another Unicode version than Python's: characters that either does not know are left out."""
    texts = ["".join(c for c in text if unicodedata.category(c) not in ("Cn", "Cs")) for text in texts]
    texts = ["".join(c for c in text if c < "\U00010000") for text in texts]
    fitted = fit(
        TEXT, {"t": [*texts, "anchor"]}, texts={"encode": {"kind": "bag", "min_count": 1, "max_tokens": 10**5}}
    )
    result = fitted.features({"t": texts})
    for text, row in zip(texts, result, strict=True):
        words = words_of(text)
        assert {name: count for name, count in zip(fitted.names, row, strict=True) if count} == {
            f"t={word}": words.count(word) for word in words
        }


def test_only_frequent_tokens_have_columns():
    train = ["a b", "a b c", "a", "d d d d"]
    fitted = fit(TEXT, {"t": train}, texts={"encode": {"kind": "bag", "max_tokens": 2, "min_count": 1}})
    assert fitted.names == ["t=a", "t=b"]
    fitted = fit(TEXT, {"t": train}, texts={"encode": {"kind": "bag", "min_count": 2}})
    assert fitted.names == ["t=a", "t=b"]
    assert fitted.features({"t": ["a a b c d", "", None]}).tolist() == [[2, 1], [0, 0], [0, 0]]


@settings(max_examples=25, deadline=None)
@given(DOCUMENTS, st.booleans(), st.sampled_from([(1, 1), (1, 3), (2, 2)]), st.sampled_from(["words", "characters"]))
def test_hashed_counts_are_those_of_sklearn_s(texts, signed, ngrams, tokens):
    encode = {"kind": "hash", "num_buckets": 7, "signed": signed, "ngrams": ngrams}
    result = fit(TEXT, {"t": texts}, texts={"encode": encode, "tokens": tokens}).features({"t": texts})
    expected = np.zeros((len(texts), 7))
    for row, text in enumerate(texts):
        units = words_of(text) if tokens == "words" else list(text)
        for size in range(ngrams[0], ngrams[1] + 1):
            for start in range(len(units) - size + 1):
                gram = (" " if tokens == "words" else "").join(units[start : start + size]).encode()
                sign = 1 - 2 * (murmurhash3_32(gram, seed=SIGN_SEED, positive=True) % 2) if signed else 1
                expected[row, murmurhash3_32(gram, seed=0, positive=True) % 7] += sign
    np.testing.assert_array_equal(result, expected)


@settings(max_examples=25, deadline=None)
@given(DOCUMENTS, DOCUMENTS, st.integers(1, 10))
def test_ids_are_padded_cut_and_known(train, test, max_length):
    encode = {"kind": "ids", "max_length": max_length, "min_count": 1, "max_tokens": 5}
    fitted = fit(TEXT, {"t": train}, texts={"encode": encode})
    rows = {word: sum(word in words_of(text) for text in train) for text in train for word in words_of(text)}
    vocabulary = sorted(rows, key=lambda word: (-rows[word], word))[:5]
    expected = np.zeros((len(test), max_length), np.int64)
    for row, text in enumerate(test):
        ids = [vocabulary.index(word) + 2 if word in vocabulary else 1 for word in words_of(text)][:max_length]
        expected[row, : len(ids)] = ids
    result = fitted.outputs({"t": test})
    assert list(result) == ["tokens"]
    np.testing.assert_array_equal(result["tokens"], expected)


def test_ids_stand_beside_vectors_and_numbers():
    columns = {"x": "number", "t": "text", "u": "text"}
    rows = {"x": [1.0, 2.0], "t": ["a b", "b"], "u": ["c", "c c"]}
    ids = {"kind": "text", "encode": {"kind": "ids", "max_length": 3, "min_count": 1}}
    bag = {"kind": "text", "encode": {"kind": "bag", "min_count": 1}}
    fitted = fit(columns, rows, numbers={"scale": "none"}, columns={"t": ids, "u": bag})
    outputs = fitted.outputs(rows)
    assert fitted.names == ["x", "u=c"]
    assert outputs["features"].tolist() == [[1, 1], [2, 2]]
    assert outputs["tokens"].tolist() == [[3, 2, 0], [2, 0, 0]]
