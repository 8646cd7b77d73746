"""A user's own module, by import path: only the path travels to workers and into packages, never code."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lepton_ray.artifacts.kinds import ModelInput
from lepton_ray.models.user_code import ROW_TOLERANCE, ROWS_APART, call_builder, load_builder, two_rows, wrong
from lepton_ray.spec.model import CustomModel

_ROWS = 2


def build(spec: CustomModel, inputs: Sequence[ModelInput], num_outputs: int) -> nn.Module:
    """Build the module with fresh weights, and let it answer two rows, together and each alone.

    Raises:
        SpecError: If it cannot be imported or built, or gives no logits of the right shape.
    """
    function = load_builder(spec)
    model = call_builder(function, spec, inputs, num_outputs)
    if not isinstance(model, nn.Module):
        raise wrong(spec, "give a torch.nn.Module", f"a {type(model).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise wrong(spec, "give a module with parameters to train", "none")
    _try(spec, model, inputs, num_outputs)
    return model


def _try(spec: CustomModel, model: nn.Module, inputs: Sequence[ModelInput], num_outputs: int) -> None:
    """Run a row of zeros and one of ones through the module, as it is evaluated and as it is trained; it is left as it was."""
    is_training = model.training
    rows = [torch.from_numpy(values) for values in two_rows(inputs)]
    try:
        logits_NC = model.eval()(*rows)
        alone = [model(*(values[row : row + 1] for values in rows)) for row in range(_ROWS)]
        buffers = {name: values.clone() for name, values in model.named_buffers()}  # statistics of a normalisation
        with torch.random.fork_rng(devices=()):
            trained_NC = torch.func.functional_call(model.train(), buffers, tuple(rows))
    except Exception as error:  # a user's module may raise anything
        shapes = ", ".join(f"{i.name} {tuple(values.shape)}" for i, values in zip(inputs, rows, strict=True))
        raise wrong(spec, f"take the inputs {shapes}", f"{type(error).__name__}: {error}") from error
    finally:
        model.train(is_training)
    for got, when in ((logits_NC, ""), (trained_NC, ", also while it is trained")):
        if not isinstance(got, Tensor) or got.dtype != torch.float32:
            kind = f"a tensor of {got.dtype}" if isinstance(got, Tensor) else f"a {type(got).__name__}"
            raise wrong(spec, f"give one tensor of float32 logits{when}", kind)
        if got.shape != (_ROWS, num_outputs):
            wanted = f"give logits of the shape (rows, {num_outputs}), {(_ROWS, num_outputs)} for two rows{when}"
            raise wrong(spec, wanted, str(tuple(got.shape)))
    if not torch.allclose(torch.cat(alone), logits_NC, rtol=ROW_TOLERANCE, atol=ROW_TOLERANCE):
        raise wrong(spec, ROWS_APART, "another answer beside another row")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = (
        torch.autograd.grad(logits_NC.sum(), list(trained.values()), allow_unused=True)
        if logits_NC.requires_grad
        else [None] * len(trained)
    )
    if unused := [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]:
        raise wrong(spec, "use all its parameters, or workers wait for their gradients", f"{unused[0]} unused")
