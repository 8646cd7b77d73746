"""Images through the compiled graph, against NumPy and torch."""

import numpy as np
import pytest
import torch

from .feature_case import TOLERANCE, fit


def pixels_of(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def column_of(pixels):
    return {"kind": "image", "height": pixels.shape[1], "width": pixels.shape[2], "channels": pixels.shape[3]}


@pytest.mark.parametrize(("scale", "factor"), [("unit", 255), ("none", 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_channels_first(scale, factor, channels, monkeypatch):
    monkeypatch.setattr("lepton_ray.features.runners.BATCH_ROWS", 2)
    pixels = pixels_of((5, 2, 3, channels))
    fitted = fit({"image": column_of(pixels)}, {"image": list(pixels)}, images={"scale": scale})
    result = fitted.outputs({"image": list(pixels[1:4])})["features"]
    np.testing.assert_allclose(result, pixels[1:4].transpose(0, 3, 1, 2) / factor, **TOLERANCE)


@pytest.mark.parametrize("size", [(4, 6), (9, 5), (20, 30), (8, 12)])
def test_resizing_is_that_of_torch(size):
    """Bilinear, smoothed when shrinking; both compute in float32, on grey levels of up to 255."""
    pixels = pixels_of((3, 8, 12, 3))
    fitted = fit({"image": column_of(pixels)}, {"image": list(pixels)}, images={"resize": size, "scale": "none"})
    result = fitted.outputs({"image": list(pixels)})["features"]
    chw = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    expected = torch.nn.functional.interpolate(chw, size, mode="bilinear", align_corners=False, antialias=True)
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-3)


@pytest.mark.parametrize("crop", [(3, 4), (2, 5), (8, 1)])
def test_cropping_keeps_the_middle(crop):
    pixels = pixels_of((2, 8, 5, 1))
    fitted = fit({"image": column_of(pixels)}, {"image": list(pixels)}, images={"crop": crop, "scale": "none"})
    result = fitted.outputs({"image": list(pixels)})["features"]
    top, left = (8 - crop[0]) // 2, (5 - crop[1]) // 2
    expected = pixels[:, top : top + crop[0], left : left + crop[1], 0]
    np.testing.assert_array_equal(result[:, 0], expected)


def test_normalising_by_the_training_rows_or_by_given_numbers():
    pixels = pixels_of((6, 4, 5, 3))
    pixels[..., 2] = 7  # a channel without spread
    columns, rows = {"image": column_of(pixels)}, {"image": list(pixels)}
    result = fit(columns, rows, images={"normalise": "dataset"}).outputs(rows)["features"]
    unit = pixels / 255
    std = unit.std(axis=(0, 1, 2))
    expected = (unit - unit.mean(axis=(0, 1, 2))) / np.where(std < 1e-12, 1, std)
    np.testing.assert_allclose(result, expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    given = {"kind": "given", "mean": [0.1, 0.2, 0.3], "std": [1, 2, 4]}
    result = fit(columns, rows, images={"normalise": given}).outputs(rows)["features"]
    expected = (unit - [0.1, 0.2, 0.3]) / [1, 2, 4]
    np.testing.assert_allclose(result, expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_an_image_beside_numbers_is_an_output_of_its_own():
    pixels = pixels_of((4, 2, 3, 1))
    columns = {"x": "number", "image": column_of(pixels)}
    rows = {"x": [1.0, 2.0, 3.0, 4.0], "image": list(pixels)}
    outputs = fit(columns, rows).outputs(rows)
    assert {name: array.shape for name, array in outputs.items()} == {"features": (4, 1), "pixels": (4, 1, 2, 3)}
