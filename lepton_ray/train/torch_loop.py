"""The training loop in PyTorch: a generator that yields wherever training can go on from, the same for one worker or many.

A step takes ``global_batch_size`` rows in an order that all workers know; each worker takes its share of them, and losses
are weighted so that the averaged gradient is that of the joined batch, also when shares are unequal. An epoch is one leg, or
several where it is streamed. A leg's randomness comes from (seed, epoch, rank, its first step) alone, that of its batches without
rank: resumed training goes on as if undisturbed.
"""

import contextlib
import copy
import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lepton_ray.core.errors import SpecError
from lepton_ray.spec.data import Task
from lepton_ray.spec.model import TrainSpec
from lepton_ray.train.batches import Batches, Share, validation_shares
from lepton_ray.train.compiler import spare_compiler, step_of
from lepton_ray.train.layer_groups import optimizer_groups, set_learning
from lepton_ray.train.memory import freed_memory_kept
from lepton_ray.train.progress import METRICS, Progress, has_stalled, mix, name_splits
from lepton_ray.train.rows import Inputs, Source
from lepton_ray.train.schedule import MOMENTUM, learning_rate
from lepton_ray.train.threads import threads_for, use_threads
from lepton_ray.train.torch_loss import sums


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
    """Return how many numbers its weights have, frozen ones too."""
    return sum(parameter.numel() for parameter in model.parameters())


def is_any(flag: bool, group: Group) -> bool:
    """Return whether any worker says so, on all workers."""
    said = torch.tensor([float(flag)])
    group.add_up(said)
    return bool(said.item())


def start_state(
    build_model: Callable[[], nn.Module],
    spec: TrainSpec,
    seed: int,
    device: str = "cpu",
    split: Callable[[nn.Module], None] = lambda model: None,
) -> TrainState:
    """Return the state before the first epoch; equal on all workers, each with its part of what ``split`` leaves them."""
    torch.manual_seed(seed)
    model = build_model().to(device)
    averaged = copy.deepcopy(model) if spec.average_decay is not None else None
    for module in (model, averaged):
        if module is not None:
            split(module)
    return TrainState(model, _build_optimizer(model, spec), averaged)


def _build_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    spare_compiler()
    parameters = optimizer_groups(model, spec.weight_decay)
    if spec.optimizer == "sgd":
        # fused, torch 2.13 fails where some have no momentum yet
        return torch.optim.SGD(parameters, lr=spec.lr, momentum=MOMENTUM)
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=spec.lr, fused=True)


def train_epochs(
    state: TrainState, data: Source, spec: TrainSpec, seed: int, group: Group | None = None
) -> Iterator[TrainState]:
    """Train until ``spec.epochs`` or early stopping, yielding the state after each leg: ``state.step`` is 0 at an epoch's end."""
    group = group or Group()
    batches = Batches(data, spec.augment, spec.global_batch_size, seed)
    num_threads = _num_threads(state.model, data, spec, group)
    model: nn.Module | None = None
    shares: Iterator[Share] | None = None
    with freed_memory_kept():
        while state.epoch < spec.epochs and not has_stalled(state, spec):
            is_other = set_learning(state.model, state.epoch)
            if is_other and model is not None:
                model = None
                gc.collect()  # a wrapper takes its hooks along; the next one is made for what learns now
            if model is None:
                model = group.wrap(state.model)
            if shares is None or state.step == 0:
                shares = batches.shares(state.epoch, group.rank, group.world_size, state.step)
            torch.manual_seed(mix(seed, state.epoch, group.rank, *([state.step] if state.step else ())))
            with use_threads(num_threads):
                train = _train_leg(model, state, itertools.islice(shares, batches.leg_steps), batches, spec, group)
                val = _evaluate(state.evaluated, data, group) if state.step == batches.num_steps else None
            if val is not None and state.add(name_splits(batches.task, train, val.tolist())):
                weights = state.evaluated.state_dict()
                state.best_weights = {name: value.detach().clone() for name, value in weights.items()}
            yield state


def _num_threads(model: nn.Module, data: Source, spec: TrainSpec, group: Group) -> int:
    if torch.device(group.device).type != "cpu":
        return torch.get_num_threads()
    rows = min(spec.global_batch_size // group.world_size, data.num_rows, spec.max_rows_per_pass or sys.maxsize)
    return threads_for(model, data.head.x_train, max(rows, 1))


def _train_leg(
    model: nn.Module, state: TrainState, shares: Iterator[Share], batches: Batches, spec: TrainSpec, group: Group
) -> list[float]:
    """Take a step for each share and return the means over the epoch so far; ``model`` is ``state.model``, wrapped by the group."""
    model.train()
    totals = torch.zeros(len(METRICS[batches.task]), dtype=torch.float64)
    weight = state.weight
    first_step = step = state.epoch * batches.num_steps + state.step
    num_steps = spec.epochs * batches.num_steps
    step_optimizer = step_of(state.optimizer)
    for step, share in enumerate(shares, first_step):
        state.optimizer.zero_grad(set_to_none=True)
        passes = list(share.passes(spec.max_rows_per_pass))
        for rows in passes:
            totals += _add_gradients(model, rows, batches.task, spec, group, is_last=rows is passes[-1])
        if spec.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
        for parameters in state.optimizer.param_groups:
            parameters["lr"] = learning_rate(spec, step, num_steps) * parameters.get("lr_factor", 1.0)
        step_optimizer()
        if state.averaged is not None and spec.average_decay is not None:
            _average(state.averaged, state.model, min(spec.average_decay, (1 + step) / (10 + step)))
        weight += share.batch_weight
    group.add_up(totals)
    return state.add_steps(step + 1 - first_step, totals.tolist(), weight)


def _add_gradients(
    model: nn.Module, share: Share, task: Task, spec: TrainSpec, group: Group, *, is_last: bool
) -> Tensor:
    """Add the gradients of some rows, averaged over the workers with the last; returns what ``torch_loss.sums`` does."""
    device = torch.device(group.device)
    lone = getattr(model, "no_sync", contextlib.nullcontext)  # of modules that average gradients over workers
    counts = 0.0 if share.is_idle else 1.0
    with contextlib.nullcontext() if is_last else lone():
        try:
            with _precision(spec, device):
                outputs_NC = model(*_to_tensors(share.x, group.device)).float()
        except ValueError as error:
            if len(next(iter(share.x.values()))) > 1:
                raise
            raise _refuse_lone_row(error, spec) from error
        target = torch.from_numpy(share.targets(outputs_NC.shape[1])).to(device)
        loss, *rest = sums(task, outputs_NC, target)
        torch.autograd.backward(loss * (counts * group.world_size / share.batch_weight))
    return torch.stack([loss.detach(), *rest]).double().cpu() * counts


def _refuse_lone_row(error: ValueError, spec: TrainSpec) -> SpecError:
    """Return what is wrong where a model trains on no single row, as with BatchNorm, which compares rows."""
    return SpecError(
        [
            f"train.global_batch_size must leave each step of a worker more than one row, as this model (BatchNorm, it may be) takes no "
            f"single one, got {spec.global_batch_size}: {error}. Choose another, or another max_rows_per_pass"
        ]
    )


def _precision(spec: TrainSpec, device: torch.device) -> contextlib.AbstractContextManager[object]:
    if spec.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards those of the model; what is no weight is taken as it is."""
    for mean, value in zip(averaged.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for buffer, current in zip(averaged.buffers(), model.buffers(), strict=True):
        buffer.copy_(current)


def _to_tensors(x: Inputs, device: str) -> list[Tensor]:
    return [torch.from_numpy(rows).to(device) for rows in x.values()]


@torch.inference_mode()
def _evaluate(model: nn.Module, data: Source, group: Group) -> Tensor:
    """Return the means of what ``torch_loss.sums`` adds up over the validation rows."""
    model.eval()
    task = data.head.task
    totals = torch.zeros(len(METRICS[task]), dtype=torch.float64)
    for share in validation_shares(data, group.rank, group.world_size):  # as many on all workers: fsdp gathers in each
        y = torch.from_numpy(share.y).to(group.device)
        outputs_NC = model(*_to_tensors(share.x, group.device))
        totals += torch.stack(sums(task, outputs_NC, y)).double().cpu() * (0.0 if share.is_idle else 1.0)
    group.add_up(totals)
    return totals / data.num_val_rows
