"""Transformer encoder on token ids or steps. Legend: N rows, L tokens or steps, W width, C classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.torch.tokens import Embed, mean_of_tokens
from lepton_ray.spec.model import TransformerModel


class Transformer(nn.Module):
    """Embeddings and learnt positions, layers that normalise before attention (Xiong et al. 2020), the mean, the classes."""

    def __init__(self, spec: TransformerModel, given: ModelInput, num_outputs: int) -> None:
        super().__init__()
        self.embedding = Embed(given, spec.width)
        self.positions_LW = nn.Parameter(torch.randn(given.shape[0], spec.width))
        self.dropout = nn.Dropout(spec.dropout)
        layer = nn.TransformerEncoderLayer(
            spec.width, spec.heads, spec.feed_forward_width, spec.dropout, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, spec.layers, nn.LayerNorm(spec.width), enable_nested_tensor=False)
        self.head = nn.Linear(spec.width, num_outputs)

    def forward(self, values: Tensor) -> Tensor:
        """Return logits (N, C) of ids (N, L) or steps (N, L, S)."""
        values_NLW, is_token_NL = self.embedding(values)
        values_NLW = self.dropout(values_NLW + self.positions_LW)
        is_hidden_NL = ~is_token_NL & is_token_NL.any(1, keepdim=True)  # attention to nothing at all would be NaN
        values_NLW = self.layers(values_NLW, src_key_padding_mask=is_hidden_NL)
        logits_NC: Tensor = self.head(mean_of_tokens(values_NLW, is_token_NL))
        return logits_NC


def build(spec: TransformerModel, inputs: Sequence[ModelInput], num_outputs: int) -> Transformer:
    """Build the module with fresh weights."""
    (given,) = inputs
    return Transformer(spec, given, num_outputs)
