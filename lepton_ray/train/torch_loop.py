"""The training loop in PyTorch: a generator that yields after each epoch, the same for one worker or many.

A step takes ``global_batch_size`` rows in an order that all workers know; each worker takes its share of them, and losses
are weighted so that the averaged gradient is that of the joined batch, also when shares are unequal. An epoch's randomness
comes from (seed, epoch, rank) alone, that of its batches without rank: resumed training goes on as if undisturbed.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.batches import Batches, Inputs, Share, TrainData, validation_rows
from lepton_ray.train.progress import Progress, has_stalled, mix, name_splits
from lepton_ray.train.schedule import learning_rate


@dataclass(frozen=True)
class Group:
    """This process among the workers of a training; the default is alone on the CPU."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    add_up: Callable[[Tensor], None] = lambda values: None
    """Replaces a tensor by its sum over all workers."""
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    """Makes a module whose gradients are averaged over the workers."""


@dataclass
class TrainState(Progress):
    """All that training resumes from."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: nn.Module | None = None
    """The moving average of the model's weights, where one is kept."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def evaluated(self) -> nn.Module:
        """The module whose weights are evaluated and kept."""
        return self.averaged or self.model


def num_parameters(model: nn.Module) -> int:
    """Return how many numbers are learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def is_any(flag: bool, group: Group) -> bool:
    """Return whether any worker says so, on all workers."""
    said = torch.tensor([float(flag)])
    group.add_up(said)
    return bool(said.item())


def start_state(build_model: Callable[[], nn.Module], spec: TrainSpec, seed: int, device: str = "cpu") -> TrainState:
    """Return the state before the first epoch; equal on all workers."""
    torch.manual_seed(seed)
    model = build_model().to(device)
    averaged = copy.deepcopy(model) if spec.average_decay is not None else None
    return TrainState(model, _build_optimizer(model, spec), averaged)


def _build_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    parameters = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},  # biases and scales
    ]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=spec.lr, momentum=0.9)
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=spec.lr)


def train_epochs(
    state: TrainState, data: TrainData, spec: TrainSpec, seed: int, group: Group | None = None
) -> Iterator[TrainState]:
    """Train, yielding the state after each epoch, until ``spec.epochs`` or early stopping."""
    group = group or Group()
    batches = Batches(data, spec.augment, spec.global_batch_size, seed)
    model = group.wrap(state.model)
    while state.epoch < spec.epochs and not has_stalled(state, spec):
        torch.manual_seed(mix(seed, state.epoch, group.rank))
        train, val = _train_epoch(model, state, batches, spec, group), _evaluate(state.evaluated, data, group)
        if state.add(name_splits(train, val)):
            state.best_weights = {name: value.detach().clone() for name, value in state.evaluated.state_dict().items()}
        yield state


def _train_epoch(
    model: nn.Module, state: TrainState, batches: Batches, spec: TrainSpec, group: Group
) -> dict[str, float]:
    """Take a step for each batch and return the means of what they were; ``model`` is ``state.model``, wrapped by the group."""
    model.train()
    totals = torch.zeros(2, dtype=torch.float64)
    weight = 0.0
    first_step, num_steps = state.epoch * batches.num_steps, spec.epochs * batches.num_steps
    for step, share in enumerate(batches.shares(state.epoch, group.rank, group.world_size), first_step):
        state.optimizer.zero_grad(set_to_none=True)
        passes = list(share.passes(spec.max_rows_per_pass))
        for rows in passes:
            totals += _add_gradients(model, rows, spec, group, is_last=rows is passes[-1])
        if spec.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
        for parameters in state.optimizer.param_groups:
            parameters["lr"] = learning_rate(spec, step, num_steps)
        state.optimizer.step()
        if state.averaged is not None and spec.average_decay is not None:
            _average(state.averaged, state.model, min(spec.average_decay, (1 + step) / (10 + step)))
        weight += share.batch_weight
    group.add_up(totals)
    return _name(totals / weight, batches.has_classes)


def _add_gradients(model: nn.Module, share: Share, spec: TrainSpec, group: Group, is_last: bool) -> Tensor:
    """Add the gradients of some rows, averaged over the workers with the last; returns what ``_sums`` does."""
    device = torch.device(group.device)
    lone = getattr(model, "no_sync", contextlib.nullcontext)  # of modules that average gradients over workers
    with contextlib.nullcontext() if is_last else lone():
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"):
            outputs_NC = model(*_to_tensors(share.x, group.device)).float()
        target = torch.from_numpy(share.targets(outputs_NC.shape[1])).to(device)
        sums = _sums(outputs_NC, target) * (0.0 if share.is_idle else 1.0)
        torch.autograd.backward(sums[0] * (group.world_size / share.batch_weight))
    return sums.detach().double().cpu()


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards those of the model; what is no weight is taken as it is."""
    for mean, value in zip(averaged.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for buffer, current in zip(averaged.buffers(), model.buffers(), strict=True):
        buffer.copy_(current)


def _to_tensors(x: Inputs, device: str) -> list[Tensor]:
    return [torch.from_numpy(rows).to(device) for rows in x.values()]


def _sums(outputs_NC: Tensor, target: Tensor) -> Tensor:
    """Return the loss of all rows, which has a gradient, and the other metric.

    Of classes: the cross entropy of the logits, and how many labels are right (or the weight of those that are, where a row has
    several). Of numbers: the squared and the absolute error.
    """
    if target.ndim == 1 and target.is_floating_point():
        error_N = outputs_NC[:, 0] - target
        return torch.stack([error_N.square().sum(), error_N.abs().sum()])
    loss = nn.functional.cross_entropy(outputs_NC, target, reduction="sum")
    best_N = outputs_NC.argmax(1)
    right = (best_N == target) if target.ndim == 1 else target.gather(1, best_N[:, None])
    return torch.stack([loss, right.sum().to(loss.dtype)])


def _name(means: Tensor, has_classes: bool) -> dict[str, float]:
    return dict(zip(("loss", "accuracy" if has_classes else "mae"), means.tolist(), strict=True))


@torch.inference_mode()
def _evaluate(model: nn.Module, data: TrainData, group: Group) -> dict[str, float]:
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64)
    share = np.arange(len(data.y_val))[group.rank :: group.world_size]
    size = validation_rows(data.x_val)
    for start in range(0, len(share), size):
        rows = share[start : start + size]
        y = torch.from_numpy(data.y_val[rows]).to(group.device)
        outputs_NC = model(*_to_tensors({name: x[rows] for name, x in data.x_val.items()}, group.device))
        totals += _sums(outputs_NC, y).double().cpu()
    group.add_up(totals)
    return _name(totals / len(data.y_val), data.has_classes)
