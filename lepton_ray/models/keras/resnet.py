"""Residual convolutional network; ``models/torch/resnet.py`` says why it is normalised in groups.

Legend: N rows, H height, W width, K channels.
"""

import math
from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras
from lepton_ray.models.keras.layers import channels_last, convolve, dense, entry
from lepton_ray.spec.model import ResnetModel

_GROUPS = 8
_EPSILON = 1e-5  # as torch; Keras takes 1e-3


def build(spec: ResnetModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build a convolution, stages of blocks, the mean over the pixels, dropout, and the classes."""
    (given,) = inputs
    image = entry(given)
    x = keras.ops.relu(_convolve(channels_last(image), spec.channels[0], 3, 1, "start"))
    for stage, channels in enumerate(spec.channels):
        for block in range(spec.blocks):
            x = _add_block(x, channels, 2 if stage and not block else 1, f"stage_{stage}_block_{block}")
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    x = keras.layers.Dropout(spec.dropout, name="dropout")(x)
    return keras.Model(image, dense(x, num_outputs, "logits"), name="resnet")


def _add_block(x_NHWK: Any, channels: int, stride: int, name: str) -> Any:
    """Return two 3x3 convolutions, to which the input is added (He et al. 2016, arXiv:1512.03385, figure 2)."""
    residual = keras.ops.relu(_convolve(x_NHWK, channels, 3, stride, f"{name}_first"))
    residual = _convolve(residual, channels, 3, 1, f"{name}_second")
    is_same = stride == 1 and x_NHWK.shape[-1] == channels
    shortcut = x_NHWK if is_same else _convolve(x_NHWK, channels, 1, stride, f"{name}_shortcut")
    return keras.ops.relu(shortcut + residual)


def _convolve(x_NHWK: Any, channels: int, size: int, stride: int, name: str) -> Any:
    """Return a normalised convolution. Its frame of zeros is even: Keras' own, with a stride, has none above and to the left."""
    if size > 1:
        x_NHWK = keras.layers.ZeroPadding2D(size // 2, name=f"{name}_frame")(x_NHWK)
    x_NHWK = convolve(x_NHWK, channels, size, f"{name}_convolution", strides=stride, use_bias=False)
    groups = math.gcd(channels, _GROUPS)
    return keras.layers.GroupNormalization(groups, epsilon=_EPSILON, name=f"{name}_norm")(x_NHWK)
