"""The adjoint of a chain, on its way back: what the mean of an observable answers to, step by step.

A step is x' = x − F(∇U(x)), linear in the force ∇U = n_beta·∇L + localization·(x − w*) with noise, minibatch and step
sizes held fixed. So with λ the derivative of the observable's mean by x' and v = Fᵀλ (the sampler's `force`),

    λ ← ∇φ(x)/draws + λ − localization·v − n_beta·∇²L(x)·v

and up-weighting a datum z changes the mean by −n_beta·Σ v·∇l_z(x). Both derivatives along v are differences:

- of losses at x ± δv, a central difference;
- of gradients at x ± δv and x, where the step's own gradient is known: one side is enough. The side is drawn at random
  for each step, so that what is left, of first order in δ, has mean 0, and the mean is right to second order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from patterning_fast.engine.ensemble import Ensemble
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.trajectory import Place, Trajectory
from patterning_fast.engine.workers import Workers
from patterning_fast.samplers.langevin import Adjoint, Reversible
from patterning_fast.samplers.sghmc import SGHMC

DIFFERENCE = 0.01
"""Half the length of a central difference of losses, over |w − w*| of the chain at its end: float32 keeps 4 digits."""

ONE_SIDED = 0.0025
"""Length of a difference of gradients, likewise: its error is of first order, so it is shorter."""

SMALLEST = 1e-30
"""Under this an adjoint is taken for 0."""

Gradients = Callable[[Workers[Runners], Tensor, int], Tensor]
"""Gradients, in the bank's places, with chains at the given parameters; the number says which minibatch to take."""


@dataclass(kw_only=True)
class Wanted:
    """Whose mean is differentiated, and how its parts are found."""

    gradient: Gradients | None
    """Of the observable; None for φ on the minibatches of the steps, whose gradients there are."""
    loss_gradient: Gradients | None
    """Of L, where it is not among the losses that are evaluated."""
    loss_columns: slice | None
    """Else where it is."""


@dataclass
class Sweep:
    """The adjoint on its way back along all chains, and what has been gathered on it."""

    moving: Ensemble
    trajectory: Trajectory
    wanted: Wanted
    adjoint: Adjoint = field(init=False)
    response: Tensor = field(init=False)
    """−Cov[O, l_z], `[rows, losses]`."""
    loss_response: Tensor = field(init=False)
    """−Cov[O, L], `[rows]`."""
    means: Tensor = field(init=False)
    """Of losses over draws after burn-in, `[rows, losses]`."""
    phi: Tensor = field(init=False)
    """φ at every draw, `[rows, draws]`; NaN where L is not evaluated."""
    shares: Tensor = field(init=False)
    """By cell and draw of burn-in: the response to it along that to what comes later, and the square of the latter.

    `[cells, burn_in, 2]`
    """
    sizes: Tensor = field(init=False)
    """Square of the adjoint at the end of burn-in and at the start, `[rows, 2]`."""
    errors: Tensor = field(init=False)
    """Squares of differences' errors and of themselves, of losses and of gradients, `[cells, 4]`."""

    def __post_init__(self) -> None:
        moving, options = self.moving, self.moving.options
        rows, losses = moving.plan.rows, moving.reference.numel()
        new = moving.reference.new_zeros
        self.adjoint = Adjoint(torch.zeros_like(moving.bank.params))
        if isinstance(moving.sampler, SGHMC):
            self.adjoint.momentum = torch.zeros_like(moving.bank.params)
        self.response, self.means, self.loss_response = new(rows, losses), new(rows, losses), new(rows)
        self.phi = torch.full((rows, options.total_draws), torch.nan, dtype=torch.float64)
        self.shares = torch.zeros(moving.plan.cells, options.burn_in, 2, dtype=torch.float64)
        self.sizes, self.errors = new(rows, 2).cpu(), torch.zeros(moving.plan.cells, 4, dtype=torch.float64)
        generator = torch.Generator().manual_seed(options.seed)
        apart, steps = options.steps_between_draws, options.total_draws * options.steps_between_draws
        within = torch.randint(apart, (options.total_draws,), generator=generator)
        self.observed = {draw * apart + 1 + int(offset): draw for draw, offset in enumerate(within)}
        """The step of each draw at which L, or an observable of its own, is differentiated."""
        self.sides = 2 * torch.randint(2, (steps,), generator=generator) - 1
        last = self.trajectory.stretch[steps]
        moving.bank.params.copy_(last.params)
        self.length = DIFFERENCE * moving.bank.distances()

    def tensors(self) -> dict[str, Tensor]:
        """What changes on the way back."""
        found = {
            "adjoint": self.adjoint.position, "response": self.response, "loss_response": self.loss_response,
            "means": self.means, "phi": self.phi, "shares": self.shares, "sizes": self.sizes, "errors": self.errors,
        }  # fmt: skip
        return found if self.adjoint.momentum is None else found | {"momentum": self.adjoint.momentum}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the `tensors()` of another sweep along these chains."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def back(self, pool: Workers[Runners], step: int) -> None:
        """From the adjoint after the next step to that before it, adding what the next step responds to."""
        options, place = self.moving.options, self.trajectory.at(pool, step)
        apart, begun = options.steps_between_draws, options.burn_in * options.steps_between_draws
        draw, wanted, of_loss = self.observed.get(step), self.wanted, None
        if draw is not None and wanted.loss_gradient is not None:
            of_loss = wanted.loss_gradient(pool, place.params, draw)
        if bool(self.adjoint.position.any()):  # else nothing that comes later is observed
            self.respond(pool, step, place, of_loss)
        if wanted.gradient is None:
            if step > begun:
                self.adjoint.position += place.grads / (options.draws * apart)
        elif draw is not None and draw >= options.burn_in:
            if wanted.gradient is wanted.loss_gradient and of_loss is not None:
                self.adjoint.position += of_loss / options.draws
            else:
                self.adjoint.position += wanted.gradient(pool, place.params, draw) / options.draws
        for at, reached in enumerate((begun, 0)):
            if step == reached:
                self.sizes[:, at] = self.moving.bank.by_row(self.adjoint.position.square()).cpu()

    def respond(self, pool: Workers[Runners], step: int, place: Place, of_loss: Tensor | None) -> None:
        """Add the response by the next step, and take the adjoint back over it; `of_loss` is the gradient of L."""
        moving, apart = self.moving, self.moving.options.steps_between_draws
        bank, state, sampler = moving.bank, moving.state, cast(Reversible, moving.sampler)
        state.step.fill_(step)
        if state.memory is not None and place.memory is not None:
            state.memory.copy_(place.memory)
        force = sampler.force(bank, state, self.adjoint, place.grads)
        reach = self.length / bank.by_row(force.square()).sqrt().clamp_min(SMALLEST)
        shift = bank.spread(reach) * force
        if step % apart == 0:
            draw = step // apart
            change = self.change_of_losses(pool, place, shift, draw) / (2 * reach)[:, None]
            if draw == self.examined:
                self.examine_losses(pool, place, shift, change * reach[:, None])
            self.add_response(-apart * change, draw)
            if self.wanted.loss_columns is not None:
                self.loss_response -= apart * change[:, self.wanted.loss_columns].double().mean(1).float()
        if of_loss is not None:  # at another step of the draw than the probes' losses, which no lag tells apart
            self.loss_response -= apart * bank.by_row(force * of_loss)
        side = float(self.sides[step]) * ONE_SIDED / DIFFERENCE
        change = self.change_of_gradients(pool, place, side * shift, step)
        if step == self.examined * apart:
            self.examine_gradients(pool, place, side * shift, step, change)
        curved = change / bank.spread(side * reach)
        self.adjoint.position -= bank.spread(state.localization) * force + bank.spread(state.n_beta) * curved

    @property
    def examined(self) -> int:
        """The draw at which differences are held to ones of twice the length."""
        return self.moving.options.burn_in + self.moving.options.draws // 2

    def add_response(self, new: Tensor, draw: int) -> None:
        """Add the response to a draw; of one in burn-in, note how much it is along what comes later."""
        if draw < self.moving.options.burn_in:
            for cell, (one, later) in enumerate(zip(self.by_unit(new), self.by_unit(self.response), strict=True)):
                alive = one.isfinite().all(1) & later.isfinite().all(1)
                self.shares[cell, draw] = share(one[alive], later[alive])
        self.response += new

    def by_unit(self, values: Tensor) -> Tensor:
        """Means over the chains that share noise: of `[rows, ...]`, `[cells, units, ...]`."""
        plan = self.moving.plan
        return values.view(plan.cells, plan.units, plan.chains_per_draw, *values.shape[1:]).mean(2)

    def change_of_losses(self, pool: Workers[Runners], place: Place, shift: Tensor, draw: int | None) -> Tensor:
        """Losses at x + shift less those at x − shift, `[rows, losses]`; their mean goes to those of a draw."""
        change, columns = torch.empty_like(self.response), self.wanted.loss_columns
        phi, draws, burn_in = self.phi.new_zeros(len(change)), self.moving.options.draws, self.moving.options.burn_in
        for sign in (1, -1):
            self.moving.bank.params.copy_(place.params).add_(shift, alpha=sign)
            for rows, losses in self.moving.evaluated_rows(pool):
                moved = losses - self.moving.reference
                change[rows] = moved if sign > 0 else change[rows] - moved
                if draw is not None and draw >= burn_in:
                    self.means[rows] += moved / (2 * draws)
                if draw is not None and columns is not None:
                    phi[rows] += moved[:, columns].double().mean(1).cpu() / 2
        if draw is not None and columns is not None:
            self.phi[:, draw] = phi
        return change

    def change_of_gradients(self, pool: Workers[Runners], place: Place, shift: Tensor, step: int) -> Tensor:
        """Gradients at x + shift less those at x on the minibatches of a step, in the bank's places."""
        moving = self.moving
        moving.state.step.fill_(step)
        moving.bank.params.copy_(place.params).add_(shift)
        moving.add_gradients(pool)
        change = moving.bank.grads - place.grads
        moving.bank.grads.zero_()
        return change

    def examine_losses(self, pool: Workers[Runners], place: Place, shift: Tensor, half: Tensor) -> None:
        """Note the error of half a central difference of losses: a third of how it differs from one twice as long."""
        longer = self.change_of_losses(pool, place, 2 * shift, None) / 4
        self.note_errors(0, ((longer - half) / 3).square().sum(1), half.square().sum(1))

    def examine_gradients(self, pool: Workers[Runners], place: Place, shift: Tensor, step: int, found: Tensor) -> None:
        """The same of a one-sided difference of gradients: all of it, averaged over the sides that steps take."""
        longer = self.change_of_gradients(pool, place, 2 * shift, step) / 2
        by_row, steps = self.moving.bank.by_row, self.moving.options.draws * self.moving.options.steps_between_draws
        self.note_errors(2, by_row((longer - found).square()) / steps, by_row(found.square()))

    def note_errors(self, at: int, error: Tensor, size: Tensor) -> None:
        for column, values in ((at, error), (at + 1, size)):
            self.errors[:, column] = values.double().nan_to_num().view(self.moving.plan.cells, -1).sum(1).cpu()


def share(new: Tensor, later: Tensor) -> Tensor:
    """Products over data of the response to a draw with that to what comes later, and of the latter with itself.

    Of different units `[units, losses]`, whose noise is independent, where there are two. Means over data are left out.
    """
    new, later = (values.double() - values.double().mean(1, keepdim=True) for values in (new, later))
    products = [(one.sum(0) @ later.sum(0), (one * later).sum()) for one in (new, later)]
    return torch.stack([total - own if len(later) > 1 else own for total, own in products]).cpu()
