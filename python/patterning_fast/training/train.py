"""Training on weighted data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import xarray as xr
from torch import Tensor, nn
from tqdm import tqdm

from patterning_fast.posterior.data import check_data, loss_shape, sample_count, take, to_device
from patterning_fast.posterior.losses import Batch, Loss
from patterning_fast.posterior.weights import weights_for

Metrics = Callable[[nn.Module], dict[str, float]]


def weighted_loss(losses: Tensor, weights: Tensor) -> Tensor:
    """Σρl / Σρ over a batch, a scalar; `losses` and `weights` have the same shape (arXiv:2601.13548)."""
    return (losses * weights).sum() / weights.sum()


def train(
    model: nn.Module,
    data: Batch,
    loss: Loss,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    weights: Tensor | xr.DataArray | None = None,
    weight_decay: float = 0.0,
    seed: int = 0,
    metrics: Metrics | None = None,
    metrics_every: int = 50,
    progress: bool = True,
    description: str = "training",
    position: int = 0,
) -> list[dict[str, float]]:
    """Train `model` in place by AdamW on the weighted loss Σρl/Σρ of uniform minibatches.

    Args:
        loss: as for LocalPosterior, per sample or per token.
        weights: ρ of each sample or token of `data`, e.g. `plan.weights`; None for all 1. The minibatches, and so
            the whole run where weights are all 1, depend on `seed` alone.
        metrics: called every `metrics_every` steps, before the first step and after the last, with the model in eval
            mode; what it returns is gathered with "step" and "loss", the mean training loss since the last call.
        progress, description, position: a progress bar with the time left, its title, and its line among several.

    Returns the rows of metrics. Raises ValueError for data or weights that do not fit, and FloatingPointError where
    the training loss is no longer finite.
    """
    check_data("data", data, model)
    for name, value in (("steps", steps), ("batch_size", batch_size), ("metrics_every", metrics_every), ("lr", lr)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be > 0, got {value}")
    device = next(model.parameters()).device
    data = to_device(data, str(device))
    samples = sample_count(data)
    shape = loss_shape(model, loss, data)
    rho = None if weights is None else weights_for(weights, samples, shape).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, float]] = []
    since: list[Tensor] = []

    def measure(step: int) -> None:
        recent = float(torch.stack(since).mean()) if since else math.nan
        since.clear()
        if step and not math.isfinite(recent):
            raise FloatingPointError(f"the training loss is not finite by step {step}; lower lr")
        model.eval()
        with torch.no_grad():
            rows.append({"step": float(step), "loss": recent} | (metrics(model) if metrics else {}))
        model.train()

    for step in tqdm(range(steps), unit="step", desc=description, position=position, disable=not progress):
        if step % metrics_every == 0:
            measure(step)
        batch = torch.randint(samples, (batch_size,), generator=generator).to(device)
        losses = loss(model, take(data, batch))
        total = weighted_loss(losses, torch.ones_like(losses) if rho is None else rho[batch])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        since.append(total.detach())
    measure(steps)
    model.eval()
    return rows
