"""The training loop in PyTorch: a generator that yields after each epoch, the same for one worker or many.

A step takes ``global_batch_size`` rows in an order that all workers know; each worker takes its share of them, and losses
are weighted so that the averaged gradient is that of the joined batch, also when shares are unequal. An epoch's randomness
comes from (seed, epoch, rank) alone, that of its batches without rank: resumed training goes on as if undisturbed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.batches import Batches, Share, TrainData
from lepton_ray.train.progress import Progress, has_stalled, mix

_VAL_BATCH_ROWS = 4096
_VAL_BATCH_BYTES = 8 << 20  # of input: what layers make of it is a multiple


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
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def is_any(flag: bool, group: Group) -> bool:
    """Return whether any worker says so, on all workers."""
    said = torch.tensor([float(flag)])
    group.add_up(said)
    return bool(said.item())


def start_state(build_model: Callable[[], nn.Module], spec: TrainSpec, seed: int, device: str = "cpu") -> TrainState:
    """Return the state before the first epoch; equal on all workers."""
    torch.manual_seed(seed)
    model = build_model().to(device)
    return TrainState(model, _build_optimizer(model, spec))


def _build_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    parameters = model.parameters()
    if spec.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=spec.lr, momentum=0.9, weight_decay=spec.weight_decay)
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=spec.lr, weight_decay=spec.weight_decay)


def train_epochs(
    state: TrainState, data: TrainData, spec: TrainSpec, seed: int, group: Group | None = None
) -> Iterator[TrainState]:
    """Train, yielding the state after each epoch, until ``spec.epochs`` or early stopping."""
    group = group or Group()
    batches = Batches(data, spec.augment, spec.global_batch_size, seed)
    model = group.wrap(state.model)
    while state.epoch < spec.epochs and not has_stalled(state, spec):
        torch.manual_seed(mix(seed, state.epoch, group.rank))
        shares = batches.shares(state.epoch, group.rank, group.world_size)
        train_loss, train_accuracy = _train_epoch(model, state.optimizer, shares, group)
        val_loss, val_accuracy = _evaluate(state.model, data, group)
        metrics = {
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
        }
        if state.add(metrics):
            state.best_weights = {name: value.detach().clone() for name, value in state.model.state_dict().items()}
        yield state


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, shares: Iterator[Share], group: Group
) -> tuple[float, float]:
    model.train()
    totals = torch.zeros(2, dtype=torch.float64)
    weight = 0.0
    for share in shares:
        logits_NC = model(torch.from_numpy(share.x).to(group.device))
        target = torch.from_numpy(share.targets(logits_NC.shape[1])).to(group.device)
        loss_sum = nn.functional.cross_entropy(logits_NC, target, reduction="sum") * (0.0 if share.is_idle else 1.0)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_sum * (group.world_size / share.batch_weight))
        optimizer.step()
        weight += share.batch_weight
        if not share.is_idle:
            totals[0] += loss_sum.item()
            totals[1] += _sum_correct(logits_NC, target)
    group.add_up(totals)
    loss, accuracy = (totals / weight).tolist()
    return loss, accuracy


def _sum_correct(logits_NC: Tensor, target: Tensor) -> float:
    """Return how many labels are right, or the weight of those that are where a row has several."""
    best_N = logits_NC.argmax(1)
    if target.ndim == 1:
        return (best_N == target).sum().item()
    return target.gather(1, best_N[:, None]).sum().item()


@torch.inference_mode()
def _evaluate(model: nn.Module, data: TrainData, group: Group) -> tuple[float, float]:
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64)
    share = np.arange(len(data.y_val))[group.rank :: group.world_size]
    size = max(1, min(_VAL_BATCH_ROWS, _VAL_BATCH_BYTES // data.x_val[:1].nbytes))
    for start in range(0, len(share), size):
        rows = share[start : start + size]
        y = torch.from_numpy(data.y_val[rows]).to(group.device)
        logits_NC = model(torch.from_numpy(data.x_val[rows]).to(group.device))
        totals[0] += nn.functional.cross_entropy(logits_NC, y, reduction="sum").item()
        totals[1] += _sum_correct(logits_NC, y)
    group.add_up(totals)
    loss, accuracy = (totals / len(data.y_val)).tolist()
    return loss, accuracy
