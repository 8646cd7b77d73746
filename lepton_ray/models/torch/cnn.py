"""Convolutional network. Legend: N rows, H height, W width, K channels, C classes."""

from torch import Tensor, nn

from lepton_ray.spec.model import CnnModel


class Cnn(nn.Module):
    """3x3 convolutions with ReLU and 2x2 max-pooling, a dense layer, dropout, and the classes."""

    def __init__(self, spec: CnnModel, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        layers: list[nn.Module] = []
        for out_channels in spec.channels:
            layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels, height, width = out_channels, height // 2, width // 2
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, spec.hidden),
            nn.ReLU(),
            nn.Dropout(spec.dropout),
            nn.Linear(spec.hidden, num_classes),
        )

    def forward(self, image_NKHW: Tensor) -> Tensor:
        """Return logits (N, C)."""
        logits_NC: Tensor = self.head(self.convolutions(image_NKHW))
        return logits_NC


def build(spec: CnnModel, input_shape: tuple[int, ...], num_classes: int) -> Cnn:
    """Build the module with fresh weights; ``input_shape`` is (channels, height, width)."""
    return Cnn(spec, input_shape, num_classes)
