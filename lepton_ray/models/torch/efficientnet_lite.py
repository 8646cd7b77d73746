"""EfficientNet-Lite: mobile inverted bottlenecks without attention. Legend: N rows, H height, W width, K channels.

Written here because timm, which has it, needs torchvision, whose builds on PyPI cannot be loaded beside a torch for CPUs.
The layers stand in the order of those of ``efficientnet-lite-pytorch``, so that its weights can be taken over one by one.

Source: Tan and Le 2019, arXiv:1905.11946, and the ``lite`` folder of TensorFlow's EfficientNet: no squeeze-and-excitation,
ReLU6, stem and head of a fixed width; padding is TensorFlow's SAME.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_LITE0 = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
_STEM, _HEAD = 32, 1280
_EPSILON = 1e-3  # TensorFlow's, with which the weights were learned


class Convolution(nn.Module):
    """A convolution, its normalisation by statistics of the pretraining, and ReLU6."""

    def __init__(
        self, channels: tuple[int, int], size: int, stride: int = 1, groups: int = 1, is_last: bool = False
    ) -> None:
        super().__init__()
        self.size, self.stride = size, stride
        self.convolution = nn.Conv2d(*channels, size, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels[1], eps=_EPSILON)
        self.activation = nn.Identity() if is_last else nn.ReLU6()

    def forward(self, image_NKHW: Tensor) -> Tensor:
        """Return (N, K, H / stride, W / stride), rounded up."""
        left, right, top, bottom = (*self._pads(image_NKHW.shape[3]), *self._pads(image_NKHW.shape[2]))
        padded = nn.functional.pad(image_NKHW, (left, right, top, bottom))
        result: Tensor = self.activation(self.norm(self.convolution(padded)))
        return result

    def _pads(self, length: int) -> tuple[int, int]:
        """Return the zeros before and after; an odd one stands behind."""
        pad = max(0, (-(-length // self.stride) - 1) * self.stride + self.size - length)
        return pad // 2, pad - pad // 2


class Bottleneck(nn.Module):
    """Widen, convolve each channel, narrow; the input is added where the shape stays."""

    def __init__(self, channels: tuple[int, int], size: int, stride: int, expansion: int) -> None:
        super().__init__()
        before, after = channels
        wide = before * expansion
        self.is_residual = stride == 1 and before == after
        self.layers = nn.Sequential(
            *([Convolution((before, wide), 1)] if expansion != 1 else []),
            Convolution((wide, wide), size, stride, groups=wide),
            Convolution((wide, after), 1, is_last=True),
        )

    def forward(self, image_NKHW: Tensor) -> Tensor:
        """Return (N, K, H / stride, W / stride), rounded up."""
        result: Tensor = self.layers(image_NKHW)
        return image_NKHW + result if self.is_residual else result


class EfficientNetLite(nn.Module):
    """A configuration may have ``stem``, ``head`` and ``blocks``: [repeats, size, stride, expansion, channels] each; else Lite0."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        channels, self.width = int(config.get("stem", _STEM)), int(config.get("head", _HEAD))
        self.stem = Convolution((3, channels), 3, 2)
        blocks = []
        for repeats, size, stride, expansion, out_channels in config.get("blocks", _LITE0):
            for repeat in range(repeats):
                blocks.append(Bottleneck((channels, out_channels), size, 1 if repeat else stride, expansion))
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.head = Convolution((channels, self.width), 1)

    def forward(self, image_NKHW: Tensor) -> Tensor:
        """Return the mean over the pixels (N, ``width``)."""
        values = self.stem(image_NKHW)
        for block in self.blocks:
            values = block(values)
        result: Tensor = self.head(values).mean((2, 3))
        return result
