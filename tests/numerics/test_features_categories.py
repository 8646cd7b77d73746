"""The encodings of categories other than one-hot, against scikit-learn and plain counting; nothing of a label may leak."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OrdinalEncoder, TargetEncoder
from sklearn.utils import murmurhash3_32

from lepton_ray.features.fit import fit_features, needs_keys
from lepton_ray.features.prepare import FOLD_KEY, Preparer
from lepton_ray.spec.features import FeaturesSpec

from .feature_case import TOLERANCE, data_spec, fit, signature_of, typed_table

PROPERTY = settings(max_examples=40, deadline=None)
CATEGORY = {"c": "category"}
TEXTS = st.lists(st.text(max_size=3), min_size=1, max_size=20)
SIGN_SEED = 0x5EED


@PROPERTY
@given(TEXTS, TEXTS, st.sampled_from(["most_frequent", "own_category"]))
def test_ordinal_is_the_rank_as_sklearn_has_it(train, test, impute):
    fitted = fit(CATEGORY, {"c": train}, categories={"encode": "ordinal", "impute": impute})
    known = sorted(set(train) - {""})
    counts = Counter(text for text in train if text)
    fill = min(counts, key=lambda text: (-counts[text], text)) if counts and impute == "most_frequent" else None
    result = fitted.features({"c": test})[:, 0]
    if not known:
        assert (result == -1).all()
        return
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    encoder.fit(np.array([[text] for text in known], object))
    filled = np.array([[text or fill or "\x7f missing"] for text in test], object)
    np.testing.assert_array_equal(result, encoder.transform(filled)[:, 0])


def test_ordinal_in_a_given_order():
    encode = {"kind": "ordinal", "order": ["low", "mid", "high"]}
    fitted = fit(CATEGORY, {"c": ["high", "low", "high"]}, categories={"encode": encode})
    assert fitted.features({"c": ["low", "mid", "high", "", "?"]})[:, 0].tolist() == [0, 1, 2, 2, -1]


@PROPERTY
@given(TEXTS, TEXTS)
def test_frequency_is_the_share_of_rows(train, test):
    fitted = fit(CATEGORY, {"c": train}, categories={"encode": "frequency", "impute": "own_category"})
    counts = Counter(train)
    result = fitted.features({"c": test})[:, 0]
    np.testing.assert_allclose(result, [counts[text] / len(train) for text in test], **TOLERANCE)


@PROPERTY
@given(
    st.lists(st.tuples(st.sampled_from(["u", "v", "w", "\x00"]), st.sampled_from("abc")), min_size=1, max_size=40),
    st.sampled_from([0.5, 10.0]),
)
def test_target_is_the_smoothed_share_of_each_label(pairs, smoothing):
    train, labels = zip(*pairs, strict=True)
    encode = {"kind": "target", "smoothing": smoothing}
    fitted = fit(CATEGORY, {"c": list(train)}, list(labels), "abc", categories={"encode": encode})
    assert fitted.names == ["c:target=a", "c:target=b", "c:target=c"]
    test = ["u", "v", "w", "\x00", "unseen"]
    result = fitted.features({"c": test})
    prior = np.array([labels.count(name) / len(labels) for name in "abc"])
    for text, row in zip(test, result, strict=True):
        of_text = [label for value, label in pairs if value == text]
        counts = np.array([of_text.count(name) for name in "abc"])
        np.testing.assert_allclose(row, (counts + smoothing * prior) / (len(of_text) + smoothing), **TOLERANCE)


def test_the_target_encoding_of_two_labels_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    train = rng.choice(list("uvwxyz"), 300)
    labels = np.where(rng.random(300) < np.where(train < "w", 0.8, 0.3), "b", "a")
    encode = {"kind": "target", "smoothing": 7.0}
    fitted = fit(CATEGORY, {"c": train.tolist()}, labels.tolist(), categories={"encode": encode})
    assert fitted.names == ["c:target"]
    encoder = TargetEncoder(smooth=7.0, target_type="binary").fit(train[:, None], labels == "b")
    np.testing.assert_allclose(fitted.features({"c": train.tolist()}), encoder.transform(train[:, None]), **TOLERANCE)


def training_rows(encode, categories, labels, keys):
    """What training rows are encoded as, and as rows that come later."""
    data = data_spec(CATEGORY)
    spec = FeaturesSpec.model_validate({"categories": {"encode": encode}})
    table = typed_table(CATEGORY, {"c": categories}, labels)
    table = table.set_column(table.column_names.index(FOLD_KEY), FOLD_KEY, pa.array(keys, pa.uint64()))
    assert needs_keys(data, spec)
    state = fit_features(table, data, spec, ["a", "b"], 0)
    signature = signature_of(data, "ab")
    both = (Preparer(state, signature, 2)(table, is_training) for is_training in (True, False))
    return [prepared.column(0).to_numpy() for prepared in both]


@pytest.mark.parametrize("kind", ["target", "frequency"])
def test_training_rows_are_encoded_by_the_other_folds(kind):
    rng = np.random.default_rng(1)
    categories, labels = rng.choice(list("uvw"), 60).tolist(), rng.choice(["a", "b"], 60).tolist()
    keys = rng.integers(0, 2**63, 60).astype(np.uint64)
    encode = {"kind": kind, "num_folds": 3} | ({"smoothing": 2.0} if kind == "target" else {})
    result, later = training_rows(encode, categories, labels, keys)
    for row, value in enumerate(result):
        others = [i for i in range(60) if keys[i] % 3 != keys[row] % 3]
        same = [i for i in others if categories[i] == categories[row]]
        if kind == "frequency":
            expected = len(same) / len(others)
        else:
            prior = np.mean([labels[i] == "b" for i in others])
            expected = (sum(labels[i] == "b" for i in same) + 2 * prior) / (len(same) + 2)
        assert value == pytest.approx(expected, rel=1e-6)
    assert not np.array_equal(result, later)


def test_a_random_category_of_many_values_says_nothing_of_the_label():
    """Encoded in fold it would: every other row is alone with its category."""
    rng = np.random.default_rng(2)
    count = 4000
    categories = [f"id{i}" for i in rng.integers(0, 3000, count)]
    labels = rng.choice(["a", "b"], count).tolist()
    keys = rng.integers(0, 2**63, count).astype(np.uint64)
    result, leaky = training_rows({"kind": "target", "smoothing": 1.0}, categories, labels, keys)
    truth = [label == "b" for label in labels]
    assert roc_auc_score(truth, leaky) > 0.85
    assert 0.45 < roc_auc_score(truth, result) < 0.55


def test_categories_beyond_the_limit_count_as_unseen():
    train, labels = list("uuuvvw"), list("abbaba")
    sections = {"encode": {"kind": "target", "smoothing": 1.0}, "max_categories": 1}
    fitted = fit(CATEGORY, {"c": train}, labels, categories=sections)
    assert fitted.features({"c": ["v", "w", "?"]})[:, 0].tolist() == [0.5] * 3
    fitted = fit(CATEGORY, {"c": train}, labels, categories={**sections, "max_categories": 100_000, "min_count": 2})
    result = fitted.features({"c": ["u", "v", "w"]})[:, 0]
    np.testing.assert_allclose(result, [(2 + 0.5) / 4, (1 + 0.5) / 3, 0.5], **TOLERANCE)


def bucket(text, count):
    return murmurhash3_32(text.encode(), seed=0, positive=True) % count


def sign(text):
    return 1 - 2 * (murmurhash3_32(text.encode(), seed=SIGN_SEED, positive=True) % 2)


@PROPERTY
@given(TEXTS, st.integers(2, 9), st.booleans())
def test_hashing_is_that_of_sklearn(texts, num_buckets, signed):
    encode = {"kind": "hash", "num_buckets": num_buckets, "signed": signed}
    fitted = fit(CATEGORY, {"c": texts}, categories={"encode": encode, "impute": "own_category"})
    result = fitted.features({"c": texts})
    expected = np.zeros((len(texts), num_buckets))
    for row, text in enumerate(texts):
        expected[row, bucket(text, num_buckets)] = sign(text) if signed else 1
    np.testing.assert_array_equal(result, expected)


def test_a_missing_text_hashes_as_the_most_frequent():
    fitted = fit(CATEGORY, {"c": ["x", "y", "y"]}, categories={"encode": {"kind": "hash", "num_buckets": 50}})
    result = fitted.features({"c": ["", "y", "x"]})
    assert (result[0] == result[1]).all()
    assert not (result[0] == result[2]).all()
