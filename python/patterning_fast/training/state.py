"""All that a training run changes, to be saved and taken up again, and what tells the run from others."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from patterning_fast.callbacks import calling
from patterning_fast.engine.checkpoint import Checkpoint
from patterning_fast.engine.identity import (
    VERSIONS,
    Identity,
    as_read_back,
    check_losses,
    code_name,
    described,
    digest,
    digests,
    model_identity,
    versions,
)
from patterning_fast.posterior.data import take
from patterning_fast.posterior.losses import Batch, Loss
from patterning_fast.posterior.probing import named_tensors

Metrics = Callable[[nn.Module], dict[str, float]]

REST = "rest"
"""The tensor that holds everything but the model, pickled."""

START_LOSSES = "start_losses"
"""The tensor of losses before the first step, by which code is known that has changed."""


class Reweighing(Protocol):
    """Decides, at some steps of a training run, which weights it goes on with (see `patterning/adaptive.py`)."""

    @property
    def weights(self) -> Tensor | xr.DataArray | None:
        """Those decided on last; None for all 1, as at the start."""

    @property
    def identity(self) -> Identity:
        """What decisions depend on beside the model and its data."""

    def due(self, step: int) -> bool:
        """Whether there is a decision to make after that many steps, which has not been made."""

    def decide(self, step: int, model: nn.Module) -> None:
        """Decide on weights, with the model in eval mode."""

    def state_dict(self) -> dict[str, Any]:
        """The decisions made, as numbers, strings, tensors, and lists and dicts of them."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to decisions made before."""


@dataclass
class TrainingState:
    """A run under way; random numbers of torch's own generators included, which dropout draws."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler | None
    minibatches: torch.Generator
    reweighing: Reweighing | None = None
    start_losses: Tensor | None = None
    """By the model that was given, where there is a checkpoint (`losses_at_start`)."""
    rows: list[dict[str, float]] = field(default_factory=list)
    recent_losses: list[Tensor] = field(default_factory=list)

    def measure(self, step: int, metrics: Metrics | None) -> None:
        """Add a row of metrics; raises FloatingPointError where the loss since the last is not finite."""
        row = {"step": float(step), "loss": self.recent_loss(step)}
        self.recent_losses.clear()
        self.model.eval()
        with torch.no_grad(), calling("train: metrics", "take the model and return {name: number}"):
            measured = {name: float(value) for name, value in metrics(self.model).items()} if metrics else {}
        self.model.train()
        self.rows.append(row | measured)

    def recent_loss(self, step: int) -> float:
        """Mean since the last row, NaN before the first step; raises FloatingPointError where it is not finite."""
        if not self.recent_losses:
            return math.nan
        loss = float(torch.stack(self.recent_losses).mean())
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss is not finite by step {step}; lower lr")
        return loss

    def save(self, checkpoint: Checkpoint, step: int) -> None:
        """Save the state after that many steps, unless the run is lost: then raises FloatingPointError."""
        self.recent_loss(step)
        rest = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule and self.schedule.state_dict(),
            "minibatches": self.minibatches.get_state(),
            "rows": self.rows,
            "recent_losses": self.recent_losses,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
            "reweighing": self.reweighing and self.reweighing.state_dict(),
        }
        checkpoint.save(step, self.tensors() | {REST: packed(rest)})

    def restore(self, checkpoint: Checkpoint) -> int:
        """Go back to what was saved and return the number of steps done: 0 where nothing was saved.

        Raises OSError where there is no room to save in, ValueError for a checkpoint that is damaged, or of other
        losses at the start.
        """
        saved = checkpoint.load()
        if saved is None:
            moments = ("first", "second")  # as AdamW keeps them, which is what most runs will save
            names = [f"{part} {name}" for part in ("model", *moments) for name, _ in self.model.named_parameters()]
            checkpoint.reserve(dict(zip(names, 3 * list(self.model.parameters()), strict=True)))
            return 0
        own = self.tensors()
        there, here = ({name: list(each.shape) for name, each in some.items()} for some in (saved, own))
        if there != here | {REST: there.get(REST)}:
            raise checkpoint.unfit(f"it holds {there}, not {here}")
        if self.start_losses is not None:
            check_losses(saved[START_LOSSES], self.start_losses)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        try:
            self.go_back_to(unpacked(saved[REST]))
        except UNREADABLE as error:
            raise checkpoint.unfit(f"{REST}: {error!r}") from error
        return checkpoint.draws_done

    def go_back_to(self, rest: dict[str, Any]) -> None:
        """Take up all that is not the model's."""
        self.optimizer.load_state_dict(rest["optimizer"])
        if self.schedule:
            self.schedule.load_state_dict(rest["schedule"])
        self.minibatches.set_state(rest["minibatches"])
        if self.reweighing:
            self.reweighing.load_state_dict(rest["reweighing"])
        self.rows[:] = rest["rows"]
        device = next(self.model.parameters()).device
        self.recent_losses[:] = [loss.to(device) for loss in rest["recent_losses"]]
        torch.set_rng_state(rest["random"])
        torch.cuda.set_rng_state_all(rest["random_cuda"])

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers and the losses at the start, as they are called in a checkpoint."""
        start = {} if self.start_losses is None else {START_LOSSES: self.start_losses}
        return start | {f"model.{name}": each for name, each in named_tensors(self.model).items()}


UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError)
"""Errors of what was pickled otherwise than by `packed`."""


def packed(rest: dict[str, Any]) -> Tensor:
    """Numbers, strings, tensors, and lists and dicts of them, as bytes in a tensor."""
    file = io.BytesIO()
    torch.save(rest, file)
    return torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)


def unpacked(tensor: Tensor) -> dict[str, Any]:
    """What `packed` has packed; raises one of UNREADABLE for anything else."""
    return torch.load(io.BytesIO(tensor.numpy().tobytes()), map_location="cpu", weights_only=True)


def losses_at_start(model: nn.Module, data: Batch, loss: Loss, samples: int) -> Tensor:
    """Losses of the first `samples` by the model as it is now, in eval mode; takes no random numbers from the run."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(0)
        return loss(model.eval(), take(data, slice(0, samples))).float()


def training_identity(
    state: TrainingState,
    data: Batch,
    loss: Loss,
    weights: Tensor | None,
    makers: Mapping[str, Callable[..., Any] | None],
    configuration: Mapping[str, Any],
) -> Identity:
    """What tells a run from others, before its first step: configuration, structure, code, and hashes of the rest.

    `makers` are the functions that have made the optimizer and the schedule.
    """
    groups = optimizer_settings(state.optimizer)
    identity = {
        "configuration": dict(configuration),
        "loss": described(loss),
        "makers": described(makers),
        "optimizer": {"class": code_name(state.optimizer), "groups": groups},
        "schedule": state.schedule and {"class": code_name(state.schedule), **described(state.schedule.state_dict())},
        **model_identity(state.model),
        "data": digests(data),
        "weights": None if weights is None else digest(weights),
        VERSIONS: versions(state.model),
    }
    if state.reweighing:
        identity["reweighing"] = state.reweighing.identity
    return as_read_back(identity)


def optimizer_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Of each group, all but its parameters."""
    return [
        {name: described(each) for name, each in group.items() if name != "params"} for group in optimizer.param_groups
    ]
