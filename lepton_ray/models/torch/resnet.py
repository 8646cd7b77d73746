"""Residual convolutional network. Legend: N rows, H height, W width, K channels, C classes.

Channels are normalised in groups within a row (GroupNorm, Wu and He 2018, arXiv:1803.08494) and not over a batch: with
BatchNorm a row's logits, and so the gradient, would depend on the rows beside it, and N workers would not take the step that
one worker takes on the joined batch. Serving is the same function as training, too: there are no running statistics.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.spec.model import ResnetModel

_GROUPS = 8


class Block(nn.Module):
    """Two 3x3 convolutions, to which the input is added (He et al. 2016, arXiv:1512.03385, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _convolution(in_channels, out_channels, 3, stride), nn.ReLU(), _convolution(out_channels, out_channels, 3)
        )
        is_same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if is_same else _convolution(in_channels, out_channels, 1, stride)

    def forward(self, image_NKHW: Tensor) -> Tensor:
        """Return (N, out_channels, H / stride, W / stride), rounded up."""
        return nn.functional.relu(self.shortcut(image_NKHW) + self.residual(image_NKHW))


def _convolution(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=False),
        nn.GroupNorm(math.gcd(out_channels, _GROUPS), out_channels),
    )


class Resnet(nn.Module):
    """A convolution, stages of blocks, the mean over the pixels, dropout, and the classes."""

    def __init__(self, spec: ResnetModel, image_channels: int, num_outputs: int) -> None:
        super().__init__()
        channels = spec.channels[0]
        layers: list[nn.Module] = [_convolution(image_channels, channels, 3), nn.ReLU()]
        for stage, out_channels in enumerate(spec.channels):
            for block in range(spec.blocks):
                layers.append(Block(channels, out_channels, stride=2 if stage and not block else 1))
                channels = out_channels
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(spec.dropout), nn.Linear(channels, num_outputs))

    def forward(self, image_NKHW: Tensor) -> Tensor:
        """Return logits (N, C)."""
        logits_NC: Tensor = self.head(self.layers(image_NKHW).mean((2, 3)))
        return logits_NC


def build(spec: ResnetModel, inputs: Sequence[ModelInput], num_outputs: int) -> Resnet:
    """Build the module with fresh weights."""
    (image,) = inputs
    return Resnet(spec, image.shape[0], num_outputs)
