"""What a column of numbers learns where most of its values are equal."""

import numpy as np
import pytest

from lepton_ray.features.numbers import fit_number
from lepton_ray.spec.features_number import NumberFeatures

CLIPS = ("quantile", "iqr", "z_score", "mad")
CONSTANT = np.full(100, 3.0)


@pytest.mark.parametrize("clip", CLIPS)
def test_clipping_leaves_a_sparse_column_its_values(clip):
    sparse = np.array([0.0] * 995 + [1.0, 2.0, 3.0, 4.0, 5.0])
    state = fit_number("x", sparse, NumberFeatures(clip=clip), None)
    if clip == "z_score":
        assert 0 < state.high < 1  # 3 standard deviations
    else:
        assert (state.low, state.high) == (None, None)
        assert (state.offset, state.scale) == pytest.approx((sparse.mean(), sparse.std()))


@pytest.mark.parametrize("clip", CLIPS)
def test_a_constant_column_is_clipped_to_its_value(clip):
    state = fit_number("x", CONSTANT, NumberFeatures(clip=clip), None)
    assert (state.low, state.high) == (3.0, 3.0)
