"""What is wrong with section ``features`` is found before any row is read."""

import json
import re
from pathlib import Path

import jsonschema_rs
import pytest
import yaml
from pydantic import ValidationError

from lepton_ray.spec.data import DataSpec
from lepton_ray.spec.features import FeaturesSpec
from lepton_ray.spec.features_check import check_features

COLUMNS = {
    "age": {"kind": "number", "min": 0, "max": 100},
    "debt": {"kind": "number", "max": 0},
    "city": {"kind": "category", "allowed": ["oslo", "rome"]},
    "plan": "category",
    "note": "text",
    "other": "text",
    "load": {"kind": "series", "length": 4},
    "photo": {"kind": "image", "height": 8, "width": 6, "channels": 3},
    "id": "ignored",
}


def problems(sections, columns=COLUMNS, label="plan"):
    data = DataSpec.model_validate({"source": {"kind": "csv", "uri": "x"}, "columns": columns, "label": label})
    return check_features(FeaturesSpec.model_validate(sections), data)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"columns": {"agee": {"kind": "number"}}}, "features.columns.agee must name a feature of data.columns, got 'agee'. Choose from age,"),
        ({"columns": {"id": {"kind": "category"}}}, "features.columns.id must name a feature"),
        ({"columns": {"plan": {"kind": "category"}}}, "features.columns.plan must name a feature"),
        ({"columns": {"age": {"kind": "category"}}}, "features.columns.age.kind must be 'number', the kind of the column, got 'category'. Change"),
        ({"numbers": {"impute": {"kind": "by_group", "column": "town"}}}, "features.numbers.impute.column must name features of kind 'category', got 'town'. Choose from city"),
        ({"numbers": {"impute": {"kind": "by_group", "column": "note"}}}, "got 'note', of kind 'text'. Choose from city"),
        ({"columns": {"debt": {"kind": "number", "transform": "box_cox"}}}, "features.columns.debt.transform must not be 'box_cox' for 'debt', whose values are at most 0. Use yeo_johnson"),
        ({"columns": {"age": {"kind": "number", "transform": "box_cox", "impute": 0}}}, "features.columns.age.impute must be positive for 'box_cox', got 0.0"),
        ({"columns": {"age": {"kind": "number", "transform": "box_cox", "impute": "zero"}}}, "features.columns.age.impute must be positive for 'box_cox', got 'zero'"),
        ({"columns": {"age": {"kind": "number", "scale": {"kind": "edge_bins", "edges": [18, 200]}}}}, "features.columns.age.scale.edges must lie above data.columns.age.min and not above its max, got 200"),
        ({"columns": {"city": {"kind": "category", "encode": {"kind": "ordinal", "order": ["oslo", "bern"]}}}}, "features.columns.city.encode.order must hold values of data.columns.city.allowed, got 'bern'"),
        ({"texts": {"encode": "ids"}}, "features.texts.encode must be 'ids' for one text at most, got note, other"),
        ({"series": {"lags": [5]}}, "features.series must look back at most data.columns.load.length (4) values, got 5"),
        ({"series": {"differences": [4]}}, "(4) values, got 5"),
        ({"images": {"crop": [9, 2]}}, "features.images.crop must be at most [8, 6], the size of the image, got [9, 2]"),
        ({"images": {"resize": [4, 4], "crop": [4, 5]}}, "features.images.crop must be at most [4, 4]"),
        ({"images": {"normalise": {"kind": "given", "mean": [0.5], "std": [1, 1, 1]}}}, "features.images.normalise.mean must hold one number for each of 3 channels, got 1"),
        ({"crosses": [{"columns": ["city", "age"]}]}, "features.crosses.0.columns must name features of kind 'category', got 'age', of kind 'number'. Choose from city"),
        ({"polynomial": {"columns": ["age", "city"]}}, "features.polynomial.columns must name features of kind 'number', got 'city'"),
        ({"polynomial": {"columns": ["age"], "interaction_only": True}}, "features.polynomial.columns must hold two numbers at least for interaction_only, got 1"),
        ({"pca": {"num_components": 3}}, "features.pca.num_components must be at most 2, got 3"),
        ({"pca": {"columns": ["age"]}, "columns": {"age": {"kind": "number", "scale": {"kind": "quantile_bins"}}}}, "features.pca.columns must hold numbers that are scaled, got 'age', which is binned"),
        ({"polynomial": {}, "numbers": {"scale": {"kind": "quantile_bins"}}}, "features.polynomial must have number columns to work on, got none. Remove it"),
        ({"texts": {"encode": "ids", "tokens": {"kind": "subwords", "tokenizer_file": "/no/such/file"}}}, "features.texts.tokens.tokenizer_file must be a readable file, got '/no/such/file'"),
    ],
)  # fmt: skip
def test_a_setting_that_does_not_fit_the_columns(sections, expected):
    found = problems(sections)
    assert any(expected in sentence for sentence in found), found
    assert all(sentence.startswith("features.") for sentence in found)


def test_too_many_products():
    columns = {f"x{i}": "number" for i in range(50)} | {"label": "category"}
    (found,) = problems({"polynomial": {"degree": 3}}, columns, "label")
    assert found.startswith("features.polynomial must make at most 10000 features, got 23375. Name fewer columns")
    assert problems({"polynomial": {"degree": 2}}, columns, "label") == []


def test_the_example_of_the_document_is_a_section():
    document = Path(__file__).parents[2] / "docs" / "features.md"
    (example,) = re.findall(r"```yaml\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    spec = FeaturesSpec.model_validate(yaml.safe_load(example)["features"])
    assert spec.columns["merchant"].encode.kind == "target"


def test_all_problems_come_at_once():
    assert (
        len(problems({"crosses": [{"columns": ["x", "y"]}], "series": {"lags": [9]}, "pca": {"num_components": 9}}))
        == 4
    )


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"categories": {"encode": "target"}},
            "features.categories.encode must not be 'target' without a data.label that is a category",
        ),
        (
            {"select": {"best": {"by": "logistic", "num_features": 2}}},
            "features.select.best must not be given without a data.label that is a category",
        ),
    ],
)
def test_what_needs_a_label(sections, expected):
    (found,) = problems(sections, label=None)
    assert expected in found


def test_nothing_to_select_from():
    series = {"kind": "series", "length": 3}
    columns = {"photo": COLUMNS["photo"], "note": "text", "load": series, "label": "category"}
    ids, steps = {"texts": {"encode": "ids"}}, {"series": {"encode": "steps"}}
    for sections in ({}, ids, steps):
        assert problems({"select": {"min_variance": 0.0}, **sections}, columns, "label") == []
    (found,) = problems({"select": {"min_variance": 0.0}, **ids, **steps}, columns, "label")
    assert found.startswith("features.select must have features besides images, ids and steps")


def test_a_tokenizer_of_another_model(tmp_path):
    file = tmp_path / "tokenizer.json"
    for content in ("[]", "{", '{"model": 3}', json.dumps({"model": {"type": "BPE"}})):
        file.write_text(content)
        tokens = {"kind": "subwords", "tokenizer_file": str(file)}
        (problem,) = problems({"columns": {"note": {"kind": "text", "tokens": tokens, "encode": "ids"}}})
        assert problem.startswith("features.columns.note.tokens.tokenizer_file must")


@pytest.mark.parametrize(
    ("sections", "place", "expected"),
    [
        ({"numbers": {"impute": "middle"}}, ("numbers", "impute"), "must be 'mean', 'median', 'most_frequent', 'zero', a number or"),
        ({"numbers": {"impute": True}}, ("numbers", "impute"), "must be 'mean'"),
        ({"numbers": {"scale": "big"}}, ("numbers", "scale"), "must be 'standard', 'min_max'"),
        ({"numbers": {"clip": {"kind": "quantile", "low": 0.9, "high": 0.1}}}, ("numbers", "clip", "quantile"), "low must be less than high (0.1), got 0.9. Swap them"),
        ({"numbers": {"scale": {"kind": "edge_bins", "edges": [2, 1]}}}, ("numbers", "scale", "edge_bins"), "edges must rise, got 2 before 1"),
        ({"categories": {"encode": {"kind": "ordinal", "order": ["a", "a"]}}}, ("categories", "encode", "ordinal"), "order must hold each value once, got 'a' twice"),
        ({"times": {"reference": "soon"}}, ("times",), "reference must be an ISO 8601 time, got 'soon'"),
        ({"times": {"parts": [], "cyclic": []}}, ("times",), "parts or cyclic must name a part, got none"),
        ({"times": {"parts": ["day", "day"]}}, ("times",), "parts must hold each value once, got 'day' twice"),
        ({"texts": {"encode": {"kind": "bag", "ngrams": [2, 1]}}}, ("texts", "encode", "bag"), "ngrams must be [LEAST, GREATEST]"),
        ({"series": {"lags": []}}, ("series",), "lags, windows or differences must hold a number, got none"),
        ({"pca": {"num_components": 1, "variance_fraction": 0.5}}, ("pca",), "num_components must not be given with variance_fraction (0.5), got 1"),
        ({"select": {}}, ("select",), "select must hold a test, got none"),
        ({"crosses": [{"columns": ["a", "a"]}]}, ("crosses", 0), "columns must hold each value once, got 'a' twice"),
        ({"columns": {"x": {"kind": "nmber"}}}, ("columns", "x"), "'number', 'category', 'time', 'text', 'series', 'image'"),
    ],
)  # fmt: skip
def test_a_setting_that_can_never_hold(sections, place, expected):
    with pytest.raises(ValidationError) as raised:
        FeaturesSpec.model_validate(sections)
    (error,) = raised.value.errors()
    assert error["loc"] == place
    assert expected in error["msg"]


@pytest.mark.parametrize(
    "sections",
    [
        {"numbers": {"clip": "iqr", "impute": 3, "scale": {"kind": "edge_bins", "edges": [1]}}},
        {"numbers": {"impute": {"kind": "by_group", "column": "c"}, "clip": {"kind": "mad"}}},
        {"categories": {"encode": "target"}, "texts": {"tokens": "characters", "encode": "ids"}},
        {"crosses": [{"columns": ["a", "b"], "encode": "hash"}], "images": {"normalise": "dataset", "crop": [1, 2]}},
        {"columns": {"t": {"kind": "text", "encode": {"kind": "bag", "ngrams": [1, 2]}}}},
    ],
)
def test_short_forms_are_in_the_schema(sections):
    schema = jsonschema_rs.Draft202012Validator(FeaturesSpec.model_json_schema())
    schema.validate(sections)
    spec = FeaturesSpec.model_validate(sections)
    schema.validate(spec.model_dump(mode="json"))
    with pytest.raises(jsonschema_rs.ValidationError):
        schema.validate({"numbers": {"clip": "iqrr"}})


def test_sections_of_the_first_version_stay_valid():
    spec = FeaturesSpec.model_validate(
        {
            "numbers": {"impute": "zero", "scale": "min_max"},
            "categories": {"impute": "own_category", "max_categories": 3},
            "images": {"scale": "none"},
        }
    )
    assert spec.categories.num_categories == 3
    default = FeaturesSpec()
    assert (default.numbers.impute, default.numbers.scale) == ("median", "standard")
    assert (default.categories.impute, default.categories.num_categories, default.images.scale) == (
        "most_frequent",
        64,
        "unit",
    )
