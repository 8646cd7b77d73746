"""Trainings do without torch's compiler: it is not imported, and steps are those of torch's own ``Optimizer.step``, to the bit."""

import subprocess
import sys
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[2]
_CODE = """
import sys
from functools import partial
import numpy as np
import torch
from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.catalog import build_model
from lepton_ray.spec.model import MlpModel, TrainSpec
from lepton_ray.train import torch_loop
from lepton_ray.train.rows import TrainData

torch.set_num_threads(1)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 3, 60)
data = TrainData({"x": x[:50]}, y[:50], {"x": x[50:]}, y[50:])
spec = TrainSpec(epochs=3, global_batch_size=8, lr=0.05, optimizer=sys.argv[1], weight_decay=0.1)
build = partial(build_model, MlpModel(kind="mlp", hidden=(6,)), [ModelInput(name="x", shape=(4,))], 3)

def train():
    state = torch_loop.start_state(build, spec, 5)
    for _ in torch_loop.train_epochs(state, data, spec, 5):
        pass
    return state

plain = train()
assert "torch._dynamo" not in sys.modules
import torch._dynamo  # and steps go through torch's wrappers
assert torch_loop.step_of(plain.optimizer) == plain.optimizer.step
wrapped = train()
assert wrapped.history == plain.history
for mine, theirs in zip(plain.model.parameters(), wrapped.model.parameters(), strict=True):
    assert torch.equal(mine, theirs)
torch.compile(build(), backend="eager")(torch.zeros(2, 4))  # which still compiles
"""


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_training_imports_no_compiler_and_takes_the_same_steps(optimizer: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CODE, optimizer], cwd=_REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
