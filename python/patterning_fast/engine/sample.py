"""`sample`: advance a bank of chains and stream its statistics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.metadata import version

import torch
from torch import Tensor
from tqdm import tqdm

from patterning_fast.chains.bank import ChainBank
from patterning_fast.chains.plan import ChainPlan, chain_plan
from patterning_fast.engine.evaluation import (
    EvaluationSet,
    evaluation_sets,
    joint_coordinates,
    losses_at_center,
    losses_on,
)
from patterning_fast.engine.minibatch import minibatch
from patterning_fast.engine.workers import Workers, workers
from patterning_fast.estimators.comoments import Comoments
from patterning_fast.estimators.statistics import ChainSeries, Statistics
from patterning_fast.posterior.components import Component, resolve_components
from patterning_fast.posterior.data import check_data, sample_count, take, to_device
from patterning_fast.posterior.local_posterior import LocalPosterior, LossModule
from patterning_fast.posterior.losses import Batch
from patterning_fast.samplers.sgld import SGLD

LOSS_SAMPLES = "samples of L"
"""Name of the evaluation set that is only there for L."""

TILE_BYTES = 64 * 2**20
"""Losses of the chains evaluated before they are added to the totals: small beside the totals themselves."""


class ChainDivergedError(RuntimeError):
    """A chain left the finite numbers; says which, and which hyper-parameter to change."""


def sample(
    posterior: LocalPosterior,
    sampler: SGLD,
    *,
    components: Mapping[str, Component] | None = None,
    probes: Mapping[str, Batch] | None = None,
    chains: int = 8,
    draws: int = 100,
    burn_in: int = 0,
    steps_between_draws: int = 1,
    batch_size: int = 16,
    antithetic: bool = False,
    groups: int | None = None,
    loss_samples: int | None = None,
    loss_kernel: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Statistics:
    """Sample the posterior restricted to each component; stream co-moments of its observable and the probes' losses.

    The observable of every component is φ = L(w) − L(w*), L the mean loss over the posterior's data, unweighted.

    Args:
        posterior: what to sample. sampler: how, e.g. `SGLD(lr=1e-3)`.
        components: name to component, e.g. `attention_heads(model)`; "full" is always added.
        probes: name to samples whose losses are tracked; None tracks the posterior's data.
        chains: chains per component, all starting at w*.
        draws: draws per chain after `burn_in` draws are thrown away, `steps_between_draws` steps apart.
        batch_size: samples of a chain's gradient, independent for each chain, drawn with replacement.
        antithetic: run chains in pairs that share minibatches and have opposite noise.
        groups: independent groups of chains per component for the standard errors; None for up to 16.
        loss_samples: evaluate L on that many of the posterior's samples, the same at every draw; None for all.
        loss_kernel: also track the co-moments of every pair of probe losses (memory grows with their number squared).
        seed: of noise, minibatches and the choice of loss_samples; the same seed gives the same numbers.
        progress: show a progress bar with the time left.

    Raises:
        TypeError, ValueError: input that cannot work, before any sampling; samples whose loss at w* is not finite.
        ChainDivergedError: a chain's loss is no longer finite.
    """
    for name, value, least in (
        ("draws", draws, 1),
        ("burn_in", burn_in, 0),
        ("steps_between_draws", steps_between_draws, 1),
        ("batch_size", batch_size, 1),
        ("loss_samples", 1 if loss_samples is None else loss_samples, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if probes is not None and not probes:
        raise ValueError(
            "probes is empty: name at least one set of samples, or pass None to track the posterior's data"
        )
    plan = chain_plan(resolve_components(posterior.model, components), chains, antithetic, groups)
    device = next(posterior.model.parameters()).device
    probe_sets, loss_set = lay_out_sets(posterior, probes, loss_samples, seed, device)
    sets = probe_sets if loss_set in probe_sets else [*probe_sets, loss_set]
    tracked = probe_sets[-1].columns.stop
    started = time.monotonic()
    bank = ChainBank(plan, dict(posterior.model.named_parameters()))
    state = sampler.init(bank, posterior.n_beta, posterior.localization, seed)
    series = ChainSeries.zeros(plan.rows, draws)
    row_groups = plan.row_groups().to(device)

    with (
        workers(posterior.loss_module, device) as pool,
        tqdm(total=burn_in + draws, unit="draw", desc=f"sampling {plan.rows} chains", disable=not progress) as bar,
    ):
        reference = losses_at_center(posterior, sets, pool)
        tile = min(plan.rows, max(torch.get_num_threads(), TILE_BYTES // (4 * reference.numel())))
        losses = torch.empty(tile, reference.numel(), device=device)
        observables = torch.empty(tile, 1 + tracked if loss_kernel else 1, device=device)
        totals = Comoments.zeros(
            len(plan.components) * plan.groups, reference[:tracked], torch.zeros_like(observables[0])
        )
        for draw in range(-burn_in, draws):
            for _ in range(steps_between_draws):
                samples = minibatch(state.seed, state.chain_ids, state.step, batch_size, sample_count(posterior.data))
                accumulate_gradients(pool, posterior, bank, samples)
                sampler.update(bank, state)
            for start in range(0, plan.rows if draw >= 0 else 0, tile):
                rows = range(start, min(start + tile, plan.rows))
                now = slice(0, len(rows))
                observe(pool, bank, sets, loss_set, rows, reference, losses, observables)
                check_finite(plan, rows, losses[now].sum(1), draw)
                series.add(rows, draw, observables[now, 0].double())
                totals.update(losses[now, :tracked].contiguous(), observables[now], row_groups[start : rows.stop])
            bar.update()

    return Statistics(
        plan=plan,
        totals=totals,
        series=series,
        distances=bank.distances(),
        loss_dimension="token" if loss_set.loss_shape else "sample",
        loss_coordinates=joint_coordinates(probe_sets),
        loss_kernel_tracked=loss_kernel,
        attrs={
            "n_beta": posterior.n_beta,
            "localization": posterior.localization,
            "items": posterior.item_count,
            "sampler": repr(sampler),
            "chains": chains,
            "groups": plan.groups,
            "draws": draws,
            "burn_in": burn_in,
            "steps_between_draws": steps_between_draws,
            "batch_size": batch_size,
            "antithetic": int(antithetic),
            "loss_samples": sample_count(loss_set.data),
            "weighted": int(posterior.weights is not None),
            "seed": seed,
            "device": str(device),
            "seconds": time.monotonic() - started,
            "torch": torch.__version__,
            "patterning_fast": version("patterning_fast"),
        },
    )


def lay_out_sets(
    posterior: LocalPosterior,
    probes: Mapping[str, Batch] | None,
    loss_samples: int | None,
    seed: int,
    device: torch.device,
) -> tuple[list[EvaluationSet], EvaluationSet]:
    """The probes, and the set whose mean loss is L: one of the probes where that is the posterior's very data."""
    wanted = {"data": posterior.data} if probes is None else probes
    for name, data in wanted.items():
        check_data(f"probes[{name!r}]", data, posterior.model)
    sets = {name: to_device(data, str(device)) for name, data in wanted.items()}
    count = sample_count(posterior.data)
    if loss_samples is None or loss_samples >= count:
        loss_data, own = posterior.data, [name for name, data in wanted.items() if data is posterior.data]
    else:
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:loss_samples].sort().values
        loss_data, own = take(posterior.data, chosen.to(device)), []
    laid_out = evaluation_sets(posterior, [*sets.items(), *([] if own else [(LOSS_SAMPLES, loss_data)])])
    return laid_out[: len(sets)], laid_out[list(sets).index(own[0])] if own else laid_out[-1]


def accumulate_gradients(pool: Workers, posterior: LocalPosterior, bank: ChainBank, samples: Tensor) -> None:
    """Add the gradient of each chain's minibatch loss to the bank; `samples` is `[chains, batch]`."""

    def gradient(module: LossModule, row: int) -> None:
        losses = losses_on(module, bank.parameters(row), take(posterior.data, samples[row]))
        loss = posterior.weighted_loss(losses, samples[row])
        if loss.requires_grad:  # it does not where the loss ignores all that the component moves
            loss.backward()

    pool.each(gradient, range(bank.plan.rows))


def observe(
    pool: Workers,
    bank: ChainBank,
    sets: list[EvaluationSet],
    loss_set: EvaluationSet,
    rows: range,
    reference: Tensor,
    losses: Tensor,
    observables: Tensor,
) -> None:
    """Write the losses of all sets on some rows of the bank, and their observables: φ, then l − l(w*) if there is room.

    `losses` is `[chains, losses]`, `observables` `[chains, 1]` or `[chains, 1 + tracked]`; `rows` fill their top.
    """

    def one(module: LossModule, row: int) -> None:
        with torch.no_grad():
            parameters = bank.parameters(row)
        own = losses[row - rows.start]
        for each in sets:
            each.losses(module, parameters, own)
        shift = own - reference
        observed = observables[row - rows.start]
        observed[0] = shift[loss_set.columns].double().mean()
        observed[1:] = shift[: len(observed) - 1]

    pool.each(one, rows)


def check_finite(plan: ChainPlan, rows: range, values: Tensor, draw: int) -> None:
    """Raise ChainDivergedError naming the rows whose value is not finite."""
    broken = (~torch.isfinite(values)).nonzero().squeeze(1).tolist()
    if broken:
        names = ", ".join(plan.row_name(rows[row]) for row in broken[:10])
        raise ChainDivergedError(
            f"{len(broken)} chains diverged at draw {draw} ({names}): their losses are not finite. "
            "Lower lr, or raise localization, until lr·(n_beta·curvature + localization) is well below 4"
        )
