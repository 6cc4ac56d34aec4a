"""`linear_response`: susceptibilities by differentiating chains, where `sample` correlates what they have seen.

A chain is a differentiable function of the data's weights. With the noise, the minibatches and the step sizes that it
has had held fixed, one sweep back along it tells what the mean of an observable answers to, for all data at once
(`engine/sweep.py`). All that is run of the model are minibatch gradients and losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import xarray as xr
from torch import Tensor

from patterning_fast.arguments import Bytes, Count, NonNegative, Positive, Seed, Whole, checked
from patterning_fast.chains.plan import Setting, chain_plan
from patterning_fast.domains import Holds, Mend
from patterning_fast.engine.blindness import twin
from patterning_fast.engine.checkpoint import Checkpoint
from patterning_fast.engine.evaluation import joint_coordinates, losses_at_center
from patterning_fast.engine.identity import digest, run_identity
from patterning_fast.engine.options import Engine, Options
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.responding import responding
from patterning_fast.engine.run import ChainDivergedError, advice
from patterning_fast.engine.waves import Waves
from patterning_fast.engine.workers import workers
from patterning_fast.estimators.goal import Error, Reliability, goal_of
from patterning_fast.estimators.regression import LEAST_GROUPS
from patterning_fast.estimators.response import blindness, response_dataset, warn_of_response
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import Components, resolve_components
from patterning_fast.posterior.data import sample_count
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Probes
from patterning_fast.posterior.observables import PHI, Observable
from patterning_fast.progress import progress_bar
from patterning_fast.samplers.rmsprop_sgld import RMSPropSGLD
from patterning_fast.samplers.sghmc import SGHMC
from patterning_fast.samplers.sgld import SGLD

DIFFERENTIABLE = (SGLD, RMSPropSGLD, SGHMC)
"""Samplers whose step can be gone back over; a subclass may have another."""

PAIRS = LEAST_GROUPS
"""Of draws at nβ = 0: as few as tell a correlation with χ, since chains of a response are few too."""

Differentiable = Annotated[SGLD | RMSPropSGLD | SGHMC, Mend("pass pf.SGLD(lr=...), pf.RMSPropSGLD or pf.SGHMC")]


@checked
@plain_torch()
def linear_response(
    posterior: LocalPosterior,
    sampler: Differentiable,
    *,
    components: Components | None = None,
    probes: Probes | None = None,
    observable: Annotated[Mapping[str, Observable], Holds(1)] | None = None,
    chains: Count = 4,
    draws: Count = 15,
    burn_in: Whole = 5,
    steps_between_draws: Count = 4,
    batch_size: Count = 16,
    antithetic: bool = False,
    loss_samples: Count | Tensor | None = None,
    reliability: Reliability | None = None,
    error: Error | None = None,
    max_chains: Count = 1024,
    max_seconds: Positive | None = None,
    recording_bytes: Bytes = 2**28,
    trajectory_bytes: Bytes = 2**29,
    engine: Engine = "auto",
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
    order in lr, that of a covariance of first. `sample` gives kernels and the diagnostics of long chains.

    Args:
        posterior: what to sample. sampler: `SGLD`, without gradient-noise correction, `SGHMC`, or `RMSPropSGLD`, whose
            step sizes are held as chains have had them.
        components: name to component; None for "full", which is not added to others.
        probes: name to samples whose χ is wanted; None for the posterior's data.
        observable: one name to a differentiable function of the model that returns a number, in place of φ.
        chains: independent chains per component, at least 2, from which the errors come; with `reliability` or
            `error`, those of the first wave.
        draws: times at which the probes' losses are differentiated after burn-in, `steps_between_draws` steps apart.
            About half as many steps as chains need to forget is best.
        burn_in: draws that φ is not averaged over: as many as chains need to forget w*, and the start of the response.
        batch_size: samples of a gradient, drawn with replacement.
        antithetic: run chains in pairs that share minibatches and have opposite noise.
        loss_samples: take φ on that many of the posterior's samples, or on those of these indices; None for all.
        reliability: run more chains, in waves, until χ of every component has this split-half reliability. Chains
            whose reliability is R correlate √R with the true response.
        error: the same until the root mean square over the data of χ's standard error is this, of each component or of
            those named.
        max_chains: chains of a component at which waves end. max_seconds: time at which they end; None for no end.
            The result then says what was reached, and a warning does; with `checkpoint`, a call with more goes on.
        recording_bytes, engine, tile, seed, checkpoint, allow_versions, progress: as for `sample`.
        checkpoint_seconds: between saves; 0 saves after every step on the way back. Steps on the way out, which take
            a fraction of the time, are made again by a run that resumes.
        trajectory_bytes: memory that the chains' steps may take. Where they do not fit, chains wait until the first
            are done; where steps of one chain do not, some are kept and the others made again from these.

    Returns `chi`, `chi_error`, `chi_group` (by chain, or pair), `chi_reliability` and `chains_for_r_0.9`, as
    `Statistics.susceptibilities()` does; for φ without weights, `contribution` to λ̂ with error and groups, as
    `Statistics.contributions()`. By component:

    - `settled`: whether burn-in was so long that less than a tenth of the response is `missing`; `relaxation_steps`, in
      which the slowest part of it falls by a factor e; `burn_in_steps` that would be enough;
    - `growth`: logarithm of how the adjoint grows over burn-in, below 0 where chains contract;
    - `difference_error`: the error of finite differences over that of chains;
    - `chains_run`, and `diverged` by chain;
    - where the probes are the posterior's data, `mu`, `llc`, `r_hat` and `ess` of φ, and `blind`, as of `Statistics`.

    `attrs["seconds_run"]` has the seconds after which the last chain of each component was done; with a goal,
    `attrs["stopped"]` says why waves ended.

    Raises:
        TypeError, ValueError: input that cannot work, before any sampling; an observable without a gradient;
            trajectory_bytes too few for one chain; a checkpoint of another run, of other versions, or damaged.
        BlockingIOError, OSError: a checkpoint's folder in use by another run; one that cannot be written.
        ChainDivergedError: every chain of every component has run away, or its derivative has.
    """
    check_differentiable(posterior, sampler, observable)
    setting = Setting(sampler.lr, posterior.n_beta, posterior.localization)
    options = Options(
        chains, draws, burn_in, steps_between_draws, batch_size, shared_minibatches=False, antithetic=antithetic,
        groups=None, loss_kernel=False, recording_bytes=recording_bytes, precision="float32", tile=tile, seed=seed,
        engine=engine,
    )  # fmt: skip
    resolved = resolve_components(posterior.model, components, posterior.moving)
    names = [each.name for each in resolved]
    goal = goal_of(names, reliability, error)
    plan = chain_plan(resolved, chains, antithetic, None, (setting,))
    options.check_memory(plan, posterior)
    device = posterior.device
    with ExitStack() as stack:
        pool = stack.enter_context(workers(lambda: Runners(posterior), device))
        chosen = responding(posterior, sampler, plan, probes, observable, loss_samples, options, trajectory_bytes, pool)
        saved = None
        if checkpoint is not None:
            told = asdict(setting) | asdict(options) | {
                "trajectory_bytes": trajectory_bytes, "estimator": "linear response", "device": str(device),
                "loss_samples": None if chosen.loss_indices is None else digest(chosen.loss_indices),
            }  # fmt: skip
            if goal is not None:  # waves are kept as they were: more may be wanted of them
                told.pop("chains")
            identity = run_identity(posterior, sampler, plan, chosen.sets, observable or {}, told)
            saved = stack.enter_context(Checkpoint(checkpoint, identity, checkpoint_seconds, allow_versions))
        bar = stack.enter_context(progress_bar(unit="step", desc="differentiating chains", disable=not progress))
        center = losses_at_center(posterior, chosen.sets, pool, "float32")
        run = Waves(chosen, center, bar, saved)
        run.resume()
        run.until(goal, chains, max_chains, math.inf if max_seconds is None else max_seconds, pool)
    found = [run.found(component) for component in range(len(resolved))]
    if not any(each.alive.any() for each in found):
        raise ChainDivergedError(f"no chain has a finite derivative: {advice(sampler, setting)}")
    of_phi = observable is None
    dimension = "token" if chosen.loss_set.loss_shape else "sample"
    where = {name: (dimension, each) for name, each in joint_coordinates(chosen.probe_sets).items()}
    result = response_dataset(names, found, where, posterior, steps_between_draws, of_phi)
    ball = twin(posterior, sampler, resolved, probes, loss_samples, options, tile, PAIRS)
    if ball is not None and chosen.follows_loss and of_phi and posterior.n_beta > 0:
        result.update(blindness(found, ball()))
    warn_of_response(result, run.stopped, reliability)
    return result.assign_attrs(
        asdict(setting)
        | options.attrs
        | {"estimator": "linear response", "engine": chosen.engine, "sampler": repr(sampler)}
        | {"loss_samples": sample_count(posterior.data) if chosen.loss_indices is None else len(chosen.loss_indices)}
        | {"groups": result.sizes["group"], "observable": PHI if observable is None else next(iter(observable))}
        | {"items": posterior.item_count, "weighted": int(posterior.weights is not None), "device": str(device)}
        | {"torch": str(torch.__version__), "patterning_fast": version("patterning_fast"), "seconds": run.seconds}
        | {"seconds_run": [float(each.seconds) for each in found]}
        | ({} if goal is None else {"stopped": run.stopped})
        | (saved.attrs if saved else {})
    )


def check_differentiable(
    posterior: LocalPosterior, sampler: object, observable: Mapping[str, Observable] | None
) -> None:
    """Raise TypeError or ValueError for what cannot be differentiated."""
    if type(sampler) not in DIFFERENTIABLE:
        raise TypeError(
            f"only SGLD, RMSPropSGLD and SGHMC themselves can be differentiated, got {sampler!r}; pass "
            f"SGLD(lr={getattr(sampler, 'lr', 1e-3)})"
        )
    if isinstance(sampler, SGLD) and sampler.gradient_noise_correction:
        raise ValueError(
            f"only SGLD without gradient_noise_correction can be differentiated, got {sampler!r}; "
            f"pass SGLD(lr={sampler.lr})"
        )
    if posterior.random_loss:
        raise ValueError(
            "a random loss cannot be differentiated with its noise held fixed: use sample(...).susceptibilities(), or "
            "make the loss deterministic"
        )
    if observable is not None and len(observable) != 1:
        raise ValueError(f"one observable is differentiated at a time, got {', '.join(observable)}; call once for each")
