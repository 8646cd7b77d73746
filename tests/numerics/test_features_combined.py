"""Features of several columns and the choice among features, against scikit-learn and NumPy."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.utils import murmurhash3_32

from lepton_ray.core.errors import DataError

from .feature_case import TOLERANCE, fit

PAIRS = st.lists(
    st.tuples(st.sampled_from(["x", "y", "", "\x1f"]), st.sampled_from(["u", "v", "", "u\x1f"])),
    min_size=1,
    max_size=20,
)
TWO = {"a": "category", "b": "category"}
PLAIN = {"categories": {"max_categories": 1}}


def rows_of(pairs):
    return {"a": [a for a, _ in pairs], "b": [b for _, b in pairs]}


@settings(max_examples=30, deadline=None)
@given(PAIRS, PAIRS, st.integers(1, 6), st.booleans())
def test_a_cross_has_a_column_for_each_frequent_combination(train, test, most, other):
    cross = {"columns": ["a", "b"], "max_categories": most, "encode": {"kind": "one_hot", "other": other}}
    fitted = fit(TWO, rows_of(train), crosses=[cross], **PLAIN)
    counts = Counter(train)
    kept = sorted(counts, key=lambda pair: (-counts[pair], pair))[:most]
    width = len(kept) + other
    assert fitted.names[-width:] == [f"a&b={a}&{b}" for a, b in kept] + ["a&b:other"] * other
    result = fitted.features(rows_of(test))[:, -width:]
    for pair, row in zip(test, result, strict=True):
        expected = np.zeros(width)
        if pair in kept:
            expected[kept.index(pair)] = 1
        elif other:
            expected[-1] = 1
        assert row.tolist() == expected.tolist()


def test_a_cross_of_three_columns_and_of_unseen_categories():
    columns = dict.fromkeys("abc", "category")
    rows = {"a": ["1", "2", "1"], "b": ["1", "1", "2"], "c": ["", "3", "1"]}
    cross = {"columns": ["c", "a", "b"]}
    fitted = fit(columns, rows, crosses=[cross], **PLAIN)
    crossed = [i for i, name in enumerate(fitted.names) if "&" in name]
    assert [fitted.names[i] for i in crossed] == ["c&a&b=&1&1", "c&a&b=1&1&2", "c&a&b=3&2&1"]
    assert fitted.features(rows)[:, crossed].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    new = {"a": ["1", "9", "2"], "b": ["1", "9", "2"], "c": ["3", "9", "1"]}
    assert not fitted.features(new)[:, crossed].any()


@pytest.mark.parametrize("signed", [False, True])
def test_a_hashed_cross(signed):
    pairs = [("x", "u"), ("y", ""), ("", ""), ("é", "\U0001f600")]
    cross = {"columns": ["a", "b"], "encode": {"kind": "hash", "num_buckets": 11, "signed": signed}}
    result = fit(TWO, rows_of(pairs), crosses=[cross], **PLAIN).features(rows_of(pairs))[:, -11:]
    for (a, b), row in zip(pairs, result, strict=True):
        text = f"{a}\x1f{b}".encode()
        value = 1 - 2 * (murmurhash3_32(text, seed=0x5EED, positive=True) % 2) if signed else 1
        assert row[murmurhash3_32(text, seed=0, positive=True) % 11] == value
        assert np.abs(row).sum() == 1


def matrix_of(width, rows=200, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width) * 5
    columns = {f"x{i}": "number" for i in range(width)}
    return columns, {f"x{i}": values[:, i].tolist() for i in range(width)}, StandardScaler().fit_transform(values)


@pytest.mark.parametrize("degree", [2, 3])
@pytest.mark.parametrize("interaction_only", [True, False])
def test_products_are_those_of_sklearn(degree, interaction_only):
    columns, rows, scaled = matrix_of(4)
    fitted = fit(columns, rows, polynomial={"degree": degree, "interaction_only": interaction_only})
    reference = PolynomialFeatures(degree, interaction_only=interaction_only, include_bias=False)
    expected = reference.fit_transform(scaled)
    names = [name.replace(" ", "*") for name in reference.get_feature_names_out(list(columns))]
    assert fitted.names == names
    np.testing.assert_allclose(fitted.features(rows), expected, rtol=1e-5, atol=1e-5)


def test_products_of_some_columns_and_of_extreme_values():
    columns, rows, scaled = matrix_of(3)
    fitted = fit(columns, rows, polynomial={"columns": ["x2", "x0"]})
    assert fitted.names[3:] == ["x0^2", "x0*x2", "x2^2"]
    np.testing.assert_allclose(fitted.column(rows, "x0*x2"), scaled[:, 0] * scaled[:, 2], rtol=1e-5, atol=1e-5)
    far = {name: [1e300, -1e300] for name in columns}
    assert np.isfinite(fitted.features(far)).all()


@pytest.mark.parametrize("keep", [False, True])
def test_principal_components_are_those_of_sklearn(keep):
    columns, rows, scaled = matrix_of(5)
    fitted = fit(
        {"c": "category", **columns}, {"c": ["u"] * 200, **rows}, pca={"num_components": 3, "keep_columns": keep}
    )
    numbers = list(columns) if keep else []
    assert fitted.names == [*numbers, "c=u", "pca:0", "pca:1", "pca:2"]
    result = fitted.features({"c": ["u"] * 200, **rows})[:, -3:]
    reference = PCA(3).fit(scaled)
    expected = reference.transform(scaled)
    np.testing.assert_allclose(np.abs(result), np.abs(expected), rtol=1e-4, atol=1e-4)
    signs = np.sign([c[np.abs(c).argmax()] for c in reference.components_])
    np.testing.assert_allclose(result, expected * signs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fraction", [0.3, 0.8, 0.95, 1.0])
def test_as_many_components_as_explain_the_variance(fraction):
    columns, rows, scaled = matrix_of(6)
    names = fit(columns, rows, pca={"variance_fraction": fraction}).names
    explained = np.cumsum(PCA().fit(scaled).explained_variance_ratio_)
    assert len(names) == int((explained < fraction - 1e-9).sum()) + 1


def test_components_of_one_constant_column():
    fitted = fit({"x": "number"}, {"x": [3.0, 3.0]}, pca={})
    assert fitted.features({"x": [3.0, 4.0]}).shape == (2, 1)


def labelled(rows=400):
    """Numbers of which x0 and x1 tell the label, x2 repeats x0, x3 is constant, the others are noise; and a category."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(rows, 6))
    values[:, 2] = values[:, 0] * 2 + rng.normal(size=rows) * 0.01
    values[:, 3] = 7.0
    labels = np.where(values[:, 0] + values[:, 1] + rng.normal(size=rows) * 0.1 > 0, "b", "a").tolist()
    columns = {f"x{i}": "number" for i in range(6)} | {"c": "category"}
    train = {f"x{i}": values[:, i].tolist() for i in range(6)} | {"c": rng.choice(["u", "v"], rows).tolist()}
    return columns, train, labels


def test_constant_features_and_repeated_ones_are_left_out():
    columns, rows, labels = labelled()
    fitted = fit(columns, rows, labels, select={"min_variance": 0.0, "max_correlation": 0.95})
    assert fitted.names == ["x0", "x1", "x4", "x5", "c=u"]  # c=v is what c=u is not
    whole = fit(columns, rows, labels)
    both = dict(zip(whole.names, whole.features(rows).T, strict=True))
    for name, column in zip(fitted.names, fitted.features(rows).T, strict=True):
        np.testing.assert_array_equal(column, both[name])


@pytest.mark.parametrize("by", ["mutual_information", "logistic", "extra_trees"])
def test_what_tells_about_the_label_stays(by):
    columns, rows, labels = labelled()
    select = {"max_correlation": 0.95, "best": {"by": by, "num_features": 2}}
    assert fit(columns, rows, labels, select=select).names == ["x0", "x1"]
    everything = {"best": {"by": by, "num_features": 100}}
    assert len(fit(columns, rows, labels, select=everything).names) == 8


def test_selecting_over_texts_crosses_and_components():
    columns, rows, labels = labelled()
    columns |= {"t": "text", "d": "category", "day": "time"}
    rows |= {"t": [f"label {label}" for label in labels], "d": rows["c"], "day": [None] * 400}
    sections = {
        "crosses": [{"columns": ["c", "d"]}],
        "pca": {"num_components": 2},
        "polynomial": {"interaction_only": True},
    }
    best = {"best": {"by": "mutual_information", "num_features": 2}}
    fitted = fit(columns, rows, labels, select=best, texts={"encode": "bag"}, **sections)
    assert sorted(fitted.names) == ["t=a", "t=b"]
    assert fitted.features(rows).sum() == 400


def test_a_selection_that_leaves_nothing_is_an_error():
    with pytest.raises(DataError, match="select must leave a feature, got none"):
        fit({"x": "number"}, {"x": [1.0, 2.0]}, select={"min_variance": 5.0})


def test_a_name_that_occurs_twice_is_numbered():
    columns = {"c": "category", "c=u": "number", "c=u~2": "number"}
    rows = {"c": ["u", "v"], "c=u": [1.0, 2.0], "c=u~2": [3.0, 4.0]}
    fitted = fit(columns, rows, numbers={"scale": "none"})
    assert fitted.names == ["c=u", "c=u~2", "c=u~3", "c=v"]
    np.testing.assert_allclose(fitted.features(rows), [[1, 3, 1, 0], [2, 4, 0, 1]], **TOLERANCE)
