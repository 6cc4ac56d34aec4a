"""Training on weighted data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from patterning_fast.arguments import Count, NonNegative, Positive, Seed, Whole, checked
from patterning_fast.callbacks import calling, returned
from patterning_fast.engine.checkpoint import Checkpoint
from patterning_fast.engine.evaluation import Precision, computing_in
from patterning_fast.engine.memory import check_fits
from patterning_fast.plain_torch import check_trainable, plain_torch
from patterning_fast.posterior.data import (
    bytes_each,
    check_data,
    loss_shape,
    modes_kept,
    present_in,
    sample_count,
    take,
    to_device,
)
from patterning_fast.posterior.losses import Batch, Loss
from patterning_fast.posterior.weights import shown, weights_for
from patterning_fast.posterior.wrapped import Model
from patterning_fast.progress import progress_bar
from patterning_fast.training.minibatches import Minibatches, Weighting
from patterning_fast.training.state import Metrics, Reweighing, TrainingState, losses_at_start, training_identity


@checked
def weighted_loss(losses: Tensor, weights: Tensor, total_weight: float | Tensor | None = None) -> Tensor:
    """Σρl / Σρ, a scalar; `losses` and `weights` have the same shape (arXiv:2601.13548).

    Args:
        total_weight: what to divide by in place of this batch's Σρ. For a minibatch that is the number of its losses
            times the mean of ρ over all data: then the expectation over uniform minibatches is Σρl/Σρ of all data,
            minibatches of weight 0 do no harm, and parts of a batch add up to the whole.
    """
    if losses.shape != weights.shape:
        raise ValueError(
            f"weighted_loss: weights must have the shape of losses, {list(losses.shape)}, got {list(weights.shape)}; "
            "give each loss its weight"
        )
    return (losses * weights).sum() / (weights.sum() if total_weight is None else total_weight)


@checked
@plain_torch()
def train(
    model: Model,
    data: Batch,
    loss: Loss,
    *,
    steps: Count,
    batch_size: Count,
    lr: Positive,
    weights: Tensor | xr.DataArray | None = None,
    weighting: Weighting = "loss",
    reweighing: Reweighing | None = None,
    weight_decay: NonNegative = 0.0,
    optimizer: Callable[..., Optimizer] = AdamW,
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    max_grad_norm: Positive | None = None,
    precision: Precision = "float32",
    seed: Seed = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: NonNegative = 60.0,
    allow_versions: bool = False,
    metrics: Metrics | None = None,
    metrics_every: Count = 50,
    progress: bool = True,
    description: str = "training",
    position: Whole = 0,
) -> list[dict[str, float]]:
    """Train `model` in place on minibatches whose loss is in expectation Σρl/Σρ of the data.

    All modules are in training mode meanwhile, and then in the mode that each was in before.

    Args:
        loss: as for LocalPosterior, per sample or per token.
        weights: ρ of each sample or token of `data`, e.g. `plan.weights`; None for all 1. Minibatches depend on
            `seed` alone, so weights of 1 change no bit; samples of weight 0 are as good as removed, to the bit.
        weighting: "loss" weighs the losses of uniform minibatches; "sampling" draws samples in proportion to their
            mean ρ ≥ 0 and leaves to the losses how ρ varies between a sample's tokens (see `Minibatches`).
        reweighing: decides on weights on the way, in place of `weights`; `pf.train_towards` has one.
        optimizer: called with the parameters, `lr` and `weight_decay`, e.g. `partial(torch.optim.SGD, momentum=0.9)`.
        schedule: makes a scheduler of the optimizer, which goes on by one after every step.
        max_grad_norm: largest norm of a step's gradient, to which larger ones are clipped.
        precision: of matrix products; weights, gradients and the optimizer stay float32.
        checkpoint: folder to save the run's state in; where it holds that of this very run, the run resumes from it,
            and gives the same bits as one that was never interrupted. The last two saves are kept.
        checkpoint_seconds: between saves; 0 saves after every step.
        allow_versions: resume what another version of torch, Python or this library has begun; the checkpoint's JSON
            names those under `earlier_versions`.
        metrics: called every `metrics_every` steps, before the first step and after the last, with the model in eval
            mode; what it returns is gathered with "step" and "loss", the mean training loss since the last call.
        progress, description, position: a progress bar with the time left, its title, and its line among several.

    Returns the rows of metrics. Raises TypeError for parameters of half precision or a scheduler that wants a metric,
    ValueError for data or weights that do not fit, negative weights as probabilities, a model made under
    `inference_mode`, and a checkpoint that is damaged, of another run or of other versions, FloatingPointError where
    the training loss is no longer finite, BlockingIOError or OSError for a folder in use or one that cannot be written.
    """
    check_trainable(model)
    check_data("data", data, model)
    if not any(True for _ in model.parameters()):
        raise ValueError(f"model must have parameters, got {type(model).__name__} without; pass one to be trained")
    if half := [name for name, each in model.named_parameters() if each.dtype in (torch.bfloat16, torch.float16)]:
        raise TypeError(
            f"parameters must be float32, and {shown(half)} are of half precision; use model.float(), and "
            "precision='bfloat16' for fast matrix products"
        )
    if weights is not None and reweighing is not None:
        raise ValueError("weights are given, and reweighing decides on them: leave one of the two out")
    device = next(model.parameters()).device
    data = to_device(data, str(device))
    samples = sample_count(data)
    check_fits({"batch_size": batch_size * (8 + bytes_each(data))})
    shape = loss_shape(model, loss, data)
    present = present_in(loss, data, shape)

    def laid_out(weights: Tensor | xr.DataArray | None) -> Tensor | None:
        if weights is None:
            return None if present is None else present.to(device, torch.float32)
        return weights_for(weights, samples, shape, present).to(device)

    rho = laid_out(weights)
    minibatches = Minibatches(samples, rho, weighting, batch_size, seed)
    with calling("train: optimizer", "take parameters, lr= and weight_decay="):
        update = optimizer(model.parameters(), lr=lr, weight_decay=weight_decay)
    returned("train: optimizer", update, Optimizer)
    with calling("train: schedule", "take the optimizer"):
        scheduler = returned("train: schedule", schedule(update), LRScheduler) if schedule else None
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError("schedule must go by steps alone, and ReduceLROnPlateau wants a metric; choose another")
    state = TrainingState(model, update, scheduler, minibatches.generator, reweighing)
    with modes_kept(model), ExitStack() as stack:
        saved, done = None, 0
        if checkpoint is not None:
            configuration = {
                "steps": steps, "batch_size": batch_size, "weighting": weighting, "max_grad_norm": max_grad_norm,
                "precision": precision, "seed": seed, "metrics_every": metrics_every, "device": str(device),
            }  # fmt: skip
            state.start_losses = losses_at_start(model, data, loss, batch_size)
            makers = {"optimizer": optimizer, "schedule": schedule}
            identity = training_identity(state, data, loss, rho, makers, configuration)
            saved = stack.enter_context(Checkpoint(checkpoint, identity, checkpoint_seconds, allow_versions))
            done = state.restore(saved)

        def reweigh(step: int, by: Reweighing) -> None:
            if saved and saved.draws_done < step:
                state.save(saved, step)  # a decision may take as long as training does
            by.decide(step, model.eval())
            minibatches.weigh(laid_out(by.weights))
            model.train()
            if saved:
                state.save(saved, step)

        if reweighing:
            minibatches.weigh(laid_out(reweighing.weights))
        model.train()
        bar = progress_bar(
            range(done, steps), initial=done, total=steps, unit="step", desc=description, position=position,
            disable=not progress,
        )  # fmt: skip
        for step in bar:
            if reweighing and reweighing.due(step):
                reweigh(step, reweighing)
            if step % metrics_every == 0:
                state.measure(step, metrics)
            batch = minibatches.draw().to(device)
            with computing_in(precision, device):
                losses = loss(model, take(data, batch))
            rest = minibatches.loss_weights
            count = losses.numel()
            total = losses.sum() / count if rest is None else weighted_loss(losses, rest[batch], count)
            update.zero_grad()
            total.backward()
            if max_grad_norm is not None:
                clip_grad_norm_(model.parameters(), max_grad_norm)
            with calling("train: optimizer.step()", f"take a step at lr={lr}"):
                update.step()
            if scheduler:
                scheduler.step()
            state.recent_losses.append(total.detach())
            if saved and step + 1 < steps and saved.due():
                state.save(saved, step + 1)
        if done < steps:
            state.measure(steps, metrics)
            if saved:
                state.save(saved, steps)
        if reweighing and reweighing.due(steps):
            reweigh(steps, reweighing)
    return state.rows
