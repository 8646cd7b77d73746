"""A network for a user's columns and one for an item's. Legend: N rows, D columns, W width of a vector, C outputs of a row."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.torch.ids import Biases, embed
from lepton_ray.spec.model import TwoTowersModel


class Tower(nn.Module):
    """The vectors of some columns' ids side by side, through dense layers to a vector for each output."""

    def __init__(self, spec: TwoTowersModel, places: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        self.places, self.shape = list(places), (num_outputs, spec.encoding_width)
        layers: list[nn.Module] = [nn.Flatten()]
        width = len(places) * spec.embedding_width
        for hidden in spec.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(spec.dropout)]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_outputs * spec.encoding_width))

    def forward(self, vectors_NDW: Tensor) -> Tensor:
        """Return (N, C, W) of the vectors of all columns."""
        encoding_NCW: Tensor = self.layers(vectors_NDW[:, self.places]).unflatten(1, self.shape)
        return encoding_NCW


class TwoTowers(nn.Module):
    """Biases and the product of what two towers give."""

    def __init__(self, spec: TwoTowersModel, given: ModelInput, num_outputs: int) -> None:
        super().__init__()
        self.biases = Biases(given, num_outputs)
        self.embedding = embed(given, spec.embedding_width)
        sides = ([given.columns.index(name) for name in names] for names in (spec.user, spec.item))
        self.user, self.item = (Tower(spec, places, num_outputs) for places in sides)
        self.scale_C = nn.Parameter(torch.ones(num_outputs)) if spec.similarity == "cosine" else None

    def forward(self, ids_ND: Tensor) -> Tensor:
        """Return logits (N, C)."""
        vectors_NDW = self.embedding(ids_ND)
        user_NCW, item_NCW = self.user(vectors_NDW), self.item(vectors_NDW)
        if self.scale_C is not None:
            user_NCW, item_NCW = (nn.functional.normalize(side, dim=2) for side in (user_NCW, item_NCW))
        product_NC = (user_NCW * item_NCW).sum(2)
        logits_NC: Tensor = self.biases(ids_ND) + (product_NC if self.scale_C is None else self.scale_C * product_NC)
        return logits_NC


def build(spec: TwoTowersModel, inputs: Sequence[ModelInput], num_outputs: int) -> TwoTowers:
    """Build the module with fresh weights."""
    (given,) = inputs
    return TwoTowers(spec, given, num_outputs)
