"""`sample`: advance a bank of chains and stream its statistics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patterning_fast.arguments import Bytes, Count, NonNegative, Positive, Seed, Whole, checked
from patterning_fast.callbacks import calling
from patterning_fast.chains.plan import ChainPlan, Setting, chain_plan
from patterning_fast.engine.blindness import twin
from patterning_fast.engine.checkpoint import Checkpoint
from patterning_fast.engine.controlled_ensemble import check_control_variates, controlled_ensemble
from patterning_fast.engine.curvature import at_center, at_draws, probing
from patterning_fast.engine.ensemble import Ensemble
from patterning_fast.engine.evaluation import (
    EvaluationSet,
    Precision,
    joint_coordinates,
    lay_out_sets,
)
from patterning_fast.engine.identity import check_losses, fingerprint, run_identity
from patterning_fast.engine.native_ensemble import NativeEnsemble, native_ensemble
from patterning_fast.engine.options import Engine, Keeping, Options
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.run import NativeRun, Run, TorchRun
from patterning_fast.engine.torch_ensemble import TorchEnsemble, torch_ensemble
from patterning_fast.engine.trace_store import TraceStore
from patterning_fast.engine.until import Until
from patterning_fast.engine.workers import Workers, workers
from patterning_fast.estimators.bias import Bias, bias_of, check_correctable, warn_of_clipping
from patterning_fast.estimators.comoments import Comoments
from patterning_fast.estimators.goal import Error, Reliability, goal_of
from patterning_fast.estimators.statistics import Statistics
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import FULL, Component, Components, resolve_components
from patterning_fast.posterior.data import sample_count
from patterning_fast.posterior.dense import NotDense
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Data, Probes
from patterning_fast.posterior.observables import Observable, Observables, values_at_center
from patterning_fast.progress import progress_bar
from patterning_fast.samplers.langevin import Sampler

OnDraw = Callable[[int, dict[str, float]], object]
"""Told of a draw: its number, and numbers by name."""

UNTOLD = {"sampler", "torch", "patterning_fast"}
"""Attributes that are no part of a run's configuration: an identity has sections of their own for them."""

TOTALS_BYTES = 256 * 2**20
"""Memory up to which every chain (or antithetic pair) has totals of its own: a diverged one is left out alone."""


@checked
@plain_torch()
def sample(
    posterior: LocalPosterior,
    sampler: Sampler,
    *,
    components: Components | None = None,
    probes: Probes | None = None,
    observables: Observables | None = None,
    chains: Count = 8,
    draws: Count = 100,
    burn_in: Whole = 0,
    steps_between_draws: Count = 1,
    batch_size: Count = 16,
    shared_minibatches: bool = False,
    control_variates: bool = False,
    antithetic: bool = False,
    groups: Count | None = None,
    loss_samples: Count | Tensor | None = None,
    loss_kernel: bool = False,
    recording_bytes: Bytes = 2**28,
    precision: Precision = "float32",
    engine: Engine = "auto",
    tile: Count | None = None,
    seed: Seed = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: NonNegative = 60.0,
    allow_versions: bool = False,
    traces: str | Path | None = None,
    reliability: Reliability | None = None,
    error: Error | None = None,
    max_draws: Count = 100_000,
    max_seconds: Positive | None = None,
    on_draw: OnDraw | None = None,
    progress: bool = True,
) -> Statistics:
    """Sample the posterior restricted to each component; stream co-moments of its observable and the probes' losses.

    The observable of every component is φ = L(w) − L(w*), L the mean loss over the posterior's data, unweighted.
    A chain that diverges is frozen, reported by `diagnostics()` and left out of every estimate.

    Args:
        posterior: what to sample. sampler: how: `SGLD(lr=1e-3)`, `RMSPropSGLD`, `SGHMC` or `SGNHT`.
        components: name to component, e.g. `components(model, "heads", "full")`; None for "full" alone, which is all
            parameters that require a gradient.
        probes: name to samples whose losses are tracked; None tracks the posterior's data.
        observables: name to a function of the model that returns a number (a 0-d tensor): a score of an attention
            pattern, a difference of logits. Each is called once a chain and draw, on the whole model without
            gradients, in float32; `susceptibilities(observable=name)` and others then speak of it.
        chains: chains per component, all starting at w*.
        draws: draws per chain after `burn_in` draws are thrown away, `steps_between_draws` steps apart.
        batch_size: samples of a chain's gradient, drawn with replacement; chain i of every component sees the same.
        shared_minibatches: let all chains see the same ones. Standard errors then leave out the noise of minibatches.
        control_variates: with shared minibatches, take g_B(w) − g_B(w*) + g(w*) for the gradient of minibatch B (Baker
            et al. 2019), whose noise does not raise the temperature by what it is at w*. It costs one more gradient of
            each component at every step, and one pass over the data at the start.
        antithetic: run chains in pairs that share minibatches and have opposite noise.
        groups: independent groups of chains per component for the standard errors; None for up to 16.
        loss_samples: evaluate L on that many of the posterior's samples, or on those of these indices, the same at
            every draw; None for all.
        loss_kernel: also track the co-moments of every pair of probe losses (memory grows with their number squared).
        recording_bytes: memory for what chains of restricted components recall of samples, in place of computing it.
        precision: of the forward passes for losses at draws; gradients are float32. With "bfloat16" `diagnostics()`
            says how large its error is beside the fluctuations that χ is made of.
        engine: "native" runs each chain's whole loop within a kernel, for stacks of dense layers (`posterior/dense.py`)
            on a CPU, and on a GPU where the CUDA kernels are built; "torch" runs any model; "auto" the first where it
            can. The result's attributes say which ran, why.
        tile: chains of a component that are evaluated together; None to measure which number is fastest here.
        seed: of noise, minibatches and the choice of loss_samples; the same seed and tile give the same numbers.
        checkpoint: folder to save the run's state in; where it holds that of this very run, the run resumes from it,
            and gives the same bits as one that was never interrupted. With more `draws` it goes on to these, but for
            one with `traces`. The last two saves are kept.
        checkpoint_seconds: between saves; 0 saves after every draw.
        allow_versions: resume what another version of torch, Python or this library has begun; attribute
            `earlier_versions` then says so.
        traces: path of a Zarr store to write φ, distance and the probes' losses of every draw to, which
            `load_traces` reads.
        reliability: go on, `draws` being the first, until χ of every component that was asked for has this split-half
            reliability. Draws whose reliability is R correlate √R with the true χ.
        error: the same until the root mean square over the data of χ's standard error is this, of each component or of
            those named.
        max_draws, max_seconds: draws or time at which to stop in any case; None for no end. A warning then says what
            was reached; with `checkpoint`, a call with more goes on.
        on_draw: called after every draw that is kept with its number and, as "NAME/phi" and "NAME/distance" of every
            component, means over chains that have not diverged: what a logger of metrics takes.
        progress: show a progress bar with the time left.

    Raises:
        TypeError, ValueError: input that cannot work, before any sampling; minibatches noisier than what
            `gradient_noise_correction` can take off; samples whose loss at w* is not finite,
            observables that are no finite number there; a checkpoint of another run, of other versions, or damaged.
        ChainDivergedError: all chains have diverged.
        ImportError: traces without zarr. FileExistsError: traces over something else.
        BlockingIOError, OSError: a folder in use by another run; one that cannot be written.
    """
    options = Options(
        chains, draws, burn_in, steps_between_draws, batch_size, shared_minibatches, antithetic, groups, loss_kernel,
        recording_bytes, precision, tile, seed, engine, control_variates,
    )  # fmt: skip
    check_control_variates(posterior, sampler, options)
    setting = Setting(sampler.lr, posterior.n_beta, posterior.localization)
    keeping = Keeping(checkpoint, checkpoint_seconds, traces, allow_versions)
    names = list(components or [FULL])
    goal, until = goal_of(names, reliability, error), None
    if goal is not None:
        if traces is not None:
            raise ValueError("traces are of a given number of draws: leave out traces, or reliability and error")
        until = Until(goal, names, max_draws, math.inf if max_seconds is None else max_seconds)
    (statistics,) = sample_settings(
        posterior, sampler, (setting,), components, probes, observables, loss_samples, options, keeping, progress,
        until, on_draw,
    )  # fmt: skip
    tile = None if statistics.attrs["engine"] == "native" else statistics.attrs["tile"]
    ball = twin(posterior, sampler, statistics.plan.components, probes, loss_samples, options, tile)
    warn_of_clipping(sampler, statistics.bias)
    return replace(statistics, twin=ball)


def sample_settings(
    posterior: LocalPosterior,
    sampler: Sampler,
    settings: tuple[Setting, ...],
    components: Mapping[str, Component] | None,
    probes: Mapping[str, Data] | None,
    observables: Mapping[str, Observable] | None,
    loss_samples: Count | Tensor | None,
    options: Options,
    keeping: Keeping,
    progress: bool,
    until: Until | None = None,
    on_draw: OnDraw | None = None,
) -> list[Statistics]:
    """`sample` at several settings in one bank; the statistics of each."""
    resolved = resolve_components(posterior.model, components, posterior.moving)
    plan = chain_plan(resolved, options.chains, options.antithetic, options.groups, settings)
    options.check_memory(plan, posterior)
    probe_sets, loss_set = lay_out_sets(posterior, probes, loss_samples, options.seed)
    sets = probe_sets if loss_set in probe_sets else [*probe_sets, loss_set]
    if until and until.goal.reliability is not None and plan.groups < 4:
        raise ValueError(f"reliability needs 4 independent groups of chains or more, got {plan.groups}; raise chains")
    device = posterior.device
    functions = dict(observables or {})
    functions_at_center = values_at_center(posterior.model, functions)
    attrs = {
        "items": posterior.item_count,
        "sampler": repr(sampler),
        **options.attrs,
        "groups": plan.groups,
        "loss_samples": sample_count(loss_set.data),
        "weighted": int(posterior.weights is not None),
        "random_loss": int(posterior.random_loss),
        "device": str(device),
        "torch": str(torch.__version__),
        "patterning_fast": version("patterning_fast"),
    }
    started = time.monotonic()
    with ExitStack() as stack:
        saved, store = open_folders(
            stack, keeping, posterior, sampler, plan, sets, probe_sets, functions, options, attrs
        )
        pool = stack.enter_context(workers(lambda: Runners(posterior), device))
        tracked = probe_sets[-1].columns.stop
        if saved and saved.draws_done > options.total_draws:
            if until is None:
                raise ValueError(
                    f"{saved.folder} has {saved.draws_done - options.burn_in} draws done, more than "
                    f"draws={options.draws}: ask for as many or more, or name another folder"
                )
            options = replace(options, draws=saved.draws_done - options.burn_in)
        run = start(
            posterior, sampler, plan, sets, loss_set, tracked, functions, functions_at_center, options, store, pool
        )
        run.target.fill_(options.draws)
        done = resumed(run, saved) if saved else 0
        moving = run.ensemble
        if until and int(run.target) > options.draws:
            run.extend(int(run.target), done)
        options = moving.options
        moving.state.frozen = set(moving.traces.diverged.nonzero().squeeze(1).tolist())
        if done == 0:
            moving.measure_tile(pool)
        if saved and done < options.total_draws:
            saved.reserve(run.tensors(options.total_draws))
        started -= float(run.seconds)
        probe = probing(moving)
        centers = at_center(probe, moving, pool)
        names = [each.name for each in plan.components]
        check_correctable(sampler, settings, options.batch_size, names, centers)
        steps = options.steps_between_draws * plan.rows
        bar = stack.enter_context(
            progress_bar(
                total=options.total_draws * steps,
                initial=done * steps,
                unit="step",
                desc=f"sampling {plan.rows} chains",
                disable=not progress,
            )
        )

        def gathered(attrs: Mapping[str, Any], setting: int, bias: Bias) -> Statistics:
            return Statistics(
                plan=plan,
                setting=setting,
                totals=run.totals,
                early=run.early,
                units_per_bundle=run.units_per_bundle,
                traces=moving.traces,
                bias=bias,
                evaluated=moving.evaluated,
                loss_dimension="token" if loss_set.loss_shape else "sample",
                loss_coordinates=joint_coordinates(probe_sets),
                observables=list(functions),
                loss_kernel_tracked=options.loss_kernel,
                attrs=dict(attrs),
            )

        while True:
            while done < moving.options.total_draws:
                number = run.advance(pool, done)
                if on_draw:
                    tell(on_draw, moving, done, number)
                done += number
                run.seconds.fill_(time.monotonic() - started)
                if saved and (saved.due() or done == moving.options.total_draws):
                    if store:
                        store.flush()
                    saved.save(done, run.tensors(done))
                bar.update(number * steps)
            attrs |= {"draws": moving.options.draws}
            if until is None:
                break
            more, said = until.more(gathered(attrs, 0, Bias.unknown(len(resolved))), float(run.seconds))
            if not more:
                attrs |= {"stopped": said}
                break
            run.extend(moving.options.draws + more, done)
            bar.total = moving.options.total_draws * steps
            bar.set_description(f"sampling {plan.rows} chains: {said}")
        drawn = at_draws(probe, moving, pool)
        if options.control_variates:  # the noise that was seen is what is left at these draws
            drawn = [
                [
                    None if not (draw and center) else replace(draw, noise=center.noise)
                    for draw, center in zip(each, centers, strict=True)
                ]
                for each in drawn
            ]
    biases = [
        bias_of(sampler, setting, options.batch_size, centers, of_setting, moving.gradient_variance(at))
        for at, (setting, of_setting) in enumerate(zip(settings, drawn, strict=True))
    ]
    attrs |= {"tile": int(moving.tile), "engine": moving.engine, "seconds": float(run.seconds)}
    attrs |= saved.attrs if saved else {}
    return [gathered(asdict(setting) | attrs, at, biases[at]) for at, setting in enumerate(settings)]


def tell(on_draw: OnDraw, moving: Ensemble, done: int, number: int) -> None:
    """Tell the user's function of the draws just made, those of burn-in left out."""
    plan, traces, begun = moving.plan, moving.traces, moving.options.burn_in
    healthy = ~traces.diverged
    for draw in range(max(0, done - begun), done - begun + number):
        found = {}
        for at, component in enumerate(plan.components):
            rows = slice(at * plan.chains, (at + 1) * plan.chains)
            for name, values in (("phi", traces.phi), ("distance", traces.distance)):
                found[f"{component.name}/{name}"] = float(values[rows, draw][healthy[rows]].double().mean())
        with calling("sample: on_draw", "take the number of a draw and a dictionary of numbers"):
            on_draw(draw, found)


def open_folders(
    stack: ExitStack,
    keeping: Keeping,
    posterior: LocalPosterior,
    sampler: Sampler,
    plan: ChainPlan,
    sets: list[EvaluationSet],
    probe_sets: list[EvaluationSet],
    observables: Mapping[str, Observable],
    options: Options,
    attrs: Mapping[str, Any],
) -> tuple[Checkpoint | None, TraceStore | None]:
    """The checkpoint and the store of traces that are wanted, held until the stack closes."""
    saved = store = None
    if keeping.checkpoint is None and keeping.traces is None:
        return saved, store
    settings = [asdict(each) for each in plan.settings]
    configuration = settings[0] | dict(attrs)
    # A run can be told to go on to more draws, but for a store of traces, which has its size.
    untold = UNTOLD if keeping.traces is not None else UNTOLD | {"draws"}
    told = {"traces": keeping.traces is not None, "settings": settings[1:]} | {
        name: value for name, value in configuration.items() if name not in untold
    }
    identity = run_identity(posterior, sampler, plan, sets, observables, told)
    if keeping.checkpoint is not None:
        saved = stack.enter_context(
            Checkpoint(keeping.checkpoint, identity, keeping.checkpoint_seconds, keeping.allow_versions)
        )
    if keeping.traces is not None:
        store = stack.enter_context(
            TraceStore(
                keeping.traces,
                components=[each.name for each in plan.components],
                chains=plan.chains,
                draws=int(attrs["draws"]),
                sets=probe_sets,
                configuration={name: value for name, value in configuration.items() if value is not None},
                run=fingerprint(identity),
                resumed=max(0, saved.draws_done - int(attrs["burn_in"])) if saved else None,
            )
        )
    return saved, store


def resumed(run: Run, saved: Checkpoint) -> int:
    """Take up what was saved, and return the number of draws done; raises ValueError for other losses at w*.

    Random losses are others every time.
    """
    moving = run.ensemble
    here = moving.reference.clone()
    done = saved.restore(run.tensors(saved.draws_done))
    if not moving.posterior.random_loss:
        check_losses(moving.reference, here, moving.options.precision)
    return done


def chosen_ensemble(
    posterior: LocalPosterior,
    sampler: Sampler,
    plan: ChainPlan,
    sets: list[EvaluationSet],
    observables: Mapping[str, Observable],
    options: Options,
    pool: Workers[Runners],
) -> TorchEnsemble | NativeEnsemble:
    """The fastest that fits, of those that options allow; raises ValueError where "native" alone does, and does not."""
    arguments = posterior, sampler, plan, sets, options, pool
    in_torch = controlled_ensemble if options.control_variates else torch_ensemble
    if options.engine == "torch":
        return in_torch(*arguments)
    try:
        if options.control_variates:
            raise NotDense("control variates take gradients at w*, which torch does")
        if observables:
            raise NotDense(f"observables ({', '.join(observables)}) are functions of the model, which torch calls")
        return native_ensemble(*arguments)
    except NotDense as why:
        if options.engine == "native":
            raise ValueError(f'engine="native" cannot run this: {why}; engine="auto" runs it in torch') from None
        moving = in_torch(*arguments)
        moving.engine = f"torch: {why}"
        return moving


def start(
    posterior: LocalPosterior,
    sampler: Sampler,
    plan: ChainPlan,
    sets: list[EvaluationSet],
    loss_set: EvaluationSet,
    tracked: int,
    functions: Mapping[str, Observable],
    centers: Tensor,
    options: Options,
    store: TraceStore | None,
    pool: Workers[Runners],
) -> Run:
    """A run with all chains at w*, which tracks that many losses, and functions whose values at w* are `centers`."""
    moving = chosen_ensemble(posterior, sampler, plan, sets, functions, options, pool)
    of_losses = centers.new_zeros(tracked if options.loss_kernel else 0)
    observables = torch.cat((centers.new_zeros(1), centers, of_losses)).to(moving.reference.device)
    units_per_group = plan.units // plan.groups
    most = max(1, TOTALS_BYTES // (8 * tracked * (2 + observables.numel())))
    units_per_bundle = next(
        units
        for units in range(1, units_per_group + 1)
        if units_per_group % units == 0 and (plan.cells * plan.units // units <= most or units == units_per_group)
    )
    bundles = plan.cells * plan.units // units_per_bundle
    common: dict[str, Any] = {
        "loss_set": loss_set,
        "totals": Comoments.zeros(bundles + 1, moving.reference[:tracked], observables),
        "units_per_bundle": units_per_bundle,
        "bundles": plan.bundles(units_per_bundle).to(moving.reference.device),
        "store": store,
    }
    if isinstance(moving, NativeEnsemble):
        return NativeRun(ensemble=moving, **common)
    return TorchRun(ensemble=moving, functions=list(functions.values()), **common)
