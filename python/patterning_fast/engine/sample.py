"""`sample`: advance a bank of chains and stream its statistics."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from patterning_fast.chains.bank import ChainBank
from patterning_fast.chains.plan import ChainPlan, Setting, chain_plan
from patterning_fast.engine.checkpoint import Checkpoint
from patterning_fast.engine.evaluation import (
    EvaluationSet,
    Precision,
    computing_in,
    joined,
    joint_coordinates,
    lay_out_sets,
    losses_at_center,
    on_chains,
)
from patterning_fast.engine.identity import fingerprint, run_identity
from patterning_fast.engine.minibatch import minibatch
from patterning_fast.engine.options import Keeping, Options
from patterning_fast.engine.recording import Recordings, Runners, recalled, recordings
from patterning_fast.engine.suffix import Suffix
from patterning_fast.engine.tiles import fastest_tile
from patterning_fast.engine.trace_store import TraceStore
from patterning_fast.engine.workers import Workers, workers
from patterning_fast.estimators.comoments import Comoments
from patterning_fast.estimators.statistics import Statistics
from patterning_fast.estimators.traces import ChainTraces
from patterning_fast.posterior.components import Component, resolve_components
from patterning_fast.posterior.data import sample_count, take
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Batch
from patterning_fast.samplers.langevin import LangevinState, Sampler
from patterning_fast.samplers.sgld import SGLD

BLOCK_BYTES = 64 * 2**20
"""Losses of the chains evaluated before they are added to the totals: small beside the totals themselves."""

TOTALS_BYTES = 256 * 2**20
"""Memory up to which every chain (or antithetic pair) has totals of its own: a diverged one is left out alone."""

DIVERGED = 100.0
"""A chain has diverged where |L(w) − L(w*)| exceeds this many times 1 + |L(w*)|: no posterior of use reaches there."""


class ChainDivergedError(RuntimeError):
    """No healthy chains are left; says which hyper-parameter to change, and how."""


@dataclass
class Run:
    """Chains on their way: what `sample` holds between two draws."""

    posterior: LocalPosterior
    sampler: Sampler
    plan: ChainPlan
    bank: ChainBank
    state: LangevinState
    sets: list[EvaluationSet]
    loss_set: EvaluationSet
    recordings: Recordings
    reference: Tensor
    totals: Comoments
    units_per_bundle: int
    bundles: Tensor
    """The totals that each row adds to, int64 `[rows]`; diverged rows add to the last, which nobody reads."""
    traces: ChainTraces
    options: Options
    store: TraceStore | None
    tile: Tensor = field(default_factory=lambda: torch.tensor(1))
    """0-d int64: chains of a cell that are evaluated together."""
    seconds: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """0-d: time spent until now."""
    losses: Tensor = field(init=False)
    observables: Tensor = field(init=False)

    def __post_init__(self) -> None:
        row_bytes = 4 * self.reference.numel()
        block = min(self.plan.rows, max(4 * torch.get_num_threads(), BLOCK_BYTES // row_bytes))
        self.losses = self.reference.new_empty(block, self.reference.numel())
        self.observables = self.reference.new_empty(block, self.totals.observable_shift.numel())

    def tensors(self) -> dict[str, Tensor]:
        """All that changes from step to step: with it a run goes on from where it was."""
        parts = {"state": self.state.tensors(), "totals": vars(self.totals), "traces": vars(self.traces)}
        named = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
        return {"params": self.bank.params, "bundles": self.bundles, "tile": self.tile, "seconds": self.seconds} | named

    @property
    def tracked(self) -> int:
        """Losses whose co-moments are kept."""
        return self.totals.loss_shift.numel()

    def step(self, pool: Workers[Runners]) -> None:
        """One step of every chain."""
        samples = self.minibatches()
        if isinstance(self.sampler, SGLD) and self.sampler.gradient_noise_correction:
            self.corrected_updates(pool, samples)
        else:
            self.accumulate_gradients(pool, samples, range(self.plan.chains), int(self.tile))
            if not self.options.shared_minibatches and int(self.state.step) == 0:
                self.traces.gradient_noise = gradient_noise(self.bank)
            self.sampler.update(self.bank, self.state)

    def corrected_updates(self, pool: Workers[Runners], samples: Tensor) -> None:
        """One step of every chain from the gradients of each sample of its minibatch."""

        sampler = self.sampler
        assert isinstance(sampler, SGLD)

        def update(runners: Runners, row: int) -> None:
            replica = row % self.plan.chains
            here = samples[replica][:, None]
            rows, batch = slice(row, row + 1), take(self.posterior.data, here)
            known = self.known(runners, row // self.plan.chains, here)
            moved = {
                name: leaf.detach().expand(self.options.batch_size, *leaf.shape[1:]).requires_grad_()
                for name, leaf in self.bank.leaves(rows).items()
            }
            losses = self.minibatch_losses(runners, rows, moved, here, batch, known)
            grads = torch.autograd.grad(losses.sum(), list(moved.values()), materialize_grads=True)
            sampler.update_row(self.bank, self.state, row, torch.cat([each.flatten(1) for each in grads], 1))

        pool.each(update, [row for row in range(self.plan.rows) if not self.traces.diverged[row]])
        self.state.step += 1

    def minibatches(self) -> Tensor:
        """Samples `[chains, batch]` of each replica's gradient: the same for all components, and for pairs."""
        replicas = self.plan.replica_units().to(self.reference.device)
        if self.options.shared_minibatches:
            replicas = torch.zeros_like(replicas)
        count = sample_count(self.posterior.data)
        return minibatch(self.state.seed, replicas, self.state.step, self.options.batch_size, count)

    def accumulate_gradients(self, pool: Workers[Runners], samples: Tensor, chains: range, tile: int) -> None:
        """Add the gradients of some replicas' minibatch losses, in all cells, to the bank; `samples` `[chains, batch]`.

        Replicas of different cells share minibatches, and what is recalled of them.
        """

        def gradients(runners: Runners, item: tuple[slice, list[int]]) -> None:
            replicas, cells = item
            here = samples[replicas]
            batch, known = take(self.posterior.data, here), self.known(runners, cells[0], here)
            for cell in cells:
                rows = slice(cell * self.plan.chains + replicas.start, cell * self.plan.chains + replicas.stop)
                if not all(self.traces.diverged[rows]):
                    leaves = self.bank.leaves(rows)
                    losses = self.minibatch_losses(runners, rows, leaves, here, batch, known)
                    self.bank.add_gradients(losses.sum(), leaves, rows)

        tiles = [slice(start, min(start + tile, chains.stop)) for start in range(chains.start, chains.stop, tile)]
        parts = math.ceil(2 * pool.count / len(tiles))
        pool.each(gradients, [(replicas, cells) for cells in self.cells_that_recall_alike(parts) for replicas in tiles])

    def known(self, runners: Runners, cell: int, samples: Tensor) -> dict[str, Tensor]:
        """What a cell's chains recall of their minibatches `samples` `[chains, batch]`: `[chains, batch, ...]`."""
        suffix = self.suffix(cell)
        if self.recordings.holds_data(suffix):
            return recalled(self.recordings.of_data, suffix, samples)
        batch = take(self.posterior.data, samples.flatten())
        recorded = runners[suffix].record(lambda model: self.posterior.loss(model, batch))
        return {key: values.unflatten(0, samples.shape) for key, values in recorded.items()}

    def minibatch_losses(
        self,
        runners: Runners,
        rows: slice,
        moved: Mapping[str, Tensor],
        samples: Tensor,
        batch: Batch,
        known: Mapping[str, Tensor],
    ) -> Tensor:
        """L_ρ `[chains]` of chains on minibatches of their own; all arguments have a first dimension of chains."""
        runner = runners[self.suffix(rows.start // self.plan.chains)]

        def loss(moved: Mapping[str, Tensor], samples: Tensor, batch: Batch, known: Mapping[str, Tensor]) -> Tensor:
            return runner.run(lambda model: self.posterior.mean_loss(model, batch, samples), moved, known)

        return on_chains(loss, len(samples), moved, samples, batch, known)

    def suffix(self, cell: int) -> Suffix:
        return self.recordings.suffixes[cell // len(self.plan.settings)]

    def cells_that_recall_alike(self, parts: int) -> list[list[int]]:
        """Lists of cells that recall the same; such lists are split into `parts`, for workers to share."""
        together: dict[tuple[str, ...], list[int]] = {}
        for cell in range(self.plan.cells):
            together.setdefault(self.suffix(cell).keys, []).append(cell)
        return [cells[part::parts] for cells in together.values() for part in range(min(parts, len(cells)))]

    def draw(self, pool: Workers[Runners], draw: int) -> None:
        """Evaluate every chain where it is, and add it to the statistics."""
        self.traces.distance[:, draw] = self.bank.distances().cpu()
        for start in range(0, self.plan.rows, len(self.losses)):
            block = range(start, min(start + len(self.losses), self.plan.rows))
            self.evaluate(pool, block, self.options.precision)
            now = slice(0, len(block))
            phi = self.observables[now, 0].double().cpu()
            self.freeze_diverged(block, phi, draw)
            rows = slice(block.start, block.stop)
            lost = self.traces.diverged[rows]
            self.losses[now][lost.to(self.losses.device)] = math.nan
            self.traces.phi[rows, draw] = phi.masked_fill(lost, math.nan)
            if self.store:
                own = (self.traces.phi[rows, draw], self.traces.distance[rows, draw])
                self.store.add(draw, block, *own, self.losses[now, : self.tracked])
            self.totals.update(self.losses[now, : self.tracked].contiguous(), self.observables[now], self.bundles[rows])
            if self.options.precision == "bfloat16" and draw == self.options.draws - 1:
                self.traces.rounding[rows] = self.rounding(pool, block)

    def rounding(self, pool: Workers[Runners], block: range) -> Tensor:
        """Root mean square error of l − l(w*) as evaluated, over that of l − l(w*) in float32, `[rows]`."""
        tracked = slice(0, self.tracked)
        found = (self.losses - self.reference)[: len(block), tracked]
        self.evaluate(pool, block, "float32")
        exact = (
            self.losses[: len(block), tracked] - losses_at_center(self.posterior, self.sets, pool, "float32")[tracked]
        )
        return ((found - exact).square().mean(1) / exact.square().mean(1)).sqrt().cpu()

    def evaluate(self, pool: Workers[Runners], block: range, precision: Precision) -> None:
        """Write the losses and observables of some rows into the top of `losses` and `observables`."""

        def one(runners: Runners, rows: slice) -> None:
            suffix = self.suffix(rows.start // self.plan.chains)
            here = slice(rows.start - block.start, rows.stop - block.start)
            own, moved = self.losses[here], self.bank.leaves(rows)
            with computing_in(precision, own.device):
                for each, recorded in zip(self.sets, self.recordings.of_sets, strict=True):
                    each.losses(self.posterior, suffix, runners[suffix], moved, recorded, own)
            shift = own - self.reference
            self.observables[here, 0] = shift[:, self.loss_set.columns].double().mean(1).float()
            self.observables[here, 1:] = shift[:, : self.observables.shape[1] - 1]

        tiles = self.plan.tiles(block, int(self.tile))
        pool.each(one, [rows for rows in tiles if not all(self.traces.diverged[rows])])

    def freeze_diverged(self, block: range, phi: Tensor, draw: int) -> None:
        """Freeze the rows that have diverged since the last draw; nothing of their bundle counts from now on."""
        limit = DIVERGED * (1 + abs(float(self.reference[self.loss_set.columns].mean())))
        finite = torch.isfinite(self.losses[: len(block)].sum(1)).cpu()
        lost = (~finite | (phi.abs() > limit)) & ~self.traces.diverged[block.start : block.stop]
        for row in (lost.nonzero().squeeze(1) + block.start).tolist():
            self.traces.diverged[row] = True
            self.state.freeze(self.bank, row)
            self.bundles[row] = self.totals.count.numel() - 1
        if bool(self.traces.diverged.all()):
            raise ChainDivergedError(
                f"all {self.plan.rows} chains have diverged by draw {draw}: "
                + advice(self.sampler, self.plan.settings[0])
            )


def gradient_noise(bank: ChainBank) -> Tensor:
    """Mean square of the minibatch gradient at w*, and its variance between replicas, a coordinate: `[cells, 2]`."""
    plan, found = bank.plan, []
    for cell in range(plan.cells):
        rows = slice(cell * plan.chains, (cell + 1) * plan.chains)
        grads = bank.grads[bank.starts[rows.start] : bank.starts[rows.stop]].view(plan.chains, -1)
        apart = grads[:: plan.chains_per_draw]
        found.append(torch.stack((apart.mean(0).square().mean(), apart.var(0).mean())))
    return torch.stack(found).double().cpu()


def advice(sampler: Sampler, setting: Setting) -> str:
    """Which hyper-parameter to change where chains diverge."""
    pull = setting.lr * setting.localization
    if isinstance(sampler, SGLD) and pull >= 4:
        return (
            f"lr·localization is {pull:.3g}, and must be below 4: lower lr below {4 / setting.localization:.2g}, "
            "or lower localization"
        )
    return (
        f"at lr={setting.lr:g} they overshoot: lower lr (try {setting.lr / 10:.1g}), or lower n_beta, until steps are "
        "short beside the width of the posterior; a loss that has no floor near w* needs more localization"
    )


def sample(
    posterior: LocalPosterior,
    sampler: Sampler,
    *,
    components: Mapping[str, Component] | None = None,
    probes: Mapping[str, Batch] | None = None,
    chains: int = 8,
    draws: int = 100,
    burn_in: int = 0,
    steps_between_draws: int = 1,
    batch_size: int = 16,
    shared_minibatches: bool = False,
    antithetic: bool = False,
    groups: int | None = None,
    loss_samples: int | Tensor | None = None,
    loss_kernel: bool = False,
    recording_bytes: int = 2**28,
    precision: Precision = "float32",
    tile: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    traces: str | Path | None = None,
    progress: bool = True,
) -> Statistics:
    """Sample the posterior restricted to each component; stream co-moments of its observable and the probes' losses.

    The observable of every component is φ = L(w) − L(w*), L the mean loss over the posterior's data, unweighted.
    A chain that diverges is frozen, reported by `diagnostics()` and left out of every estimate.

    Args:
        posterior: what to sample. sampler: how: `SGLD(lr=1e-3)`, `RMSPropSGLD`, `SGHMC` or `SGNHT`.
        components: name to component, e.g. `attention_heads(model)`; "full" is always added.
        probes: name to samples whose losses are tracked; None tracks the posterior's data.
        chains: chains per component, all starting at w*.
        draws: draws per chain after `burn_in` draws are thrown away, `steps_between_draws` steps apart.
        batch_size: samples of a chain's gradient, drawn with replacement; chain i of every component sees the same.
        shared_minibatches: let all chains see the same ones. Standard errors then leave out the noise of minibatches.
        antithetic: run chains in pairs that share minibatches and have opposite noise.
        groups: independent groups of chains per component for the standard errors; None for up to 16.
        loss_samples: evaluate L on that many of the posterior's samples, or on those of these indices, the same at
            every draw; None for all.
        loss_kernel: also track the co-moments of every pair of probe losses (memory grows with their number squared).
        recording_bytes: memory for what chains of restricted components recall of samples, in place of computing it.
        precision: of the forward passes for losses at draws; gradients are float32. With "bfloat16" `diagnostics()`
            says how large its error is beside the fluctuations that χ is made of.
        tile: chains of a component that are evaluated together; None to measure which number is fastest here.
        seed: of noise, minibatches and the choice of loss_samples; the same seed and tile give the same numbers.
        checkpoint: folder to save the run's state in; where it holds that of this very run, the run resumes from it,
            and gives the same bits as one that was never interrupted.
        checkpoint_seconds: between saves; 0 saves after every draw.
        traces: path of a Zarr store to write φ, distance and the probes' losses of every draw to (see `TraceStore`).
        progress: show a progress bar with the time left.

    Raises:
        TypeError, ValueError: input that cannot work, before any sampling; samples whose loss at w* is not finite; a
            checkpoint of another run.
        ChainDivergedError: all chains have diverged.
        ImportError: traces without zarr. FileExistsError: traces over something else.
        BlockingIOError, OSError: a folder in use by another run; one that cannot be written.
    """
    options = Options(
        chains, draws, burn_in, steps_between_draws, batch_size, shared_minibatches, antithetic, groups, loss_kernel,
        recording_bytes, precision, tile, seed,
    )  # fmt: skip
    setting = Setting(sampler.lr, posterior.n_beta, posterior.localization)
    keeping = Keeping(checkpoint, checkpoint_seconds, traces)
    (statistics,) = sample_settings(
        posterior, sampler, (setting,), components, probes, loss_samples, options, keeping, progress
    )
    return statistics


def sample_settings(
    posterior: LocalPosterior,
    sampler: Sampler,
    settings: tuple[Setting, ...],
    components: Mapping[str, Component] | None,
    probes: Mapping[str, Batch] | None,
    loss_samples: int | Tensor | None,
    options: Options,
    keeping: Keeping,
    progress: bool,
) -> list[Statistics]:
    """`sample` at several settings in one bank; the statistics of each."""
    if probes is not None and not probes:
        raise ValueError(
            "probes is empty: name at least one set of samples, or pass None to track the posterior's data"
        )
    resolved = resolve_components(posterior.model, components)
    plan = chain_plan(resolved, options.chains, options.antithetic, options.groups, settings)
    probe_sets, loss_set = lay_out_sets(posterior, probes, loss_samples, options.seed)
    sets = probe_sets if loss_set in probe_sets else [*probe_sets, loss_set]
    device = next(posterior.model.parameters()).device
    attrs = {
        "items": posterior.item_count,
        "sampler": repr(sampler),
        **{name: int(value) if isinstance(value, bool) else value for name, value in asdict(options).items()},
        "groups": plan.groups,
        "loss_samples": sample_count(loss_set.data),
        "weighted": int(posterior.weights is not None),
        "device": str(device),
        "torch": torch.__version__,
        "patterning_fast": version("patterning_fast"),
    }
    started = time.monotonic()
    with ExitStack() as stack:
        saved, store = open_folders(stack, keeping, posterior, plan, probe_sets, attrs)
        pool = stack.enter_context(workers(lambda: Runners(posterior), device))
        run = start(posterior, sampler, plan, sets, loss_set, probe_sets[-1].columns.stop, options, store, pool)
        done = saved.restore(run.tensors()) if saved else 0
        run.state.frozen = set(run.traces.diverged.nonzero().squeeze(1).tolist())
        if done == 0:
            run.tile.fill_(measured_tile(run, pool, device) if options.tile is None else options.tile)
        if saved and done < options.total_draws:
            saved.reserve(run.tensors())
        started -= float(run.seconds)
        steps = options.steps_between_draws * plan.rows
        bar = stack.enter_context(
            tqdm(
                total=options.total_draws * steps,
                initial=done * steps,
                unit="step",
                desc=f"sampling {plan.rows} chains",
                disable=not progress,
            )
        )
        for draw in range(done, options.total_draws):
            for _ in range(options.steps_between_draws):
                run.step(pool)
            if draw >= options.burn_in:
                run.draw(pool, draw - options.burn_in)
            run.seconds.fill_(time.monotonic() - started)
            if saved and (saved.due() or draw == options.total_draws - 1):
                if store:
                    store.flush()
                saved.save(draw + 1, run.tensors())
            bar.update(steps)
    attrs |= {"tile": int(run.tile), "seconds": float(run.seconds)}
    return [
        Statistics(
            plan=plan,
            setting=at,
            totals=run.totals,
            units_per_bundle=run.units_per_bundle,
            traces=run.traces,
            evaluated=[suffix.name for suffix in run.recordings.suffixes],
            loss_dimension="token" if loss_set.loss_shape else "sample",
            loss_coordinates=joint_coordinates(probe_sets),
            loss_kernel_tracked=options.loss_kernel,
            attrs=asdict(setting) | attrs,
        )
        for at, setting in enumerate(settings)
    ]


def open_folders(
    stack: ExitStack,
    keeping: Keeping,
    posterior: LocalPosterior,
    plan: ChainPlan,
    probe_sets: list[EvaluationSet],
    attrs: Mapping[str, Any],
) -> tuple[Checkpoint | None, TraceStore | None]:
    """The checkpoint and the store of traces that are wanted, held until the stack closes."""
    saved = store = None
    if keeping.checkpoint is None and keeping.traces is None:
        return saved, store
    configuration = asdict(plan.settings[0]) | dict(attrs)
    traced = {"traces": keeping.traces is not None}
    identity = run_identity(posterior, plan, probe_sets, configuration | traced)
    if keeping.checkpoint is not None:
        saved = stack.enter_context(Checkpoint(keeping.checkpoint, identity, keeping.checkpoint_seconds))
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
                resumed=saved.draws_done if saved else None,
            )
        )
    return saved, store


def start(
    posterior: LocalPosterior,
    sampler: Sampler,
    plan: ChainPlan,
    sets: list[EvaluationSet],
    loss_set: EvaluationSet,
    tracked: int,
    options: Options,
    store: TraceStore | None,
    pool: Workers[Runners],
) -> Run:
    """A run with all chains at w*, which tracks that many losses."""
    reference = losses_at_center(posterior, sets, pool, options.precision)
    sets = joined(sets, posterior)
    observables = torch.zeros(1 + tracked if options.loss_kernel else 1, device=reference.device)
    units_per_group = plan.units // plan.groups
    most = max(1, TOTALS_BYTES // (8 * tracked * (1 + observables.numel())))
    units_per_bundle = next(
        units
        for units in range(1, units_per_group + 1)
        if units_per_group % units == 0 and (plan.cells * plan.units // units <= most or units == units_per_group)
    )
    bank = ChainBank(plan, dict(posterior.model.named_parameters()))
    per_row = {name: plan.setting_values(name).to(reference.device) for name in ("lr", "n_beta", "localization")}
    return Run(
        posterior=posterior,
        sampler=sampler,
        plan=plan,
        bank=bank,
        state=sampler.init(bank, **per_row, seed=options.seed),
        sets=sets,
        loss_set=loss_set,
        recordings=recordings(posterior, plan.components, [each.data for each in sets], options.recording_bytes, pool),
        reference=reference,
        totals=Comoments.zeros(plan.cells * plan.units // units_per_bundle + 1, reference[:tracked], observables),
        units_per_bundle=units_per_bundle,
        bundles=plan.bundles(units_per_bundle).to(reference.device),
        traces=ChainTraces.empty(plan, options.draws),
        options=options,
        store=store,
    )


def measured_tile(run: Run, pool: Workers[Runners], device: torch.device) -> int:
    """The tile with which the chains' gradients at w* take least time."""
    samples = run.minibatches()

    def gradients(tile: int) -> None:
        run.accumulate_gradients(pool, samples, range(min(run.plan.chains, pool.count * tile)), tile)
        run.bank.grads.zero_()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that vmap runs one chain after another: the clock tells that
        return fastest_tile(run.plan.chains // pool.count, gradients, device)
