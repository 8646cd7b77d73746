"""Logistic regression."""

from collections.abc import Sequence
from typing import Any

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.keras import mlp
from lepton_ray.spec.model import LinearModel, MlpModel


def build(spec: LinearModel, inputs: Sequence[ModelInput], num_outputs: int) -> Any:
    """Build one dense layer."""
    return mlp.build(MlpModel(kind="mlp", hidden=()), inputs, num_outputs)
