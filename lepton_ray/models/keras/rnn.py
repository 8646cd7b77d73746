"""Recurrent network on token ids or steps. Legend: N rows, L tokens or steps, W width, H width of a state, G all gates."""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.engine.keras import keras
from lepton_ray.models.keras.layers import dense, entry, uniform
from lepton_ray.models.keras.tokens import Backwards, Take, embed, mean_of_tokens
from lepton_ray.spec.model import RnnModel


class _Cell(keras.layers.Layer):  # type: ignore[misc]
    """A step of a recurrent layer: from what the input adds to each gate (N, G) and the last states to the next.

    It has torch's gates in torch's order, and torch's two biases: one with the input, one of its own.
    """

    num_gates: int
    num_states = 1

    def __init__(self, hidden: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.hidden = self.output_size = hidden
        self.state_size = [hidden] * self.num_states

    def build(self, input_shape: Any) -> None:
        """Make the weights."""
        width = self.num_gates * self.hidden
        self.kernel = self.add_weight((self.hidden, width), uniform(self.hidden), name="kernel")
        self.bias = self.add_weight((width,), uniform(self.hidden), name="bias")


class _Lstm(_Cell):
    num_gates = 4
    num_states = 2

    def call(self, input_NG: Any, states: Any) -> Any:
        """Return the next state and both of them."""
        ops = keras.ops
        state_NH, memory_NH = states
        gates = ops.split(input_NG + (ops.matmul(state_NH, self.kernel) + self.bias), 4, axis=1)
        write, keep, show = (ops.sigmoid(gates[place]) for place in (0, 1, 3))
        memory_NH = keep * memory_NH + write * ops.tanh(gates[2])
        state_NH = show * ops.tanh(memory_NH)
        return state_NH, [state_NH, memory_NH]


class _Gru(_Cell):
    num_gates = 3

    def call(self, input_NG: Any, states: Any) -> Any:
        """Return the next state, twice."""
        ops = keras.ops
        (state_NH,) = states
        of_input = ops.split(input_NG, 3, axis=1)
        of_state = ops.split(ops.matmul(state_NH, self.kernel) + self.bias, 3, axis=1)
        reset, keep = (ops.sigmoid(of_input[gate] + of_state[gate]) for gate in (0, 1))
        new_NH = ops.tanh(of_input[2] + reset * of_state[2])
        state_NH = (1 - keep) * new_NH + keep * state_NH
        return state_NH, [state_NH]


_CELLS = {"lstm": _Lstm, "gru": _Gru}


def build(spec: RnnModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build embeddings, recurrent layers that read only the tokens, what the last one gives, and the classes.

    Of tokens that is the mean over them, of steps the states at the end of the reading: a forecast needs the latest most.
    """
    (given,) = inputs
    values = entry(given)
    x_NLW, is_token_NL = embed(values, given, spec.embedding_width)
    backwards_NL = Backwards(name="backwards")(is_token_NL)
    x_NLW = keras.layers.Dropout(spec.dropout, name="dropout")(x_NLW)
    for layer in range(spec.layers):
        states = [_read(x_NLW, spec, f"layer_{layer}_forward")]
        if spec.bidirectional:
            turn = Take(name=f"layer_{layer}_turn")
            states.append(turn(_read(turn(x_NLW, backwards_NL), spec, f"layer_{layer}_backward"), backwards_NL))
        x_NLW = keras.ops.concatenate(states, axis=2)
        x_NLW = keras.layers.Dropout(spec.dropout, name=f"layer_{layer}_dropout")(x_NLW)
    read_NW = mean_of_tokens(x_NLW, is_token_NL) if given.kind == "tokens" else _end_of(x_NLW, spec.hidden)
    return keras.Model(values, dense(read_NW, num_outputs, "logits"), name="rnn")


def _read(x_NLW: Any, spec: RnnModel, name: str) -> Any:
    """Return the state (N, L, H) after each step; what the input adds is computed for all steps at once."""
    cell = _CELLS[spec.cell](spec.hidden, name="cell")
    inputs = keras.layers.Dense(
        cell.num_gates * spec.hidden,
        kernel_initializer=uniform(spec.hidden),
        bias_initializer=uniform(spec.hidden),
        name=f"{name}_input",
    )
    return keras.layers.RNN(cell, return_sequences=True, name=name)(inputs(x_NLW))


def _end_of(x_NLW: Any, hidden: int) -> Any:
    """Return what each direction gives (N, W) where it has read everything: the last step, and the first for the one backwards."""
    return keras.ops.concatenate([x_NLW[:, -1, :hidden], x_NLW[:, 0, hidden:]], axis=1)
