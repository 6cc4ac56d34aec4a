"""Curvatures of a component's loss at w* and the noise of its gradient, from a few gradients of a few samples.

Lanczos's method finds the largest curvature within a few Hessian-vector products, which are central differences of
gradients: no kernel needs a second derivative. Source: Golub & Van Loan 2013, §10.1; Ghorbani et al. 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patterning_fast.engine.ensemble import Ensemble, Gradient
from patterning_fast.engine.evaluation import loss_indices
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.workers import Workers
from patterning_fast.estimators.bias import AtCenter, AtDraw, Ritz
from patterning_fast.posterior.data import sample_count
from patterning_fast.samplers.langevin import Langevin

PRODUCTS = 8
"""Hessian-vector products from each start."""

PARTS = 16
"""Parts of the samples whose gradients tell the noise."""

PLACES = 2
"""Chains at whose last draw the noise of gradients is taken."""

SHARE = 0.05
"""Gradients of samples taken here over those of the chains' steps, but for what few of them take."""

RESOLVED = 1e-4
"""Half a central difference's length over |w*|, at least: float32 has 3 digits left of it."""

LEAST = 16
"""Samples that curvature is taken on, at least, or those of a minibatch, or all there are."""

LEAST_NOISY = 64
"""Samples that noise is taken on, at least, or all there are: each takes a gradient at each place, no more."""


@dataclass(frozen=True)
class Probing:
    """What curvature and noise are taken on."""

    moving: Ensemble
    samples: Tensor
    """Those that curvature is taken on, int64 `[samples]`."""
    noisy: Tensor
    """Those that noise is taken on."""
    length: float
    """Half a central difference's: twice the width of the steepest posterior that chains can sample, or `RESOLVED`."""

    def at_center(self, runners: Runners, component: int) -> AtCenter:
        """Of a component at w*."""
        center = self.moving.bank.center(component)
        _, noise = self.gradient_noise(runners, component, center)
        generator = torch.Generator().manual_seed(self.moving.options.seed)
        random = torch.randn(center.numel(), generator=generator, dtype=torch.float32).to(center)
        return AtCenter(self.curvatures(runners, component, center, random), noise)

    def at_draw(self, runners: Runners, component: int, rows: list[int]) -> AtDraw:
        """Of a component where some of its chains are: curvatures at the first."""
        bank = self.moving.bank
        places = [bank.params[bank.starts[row] : bank.starts[row + 1]].clone() for row in rows]
        found = [self.gradient_noise(runners, component, place) for place in places]
        ritz = self.curvatures(runners, component, places[0], found[0][0])
        return AtDraw(ritz, torch.stack([noise for _, noise in found]).mean(0))

    def gradient_noise(self, runners: Runners, component: int, place: Tensor) -> tuple[Tensor, Tensor]:
        """Difference of the mean gradients of two halves of the samples; variance of a sample's, `[coordinates]`."""
        parts = self.noisy.chunk(min(PARTS, len(self.noisy)))
        total, square, difference = (torch.zeros_like(place) for _ in range(3))
        for number, part in enumerate(parts):
            gradient = self.moving.gradient(runners, component, part)(place)
            total += gradient
            square += gradient**2
            difference += gradient if number % 2 else -gradient
        if len(parts) % 2:
            difference += total / len(parts)
        spread = (square - total**2 / len(parts)).clamp(min=0) / max(len(parts) - 1, 1)
        return difference, spread * len(self.noisy) / len(parts)

    def curvatures(self, runners: Runners, component: int, place: Tensor, start: Tensor) -> Ritz:
        """Of a component at a place, from a start vector."""
        gradient = self.moving.gradient(runners, component, self.samples)
        product = hessian_product(gradient, place, max(self.length, RESOLVED * float(place.norm())))
        return lanczos(product, start, min(PRODUCTS, place.numel()))


def probing(moving: Ensemble) -> Probing | None:
    """What to take on which samples; None where gradients are random, or the sampler is not the library's.

    On a few of the samples, and on all where they take little time.
    """
    if moving.posterior.random_loss or not isinstance(moving.sampler, Langevin):
        return None
    options, plan, posterior = moving.options, moving.plan, moving.posterior
    settings, lanczos_gradients, count = plan.settings, 2 * PRODUCTS, sample_count(posterior.data)
    gradients = plan.chains * len(settings) * options.total_draws * options.steps_between_draws * options.batch_size
    affordable = int(SHARE * gradients / (lanczos_gradients + 1 + len(settings) * (lanczos_gradients + PLACES)))

    def some(least: int) -> Tensor:
        chosen = loss_indices(posterior, max(least, options.batch_size, affordable), options.seed)
        return torch.arange(count, device=posterior.device) if chosen is None else chosen

    return Probing(
        moving, some(LEAST), some(LEAST_NOISY), max(2 / moving.sampler.steepest(each.lr) ** 0.5 for each in settings)
    )


def at_center(probe: Probing | None, moving: Ensemble, pool: Workers[Runners]) -> list[AtCenter | None]:
    """Of every component at w*."""
    found: list[AtCenter | None] = [None] * len(moving.plan.components)

    def one(runners: Runners, component: int) -> None:
        assert probe is not None
        found[component] = probe.at_center(runners, component)

    pool.each(one, range(len(found)) if probe else [])
    return found


def at_draws(probe: Probing | None, moving: Ensemble, pool: Workers[Runners]) -> list[list[AtDraw | None]]:
    """Of every component at each setting, where its chains are now; None where all have diverged."""
    plan = moving.plan
    found: list[list[AtDraw | None]] = [[None] * len(plan.components) for _ in plan.settings]

    def one(runners: Runners, cell: tuple[int, int]) -> None:
        assert probe is not None
        setting, component = cell
        rows = plan.cell_rows(component, setting)
        healthy = [row for row in range(rows.start, rows.stop) if not moving.traces.diverged[row]]
        if healthy:
            found[setting][component] = probe.at_draw(runners, component, healthy[:PLACES])

    pool.each(one, list(np.ndindex(len(found), len(plan.components))) if probe else [])
    return found


def hessian_product(gradient: Gradient, center: Tensor, length: float) -> Callable[[Tensor], Tensor]:
    """Hessian times a unit vector."""
    return lambda along: (gradient(center + length * along) - gradient(center - length * along)) / (2 * length)


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Ritz:
    """Curvatures by so many products, and the start vector's share in each; all orthogonalised, as they are few.

    A start of 0 has curvature 0, and one from which products are not finite has NaN.
    """
    size = float(start.norm())
    basis, diagonal, beside = list[Tensor](), list[float](), list[float]()
    along = start / size if size > 0 else start
    while size > 0 and len(basis) < steps:
        basis.append(along)
        image = product(along)
        scale = float(image.norm())
        if not math.isfinite(scale):
            return Ritz(np.full(1, np.nan), np.ones(1))
        diagonal.append(float(image @ along))
        for _ in range(2):  # once leaves what rounding has left of the first
            for each in basis:
                image = image - (image @ each) * each
        size = float(image.norm())
        if not size > 1e-3 * scale:  # what is left is the rounding of central differences
            break
        beside.append(size)
        along = image / size
    if not basis:
        return Ritz(np.zeros(1), np.ones(1))
    off = beside[: len(diagonal) - 1]
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return Ritz(values, vectors[0] ** 2)
