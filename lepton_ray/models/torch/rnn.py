"""Recurrent network on token ids or steps. Legend: N rows, L tokens or steps, W width, H width of a state, C classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.torch.tokens import Embed, mean_of_tokens
from lepton_ray.spec.model import RnnModel

_CELLS: dict[str, type[nn.LSTM | nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
_ONNX_GATES = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2]}  # torch's places of the gates in ONNX's order: iofc, zrh


class Layer(nn.Module):
    """A cell that reads from the first token and, where asked for, one that reads from the last."""

    def __init__(self, spec: RnnModel, width: int) -> None:
        super().__init__()
        cell, directions = _CELLS[spec.cell], 2 if spec.bidirectional else 1
        self.cells = nn.ModuleList(cell(width, spec.hidden, batch_first=True) for _ in range(directions))

    def forward(self, values_NLW: Tensor, backwards_NL: Tensor) -> Tensor:
        """Return the states of all cells after each token, (N, L, directions * H)."""
        forward, *backward = self.cells
        states = [_run(forward, values_NLW)]
        states += [_take(_run(cell, _take(values_NLW, backwards_NL)), backwards_NL) for cell in backward]
        return torch.cat(states, 2)


class Rnn(nn.Module):
    """Embeddings, recurrent layers that read only the tokens, what the last one gives, and the classes.

    Of tokens that is the mean over them, of steps the states at the end of the reading: a forecast needs the latest most.
    """

    def __init__(self, spec: RnnModel, given: ModelInput, num_outputs: int) -> None:
        super().__init__()
        self.has_tokens, self.hidden = given.kind == "tokens", spec.hidden
        self.embedding = Embed(given, spec.embedding_width)
        self.dropout = nn.Dropout(spec.dropout)
        width = spec.hidden * (2 if spec.bidirectional else 1)
        widths = [spec.embedding_width, *[width] * (spec.layers - 1)]
        self.layers = nn.ModuleList(Layer(spec, in_width) for in_width in widths)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, values: Tensor) -> Tensor:
        """Return logits (N, C) of ids (N, L) or steps (N, L, S)."""
        values_NLW, is_token_NL = self.embedding(values)
        backwards_NL = _backwards(is_token_NL)
        values_NLW = self.dropout(values_NLW)
        for layer in self.layers:
            values_NLW = self.dropout(layer(values_NLW, backwards_NL))
        read_NW = mean_of_tokens(values_NLW, is_token_NL) if self.has_tokens else _end_of(values_NLW, self.hidden)
        logits_NC: Tensor = self.head(read_NW)
        return logits_NC


def _end_of(values_NLW: Tensor, hidden: int) -> Tensor:
    """Return what each direction gives (N, W) where it has read everything: the last step, and the first for the one backwards."""
    return torch.cat([values_NLW[:, -1, :hidden], values_NLW[:, 0, hidden:]], 1)


def _backwards(is_token_NL: Tensor) -> Tensor:
    """Return the places of a row's tokens from last to first; padding stays behind them."""
    place_L = torch.arange(is_token_NL.shape[1], device=is_token_NL.device)
    last_N1 = is_token_NL.sum(1, keepdim=True) - 1
    return torch.where(is_token_NL, last_N1 - place_L, place_L)


def _take(values_NLW: Tensor, places_NL: Tensor) -> Tensor:
    return values_NLW.gather(1, places_NL[:, :, None].expand(-1, -1, values_NLW.shape[2]))


def _run(cell: Any, values_NLW: Tensor) -> Tensor:
    """Return the state (N, L, H) after each step.

    For ONNX it is one operator from the start: torch 2.13 would trace every step, half a minute for 128 tokens.
    """
    if not torch.onnx.is_in_onnx_export():
        states_NLH: Tensor = cell(values_NLW)[0]
        return states_NLH
    rows, length, _ = values_NLW.shape
    weights = [_in_onnx_order(cell, name) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
    states_L1NH: Tensor = torch.onnx.ops.symbolic(
        cell.mode,
        (values_NLW.transpose(0, 1), weights[0], weights[1], torch.cat(weights[2:], 1)),
        {"hidden_size": cell.hidden_size, **({"linear_before_reset": 1} if cell.mode == "GRU" else {})},
        dtype=values_NLW.dtype,
        shape=(length, 1, rows, cell.hidden_size),
    )
    return states_L1NH.squeeze(1).transpose(0, 1)


def _in_onnx_order(cell: Any, name: str) -> Tensor:
    """Return a parameter (1, gates * H, ...) with its gates in ONNX's order."""
    parameter: Tensor = getattr(cell, name)
    gates = parameter.reshape(-1, cell.hidden_size, *parameter.shape[1:])
    return gates[_ONNX_GATES[cell.mode]].reshape(1, *parameter.shape)


def build(spec: RnnModel, inputs: Sequence[ModelInput], num_outputs: int) -> Rnn:
    """Build the module with fresh weights."""
    (given,) = inputs
    return Rnn(spec, given, num_outputs)
