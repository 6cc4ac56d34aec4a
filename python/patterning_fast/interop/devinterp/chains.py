"""Chains that keep the losses of every minibatch and of every draw."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from patterning_fast.categories import DivergedWarning
from patterning_fast.chains.plan import ChainPlan
from patterning_fast.engine.evaluation import EvaluationSet, on_chains
from patterning_fast.engine.memory import check_fits
from patterning_fast.engine.options import Options
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.run import DIVERGED, ChainDivergedError, advice
from patterning_fast.engine.torch_ensemble import MeanLoss, TorchEnsemble, torch_ensemble
from patterning_fast.engine.workers import Workers, workers
from patterning_fast.interop.devinterp.settings import Settings
from patterning_fast.interop.devinterp.tokens import in_turn
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Batch, mean_and_losses
from patterning_fast.progress import progress_bar

RECORDING_BYTES = 2**28


@dataclass
class Traces:
    """Losses of all chains in nats, float32, NaN from where a chain has diverged."""

    init: np.ndarray
    """At w*, means over the first batches, `[chains, T]`."""
    minibatches: np.ndarray
    """Of every step's minibatch, where the chain was before the step: `[components, chains, steps, batch, T]`."""
    observables: dict[str, np.ndarray]
    """Of each draw, `[components, chains, draws, samples, T]`."""


@dataclass(kw_only=True)
class TracedEnsemble(TorchEnsemble):
    """Chains on batches of a given order, which keep the losses of the last."""

    order: Tensor
    """Samples of each chain's batches, int64 `[chains, batches, batch_size]`."""
    accumulated: int
    """Batches of a step."""
    seen: Tensor = field(init=False)
    """Losses of the last minibatch, `[rows, batch, T]`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = self.posterior.loss_shape(self.posterior.data)
        self.seen = self.reference.new_full((self.plan.rows, self.options.batch_size, *shape), math.nan)

    def minibatches(self) -> Tensor:
        return in_turn(self.order, int(self.state.step) * self.accumulated, self.accumulated)

    def minibatch_losses(
        self,
        runners: Runners,
        rows: slice,
        moved: Mapping[str, Tensor],
        samples: Tensor,
        batch: Batch,
        known: Mapping[str, Tensor],
        mean_loss: MeanLoss | None = None,
    ) -> Tensor:
        runner = runners[self.suffix(rows.start // self.plan.chains)]

        def mean_then_losses(moved: Mapping[str, Tensor], batch: Batch, known: Mapping[str, Tensor]) -> Tensor:
            mean, losses = runner.run(
                lambda model: mean_and_losses(self.posterior.loss, model, batch, None),  # type: ignore[arg-type,return-value]
                moved,
                known,
            )
            return torch.cat((mean[None], losses.flatten()))

        found = on_chains(mean_then_losses, len(samples), moved, batch, known)
        self.seen[rows] = found[:, 1:].detach().view(self.seen[rows].shape)
        return found[:, 0]

    def freeze_diverged(self, limit: float, step: int) -> None:
        """Stop chains whose mean loss is not finite or above a limit; raises ChainDivergedError where all have."""
        means = self.seen.mean((1, 2)).cpu()
        bad = ~(means.abs() <= limit) & ~self.traces.diverged
        for row in bad.nonzero().squeeze(1).tolist():
            self.traces.diverged[row] = True
            self.state.freeze(self.bank, row)
        if bool(self.traces.diverged.all()):
            why = advice(self.sampler, self.plan.settings[0])
            raise ChainDivergedError(f"all {self.plan.rows} chains have diverged by step {step}: {why}")
        self.seen[self.traces.diverged.to(self.seen.device)] = math.nan


def trace_chains(
    posterior: LocalPosterior,
    plan: ChainPlan,
    sets: list[EvaluationSet],
    order: Tensor,
    settings: Settings,
    draws: bool,
) -> Traces:
    """Run chains from w* on, and keep their losses: of minibatches, and with `draws` of the sets.

    Raises ValueError where memory does not hold them, ChainDivergedError where no chain is left. Warns of those that
    have diverged.
    """
    (tokens,) = posterior.loss_shape(posterior.data)
    cells = 4 * plan.rows * tokens
    losses_of_draw = sum(each.columns.stop - each.columns.start for each in sets) // tokens
    check_fits({
        "num_draws or num_steps_bw_draws": cells * settings.steps * settings.samples_per_step,
        "num_draws or batches_per_draw": cells * settings.num_draws * losses_of_draw,
    })  # fmt: skip
    by_component = (len(plan.components), plan.chains)
    traces = Traces(
        init_loss(posterior, order, settings),
        np.full((*by_component, settings.steps, settings.samples_per_step, tokens), np.nan, np.float32),
        {
            each.name: np.full((*by_component, settings.num_draws, len(each.data), tokens), np.nan, np.float32)
            for each in sets
            if draws
        },
    )
    limit = DIVERGED * (1 + float(np.abs(traces.init).mean()))
    progress = progress_bar(total=settings.steps * plan.rows, desc=f"sampling {plan.rows} chains")
    with progress, workers(lambda: Runners(posterior), posterior.device) as pool:
        chains = ensemble(posterior, plan, sets, order, settings, pool)
        chains.measure_tile(pool)
        for step in range(settings.steps):
            chains.step(pool)
            chains.freeze_diverged(limit, step)
            traces.minibatches[:, :, step] = chains.seen.cpu().numpy().reshape(*by_component, -1, tokens)
            if draws and step in settings.draw_steps:
                draw = settings.draw_steps.index(step)
                for rows, losses in chains.evaluated_rows(pool):
                    losses[chains.traces.diverged[rows].to(losses.device)] = math.nan
                    for each in sets:
                        kept = traces.observables[each.name].reshape(plan.rows, settings.num_draws, -1, tokens)
                        kept[rows, draw] = losses[:, each.columns].cpu().numpy().reshape(-1, *kept.shape[2:])
            progress.update(plan.rows)
    lost = [plan.row_name(row) for row in chains.traces.diverged.nonzero().squeeze(1).tolist()]
    if lost:
        why = advice(chains.sampler, plan.settings[0])
        warnings.warn(
            f"{len(lost)} of {plan.rows} chains have diverged, and are left out of all that is computed from the "
            f"samples: {', '.join(lost)}. {why}",
            DivergedWarning,
            stacklevel=4,
        )
    return traces


def ensemble(
    posterior: LocalPosterior,
    plan: ChainPlan,
    sets: list[EvaluationSet],
    order: Tensor,
    settings: Settings,
    pool: Workers[Runners],
) -> TracedEnsemble:
    """All chains at w*."""
    options = Options(
        chains=plan.chains,
        draws=settings.num_draws,
        burn_in=0,
        steps_between_draws=settings.num_steps_bw_draws,
        batch_size=settings.samples_per_step,
        shared_minibatches=True,
        antithetic=False,
        groups=None,
        loss_kernel=False,
        recording_bytes=RECORDING_BYTES,
        precision="float32",
        tile=1 if posterior.device.type == "cpu" else None,  # one tile gives the same bits at every call
        seed=settings.init_seed,
    )
    plain = torch_ensemble(posterior, settings.sampler(), plan, sets, options, pool)
    given = {each.name: getattr(plain, each.name) for each in fields(plain) if each.init}
    return TracedEnsemble(**given, order=order, accumulated=settings.gradient_accumulation_steps)


def init_loss(posterior: LocalPosterior, order: Tensor, settings: Settings) -> np.ndarray:
    """Losses at w* `[chains, T]`, means over the first `num_init_loss_batches` of each chain."""
    number = settings.gradient_accumulation_steps * settings.num_init_loss_batches
    which, place = in_turn(order, 0, number).unique(return_inverse=True)
    data = posterior.data
    if not isinstance(data, Tensor):
        raise TypeError("the posterior's data are token ids")
    with torch.no_grad():
        losses = [posterior.loss(posterior.model, data[some]) for some in which.split(settings.batch_size)]
    every = torch.cat(losses).double()
    return torch.stack([every[own].mean(0) for own in place]).float().cpu().numpy()
