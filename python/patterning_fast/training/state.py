"""All that a training run changes, to be saved and taken up again, and what tells the run from others."""

from __future__ import annotations

import io
import json
import math
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
from patterning_fast.engine.identity import Identity, code_name, digest, digests
from patterning_fast.posterior.losses import Batch, Loss

Metrics = Callable[[nn.Module], dict[str, float]]

REST = "rest"
"""The tensor that holds everything but the model, pickled."""


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
        file = io.BytesIO()
        torch.save(rest, file)
        pickled = torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
        checkpoint.save(step, self.model_tensors() | {REST: pickled})

    def restore(self, checkpoint: Checkpoint) -> int:
        """Go back to what was saved and return the number of steps done: 0 where nothing was saved.

        Raises OSError where there is no room to save in.
        """
        if not checkpoint.tensors_file:
            moments = ("first", "second")  # as AdamW keeps them, which is what most runs will save
            names = [f"{part} {name}" for part in ("model", *moments) for name, _ in self.model.named_parameters()]
            checkpoint.reserve(dict(zip(names, 3 * list(self.model.parameters()), strict=True)))
            return 0
        saved = checkpoint.load()
        with torch.no_grad():
            for name, tensor in self.model_tensors().items():
                tensor.copy_(saved[name])
        rest = torch.load(io.BytesIO(saved[REST].numpy().tobytes()), map_location="cpu", weights_only=True)
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
        return checkpoint.draws_done

    def model_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers as they are called in a checkpoint."""
        return {f"model.{name}": each for name, each in named_tensors(self.model).items()}


def training_identity(
    state: TrainingState, data: Batch, loss: Loss, weights: Tensor | None, configuration: Mapping[str, Any]
) -> Identity:
    """What tells a run from others, before its first step: configuration, and hashes of model, data and weights.

    Code is known by name alone, that of a schedule's functions not at all: a body that changed is not noticed.
    """
    groups = [
        {name: each for name, each in group.items() if name != "params"} for group in state.optimizer.param_groups
    ]
    identity = {
        "configuration": dict(configuration),
        "code": {"model": code_name(state.model), "loss": code_name(loss)},
        "optimizer": {"class": code_name(state.optimizer), "groups": groups},
        "schedule": state.schedule and {"class": code_name(state.schedule), **state.schedule.state_dict()},
        "model": {name: digest(tensor) for name, tensor in named_tensors(state.model).items()},
        "data": digests(data),
        "weights": None if weights is None else digest(weights),
    }
    if state.reweighing:
        identity["reweighing"] = state.reweighing.identity
    return json.loads(json.dumps(identity, default=code_name))  # as it will be read back


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return dict(model.named_parameters()) | dict(model.named_buffers())
