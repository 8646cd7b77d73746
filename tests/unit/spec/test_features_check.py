"""Sections that fit the columns as they are prepared, and sections that do not."""

import pytest

from lepton_ray.core.errors import SpecError
from lepton_ray.spec import parse_spec
from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.features_check import check_features

COLUMNS = {"x": {"kind": "number", "min": 10, "max": 1000}, "city": "category"}


def problems(section):
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x.csv"}, "columns": COLUMNS})
    return check_features(FeaturesSpec.model_validate({"numbers": section}), data)


@pytest.mark.parametrize(
    ("section", "edge"),
    [
        ({"transform": "log1p"}, 3),  # log1p of 10 is 2.4
        ({"impute": -1}, 0),
        ({"impute": "zero"}, 5),
    ],
)
def test_edges_apply_to_imputed_and_transformed_values(section, edge):
    assert problems({**section, "scale": {"kind": "edge_bins", "edges": [edge]}}) == []


@pytest.mark.parametrize("impute", ["median", {"kind": "by_group", "column": "city"}])
@pytest.mark.parametrize("edge", [10, 1001])
def test_statistics_lie_within_the_columns_bounds(impute, edge):
    (problem,) = problems({"impute": impute, "scale": {"kind": "edge_bins", "edges": [edge]}})
    assert f"must lie above data.columns.x.min and not above its max, got {edge}:" in problem


def run_spec(columns, features, train="{}"):
    return parse_spec(
        f"name: t\ndata: {{source: {{kind: csv, uri: x.csv}}, label: y, columns: {{{columns}, y: category}}}}\n"
        f"model: {{kind: mlp}}\nfeatures: {features}\ntrain: {train}\n"
    )


NOISE = "{augment: {table: {noise_std: 0.1%s}}}"
BINNED = "{columns: {a: {kind: number, scale: {kind: quantile_bins}}}}"


@pytest.mark.parametrize(
    ("columns", "features", "named", "expected"),
    [
        ("a: number, g: category", "{}", ", columns: [nope]", "must name number columns (a), got 'nope'"),
        ("a: number, g: category", "{}", ", columns: [g]", "must name number columns (a), got 'g'"),
        ("a: number, b: number", BINNED, ", columns: [a]", "must name number columns (b), got 'a'"),
        (
            "a: number, b: number, c: number",
            "{pca: {columns: [a, b]}}",
            ", columns: [b]",
            "number columns (c), got 'b'",
        ),
        ("g: category", "{}", "", "must be left out for data without number columns"),
        ("a: number, b: number", "{pca: {}}", "", "must be left out for data without number columns"),
    ],
)
def test_noise_is_for_columns_that_stay_numbers(columns, features, named, expected):
    with pytest.raises(SpecError) as caught:
        run_spec(columns, features, NOISE % named)
    (problem,) = caught.value.problems
    assert "train.augment.table" in problem
    assert expected in problem


def test_noise_for_numbers_beside_their_components():
    features = "{pca: {columns: [a, b], keep_columns: true}}"
    assert run_spec("a: number, b: number", features, NOISE % ", columns: [a]").train.augment is not None


@pytest.mark.parametrize("kind", ["image", "number", "category"])
def test_a_section_of_another_kind_is_named(kind):
    with pytest.raises(SpecError) as caught:
        run_spec("a: number, note: text", f"{{columns: {{note: {{kind: {kind}}}}}, pca: {{}}}}")
    (problem,) = caught.value.problems
    assert "features.columns.note.kind must be 'text', the kind of the column" in problem


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [("{kind: category, normalise: [lower]}", "Low", "lower case"), ("category", "None", "means missing")],
)
def test_an_order_of_values_that_cannot_be_is_refused(column, value, reason):
    section = f"{{columns: {{size: {{kind: category, encode: {{kind: ordinal, order: [{value}, high]}}}}}}}}"
    with pytest.raises(SpecError, match=f"encode.order must hold values that size can have, got '{value}' .*{reason}"):
        run_spec(f"size: {column}", section)
