"""Convolutional network. Legend: N rows, H height, W width, K channels, C classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.spec.model import CnnModel


class Cnn(nn.Module):
    """3x3 convolutions with 2x2 max-pooling and ReLU, a dense layer, dropout, and the classes.

    The ReLU comes last because it is the same function there, and so is the gradient to the bit, on a quarter of the values.
    """

    def __init__(self, spec: CnnModel, image_shape: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for out_channels in spec.channels:
            layers += [nn.Conv2d(channels, out_channels, 3, padding=spec.padding), nn.MaxPool2d(2), nn.ReLU()]
            channels, height, width = out_channels, spec.next_side(height), spec.next_side(width)
        self.convolutions = nn.Sequential(*layers)
        size = channels * height * width
        dense = [] if spec.hidden is None else [nn.Linear(size, spec.hidden), nn.ReLU()]
        self.head = nn.Sequential(
            nn.Flatten(), *dense, nn.Dropout(spec.dropout), nn.Linear(spec.hidden or size, num_outputs)
        )

    def forward(self, image_NKHW: Tensor) -> Tensor:
        """Return logits (N, C)."""
        logits_NC: Tensor = self.head(self.convolutions(image_NKHW))
        return logits_NC


def build(spec: CnnModel, inputs: Sequence[ModelInput], num_outputs: int) -> Cnn:
    """Build the module with fresh weights, which lie with the channels last: so convolutions are computed on CPUs."""
    (image,) = inputs
    model = Cnn(spec, image.shape, num_outputs)
    nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)
    return model
