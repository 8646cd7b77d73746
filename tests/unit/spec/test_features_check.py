"""Which edges of bins no value can fall on one side of, by what is known of the column."""

import pytest

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
