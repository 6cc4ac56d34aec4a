"""`linear_response`: susceptibilities by differentiating chains, where `sample` correlates what they have seen.

An SGLD chain is a differentiable function of the data's weights. With the noise and the minibatches that a chain has
seen held fixed, up-weighting a datum z in the posterior changes E[φ] by −n_beta·lr/2·Σ_s λ_{s+1}·∇l_z(x_s), where the
adjoint λ_t = ∂(mean of φ)/∂x_t follows the chain backwards:

    λ_t = ∇φ(x_t)/steps + (1 − lr/2·localization − lr/2·n_beta·∇²L(x_t)) λ_{t+1}

One sweep back gives the answer for all data. Hessian and directional derivatives are central differences along λ, so
all that is run of the model are minibatch gradients and losses.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from patterning_fast.arguments import Bytes, Count, NonNegative, Seed, Whole, checked
from patterning_fast.chains.plan import Setting, chain_plan
from patterning_fast.domains import Mend
from patterning_fast.engine.checkpoint import Checkpoint
from patterning_fast.engine.evaluation import joint_coordinates, lay_out_sets, loss_indices, losses_at_center
from patterning_fast.engine.identity import check_losses, digest, run_identity
from patterning_fast.engine.options import Options
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.run import ChainDivergedError, advice
from patterning_fast.engine.torch_ensemble import MeanLoss, TorchEnsemble, torch_ensemble
from patterning_fast.engine.workers import Workers, workers
from patterning_fast.estimators.labelled import (
    SIGN,
    chains_for_target,
    labelled,
    reliabilities,
    split_half_reliability,
)
from patterning_fast.ops.reference.minibatch import minibatch
from patterning_fast.ops.reference.philox import Stream
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import FULL, Component, Components, resolve_components
from patterning_fast.posterior.data import sample_count
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Batch, Probes
from patterning_fast.progress import Progress, progress_bar
from patterning_fast.samplers.sgld import SGLD

DIFFERENCE = 0.01
"""Half a central difference's length, over |w − w*| of the chain at its end: float32 has 4 digits left of it."""

SMALLEST = 1e-30
"""Under this an adjoint is taken for 0."""


@checked
@plain_torch()
def linear_response(
    posterior: LocalPosterior,
    sampler: Annotated[SGLD, Mend("only pf.SGLD(lr=...) can be differentiated")],
    *,
    components: Components | None = None,
    probes: Probes | None = None,
    chains: Count = 4,
    draws: Count = 15,
    burn_in: Whole = 5,
    steps_between_draws: Count = 4,
    batch_size: Count = 16,
    loss_samples: Count | Tensor | None = None,
    recording_bytes: Bytes = 2**28,
    trajectory_bytes: Bytes = 2**29,
    tile: Count | None = None,
    seed: Seed = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: NonNegative = 60.0,
    allow_versions: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Susceptibilities `[component, token or sample]` in nats² from the derivative of chains by the data's weights.

    The same χ_C(z) = −Cov_C[φ, l_z − L] as `sample(...).susceptibilities()` (fluctuation and dissipation), from far
    fewer chains: derivatives do not fluctuate as products of losses do. The bias of its quadratic part is of second
    order in lr, that of a covariance of first. `sample` gives learning coefficients, kernels and diagnostics.

    Args:
        posterior, sampler: what to sample, by `SGLD(lr)` without gradient-noise correction.
        components: name to component; None for "full", which is not added to others.
        probes: name to samples whose χ is wanted; None for the posterior's data.
        chains: independent chains per component, at least 2, from which the errors come.
        draws: times at which the probes' losses are differentiated, and φ, after burn-in; `steps_between_draws` steps
            apart, of which φ takes one at random. About half as many steps as chains need to forget is best.
        burn_in: draws that φ is not averaged over: as many as chains need to forget w*, and the start of the response.
        batch_size: samples of a gradient, drawn with replacement, those of φ too.
        loss_samples: take φ on that many of the posterior's samples, or on those of these indices; None for all.
        recording_bytes, tile, seed, checkpoint, allow_versions, progress: as for `sample`.
        checkpoint_seconds: between saves; 0 saves after every step on the way back. Steps on the way out, which take
            a fraction of the time, are made again by a run that resumes.
        trajectory_bytes: memory that the chains' steps may take, 4 bytes a coordinate and step; chains for which there
            is none wait until the first are done.

    Returns `chi`, `chi_error`, `chi_group` (by chain), `chi_reliability` and `chains_for_r_0.9`, as
    `Statistics.susceptibilities()` does; no `r_hat` and `ess`, since these chains leave no traces of φ.

    Raises:
        TypeError, ValueError: input that cannot work, before any sampling; trajectory_bytes too few for one chain of
            each component; a checkpoint of another run, of other versions, or damaged.
        BlockingIOError, OSError: a checkpoint's folder in use by another run; one that cannot be written.
        ChainDivergedError: every chain of every component has run away, or its derivative has.
    """
    if type(sampler) is not SGLD:
        raise TypeError(f"only SGLD itself can be differentiated, got {sampler!r}; pass SGLD(lr={sampler.lr})")
    if sampler.gradient_noise_correction:
        raise ValueError(
            f"only SGLD without gradient_noise_correction can be differentiated, got {sampler!r}; "
            f"pass SGLD(lr={sampler.lr})"
        )
    if posterior.random_loss:
        raise ValueError(
            "a random loss cannot be differentiated with its noise held fixed: use sample(...).susceptibilities(), or "
            "make the loss deterministic"
        )
    options = Options(
        chains, draws, burn_in, steps_between_draws, batch_size, shared_minibatches=False, antithetic=False,
        groups=chains, loss_kernel=False, recording_bytes=recording_bytes, precision="float32", tile=tile, seed=seed,
    )  # fmt: skip
    setting = Setting(sampler.lr, posterior.n_beta, posterior.localization)
    resolved = resolve_components(posterior.model, components, posterior.moving)
    resolved = [each for each in resolved if each.name != FULL or not components or FULL in components]
    plan = chain_plan(resolved, chains, False, chains, (setting,))
    options.check_memory(plan, posterior)
    sets, _ = lay_out_sets(posterior, probes, None, seed)
    indices = loss_indices(posterior, loss_samples, seed)
    at_once = chains_at_once(posterior, resolved, options, trajectory_bytes)
    device, steps = posterior.device, options.total_draws * steps_between_draws
    waves = [
        replace(plan, chains=number, groups=number, first_unit=first)
        for first in range(0, chains, at_once)
        for number in [min(at_once, chains - first)]
    ]
    with ExitStack() as stack:
        saved = None
        if checkpoint is not None:
            configuration = asdict(setting) | asdict(options) | {
                "trajectory_bytes": trajectory_bytes, "loss_samples": None if indices is None else digest(indices),
                "estimator": "linear response", "device": str(device),
            }  # fmt: skip
            identity = run_identity(posterior, sampler, plan, sets, {}, configuration)
            saved = stack.enter_context(Checkpoint(checkpoint, identity, checkpoint_seconds, allow_versions))
        pool = stack.enter_context(workers(lambda: Runners(posterior), device))
        bar = stack.enter_context(
            progress_bar(
                total=2 * steps * plan.rows,
                unit="step",
                desc=f"differentiating {plan.rows} chains",
                disable=not progress,
            )
        )
        run = Waves(losses_at_center(posterior, sets, pool, "float32"), steps + 1, bar, saved)
        run.resume(posterior.random_loss)
        for wave in waves[len(run.responses) :]:
            moving = torch_ensemble(posterior, sampler, wave, sets, options, pool)
            if int(run.tile) == 0:
                moving.measure_tile(pool)
                run.tile.copy_(moving.tile)
            moving.tile.copy_(run.tile)
            run.differentiate(moving, indices, pool)
    found = [healthy(each) for each in torch.cat(run.responses, 1)]
    if not any(len(alive) for alive, _ in found):
        raise ChainDivergedError(f"no chain has a finite derivative: {advice(sampler, setting)}")
    dimension = "token" if sets[0].loss_shape else "sample"
    where = {name: (dimension, each) for name, each in joint_coordinates(sets).items()}
    long_name, names = "susceptibility -Cov[phi, l_z - L] by linear response", [each.name for each in resolved]
    chi = labelled("chi", names, found, chains, (dimension,), where, long_name, "nats^2")
    reliable = [split_half_reliability(len(alive), partial(mean_of, values)) for alive, values in found]
    chi.update(reliabilities("chi", long_name, reliable))
    chi["chains_for_r_0.9"] = chains_for_target(np.array(reliable), np.array([len(alive) for alive, _ in found]))
    return chi.assign_attrs(
        asdict(setting)
        | {name: int(value) if isinstance(value, bool) else value for name, value in asdict(options).items()}
        | {"estimator": "linear response", "engine": "torch", "sampler": repr(sampler), "items": posterior.item_count}
        | {"loss_samples": sample_count(posterior.data) if indices is None else len(indices)}
        | {"weighted": int(posterior.weights is not None), "device": str(device), "torch": torch.__version__}
        | {"patterning_fast": version("patterning_fast")}
        | {"seconds": run.seconds, "sign": SIGN["chi"]}
        | (saved.attrs if saved else {})
    )


def chains_at_once(posterior: LocalPosterior, components: list[Component], options: Options, most: int) -> int:
    """Chains of each component whose steps fit in `most` bytes; raises ValueError where not one does."""
    parameters = dict(posterior.model.named_parameters())
    coordinates = sum(each.size(parameters) for each in components)
    need = 4 * coordinates * (1 + options.total_draws * options.steps_between_draws)
    if need > most:
        raise ValueError(
            f"the steps of one chain of each component take {need / 2**20:.0f} MiB, more than trajectory_bytes "
            f"({most / 2**20:.0f} MiB): ask for fewer components or draws at a time, or raise trajectory_bytes"
        )
    return min(options.chains, most // need)


@dataclass
class Waves:
    """Chains that are differentiated so many at a time, and the checkpoint of what has been found."""

    center_losses: Tensor
    sweep_steps: int
    """Steps of the way back."""
    bar: Progress
    saved: Checkpoint | None
    responses: list[Tensor] = field(default_factory=list)
    """−Cov[φ, l − L] of every chain of the waves that are done, `[components, chains, losses]`."""
    tile: Tensor = field(default_factory=lambda: torch.tensor(0, dtype=torch.int64))
    """That of the first wave, for all; 0 until it is measured."""
    under_way: dict[str, Tensor] = field(default_factory=dict)
    """Saved of a wave in the middle of its way back."""
    before: float = 0.0
    """Seconds that were spent before this run was resumed."""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def resume(self, random_loss: bool) -> None:
        """Take up what was saved; raises ValueError for other losses at w*, unless they are random."""
        state = self.saved.load() if self.saved else None
        if self.saved is None or state is None:
            return
        there = state.pop("center_losses")
        if not random_loss:
            check_losses(there, self.center_losses)
        self.tile, self.before = state.pop("tile"), float(state.pop("seconds"))
        done = self.saved.draws_done // self.sweep_steps
        self.responses = [state.pop(f"responses.{number}").to(self.center_losses) for number in range(done)]
        self.under_way = state
        self.bar.update(2 * (self.sweep_steps - 1) * sum(each.shape[:2].numel() for each in self.responses))

    def differentiate(self, moving: TorchEnsemble, indices: Tensor | None, pool: Workers[Runners]) -> None:
        """Run the chains of an ensemble from w*, and go back along them from where a run before was cut short."""
        rows, first = moving.plan.rows, len(self.responses) * self.sweep_steps
        trajectory = [moving.bank.params.clone()]
        for _ in range(self.sweep_steps - 1):
            moving.step(pool)
            trajectory.append(moving.bank.params.clone())
            self.bar.update(rows)
        sweep, swept = Sweep(moving, trajectory, indices), 0
        if self.saved and not self.saved.last:
            self.saved.reserve(self.tensors(sweep))
        if self.under_way and self.saved:
            sweep.load(self.under_way)
            swept, self.under_way = self.saved.draws_done - first, {}
            self.bar.update(rows * (swept - 1))
        while swept < self.sweep_steps:
            sweep.back(pool, self.sweep_steps - 1 - swept)
            swept += 1
            self.bar.update(rows if swept > 1 else 0)
            if self.saved and self.saved.due() and swept < self.sweep_steps:
                self.saved.save(first + swept, self.tensors(sweep))
        self.responses.append((sweep.response - sweep.response_of_loss[:, None]).unflatten(0, (-1, moving.plan.chains)))
        if self.saved:
            self.saved.save(first + swept, self.tensors(None))

    def tensors(self, sweep: Sweep | None) -> dict[str, Tensor]:
        """All that a run goes on with, that of a wave on its way back included."""
        found = {f"responses.{number}": each for number, each in enumerate(self.responses)}
        seconds = torch.tensor(self.seconds, dtype=torch.float64)
        own = {"center_losses": self.center_losses, "tile": self.tile, "seconds": seconds}
        return found | own | (sweep.tensors() if sweep else {})


def healthy(by_chain: Tensor) -> tuple[Tensor, Tensor]:
    """The chains with finite values, and these `[healthy chains, losses]`; none where they are fewer than two."""
    alive = by_chain.isfinite().all(1).nonzero().squeeze(1)
    alive = alive if len(alive) > 1 else alive[:0]
    return alive, by_chain[alive]


def mean_of(values: Tensor, chains: Tensor) -> Tensor:
    """The mean over some chains."""
    return values[chains].mean(0)


@dataclass
class Sweep:
    """The adjoint on its way back along all chains."""

    moving: TorchEnsemble
    trajectory: list[Tensor]
    """Parameters of the bank before the first step and after each."""
    loss_indices: Tensor | None
    """The posterior's samples that φ is taken on; None for all."""

    def __post_init__(self) -> None:
        options, bank = self.moving.options, self.moving.bank
        apart = options.steps_between_draws
        self.adjoint = torch.zeros_like(bank.params)
        self.response = self.moving.reference.new_zeros(self.moving.plan.rows, self.moving.reference.numel())
        """−Cov[φ, l_z]: lr/2 of the sum over steps, `[rows, losses]`."""
        self.response_of_loss = self.moving.reference.new_zeros(self.moving.plan.rows)
        generator = torch.Generator().manual_seed(options.seed)
        within = torch.randint(apart, (options.total_draws,), generator=generator)
        self.loss_steps = {draw * apart + 1 + int(offset): draw for draw, offset in enumerate(within)}
        bank.params.copy_(self.trajectory[-1])
        self.length = DIFFERENCE * bank.distances()

    def tensors(self) -> dict[str, Tensor]:
        """What changes on the way back."""
        return {
            "adjoint": self.adjoint, "response": self.response, "response_of_loss": self.response_of_loss
        }  # fmt: skip

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the `tensors()` of another sweep along these chains."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def back(self, pool: Workers[Runners], step: int) -> None:
        """From the adjoint after the next step to that after `step`, adding what the next step responds to."""
        if bool(self.adjoint.any()):  # else φ is not taken on any later step
            self.respond(pool, step)
        draw = self.loss_steps.get(step, -1)
        if draw >= self.moving.options.burn_in:
            self.adjoint += self.loss_gradient(pool, step, 2 * draw) / self.moving.options.draws

    def respond(self, pool: Workers[Runners], step: int) -> None:
        """Add the response by the next step, and take the adjoint back over it."""
        state, apart = self.moving.state, self.moving.options.steps_between_draws
        reach = self.length / self.by_row(self.adjoint.square()).sqrt().clamp_min(SMALLEST)
        shift = self.spread(reach) * self.adjoint
        ends = [self.trajectory[step] + shift, self.trajectory[step] - shift]
        if step % apart == 0:
            self.response -= (apart * state.lr / (4 * reach))[:, None] * self.change_of_losses(pool, ends)
            gradient = self.loss_gradient(pool, step, 2 * (step // apart) + 1)
            self.response_of_loss -= apart * state.lr / 2 * self.by_row(self.adjoint * gradient)
        state.step.fill_(step)
        samples = self.moving.minibatches()
        above, below = (self.gradient(pool, end, samples) for end in ends)
        pull, curved = state.lr / 2 * state.localization, state.lr / 2 * state.n_beta / (2 * reach)
        self.adjoint -= self.spread(pull) * self.adjoint + self.spread(curved) * (above - below)

    def loss_gradient(self, pool: Workers[Runners], step: int, number: int) -> Tensor:
        """Gradient of L, unweighted, where the chains were after a step, on a minibatch that no other number has."""
        moving, posterior = self.moving, self.moving.posterior
        count = sample_count(posterior.data) if self.loss_indices is None else len(self.loss_indices)
        replicas = moving.plan.replica_units().to(moving.reference.device)
        at = torch.tensor(number, dtype=torch.int64, device=replicas.device)
        samples = minibatch(moving.state.seed, replicas, at, moving.options.batch_size, count, Stream.observable)
        if self.loss_indices is not None:
            samples = self.loss_indices[samples]

        def unweighted(model: nn.Module, batch: Batch, samples: Tensor) -> Tensor:
            return posterior.loss(model, batch).mean()

        return self.gradient(pool, self.trajectory[step], samples, unweighted)

    def gradient(
        self, pool: Workers[Runners], params: Tensor, samples: Tensor, mean_loss: MeanLoss | None = None
    ) -> Tensor:
        """Gradients of L_ρ, or of another mean loss, on `samples` `[chains, batch]`, in the bank's places."""
        moving = self.moving
        moving.bank.params.copy_(params)
        moving.accumulate_gradients(pool, samples, range(moving.plan.chains), int(moving.tile), mean_loss)
        gradient = moving.bank.grads.clone()
        moving.bank.grads.zero_()
        return gradient

    def change_of_losses(self, pool: Workers[Runners], ends: list[Tensor]) -> Tensor:
        """Losses at the first of two places less those at the second, `[rows, losses]`."""
        moving, change = self.moving, torch.empty_like(self.response)
        for block in moving.blocks():
            here, now = slice(block.start, block.stop), slice(0, len(block))
            for place, end in enumerate(ends):
                moving.bank.params.copy_(end)
                moving.evaluate(pool, block, "float32")
                change[here] = moving.losses[now] if place == 0 else change[here] - moving.losses[now]
        return change

    def by_row(self, values: Tensor) -> Tensor:
        """Sums over each row of the bank, `[rows]`."""
        starts = self.moving.bank.starts
        return torch.stack([values[start:stop].sum() for start, stop in pairwise(starts)])

    def spread(self, of_rows: Tensor) -> Tensor:
        """A value of each row, at all its places in the bank."""
        return of_rows.repeat_interleave(self.moving.bank.row_starts.diff())
