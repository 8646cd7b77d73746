"""Series through the compiled graph, against NumPy."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .feature_case import NAN, fit

LENGTH = 5
COLUMNS = {"load": {"kind": "series", "length": LENGTH}}
ROWS = st.lists(
    st.lists(st.integers(-100, 100).map(float) | st.none(), min_size=LENGTH, max_size=LENGTH) | st.none(),
    min_size=1,
    max_size=12,
)
SECTION = {"lags": [1, 3], "windows": [2, 5], "differences": [1, 4]}


def reference(rows, impute):
    filled = np.where(np.isnan(rows), impute, rows)
    columns = [filled[:, -1], filled[:, -3]]
    for window in (2, 5):
        latest = filled[:, -window:]
        columns += [latest.mean(axis=1), latest.std(axis=1), latest.min(axis=1), latest.max(axis=1)]
    return np.stack([*columns, filled[:, -1] - filled[:, -2], filled[:, -1] - filled[:, -5]], axis=1)


def matrix(rows):
    return np.array([[NAN if v is None else v for v in row or [None] * LENGTH] for row in rows], float)


@settings(max_examples=30, deadline=None)
@given(ROWS, ROWS, st.sampled_from(["mean", "median", "zero"]), st.sampled_from(["none", "standard", "min_max"]))
@example([[0.0, 0.0, 0.0, 1.0, None]], [[0.0, 0.0, None, 1.0, 0.0]], "median", "standard")  # a mean that is rounded
def test_lags_windows_and_changes(train, test, impute, scale):
    fitted = fit(COLUMNS, {"load": train}, series={**SECTION, "impute": impute, "scale": scale})
    known = matrix(train)
    present = known[~np.isnan(known)]
    fill = {"mean": np.mean, "median": np.median, "zero": lambda _: 0.0}[impute](present) if len(present) else 0.0
    expected, base = reference(matrix(test), fill), reference(known, fill)
    offset, spread = np.zeros(expected.shape[1]), np.ones(expected.shape[1])
    if scale == "standard" and len(present):
        offset, spread = base.mean(axis=0), base.std(axis=0)
    elif scale == "min_max" and len(present):
        offset, spread = base.min(axis=0), np.ptp(base, axis=0)
    result = fitted.features({"load": test})
    varies = spread > 1e-9  # of what does not vary only the offset matters, which rounding may move
    np.testing.assert_allclose(
        result[:, varies], ((expected - offset) / np.where(varies, spread, 1))[:, varies], rtol=1e-4, atol=1e-4
    )


def test_names_and_the_default_of_all_values():
    rows = {"load": [[1.0, 2, 3, 4, 5], [2.0, 3, 4, 5, 6]]}
    assert fit(COLUMNS, rows).names == [f"load:lag{lag}" for lag in range(1, 6)]
    names = fit(COLUMNS, rows, series={"lags": [], "windows": [3], "statistics": ["mean"], "differences": [2]}).names
    assert names == ["load:mean3", "load:change2"]


@pytest.mark.parametrize("value", [1e150, 1e308, -1.7e308])
def test_extreme_values_stay_finite(value):
    rows = {"load": [[value, -value, value, 1.0, 0.0], [0.0, 1, 2, 3, value]]}
    assert np.isfinite(fit(COLUMNS, rows, series=SECTION).features(rows)).all()


def test_two_series_beside_numbers():
    columns = {"a": {"kind": "series", "length": 2}, "x": "number", "b": {"kind": "series", "length": 3}}
    rows = {"a": [[1.0, 2], None, [3, None]], "x": [1.0, 2.0, 3.0], "b": [[1.0, 2, 3]] * 3}
    sections = {"numbers": {"scale": "none"}, "series": {"scale": "none", "impute": "zero"}}
    result = fit(columns, rows, **sections).features(rows)
    assert result.tolist() == [[1, 2, 1, 3, 2, 1], [2, 0, 0, 3, 2, 1], [3, 0, 3, 3, 2, 1]]


@settings(max_examples=30, deadline=None)
@given(ROWS, ROWS, st.sampled_from(["mean", "median", "zero"]), st.sampled_from(["none", "standard", "min_max"]))
def test_steps_are_scaled_alike(train, test, impute, scale):
    fitted = fit(COLUMNS, {"load": train}, series={"encode": "steps", "impute": impute, "scale": scale})
    present = matrix(train)[~np.isnan(matrix(train))]
    fill, offset, spread = 0.0, 0.0, 1.0
    if len(present):
        fill = {"mean": np.mean, "median": np.median, "zero": lambda _: 0.0}[impute](present)
        if scale == "standard":
            offset, spread = present.mean(), present.std()
        elif scale == "min_max":
            offset, spread = present.min(), np.ptp(present)
    filled = np.where(np.isnan(matrix(test)), fill, matrix(test))
    (result,) = fitted.outputs({"load": test}).values()
    assert result.shape == (len(test), LENGTH, 1)
    if spread == 0 or spread > 1e-9:
        np.testing.assert_allclose(result[:, :, 0], (filled - offset) / (spread or 1.0), rtol=1e-5, atol=1e-5)


def test_series_of_steps_lie_side_by_side():
    columns = {"a": {"kind": "series", "length": 2}, "x": "number", "b": {"kind": "series", "length": 2}}
    rows = {"a": [[1.0, 2], None], "x": [1.0, 2.0], "b": [[3.0, 4], [5.0, None]]}
    sections = {"numbers": {"scale": "none"}, "series": {"scale": "none", "impute": "zero", "encode": "steps"}}
    result = fit(columns, rows, **sections).outputs(rows)
    assert list(result) == ["features", "steps"]
    assert result["features"].tolist() == [[1], [2]]
    assert result["steps"].tolist() == [[[1, 3], [2, 4]], [[0, 5], [0, 0]]]


@pytest.mark.parametrize("value", [1e150, 1e308, -1.7e308])
def test_extreme_steps_stay_finite(value):
    rows = {"load": [[value, -value, value, 1.0, 0.0], [0.0, 1, 2, 3, value]]}
    (result,) = fit(COLUMNS, rows, series={"encode": "steps"}).outputs(rows).values()
    assert np.isfinite(result).all()


def test_selection_leaves_steps_alone():
    columns = {"load": {"kind": "series", "length": 2}, "x": "number", "same": "number"}
    rows = {"load": [[1.0, 2], [3, 4]], "x": [1.0, 2.0], "same": [1.0, 1.0]}
    fitted = fit(columns, rows, series={"encode": "steps"}, select={"min_variance": 0.01})
    assert fitted.names == ["x"]
    assert fitted.outputs(rows)["steps"].shape == (2, 2, 1)
