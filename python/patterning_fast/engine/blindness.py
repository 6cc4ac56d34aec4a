"""What chains would give that the loss does not pull on (n_beta = 0): a Gaussian ball around w*, so no chains are run.

Of a normal variable X of variance σ² in each coordinate, any two functions have the covariance

    Cov[φ(X), l(X)] = σ²·E[∇φ(X_ρ)·∇l(X)],    X_ρ = ρX + √(1 − ρ²)·X',  ρ uniform on [0, 1],  X' as X

(the Ornstein–Uhlenbeck semigroup, with ρ = exp(−τ)). The products on the right fluctuate far less than those of φ and
l, so that a few draws do. The mean over ρ is taken at two Gauss points: exact for polynomials of up to 4th degree.
Draws come in pairs of opposite sign, in which what is odd in X cancels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod, sqrt

import numpy as np
import torch
from torch import Tensor, nn

from patterning_fast import ops
from patterning_fast.chains.plan import ChainPlan, Setting
from patterning_fast.engine.evaluation import EVALUATED_TOGETHER, lay_out_sets, loss_indices
from patterning_fast.engine.options import Options
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.torch_ensemble import TorchEnsemble, torch_ensemble
from patterning_fast.engine.workers import Workers, workers
from patterning_fast.estimators.blindness import BallMoments
from patterning_fast.ops.reference.minibatch import minibatch
from patterning_fast.ops.reference.philox import INDEX_BITS, Stream
from patterning_fast.posterior.components import Component
from patterning_fast.posterior.data import sample_count
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Batch, Data
from patterning_fast.samplers.langevin import Sampler
from patterning_fast.samplers.sgld import SGLD

PAIRS = 8
"""Pairs of draws of each component: 32 evaluations of the losses and 48 minibatch gradients."""

BYTES = 2**28
"""Pairs are evaluated side by side while that much memory holds them."""

GAUSS_POINTS = (0.5 - sqrt(1 / 12), 0.5 + sqrt(1 / 12))
"""Of ρ. X' has opposite signs at the two, so that most of what it does to their mean cancels."""

DIFFERENCE = 0.1
"""Half a central difference's length, in σ. It makes E[φ] too large by a share of at most its square."""

SMALLEST = 1e-30
"""Under this a gradient is taken for 0."""

FIRST, SECOND = 2**INDEX_BITS - 2, 2**INDEX_BITS - 3
"""Where in the noise X and X' are drawn: steps that no chain comes to."""


@dataclass(frozen=True)
class GaussianBall:
    """The twin of a run of `sample` at n_beta = 0; calling it computes what that gives."""

    posterior: LocalPosterior
    variance: float
    """Of each coordinate: `ball_variance` of the run's sampler."""
    components: list[Component]
    probes: Mapping[str, Data] | None
    loss_samples: int | Tensor | None
    options: Options
    tile: int | None
    """Chains that are evaluated together; None for all there are."""
    number: int
    """Pairs of draws."""

    def __call__(self) -> BallMoments:
        posterior, seed = self.posterior, self.options.seed
        probe_sets, loss_set = lay_out_sets(posterior, self.probes, self.loss_samples, seed)
        sets = probe_sets if loss_set in probe_sets else [*probe_sets, loss_set]
        indices = loss_indices(posterior, self.loss_samples, seed)
        if indices is None:
            indices = torch.arange(sample_count(posterior.data), device=posterior.device)
        at_once = self.pairs_at_once()
        setting = Setting(1.0, 0.0, posterior.localization)
        plan = ChainPlan(self.components, 2 * at_once, True, at_once, (setting,))
        options = replace(self.options, chains=plan.chains, draws=1, precision="float32")
        with workers(lambda: Runners(posterior), posterior.device) as pool:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what the run itself has warned of
                moving = torch_ensemble(posterior, SGLD(setting.lr), plan, sets, options, pool)
            moving.tile.fill_(self.tile or plan.chains)
            draws = Draws(moving, sqrt(self.variance), indices, loss_set.columns, probe_sets[-1].columns.stop, pool)
            found = [draws.pairs(first) for first in range(0, self.number, at_once)]
        return BallMoments(*(torch.cat(each, 1) for each in zip(*found, strict=True)))

    def pairs_at_once(self) -> int:
        """As many as memory holds, of those that their number is a multiple of."""
        parameters = dict(self.posterior.model.named_parameters())
        a_pair = 2 * 8 * sum(each.size(parameters) for each in self.components)
        return next((each for each in (8, 4, 2) if self.number % each == 0 and each * a_pair <= BYTES), 1)


@dataclass
class Draws:
    """Draws of the ball of every component, in the rows of a bank."""

    moving: TorchEnsemble
    deviation: float
    """σ"""
    indices: Tensor
    """The posterior's samples that φ is taken on."""
    of_phi: slice
    """Where the losses lie that φ is the mean of."""
    tracked: int
    """How many losses χ is wanted of: the first."""
    pool: Workers[Runners]

    def __post_init__(self) -> None:
        """The gradient of φ at w*, of all its samples."""
        samples = max(1, EVALUATED_TOGETHER // prod(self.moving.sets[0].loss_shape))
        for part in self.indices.split(samples):
            self.add_gradient(part[None], range(1), len(part) / len(self.indices))
        self.center_gradient = [rows[0].clone() for rows in self.cells(self.moving.bank.grads)]
        self.moving.bank.grads.zero_()

    def pairs(self, first: int) -> tuple[Tensor, Tensor]:
        """φ `[components, pairs]` and χ `[components, pairs, losses]` of as many pairs as the bank holds.

        The gradient of φ comes from a minibatch, less that of the minibatch at w*, with all samples' at w* added.
        """
        moving, plan = self.moving, replace(self.moving.plan, first_unit=first)
        bank = moving.bank
        units = plan.replica_units().to(bank.params.device)
        number = torch.tensor(FIRST, dtype=torch.int64, device=units.device)
        seed, batch_size = moving.state.seed, moving.options.batch_size
        chosen = minibatch(seed, units, number, batch_size, len(self.indices), Stream.observable)
        samples, all_chains = self.indices[chosen], range(plan.chains)
        self.place(plan, 0.0, 0.0)
        self.add_gradient(samples, all_chains, -1.0)
        for rho, sign in zip(GAUSS_POINTS, (1.0, -1.0), strict=True):
            self.place(plan, rho, sign * sqrt(1 - rho**2))
            self.add_gradient(samples, all_chains, 0.5)
        for rows, at_center in zip(self.cells(bank.grads), self.center_gradient, strict=True):
            rows += at_center
        lengths = torch.cat([rows.norm(dim=1) for rows in self.cells(bank.grads)]).clamp_min(SMALLEST)
        reach = DIFFERENCE * self.deviation / lengths
        phi, chi = moving.losses.new_empty(plan.rows), moving.losses.new_empty(plan.rows, self.tracked)
        for block in moving.blocks():
            here, now = slice(block.start, block.stop), slice(0, len(block))
            self.place(plan, 1.0, 0.0, reach)
            moving.evaluate(self.pool, block, "float32")
            above = moving.losses[now].clone()
            self.place(plan, 1.0, 0.0, -reach)
            moving.evaluate(self.pool, block, "float32")
            below = moving.losses[now]
            middle = ((above - moving.reference) + (below - moving.reference)) / 2
            slopes = (above - below) / (2 * reach[here, None])
            phi[here] = middle[:, self.of_phi].double().mean(1).float()
            chi[here] = slopes[:, self.of_phi].double().mean(1).float()[:, None] - slopes[:, : self.tracked]
        bank.grads.zero_()
        shape = (len(plan.components), -1, 2)
        return phi.double().unflatten(0, shape).mean(2), self.deviation**2 * chi.unflatten(0, shape).mean(2)

    def place(self, plan: ChainPlan, first: float, second: float, along_gradient: Tensor | None = None) -> None:
        """Put rows at w* + first·X + second·X', or so far `[rows]` from there along what `grads` holds."""
        bank, ids = self.moving.bank, plan.chain_ids().to(self.moving.bank.params.device)
        signs = plan.noise_scale().to(ids.device)
        for number, (rows, grads) in enumerate(zip(self.cells(bank.params), self.cells(bank.grads), strict=True)):
            here = slice(number * plan.chains, (number + 1) * plan.chains)
            rows.copy_(bank.center(number))
            for step, factor in ((FIRST, first), (SECOND, second)):
                if factor:
                    normals = ops.normal_(
                        torch.empty_like(rows), seed=self.moving.state.seed, step=step, chain_ids=ids[here]
                    )
                    rows += self.deviation * factor * signs[here, None] * normals
            if along_gradient is not None:
                rows += along_gradient[here, None] * grads

    def add_gradient(self, samples: Tensor, chains: range, weight: float) -> None:
        """Add that of `weight` times the mean loss, unweighted, on `samples` `[chains, batch]` to the bank."""
        posterior, moving = self.moving.posterior, self.moving

        share = posterior.share_present(self.indices)

        def mean_loss(model: nn.Module, batch: Batch, samples: Tensor) -> Tensor:
            return weight * posterior.mean_unweighted(model, batch, samples, share)

        moving.accumulate_gradients(self.pool, samples, chains, int(moving.tile), mean_loss)

    def cells(self, flat: Tensor) -> list[Tensor]:
        """Views `[chains, params]` of the bank's buffers, one for each component."""
        starts, chains = self.moving.bank.starts, self.moving.plan.chains
        return [
            flat[starts[row] : starts[row + chains]].view(chains, -1) for row in range(0, self.moving.plan.rows, chains)
        ]


def twin(
    posterior: LocalPosterior,
    sampler: Sampler,
    components: list[Component],
    probes: Mapping[str, Data] | None,
    loss_samples: int | Tensor | None,
    options: Options,
    tile: int | None,
    number: int = PAIRS,
) -> GaussianBall | None:
    """That of a run; None where there is none: a loss is random, or chains without one would never settle."""
    variance = ball_variance(sampler, posterior.localization, options)
    if posterior.random_loss or not np.isfinite(variance):
        return None
    return GaussianBall(posterior, variance, components, probes, loss_samples, options, tile, number)


def ball_variance(sampler: Sampler, localization: float, options: Options) -> float:
    """Variance of a coordinate at n_beta = 0, mean over the draws that are kept.

    SGLD's chains are x ← (1 − lr·localization/2)·x + √lr·ξ from w* on, settled or not. Of other samplers it is that of
    the posterior, 1/localization: infinite without a pull.
    """
    if not isinstance(sampler, SGLD):
        return 1 / localization if localization else float("inf")
    apart = options.steps_between_draws
    with np.errstate(over="ignore", under="ignore"):
        decay = (1 - np.float64(sampler.lr) * localization / 2) ** (2 * np.arange(options.total_draws * apart))
        return float(sampler.lr * decay.cumsum()[(options.burn_in + 1) * apart - 1 :: apart].mean())
