"""Trainings side by side as functions of the data's weights: steps to take again, and to go back over."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from patterning_fast.callbacks import calling
from patterning_fast.engine.memory import check_fits
from patterning_fast.plain_torch import check_trainable
from patterning_fast.posterior.data import bytes_each, check_data, loss_shape, present_in, sample_count, take
from patterning_fast.posterior.losses import Batch, Loss
from patterning_fast.posterior.weights import weights_for
from patterning_fast.training.loss_of import LossOf
from patterning_fast.training.minibatches import Minibatches

Optimizing = Literal["adamw", "sgd"]

MOVE = 1e-2
"""Length of a random move of the parameters, of their norm."""
AGREES, FELT = 0.5, 1e-3
"""How far two estimates of the gradient's change may differ, of the larger; and what of the gradient rounding hides."""

State = tuple[Tensor, ...]
"""Parameters and what the optimizer remembers, each `[models, params]`."""


@dataclass(frozen=True)
class SGD:
    """Its step, as `torch.optim.SGD` takes it."""

    lr: float
    weight_decay: float

    def start(self, params: Tensor) -> State:
        return (params,)

    def after(self, step: int, state: State, grads: Tensor) -> State:
        (params,) = state
        return (params - self.lr * (grads + self.weight_decay * params),)


@dataclass(frozen=True)
class AdamW:
    """Its step, as `torch.optim.AdamW` takes it with betas and eps as they are there."""

    lr: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def start(self, params: Tensor) -> State:
        return params, torch.zeros_like(params), torch.zeros_like(params)

    def after(self, step: int, state: State, grads: Tensor) -> State:
        params, first, second = state
        one, two = self.betas
        first = one * first + (1 - one) * grads
        second = two * second + (1 - two) * grads**2
        moved = second > 0  # a root has no derivative at 0
        root = torch.where(moved, second, 1.0).sqrt() * moved
        scaled = (first / (1 - one**step)) / (root / math.sqrt(1 - two**step) + self.eps)
        return (1 - self.lr * self.weight_decay) * params - self.lr * scaled, first, second


class Retraceable:
    """Copies of a model in training, each on minibatches of its own.

    Of the states along the way one in √steps is kept; those in between are made again from it, to the bit.
    """

    def __init__(
        self, models: Sequence[nn.Module], data: Batch, loss: Loss, rule: SGD | AdamW, steps: int,
        minibatches: Sequence[Minibatches], rho: Tensor,
    ) -> None:  # fmt: skip
        self.models, self.data, self.rule, self.rho, self.steps = models, data, rule, rho, steps
        self.chosen = torch.stack([torch.stack([each.draw() for each in minibatches]) for _ in range(steps)])
        self.kept_every = math.isqrt(steps - 1) + 1
        self.losses_of = losses_of(models[0], loss)

    def check_second_derivative(self) -> None:
        """Raise ValueError where autograd's second derivative of the first minibatch's loss is not how its gradient
        changes: operations without one are silently taken for linear."""
        params = torch.stack([parameters_to_vector(model.parameters()).detach() for model in self.models])
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(params.shape, generator=generator, dtype=params.dtype).to(params)
        direction *= MOVE * params.norm() / direction.norm()

        def gradient(at: Tensor, differentiable: bool = False) -> Tensor:
            losses = self.losses_of(at, take(self.data, self.chosen[0]))
            (found,) = torch.autograd.grad(losses.sum(), at, create_graph=differentiable)
            return found

        leaf = params.requires_grad_()
        here = gradient(leaf, differentiable=True)
        told = torch.zeros_like(params)
        if here.requires_grad:
            (told,) = torch.autograd.grad(here, leaf, direction, materialize_grads=True)
        ends = [gradient((params + sign * direction).detach().requires_grad_()) for sign in (1, -1)]
        seen = (ends[0] - ends[1]) / 2
        most = float(torch.maximum(told.norm(), seen.norm()))
        if float((told - seen).norm()) > AGREES * most and most > FELT * float(here.detach().norm()):
            raise ValueError(
                f"the loss has no second derivative: along a random direction its gradient changes by "
                f"{float(seen.norm()):.3g}, autograd says {float(told.norm()):.3g}; use operations that are "
                "differentiable twice, such as torch's own"
            )

    def run(self) -> None:
        """All steps; leaves the models as they end."""
        start = torch.stack([parameters_to_vector(model.parameters()).detach() for model in self.models])
        state = self.rule.start(start)
        self.kept: list[State] = []
        for step in range(self.steps):
            if step % self.kept_every == 0:
                self.kept.append(state)
            state = self.after(step, state)
        for model, params in zip(self.models, state[0], strict=True):
            vector_to_parameters(params.clone(), model.parameters())

    def back(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """From outcomes' gradients by the last parameters `[outcomes, models, params]`, those by the weights of the
        data `[outcomes, models, ...]`, float64; and how many times larger those by the first parameters are, as a
        natural logarithm `[outcomes, models]`.
        """
        adjoints = [self.rule.start(each) for each in gradient]
        response = torch.zeros(len(gradient), *self.rho.shape, dtype=torch.float64, device=self.rho.device)
        for number in reversed(range(len(self.kept))):
            first = number * self.kept_every
            stretch = [self.kept[number]]
            for step in range(first, min(first + self.kept_every, self.steps) - 1):
                stretch.append(self.after(step, stretch[-1]))
            for step in reversed(range(first, first + len(stretch))):
                adjoints = self.before(step, stretch.pop(), adjoints, response)
        earliest = torch.stack([state[0] for state in adjoints])
        return response, (earliest.norm(dim=2) / gradient.norm(dim=2)).log()

    def after(self, step: int, state: State) -> State:
        """The state after a step."""
        leaves = (state[0].detach().requires_grad_(), *state[1:])
        return tuple(each.detach() for each in self.graph(step, leaves, self.weights(step)))

    def before(self, step: int, state: State, adjoints: Sequence[State], response: Tensor) -> list[State]:
        """Outcomes' derivatives by the state before a step, from those by the state after it; adds those by the
        weights of the step's data to the response."""
        leaves = tuple(each.detach().requires_grad_() for each in state)
        weights = self.weights(step).requires_grad_()
        after = self.graph(step, leaves, weights, differentiable=True)
        result = []
        places = self.chosen[step].to(response.device) + len(response[0, 0]) * self.numbers[:, None]
        for own, adjoint in zip(response, adjoints, strict=True):
            *earlier, by_weights = torch.autograd.grad(
                after, (*leaves, weights), adjoint, retain_graph=True, materialize_grads=True
            )
            own.view(-1, *own.shape[2:]).index_add_(0, places.flatten(), by_weights.flatten(0, 1).double())
            result.append(tuple(earlier))
        return result

    def graph(self, step: int, state: State, weights: Tensor, differentiable: bool = False) -> State:
        """The state after a step, as a function of that before it and the weights of the minibatch's losses."""
        losses = self.losses_of(state[0], take(self.data, self.chosen[step]))
        total = (losses * weights).flatten(1).mean(1).sum()
        with calling("the gradient of the loss", "be differentiable once more, and under vmap"):
            (grads,) = torch.autograd.grad(total, state[0], create_graph=differentiable)
        return self.rule.after(step + 1, state, grads)

    def weights(self, step: int) -> Tensor:
        """Of the losses of a step's minibatch, `[models, batch, ...]`."""
        return self.rho[self.numbers[:, None], self.chosen[step].to(self.rho.device)]

    @property
    def numbers(self) -> Tensor:
        return torch.arange(len(self.models), device=self.rho.device)


def retraceable(
    models: Sequence[nn.Module],
    data: Batch,
    loss: Loss,
    weights: Tensor | xr.DataArray | None,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seeds: Sequence[int],
    weight_decay: float,
    optimizer: Optimizing,
) -> Retraceable:
    """A training of models on weighted data; raises ValueError for what does not fit together."""
    check_alike(models, seeds)
    check_data("data", data, models[0])
    check_fits({"batch_size": batch_size * len(models) * (8 * steps + bytes_each(data))})
    shape, samples = loss_shape(models[0], loss, data), sample_count(data)
    present = present_in(loss, data, shape)
    ones = torch.ones(samples, *shape, dtype=torch.float32)
    rho = weights_for(ones if weights is None else weights, samples, shape, present)
    minibatches = [Minibatches(samples, rho, "loss", batch_size, seed) for seed in seeds]
    scaled = minibatches[0].loss_weights
    assert scaled is not None
    scaled = scaled.to(next(models[0].parameters()))
    rule = AdamW(lr, weight_decay) if optimizer == "adamw" else SGD(lr, weight_decay)
    return Retraceable(models, data, loss, rule, steps, minibatches, scaled.expand(len(models), *scaled.shape))


def check_alike(models: Sequence[nn.Module], seeds: Sequence[int]) -> None:
    """Raise ValueError unless there is one seed a model, and models have parameters of the same names and shapes."""
    if len(seeds) != len(models):
        raise ValueError(f"give each of the {len(models)} models a seed of its own, got {len(seeds)}")
    first, *others = [{name: each.shape for name, each in model.named_parameters()} for model in models]
    if not first or any(other != first for other in others):
        raise ValueError("models must have parameters, of the same names and shapes in all: make them by one function")
    for model in models:
        check_trainable(model)


def losses_of(model: nn.Module, loss: Loss) -> Callable[[Tensor, Batch], Tensor]:
    """Losses `[models, batch, ...]` from parameters `[models, params]` and samples `[models, batch, ...]`."""
    together = LossOf(copy.deepcopy(model).eval(), loss)
    names = [f"model.{name}" for name, _ in model.named_parameters()]
    shapes = [each.shape for each in model.parameters()]
    sizes = [each.numel() for each in shapes]

    def one(params: Tensor, batch: Batch) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(params.split(sizes), shapes, strict=True)]
        losses = functional_call(together, dict(zip(names, parts, strict=True)), (batch,))
        assert isinstance(losses, Tensor)
        return losses

    return vmap(one)
