"""`dense_losses`, `dense_steps` and `dense_draws` in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patterning_fast.ops.reference.comoments_update import comoments_update
from patterning_fast.ops.reference.langevin_step import langevin_step
from patterning_fast.ops.reference.minibatch import minibatch
from patterning_fast.ops.reference.per_sample_langevin_step import per_sample_langevin_step
from patterning_fast.ops.reference.sparse_features import sparse_features

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}
"""In the order of csrc's Activation."""


def parameters(row: Tensor, base: Tensor, coordinates: Tensor | None) -> Tensor:
    """All parameters of the model `[params]`, those that a row holds in their places."""
    return row if coordinates is None else base.to(row.dtype).index_copy(0, coordinates, row)


def coordinates_of(coordinate_starts: Tensor, coordinates: Tensor, chain: int, length: int) -> Tensor | None:
    """Where a chain's row lies among the parameters; None where it is all of them."""
    start = int(coordinate_starts[chain])
    return None if start < 0 else coordinates[start : start + length]


def losses_of(params: Tensor, layers: Tensor, inputs: Tensor, targets: Tensor | None, labels: Tensor | None) -> Tensor:
    """Losses `[samples]` of one model."""
    a = inputs.to(params.dtype)
    for width, out, weight, bias, transposed, activation in layers.tolist():
        matrix = params[weight : weight + width * out]
        matrix = matrix.view(width, out).T if transposed else matrix.view(out, width)
        a = F.linear(a, matrix, None if bias < 0 else params[bias : bias + out])
        a = list(ACTIVATIONS.values())[activation](a)
    if labels is not None:
        return F.cross_entropy(a, labels, reduction="none")
    assert targets is not None
    return 0.5 * (a - targets).square().sum(1)


def samples_at(
    samples: Tensor,
    inputs: Tensor | None,
    targets: Tensor | None,
    labels: Tensor | None,
    presence: Tensor | None,
    data_seed: int,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Inputs, targets and labels of some samples."""
    if presence is not None:
        x = sparse_features(presence, torch.tensor(data_seed, dtype=torch.int64, device=samples.device), samples)
        return x, x, None
    assert inputs is not None
    of_targets, of_labels = (None if each is None else each[samples] for each in (targets, labels))
    return inputs[samples], of_targets, of_labels


def dense_losses(
    rows: Tensor,
    row_starts: Tensor,
    layers: Tensor,
    base: Tensor,
    coordinate_starts: Tensor,
    coordinates: Tensor,
    inputs: Tensor | None,
    targets: Tensor | None,
    labels: Tensor | None,
    weights: Tensor | None,
    presence: Tensor | None,
    of: int,
    data_seed: int,
    losses: Tensor,
) -> None:
    """The contract is that of `patterning_fast.ops.dense_losses`."""
    x, y, labels = samples_at(torch.arange(of, device=rows.device), inputs, targets, labels, presence, data_seed)
    for chain, (start, stop) in enumerate(pairwise(row_starts.tolist())):
        own = coordinates_of(coordinate_starts, coordinates, chain, stop - start)
        losses[chain] = losses_of(parameters(rows[start:stop].double(), base, own), layers, x, y, labels)


def dense_steps(
    params: Tensor,
    grads: Tensor,
    center: Tensor,
    row_starts: Tensor,
    center_starts: Tensor,
    lr: Tensor,
    n_beta: Tensor,
    localization: Tensor,
    noise_scale: Tensor,
    chain_ids: Tensor,
    seed: Tensor,
    step: Tensor,
    rule: str,
    constants: list[float],
    memory: Tensor | None,
    thermostat: Tensor | None,
    layers: Tensor,
    base: Tensor,
    coordinate_starts: Tensor,
    coordinates: Tensor,
    inputs: Tensor | None,
    targets: Tensor | None,
    labels: Tensor | None,
    weights: Tensor | None,
    presence: Tensor | None,
    of: int,
    data_seed: int,
    replicas: Tensor,
    batch: int,
    steps: int,
    corrects_noise: bool,
) -> None:
    """The contract is that of `patterning_fast.ops.dense_steps`."""
    starts, frozen = row_starts.tolist(), lr == 0
    for at in range(max(1, steps)):
        chosen = minibatch(seed, replicas, step + at, batch, of)
        for chain, samples in enumerate(chosen):
            if frozen[chain]:
                continue
            start, stop = starts[chain], starts[chain + 1]
            own = coordinates_of(coordinate_starts, coordinates, chain, stop - start)
            row = params[start:stop].double().requires_grad_()
            one = slice(chain, chain + 1)
            data = samples_at(samples, inputs, targets, labels, presence, data_seed)
            with torch.enable_grad():
                losses = losses_of(parameters(row, base, own), layers, *data)
                mean = (losses if weights is None else losses * weights[samples]).mean()
            if steps and corrects_noise:
                with torch.enable_grad():
                    weighted = losses if weights is None else losses * weights[samples]
                    each = torch.stack([torch.autograd.grad(loss, row, retain_graph=True)[0] for loss in weighted])
                moved = params[start:stop].double()[None]
                per_sample_langevin_step(
                    moved, each[None], None, center[center_starts[chain] :][: stop - start].double()[None], lr[one],
                    n_beta[one], localization[one], noise_scale[one], chain_ids[one], seed, step + at, 0.0,
                    torch.empty(1, dtype=torch.float64),
                )  # fmt: skip
                params[start:stop] = moved[0]
                continue
            grads[start:stop] += torch.autograd.grad(mean, row)[0]
        if steps and not corrects_noise:
            kept = [None if each is None else each.clone() for each in (params, grads, memory, thermostat)]
            langevin_step(
                params, grads, center, row_starts, center_starts, lr, n_beta, localization, noise_scale, chain_ids,
                seed, step + at, rule, constants, memory, thermostat, None, None, None,
            )  # fmt: skip
            for chain in frozen.nonzero().squeeze(1).tolist():
                place = slice(starts[chain], starts[chain + 1])
                for now, before in zip((params, grads, memory), kept, strict=False):
                    if now is not None and before is not None:
                        now[place] = before[place]
                if thermostat is not None and kept[3] is not None:
                    thermostat[chain] = kept[3][chain]


def dense_draws(*arguments: Any) -> None:
    """The contract is that of `patterning_fast.ops.dense_draws`."""
    draws_by(dense_steps, dense_losses, comoments_update, *arguments)


def draws_by(
    steps_of: Callable[..., None],
    losses_of_all: Callable[..., None],
    add: Callable[..., None],
    params: Tensor,
    grads: Tensor,
    center: Tensor,
    row_starts: Tensor,
    center_starts: Tensor,
    lr: Tensor,
    *rest: Any,
) -> None:
    """`dense_draws` by forms of `dense_steps`, `dense_losses` and `comoments_update`."""
    numbers, (seed, step), rule, model, data = rest[:4], rest[4:6], rest[6:10], rest[10:14], rest[14:21]
    (replicas, batch, steps, corrects_noise), samples = rest[21:25], rest[25:28]
    center_losses, shift, groups = rest[28:31]
    totals, (phi, distance, losses, phi_begin, phi_end, limit) = rest[31:36], rest[36:]
    tracked, observables, count = totals[1].shape[1], shift.numel(), len(samples[0])
    lengths, moving = row_starts.diff(), lr.clone()
    chain_of = torch.arange(len(lr), device=lr.device).repeat_interleave(lengths)
    in_center = torch.arange(params.numel(), device=lr.device) + (center_starts - row_starts[:-1])[chain_of]
    for draw in range(len(phi)):
        steps_of(
            params, grads, center, row_starts, center_starts, moving, *numbers, seed, step + draw * steps, *rule,
            *model, *data, replicas, batch, steps, corrects_noise,
        )  # fmt: skip
        found = params.new_empty(len(lr), count)
        losses_of_all(params, row_starts, *model, *samples, None, None, count, 0, found)
        apart = found - center_losses
        mean = apart[:, phi_begin:phi_end].double().mean(1).float()
        moving[~found.isfinite().all(1) | (mean.abs() > limit)] = 0
        stopped = moving == 0
        sound = (~stopped).nonzero().squeeze(1)
        seen = torch.cat((mean[:, None], apart[:, : observables - 1]), 1)
        add(found[sound, :tracked].contiguous(), seen[sound], center_losses[:tracked], shift, groups[sound], *totals)
        phi[draw] = mean.double().masked_fill(stopped, math.nan)
        squares = (params - center[in_center]).double().square()
        distance[draw] = torch.zeros_like(phi[draw]).index_add_(0, chain_of, squares).sqrt()
        if losses is not None:
            losses[draw] = found[:, :tracked].masked_fill(stopped[:, None], math.nan)
