"""`train_replicas`: thousands of small models trained side by side, seeds × weightings."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.optim import Optimizer

from patterning_fast import ops
from patterning_fast.arguments import Count, NonNegative, Seed, checked
from patterning_fast.callbacks import calling, returned
from patterning_fast.engine.checkpoint import Checkpoint
from patterning_fast.engine.identity import (
    VERSIONS,
    as_read_back,
    check_losses,
    described,
    digest,
    digests,
    model_identity,
    versions,
)
from patterning_fast.engine.memory import check_fits
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import FULL, component, may_move
from patterning_fast.posterior.data import bytes_each, check_data, sample_count
from patterning_fast.posterior.dense import dense_stack
from patterning_fast.posterior.losses import Batch, Loss
from patterning_fast.posterior.wrapped import Model
from patterning_fast.progress import progress_bar
from patterning_fast.training.state import REST, UNREADABLE, optimizer_settings, packed, unpacked


@checked
@plain_torch()
def train_replicas(
    model: Model,
    initial: Tensor,
    data: Batch,
    loss: Loss,
    *,
    steps: Count,
    batch_size: Count,
    optimizer: Callable[[list[Tensor]], Optimizer],
    weights: Tensor | None = None,
    snapshots: Count = 1,
    seed: Seed = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: NonNegative = 60.0,
    allow_versions: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Train copies of a stack of dense layers from `initial` under each weighting of the data, all at once.

    Replica r sees the same minibatches under every weighting, a function of (seed, r, step): what differs between
    weightings is the weighting. Samples are drawn with replacement; a gradient is that of the mean of ρ·l.

    Args:
        model: an `nn.Sequential` of `nn.Linear` and activations, or a model with `dense_layers()`
            (`posterior/dense.py`). It is not changed.
        initial: float32 `[replicas, params]`, each row as `torch.nn.utils.parameters_to_vector` gives it.
        data: `(x, y)`, on the device of the model and `initial`. loss: `pf.losses.squared_error` or
            `pf.losses.cross_entropy`.
        optimizer: makes an optimizer of one tensor that holds all replicas, e.g.
            `lambda params: torch.optim.Adam(params, lr=1e-3)`; any that treats every number by itself.
        weights: ρ `[weightings, samples]`; None for one weighting of all 1.
        snapshots: how many times, evenly over the steps, parameters and losses are kept; the last is the end.
        checkpoint, checkpoint_seconds, allow_versions: as for `train`.

    Returns `parameters` (snapshot, weighting, replica, parameter) and `loss` (snapshot, weighting, replica), the mean
    over the data, unweighted, with the `step` of each snapshot.

    Raises:
        ValueError: a model that is no stack of dense layers (`NotDense`, which says why); shapes that do not fit;
            parameters that are not finite at a snapshot, with the replicas' number; a checkpoint of another run, of
            other versions, or damaged.
        BlockingIOError, OSError: a checkpoint's folder in use by another run; one that cannot be written.
    """
    check_data("data", data, model)
    size = sum(parameter.numel() for parameter in model.parameters())
    if initial.dim() != 2 or initial.shape[1] != size or initial.dtype != torch.float32 or not len(initial):
        raise ValueError(
            f"initial must be float32 [replicas, {size}], got {initial.dtype} of shape {list(initial.shape)}"
        )
    if weights is not None and (weights.dim() != 2 or weights.shape[1] != sample_count(data)):
        raise ValueError(f"weights must be [weightings, {sample_count(data)}], got {list(weights.shape)}")
    if weights is not None and not bool(weights.isfinite().all()):
        raise ValueError("weights hold values that are not finite")
    if snapshots > steps:
        raise ValueError(f"snapshots must be between 1 and steps, got {snapshots} of {steps} steps; take fewer")
    device, replicas = initial.device, len(initial)
    check_fits({"batch_size": replicas * batch_size * (8 + bytes_each(data))})
    rhos = [None] if weights is None else list(weights.to(device, torch.float32))
    moving = [component(model, FULL, list(may_move(model)))]
    stacks = [dense_stack(model, loss, moving, replicas, data, rho) for rho in rhos]
    parameters = initial.detach().repeat(len(rhos), 1, 1).requires_grad_()
    gradients = torch.zeros_like(parameters)
    with calling("train_replicas: optimizer", "take a list of parameters"):
        update = returned("train_replicas: optimizer", optimizer([parameters]), Optimizer)
    row_starts, numbers = torch.arange(replicas + 1, device=device) * size, torch.arange(replicas, device=device)
    of_minibatches, at = (torch.tensor(each, dtype=torch.int64, device=device) for each in (seed, 0))
    kept_at = [math.ceil(steps * (index + 1) / snapshots) for index in range(snapshots)]
    state = ReplicasState(parameters, update)
    with ExitStack() as stack:
        saved, done = None, 0
        if checkpoint is not None:
            configuration = {
                "steps": steps, "batch_size": batch_size, "snapshots": snapshots, "seed": seed, "device": str(device),
            }  # fmt: skip
            identity = as_read_back({
                "configuration": configuration,
                **model_identity(model),
                "initial": digest(initial),
                "data": digests(data),
                "loss": described(loss),
                "optimizer": {"made by": described(optimizer), "groups": optimizer_settings(update)},
                "weights": None if weights is None else digest(weights),
                VERSIONS: versions(model),
            })  # fmt: skip
            saved = stack.enter_context(Checkpoint(checkpoint, identity, checkpoint_seconds, allow_versions))
            start = mean_losses(stacks[0], initial.detach(), row_starts)
            done = state.restore(saved, start, bisect_right(kept_at, saved.draws_done))
            at += done
        title = f"training {len(rhos) * replicas} replicas"
        bar = stack.enter_context(
            progress_bar(total=steps, initial=done, unit="step", desc=title, disable=not progress)
        )
        for step in range(done, steps):
            parameters.grad = gradients.zero_()
            for dense, own, gradient in zip(stacks, parameters.detach(), gradients, strict=True):
                ops.dense_steps(
                    dense, own.flatten(), gradient.view(-1), own.flatten(), row_starts=row_starts,
                    center_starts=row_starts[:-1], lr=1.0, n_beta=1.0, localization=0.0, seed=of_minibatches,
                    step=at, replicas=numbers, batch_size=batch_size, steps=0,
                )  # fmt: skip
            update.step()
            at += 1
            if step + 1 in kept_at:
                kept = parameters.detach().clone()
                state.kept.append(kept)
                state.losses.append(torch.stack([
                    mean_losses(dense, own, row_starts) for dense, own in zip(stacks, kept, strict=True)
                ]))  # fmt: skip
                broken = int((~kept.isfinite().all(2)).sum())
                if broken:
                    raise ValueError(f"{broken} replicas are not finite by step {step + 1}: lower the learning rate")
            if saved and (saved.due() or step + 1 == steps):
                state.save(saved, step + 1)
            bar.update()
    dimensions = ("snapshot", "weighting", "replica")
    mean = (
        dimensions,
        torch.stack(state.losses).cpu().numpy(),
        {"units": "nats", "long_name": "mean loss, unweighted"},
    )
    return xr.Dataset(
        {
            "parameters": ((*dimensions, "parameter"), torch.stack(state.kept).cpu().numpy()),
            "loss": mean,
        },
        coords={"step": ("snapshot", np.array(kept_at))},
        attrs={"steps": steps, "batch_size": batch_size, "seed": seed, "optimizer": type(update).__name__}
        | (saved.attrs if saved else {}),
    )


@dataclass
class ReplicasState:
    """All that a run goes on with."""

    parameters: Tensor
    optimizer: Optimizer
    kept: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    """Of the snapshots until now."""
    start_losses: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32))

    def save(self, checkpoint: Checkpoint, step: int) -> None:
        """Save the state after that many steps."""
        checkpoint.save(step, self.tensors() | {REST: packed(self.optimizer.state_dict())})

    def restore(self, checkpoint: Checkpoint, start_losses: Tensor, snapshots: int) -> int:
        """Go back to what was saved after so many snapshots and return the number of steps done.

        Raises OSError where there is no room to save in, ValueError for a checkpoint that is damaged, or of other
        losses at the start.
        """
        saved, self.start_losses = checkpoint.load(), start_losses
        if saved is None:
            checkpoint.reserve({"parameters": self.parameters, "moments": self.parameters.repeat(2, 1, 1)})
            return 0
        check_losses(saved["start_losses"], start_losses)
        try:
            with torch.no_grad():
                self.parameters.copy_(saved["parameters"])
            for number in range(snapshots):
                self.kept.append(saved[f"kept.{number}"].to(self.parameters.device))
                self.losses.append(saved[f"losses.{number}"].to(self.parameters.device))
            self.optimizer.load_state_dict(unpacked(saved[REST]))
        except UNREADABLE as error:
            raise checkpoint.unfit(repr(error)) from error
        return checkpoint.draws_done

    def tensors(self) -> dict[str, Tensor]:
        """All but what the optimizer holds."""
        kept = {f"kept.{number}": each for number, each in enumerate(self.kept)}
        losses = {f"losses.{number}": each for number, each in enumerate(self.losses)}
        return {"parameters": self.parameters, "start_losses": self.start_losses} | kept | losses


def mean_losses(stack: ops.DenseStack, parameters: Tensor, row_starts: Tensor) -> Tensor:
    """Mean loss over the data of each replica, `[replicas]`."""
    losses = parameters.new_empty(len(parameters), len(stack.inputs))
    ops.dense_losses(stack, parameters.flatten(), row_starts, losses)
    return losses.mean(1)
