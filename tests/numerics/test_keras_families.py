"""Every family in Keras: the function of its weights that torch has, its first weights, its steps; workers, resuming, settings.

Float32 sums in another order differ by some 1e-6; what runs the same steps again must be equal to the bit.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.core.errors import SpecError
from lepton_ray.engine.keras import call, keras
from lepton_ray.engine.tensorflow import tf
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import CustomModel, TrainSpec
from lepton_ray.spec.run import RunSpec
from lepton_ray.train import keras_checkpoint, torch_loop
from lepton_ray.train.keras_loop import Group, start_state, train_epochs
from lepton_ray.train.keras_state import TrainState, num_parameters
from lepton_ray.train.rows import TrainData

from .families import DROPOUT, FAMILIES, FEATURES, KERAS_CUSTOM, KERAS_FAMILIES, NUM_CLASSES, STEPS, TOKENS, Family
from .keras_case import copy_weights, to_keras, twins
from .test_keras_training import run_two

_SEED = 5
_TWINS = list(KERAS_FAMILIES)
_QUICK = ["transformer", "fusion", "two_towers_by_angle"]
_SLOW = ["resnet", "lstm", "gru", "lstm_of_steps", "transformer_of_steps", "factorization"]
_SOME_SLOW = [*_QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in _SLOW)]


def _data(family: Family, rows: int = 17) -> TrainData:
    y = np.random.default_rng(2).integers(0, NUM_CLASSES, rows)
    return TrainData(family.rows(rows), y, family.rows(5, seed=1), y[:5])


def _spec(**changes: Any) -> TrainSpec:
    return TrainSpec.model_validate({"framework": "keras", "epochs": 2, "global_batch_size": 6, "lr": 0.02, **changes})


def _start(family: Family, spec: TrainSpec, seed: int = _SEED) -> TrainState:
    return start_state(partial(family.build, "keras"), spec, seed)


def _train(family: Family, spec: TrainSpec, group: Group | None = None) -> TrainState:
    state = _start(family, spec)
    for _ in train_epochs(state, _data(family), spec, _SEED, group):
        pass
    return state


def _train_both(family: Family, spec: TrainSpec) -> tuple[TrainState, Any]:
    """Train from equal weights in both frameworks."""
    data = _data(family)
    state, torch_state = _start(family, spec), torch_loop.start_state(family.build, spec, _SEED)
    for mine, theirs in ((state.model, torch_state.model), (state.averaged, torch_state.averaged)):
        if mine is not None:
            copy_weights(theirs, mine, family.spec, family.inputs)
    for _ in torch_loop.train_epochs(torch_state, data, spec, _SEED):
        pass
    for _ in train_epochs(state, data, spec, _SEED):
        pass
    return state, torch_state


def _difference(model: Any, torch_model: Any, family: Family) -> float:
    values = [value.detach().numpy() for value in torch_model.state_dict().values()]
    wanted = to_keras(values, family.spec, family.inputs)
    return max(float(np.abs(v.numpy() - wanted[v.path]).max()) for v in model.weights)


def _assert_equal(mine: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]]) -> None:
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[path], theirs[path]) for path in mine)


def _values(model: Any) -> dict[str, NDArray[Any]]:
    return {variable.path: variable.numpy() for variable in model.weights}


def test_both_frameworks_have_the_families_that_the_spec_says() -> None:
    folder = Path(str(build_model.__code__.co_filename)).parent
    kinds = RunSpec.model_json_schema()["properties"]["model"]["anyOf"][0]["discriminator"]["mapping"].keys()
    for framework in ("torch", "keras"):
        assert all((folder / framework / f"{kind}.py").exists() for kind in kinds)


@pytest.mark.parametrize("name", _TWINS)
def test_equal_weights_give_equal_logits_and_gradients(name: str) -> None:
    """Padding stands anywhere in a row, and some rows are nothing else."""
    family = FAMILIES[name]
    torch_model, model = twins(family.spec, family.inputs)
    rows = family.rows(9)
    for values in rows.values():
        if values.dtype == np.int64:
            values[:, :] = np.random.default_rng(3).permuted(values, axis=1)
    y = np.arange(9) % NUM_CLASSES
    logits = torch_model(*map(torch.from_numpy, rows.values()))
    torch.autograd.backward(torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)))
    with tf.GradientTape() as tape:
        got = call(model, list(rows.values()), training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, got))
    assert np.abs(got.numpy() - logits.detach().numpy()).max() < 1e-5
    assert num_parameters(model) == torch_loop.num_parameters(torch_model)
    wanted = to_keras([value.grad.numpy() for value in torch_model.parameters()], family.spec, family.inputs)
    variables = model.trainable_variables
    assert {variable.path for variable in variables} == wanted.keys()
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        assert np.abs(tf.convert_to_tensor(gradient).numpy() - wanted[variable.path]).max() < 3e-6, variable.path


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_another_padding_id_than_zero(name: str) -> None:
    family = Family(FAMILIES[name].settings, (TOKENS.model_copy(update={"padding_id": 9}),))
    torch_model, model = twins(family.spec, family.inputs)
    ids = np.array([[3, 0, 9, 9, 9, 9], [9, 3, 9, 0, 9, 9], [9] * 6])
    got = model(ids, training=False).numpy()
    assert np.abs(got[0] - got[1]).max() < 2e-6
    assert np.abs(got - torch_model.eval()(torch.from_numpy(ids)).detach().numpy()).max() < 2e-6


_WIDE: dict[str, tuple[dict[str, Any], ModelInput]] = {
    "mlp": ({"kind": "mlp", "hidden": [300]}, ModelInput(name="x", shape=(50,))),
    "cnn": ({"kind": "cnn", "channels": [300], "hidden": 300}, ModelInput(name="x", shape=(3, 2, 2))),
    "resnet": ({"kind": "resnet", "channels": [16, 32], "blocks": 1}, ModelInput(name="x", shape=(3, 4, 4))),
    "lstm": ({"kind": "rnn", "hidden": 100, "embedding_width": 40}, ModelInput(name="x", shape=(4,), num_ids=60)),
    "gru": ({"kind": "rnn", "cell": "gru", "hidden": 100}, ModelInput(name="x", shape=(4, 6))),
    "transformer": ({"kind": "transformer", "width": 64}, ModelInput(name="x", shape=(6,), num_ids=50)),
    "two_towers": (
        {"kind": "two_towers", "user": ["u"], "item": ["i"], "embedding_width": 40, "hidden": [50]},
        ModelInput(name="x", shape=(2,), num_ids=60, columns=("u", "i"), column_ids=(30, 30)),
    ),
}


@pytest.mark.parametrize("name", _WIDE)
def test_first_weights_have_the_distribution_that_torch_gives_them(name: str) -> None:
    """The spread of 256 or more numbers drawn alike is known to a tenth; what is constant is equal."""
    settings, given = _WIDE[name]
    family = Family(settings, (given,))
    keras.utils.set_random_seed(1)
    torch.manual_seed(1)
    drawn = [value.numpy() for value in family.build().state_dict().values()]
    wanted = to_keras(drawn, family.spec, family.inputs)
    compared = 0
    for path, values in _values(family.build("keras")).items():
        if given.kind == "ids":  # those that are not seen start at 0
            assert np.array_equal(values.any(-1), wanted[path].any(-1)), path
        if values.std() == 0 or wanted[path].std() == 0:
            assert np.array_equal(values, wanted[path]), path
        elif values.size >= 256:
            compared += 1
            assert values.std() == pytest.approx(wanted[path].std(), rel=0.1), path
            assert np.abs(values).max() == pytest.approx(np.abs(wanted[path]).max(), rel=0.3), path
            assert abs(values.mean()) < 0.25 * values.std(), path
    assert compared >= 3


@pytest.mark.slow_but("fusion")
@pytest.mark.parametrize("name", _SOME_SLOW)
def test_from_equal_weights_both_frameworks_take_the_same_steps(name: str) -> None:
    family = FAMILIES[name]
    spec = _spec(optimizer="sgd", weight_decay=0.1, clip_norm=0.5, schedule="linear")
    state, torch_state = _train_both(family, spec)
    for mine, theirs in zip(state.history, torch_state.history, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert _difference(state.model, torch_state.model, family) < 1e-5


@pytest.mark.slow_but("two_towers_by_angle")
@pytest.mark.parametrize("name", [*_SOME_SLOW, "custom"])
def test_added_gradients_of_workers_are_those_of_one(name: str) -> None:
    """One step of 6 rows at learning rate 1: the gradient is what it takes off the weights."""
    family = KERAS_CUSTOM if name == "custom" else FAMILIES[name]
    spec, data = _spec(epochs=1, optimizer="sgd", lr=1.0), _data(family, rows=6)
    start = _values(_start(family, spec).model)
    steps = []
    for group in [Group(), Group(0, 2), Group(1, 2)]:
        state = _start(family, spec)
        next(train_epochs(state, data, spec, _SEED, group))
        steps.append({path: start[path] - value for path, value in _values(state.model).items()})
    for path, alone in steps[0].items():
        assert np.abs(sum(step[path] for step in steps[1:]) - alone).max() < 3e-6, path
    assert any(np.abs(step).max() > 1e-3 for step in steps[0].values())


_WORKER = """
import sys
import numpy as np
from tests.numerics import test_keras_families as case
from lepton_ray.train import keras_loop

rank, folder = int(sys.argv[1]), sys.argv[2]
group = keras_loop.join_workers(rank, 2)
for name in case._IN_PROCESSES:
    state = case._train(case.FAMILIES[name], case._worker_spec(), group)
    np.savez(f"{folder}/{name}-{rank}.npz", *state.evaluated.get_weights())
"""
_IN_PROCESSES = ("resnet", "gru", "transformer", "fusion")


def _worker_spec() -> TrainSpec:
    return _spec(optimizer="sgd", clip_norm=0.5, average_decay=0.6, max_rows_per_pass=2, num_workers=2)


@pytest.mark.slow
def test_two_processes_train_as_a_single_one_does(tmp_path: Path) -> None:
    """With TensorFlow's own collectives, averaged weights and passes, of which one worker may have one more."""
    run_two(_WORKER, tmp_path)
    for name in _IN_PROCESSES:
        single = _train(FAMILIES[name], _worker_spec()).evaluated.get_weights()
        results = [np.load(tmp_path / f"{name}-{rank}.npz") for rank in range(2)]
        for place, wanted in enumerate(single):
            first, second = (result[f"arr_{place}"] for result in results)
            assert np.array_equal(first, second)
            assert np.abs(first - wanted).max() < 1e-5


_ALL_SETTINGS = {"average_decay": 0.9, "precision": "bfloat16", "max_rows_per_pass": 4}


@pytest.mark.slow_but("custom-settings1")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fusion", _ALL_SETTINGS),
        ("custom", _ALL_SETTINGS),
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in [*_QUICK, *_SLOW, "custom"]),
    ],
)
def test_resumed_is_equal_to_the_bit(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    family = KERAS_CUSTOM if name == "custom" else DROPOUT.get(name, FAMILIES[name])
    spec = _spec(optimizer="adamw", weight_decay=0.1, **settings)
    undisturbed = _train(family, spec)
    state = _start(family, spec)
    next(train_epochs(state, _data(family), spec, _SEED))
    keras_checkpoint.save(state, tmp_path)
    resumed = _start(family, spec, 99)
    keras_checkpoint.restore(resumed, tmp_path)
    for _ in train_epochs(resumed, _data(family), spec, _SEED):
        pass
    assert resumed.history == undisturbed.history
    _assert_equal(_values(resumed.model), _values(undisturbed.model))
    _assert_equal(_values(resumed.evaluated), _values(undisturbed.evaluated))
    _assert_equal(resumed.best_weights, undisturbed.best_weights)


# --- settings of a step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"average_decay": 0.6}, {"max_rows_per_pass": 2}, {"max_rows_per_pass": 99}])
def test_averages_and_passes_are_those_of_torch(settings: dict[str, Any]) -> None:
    family = FAMILIES["gru"]
    spec = _spec(optimizer="sgd", lr=0.1, **settings)
    state, torch_state = _train_both(family, spec)
    for mine, theirs in zip(state.history, torch_state.history, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert _difference(state.model, torch_state.model, family) < 1e-5
    assert _difference(state.evaluated, torch_state.evaluated, family) < 1e-5
    if state.averaged is not None:
        apart = [
            np.abs(a - b).max() for a, b in zip(state.averaged.get_weights(), state.model.get_weights(), strict=True)
        ]
        assert max(apart) > 1e-3


@pytest.mark.slow_but("lstm_of_steps")
@pytest.mark.parametrize("kind", ["lstm_of_steps", "transformer_of_steps"])
def test_passes_of_one_series_are_those_of_torch(kind: str) -> None:
    """A gradient with a side of 1 has no static shape."""
    family = Family(FAMILIES[kind].settings, (ModelInput(name="steps", shape=(6, 1)),))
    state, torch_state = _train_both(family, _spec(optimizer="sgd", lr=0.1, max_rows_per_pass=2))
    assert _difference(state.model, torch_state.model, family) < 1e-5


def test_passes_take_the_step_of_one_pass_with_mixed_labels_too() -> None:
    family = FAMILIES["mlp"]
    spec = _spec(optimizer="sgd", lr=0.1, augment={"mixup_alpha": 0.4, "balance": "weights"}, clip_norm=0.5)
    whole, passes = _train(family, spec), _train(family, spec.model_copy(update={"max_rows_per_pass": 4}))
    for mine, theirs in zip(whole.model.get_weights(), passes.model.get_weights(), strict=True):
        assert np.abs(mine - theirs).max() < 1e-6


@pytest.mark.slow_but("cnn")
@pytest.mark.parametrize("name", ["cnn", pytest.param("lstm", marks=pytest.mark.slow), "transformer"])
def test_bfloat16_trains_near_float32_and_is_evaluated_in_float32(name: str) -> None:
    """It has 8 bits: a step differs by some 1e-2 of itself, of which 6 steps of 0.02 are taken."""
    family = FAMILIES[name]
    plain, short = (_train(family, _spec(optimizer="sgd", precision=p)) for p in ("float32", "bfloat16"))
    assert {variable.dtype for variable in short.model.variables if "seed" not in variable.path} == {"float32"}
    pairs = list(zip(short.model.get_weights(), plain.model.get_weights(), strict=True))
    assert 0 < max(np.abs(mine - theirs).max() for mine, theirs in pairs) < 5e-3
    data = _data(family)
    logits = call(short.model, list(data.x_val.values()), training=False)
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(data.y_val, logits))
    assert short.history[-1]["val_loss"] == pytest.approx(float(loss), abs=1e-6)


# --- a user's own -----------------------------------------------------------------------------------------------------


def not_a_model(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return torch.nn.Linear(4, num_outputs)


def without_weights(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return keras.Sequential([keras.layers.Lambda(lambda x: x[:, :num_outputs])])


def of_other_shape(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return keras.Sequential([keras.layers.Dense(num_outputs + 1)])


def of_other_input(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(num_outputs)])


def that_fails(spec: Any, inputs: Any, num_outputs: int) -> Any:
    raise KeyError("depth")


def of_whole_numbers(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return keras.Sequential([keras.layers.Dense(num_outputs), keras.layers.Lambda(lambda x: tf.cast(x, tf.int32))])


def without_gradient(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return keras.Sequential([keras.layers.Dense(num_outputs), keras.layers.Lambda(tf.stop_gradient)])


def of_half_precision(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return keras.Sequential([keras.layers.Dense(num_outputs, dtype="float16")])


def with_a_name_twice(spec: Any, inputs: Any, num_outputs: int) -> Any:
    class Twice(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = keras.layers.Dense(4, name="a"), keras.layers.Dense(num_outputs, name="a")

        def call(self, features: Any) -> Any:
            return self.second(self.first(features))

    return Twice()


def with_softmax(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return keras.Sequential([keras.layers.Dense(8), keras.layers.Dense(num_outputs, activation="softmax")])


def with_sigmoid(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return keras.Sequential([keras.layers.Dense(num_outputs), keras.layers.Activation("sigmoid")])


def with_a_loss(spec: Any, inputs: Any, num_outputs: int) -> Any:
    return keras.Sequential([keras.layers.Dense(num_outputs, kernel_regularizer="l2")])


def that_looks_at_other_rows(spec: Any, inputs: Any, num_outputs: int) -> Any:
    beside = keras.layers.Lambda(lambda x: x - tf.reduce_mean(x, 0))
    return keras.Sequential([beside, keras.layers.Dense(num_outputs)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "model.module must name a function that can be imported"),
        ("not_a_model", "must give a keras.Model for train.framework 'keras' and 'jax', got a Linear"),
        ("without_weights", "must give a model with weights to train, got none"),
        ("that_fails", "must build a model without an error, got KeyError: 'depth'"),
        ("of_other_input", r"must take the inputs features \(2, 4\), got ValueError: "),
        ("of_other_shape", r"must give logits of the shape \(rows, 3\), \(2, 3\) for two rows, got \(2, 4\)"),
        ("of_whole_numbers", "must give one tensor of float32 logits, got a tensor of int32"),
        ("of_half_precision", "must give one tensor of float32 logits, got a tensor of float16"),
        ("without_gradient", "must use all its weights, got .*kernel unused"),
        ("that_looks_at_other_rows", "must make of a row what it makes of it alone, got another answer beside another"),
        ("with_a_name_twice", "must give each of its layers a name of its own, got .*a/kernel twice"),
        ("with_softmax", "must give logits: loss and package take their softmax or sigmoid, got the result of one"),
        ("with_sigmoid", "must give logits: loss and package take their softmax or sigmoid, got the result of one"),
        ("with_a_loss", r"must add no loss of its own \(train.weight_decay is a penalty\), got 1"),
    ],
)
def test_what_is_wrong_with_a_users_model_is_named(name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build_model(CustomModel(kind="custom", module=f"{__name__}:{name}"), [FEATURES], NUM_CLASSES, "keras")


def test_the_names_of_a_users_weights_do_not_depend_on_what_was_built_before() -> None:
    first, second = (_values(KERAS_CUSTOM.build("keras")) for _ in range(2))
    assert first.keys() == second.keys()
    assert any(path.endswith("dense/kernel") for path in first)


def normalised(spec: Any, inputs: Any, num_outputs: int) -> Any:
    """Several inputs are not all that a user's model may be: statistics of the batch, a recurrent layer of Keras."""
    layers = [keras.layers.LSTM(4), keras.layers.BatchNormalization(), keras.layers.Dense(num_outputs)]
    return keras.Sequential(layers)


@pytest.mark.slow
def test_a_users_model_may_be_an_encoder_and_its_statistics_are_kept(tmp_path: Path) -> None:
    own = {"kind": "custom", "module": f"{__name__}:normalised"}
    family = Family({"kind": "fusion", "encoders": {"features": {"kind": "linear"}, "steps": own}}, (FEATURES, STEPS))
    spec = _spec(average_decay=0.5)
    state = _train(family, spec)
    means = [path for path in state.best_weights if path.endswith("moving_mean")]
    assert len(means) == 1
    assert means[0].startswith("steps/")
    for model in (state.model, state.averaged):
        assert np.abs(_values(model)[means[0]]).max() > 0
    keras_checkpoint.save(state, tmp_path)
    resumed = _start(family, spec, 99)
    keras_checkpoint.restore(resumed, tmp_path)
    _assert_equal(_values(resumed.averaged), _values(state.averaged))
