"""Images: resize, crop and normalise pixels; channels come first in the result."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from lepton_ray.core.frozen import Floats, Frozen, Ints
from lepton_ray.features.graph_builder import Graph
from lepton_ray.spec.data import ImageColumn
from lepton_ray.spec.features_content import ChannelNormalisation, ImageFeatures

_LEVELS = 255


class ImageState(Frozen):
    """(pixels, resized and cropped, x ``factor`` - ``mean``) / ``std``."""

    shape: Ints
    """Rows, columns and channels of the pixels."""
    resize: Ints | None = None
    crop: Ints | None = None
    factor: float = 1.0
    mean: Floats | None = None
    std: Floats | None = None

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the result."""
        rows, columns = self.crop or self.resize or self.shape[:2]
        return self.shape[2], rows, columns


def fit_image(column: ImageColumn, pixels_NHWC: NDArray[np.uint8], spec: ImageFeatures) -> ImageState:
    """Fit an image; only ``normalise: dataset`` learns anything, from the pixels as they are before resizing."""
    factor = 1 / _LEVELS if spec.scale == "unit" else 1.0
    mean, std = None, None
    if isinstance(spec.normalise, ChannelNormalisation):
        mean, std = spec.normalise.mean, spec.normalise.std
    elif spec.normalise == "dataset":
        mean, std = _channel_statistics(pixels_NHWC, factor)
    return ImageState(
        shape=(column.height, column.width, column.channels),
        resize=spec.resize,
        crop=spec.crop,
        factor=factor,
        mean=mean,
        std=std,
    )


def _channel_statistics(pixels_NHWC: NDArray[np.uint8], factor: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact whatever the order of the rows: pixels are counted by level."""
    levels = np.arange(_LEVELS + 1)
    means, stds = [], []
    for channel in range(pixels_NHWC.shape[-1]):
        counts = np.bincount(pixels_NHWC[..., channel].ravel(), minlength=len(levels))
        total = max(int(counts.sum()), 1)
        mean = int(counts @ levels) / total
        means.append(mean * factor)
        stds.append(float(np.sqrt(counts @ (levels - mean) ** 2 / total)) * factor or 1.0)
    return tuple(means), tuple(stds)


def add_image(graph: Graph, tensor: str, state: ImageState) -> str:
    """Add (N, channels, rows, columns) float32."""
    value = graph.add("Transpose", graph.cast(tensor, TensorProto.FLOAT), perm=[0, 3, 1, 2])
    if state.resize is not None:
        value = _add_resize(graph, value, state.resize)
    if state.crop is not None:
        value = _add_crop(graph, value, state.resize or state.shape[:2], state.crop)
    value = graph.add("Mul", value, graph.constant(np.float32(state.factor)))
    if state.mean is not None and state.std is not None:
        value = graph.add("Sub", value, _channels(graph, state.mean))
        value = graph.add("Div", value, _channels(graph, state.std))
    return value


def _channels(graph: Graph, values: Sequence[float]) -> str:
    return graph.constant(np.array(values, np.float32).reshape(-1, 1, 1))


def _add_resize(graph: Graph, value: str, size: Sequence[int]) -> str:
    # All four sizes, not two and their axes: onnxruntime 1.32 moves layers in 8 bits past it, and cannot load what comes of that.
    others = graph.add("Shape", value, start=0, end=2)
    return graph.add(
        "Resize",
        value,
        "",
        "",
        graph.add("Concat", others, graph.constant(np.array(size, np.int64)), axis=0),
        mode="linear",
        antialias=1,
        exclude_outside=1,  # as torch and Pillow do at the edges
        coordinate_transformation_mode="half_pixel",
    )


def _add_crop(graph: Graph, value: str, size: Sequence[int], crop: Sequence[int]) -> str:
    starts = [(have - want) // 2 for have, want in zip(size, crop, strict=True)]
    ends = [start + want for start, want in zip(starts, crop, strict=True)]
    bounds = [graph.constant(np.array(numbers, np.int64)) for numbers in (starts, ends, [2, 3])]
    return graph.add("Slice", value, *bounds)
