"""Training copies of a small model side by side, of any kind that torch can map over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import AdamW

from patterning_fast.arguments import Count, NonNegative, Positive, Seed, checked
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.data import sample_count, take
from patterning_fast.posterior.losses import Batch, Loss
from patterning_fast.training.loss_of import LossOf
from patterning_fast.training.minibatches import Minibatches


@checked
@plain_torch()
def train_side_by_side(
    models: Sequence[nn.Module],
    data: Batch,
    loss: Loss,
    *,
    steps: Count,
    batch_size: Count,
    lr: Positive,
    seeds: Sequence[Seed],
    weights: Tensor | None = None,
    weight_decay: NonNegative = 0.0,
    measure: Callable[[int], None] | None = None,
    measure_every: Count = 500,
) -> None:
    """Train `models` in place, all alike but for their parameters, each as `train` would with its one of `seeds`.

    A step of all of them costs little more than one's where models are so small that the time goes into calling torch:
    width 32, batches of 32 and 20 models took a fifth of the time one after another (`vmap`). AdamW, and `weights` ρ in
    the loss, `[samples]` or each model's own `[models, samples]`. `measure` is called with the step every so often,
    with the models as they are then.
    """
    samples = sample_count(data)
    rho = torch.ones(samples, dtype=torch.float32) if weights is None else weights
    own = rho.to(next(models[0].parameters())).expand(len(models), samples)
    minibatches = [Minibatches(samples, each, "loss", batch_size, seed) for each, seed in zip(own, seeds, strict=True)]
    loss_weights = torch.stack([each.loss_weights for each in minibatches if each.loss_weights is not None])
    together = LossOf(models[0], loss)
    parameters, _ = stack_module_state([LossOf(model, loss) for model in models])
    losses_of = vmap(lambda own, batch: functional_call(together, own, (batch,)))
    update = AdamW(parameters.values(), lr=lr, weight_decay=weight_decay, fused=True)
    for step in range(1, steps + 1):
        chosen = torch.stack([each.draw() for each in minibatches])
        losses = losses_of(parameters, take(data, chosen)) * loss_weights.gather(1, chosen.to(loss_weights.device))
        update.zero_grad()
        losses.mean(1).sum().backward()
        update.step()
        if step == steps or (measure and step % measure_every == 0):
            with torch.no_grad():
                for at, model in enumerate(models):
                    for name, parameter in model.named_parameters():
                        parameter.copy_(parameters[f"model.{name}"][at])
        if measure and step % measure_every == 0:
            measure(step)
