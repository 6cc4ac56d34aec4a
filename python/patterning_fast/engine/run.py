"""A run: an ensemble and the statistics of its draws, as `sample` takes them from draw to draw."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from patterning_fast.chains.plan import Setting
from patterning_fast.engine.ensemble import Ensemble
from patterning_fast.engine.evaluation import EvaluationSet, losses_at_center
from patterning_fast.engine.native_ensemble import NativeEnsemble
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.suffix import WholeModel
from patterning_fast.engine.torch_ensemble import TorchEnsemble
from patterning_fast.engine.trace_store import TraceStore
from patterning_fast.engine.workers import Workers
from patterning_fast.estimators.comoments import Comoments
from patterning_fast.posterior.observables import Observable
from patterning_fast.samplers.langevin import Sampler
from patterning_fast.samplers.sgld import SGLD

DIVERGED = 100.0
"""A chain has diverged where |L(w) − L(w*)| exceeds this many times 1 + |L(w*)|: no posterior of use reaches there."""


class ChainDivergedError(RuntimeError):
    """No healthy chains are left; says which hyper-parameter to change, and how."""


CALL_SECONDS = 0.2
"""A kernel that runs draws is given so many that it is done about then: Python must hear of interrupts."""


@dataclass(kw_only=True)
class Run(ABC):
    """What `sample` holds between two draws."""

    ensemble: Ensemble
    loss_set: EvaluationSet
    totals: Comoments
    early: Comoments = field(init=False)
    """Counts and losses of `totals` as they stood in the middle of the draws: what the rest is compared with."""
    units_per_bundle: int
    bundles: Tensor
    """The totals that each row adds to, int64 `[rows]`; diverged rows add to the last, which nobody reads."""
    store: TraceStore | None
    seconds: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """0-d: time spent until now."""
    target: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    """0-d: draws to come to, those thrown away not counted."""

    def __post_init__(self) -> None:
        shifts = self.totals.loss_shift, self.totals.observable_shift[:0]
        self.early = Comoments.zeros(self.totals.count.numel(), *shifts)

    def tensors(self, done: int) -> dict[str, Tensor]:
        """All that changes from step to step: with it a run goes on from `done` draws, however many are to come."""
        moving, drawn = self.ensemble, max(0, done - self.ensemble.options.burn_in)
        parts = {"state": moving.state.tensors(), "totals": vars(self.totals), "traces": moving.traces.tensors(drawn)}
        named = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
        own = {"params": moving.bank.params, "bundles": self.bundles, "tile": moving.tile, "seconds": self.seconds,
               "center_losses": moving.reference, "early.count": self.early.count,
               "early.loss_sum": self.early.loss_sum, "target": self.target}  # fmt: skip
        return own | named

    @property
    def limit(self) -> float:
        """A chain has diverged where |φ| exceeds this."""
        return DIVERGED * (1 + abs(float(self.ensemble.reference[self.loss_set.columns].mean())))

    def advance(self, pool: Workers[Runners], done: int) -> int:
        """Steps to the next draws, and those draws; says how many, those thrown away counted."""
        options = self.ensemble.options
        stops = (options.burn_in, self.middle, options.total_draws)
        number = min(self.draws_at_once, next(stop for stop in stops if stop > done) - done)
        if done < options.burn_in:
            self.ensemble.advance(pool, number * options.steps_between_draws)
        else:
            self.draw(pool, done - options.burn_in, number)
        if done + number == self.middle:
            self.mark()
        return number

    def extend(self, draws: int, done: int) -> None:
        """Go on to that many draws, of which `done` are there."""
        options = self.ensemble.options
        self.ensemble.traces.extend(draws - options.draws)
        self.ensemble.options = replace(options, draws=draws)
        self.target.fill_(draws)
        if done == self.middle:
            self.mark()

    @property
    def middle(self) -> int:
        """Draws done, those thrown away counted, in the middle of those that are kept."""
        return self.ensemble.options.burn_in + self.ensemble.options.draws // 2

    def mark(self) -> None:
        """Take the draws until now for the first part, which the rest is compared with; a later mark replaces it."""
        self.early.count.copy_(self.totals.count)
        self.early.loss_sum.copy_(self.totals.loss_sum)

    @property
    @abstractmethod
    def draws_at_once(self) -> int:
        """How many draws are best asked for at a time."""

    @abstractmethod
    def draw(self, pool: Workers[Runners], first: int, number: int) -> None:
        """Draws of every chain from number `first` on, each after its steps, added to the statistics."""

    def freeze(self, rows: list[int], draw: int) -> None:
        """Freeze rows that have diverged; nothing of their bundle counts from now on."""
        moving = self.ensemble
        for row in rows:
            moving.traces.diverged[row] = True
            moving.state.freeze(moving.bank, row)
            self.bundles[row] = self.totals.count.numel() - 1
        if bool(moving.traces.diverged.all()):
            raise ChainDivergedError(
                f"all {moving.plan.rows} chains have diverged by draw {draw}: "
                + advice(moving.sampler, moving.plan.settings[0])
            )


@dataclass(kw_only=True)
class TorchRun(Run):
    """A draw at a time, evaluated block by block."""

    ensemble: TorchEnsemble
    functions: list[Observable]
    """The user's observables."""
    whole: list[WholeModel] = field(init=False)
    """By component: what those are functions of."""
    observables: Tensor = field(init=False)
    """Of a block of rows as evaluated last: φ, the user's, and the losses where their kernel is tracked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rows, observables = len(self.ensemble.losses), self.totals.observable_shift.numel()
        self.observables = self.ensemble.reference.new_empty(rows, observables)
        traces, plan = self.ensemble.traces, self.ensemble.plan
        traces.observables = torch.full(
            (plan.rows, len(self.functions), self.ensemble.options.draws), math.nan, dtype=torch.float32
        )
        self.whole = [WholeModel(component) for component in plan.components]

    @property
    def draws_at_once(self) -> int:
        return 1

    def draw(self, pool: Workers[Runners], first: int, number: int) -> None:
        moving, tracked = self.ensemble, self.totals.loss_shift.numel()
        moving.advance(pool, number * moving.options.steps_between_draws)
        moving.traces.distance[:, first] = moving.bank.distances().cpu()
        for block in moving.blocks():
            moving.evaluate(pool, block, moving.options.precision, self.observe)
            self.call_functions(pool, block)
            now, rows = slice(0, len(block)), slice(block.start, block.stop)
            phi = self.observables[now, 0].double().cpu()
            own = self.observables[now, 1 : 1 + len(self.functions)]
            finite = torch.isfinite(moving.losses[now].sum(1) + own.sum(1)).cpu()
            sound = finite & (phi.abs() <= self.limit)
            new = ~sound & ~moving.traces.diverged[rows]
            self.freeze((new.nonzero().squeeze(1) + block.start).tolist(), first)
            lost = moving.traces.diverged[rows]
            moving.losses[now][lost.to(moving.losses.device)] = math.nan
            moving.traces.phi[rows, first] = phi.masked_fill(lost, math.nan)
            moving.traces.observables[rows, :, first] = own.cpu().masked_fill(lost[:, None], math.nan)
            losses = moving.losses[now, :tracked]
            if self.store:
                self.store.add(
                    first, block, moving.traces.phi[rows, first], moving.traces.distance[rows, first], losses
                )
            self.totals.update(losses.contiguous(), self.observables[now], self.bundles[rows])
            if moving.options.precision == "bfloat16" and first == moving.options.draws - 1:
                moving.traces.rounding[rows] = self.rounding(pool, block)

    def observe(self, here: slice) -> None:
        """Write the observables of losses just evaluated."""
        shift = self.ensemble.losses[here] - self.ensemble.reference
        self.observables[here, 0] = shift[:, self.loss_set.columns].double().mean(1).float()
        losses = 1 + len(self.functions)
        self.observables[here, losses:] = shift[:, : self.observables.shape[1] - losses]

    def call_functions(self, pool: Workers[Runners], block: range) -> None:
        """Write the user's observables of some rows, each from the whole model with that row's parameters."""
        moving, chains_of_component = self.ensemble, len(self.ensemble.plan.settings) * self.ensemble.plan.chains

        def call(runners: Runners, row: int) -> None:
            runner = runners[self.whole[row // chains_of_component]]
            moved = {name: leaf[0] for name, leaf in moving.bank.leaves(slice(row, row + 1)).items()}
            with torch.no_grad():
                for column, function in enumerate(self.functions, 1):
                    self.observables[row - block.start, column] = runner.run(function, moved, {})

        if self.functions:
            pool.each(call, [row for row in block if not moving.traces.diverged[row]])

    def rounding(self, pool: Workers[Runners], block: range) -> Tensor:
        """Root mean square error of l − l(w*) as evaluated, over that of l − l(w*) in float32, `[rows]`."""
        moving, tracked = self.ensemble, slice(0, self.totals.loss_shift.numel())
        found = (moving.losses - moving.reference)[: len(block), tracked]
        moving.evaluate(pool, block, "float32")
        center = losses_at_center(moving.posterior, moving.sets, pool, "float32")
        exact = (moving.losses - center)[: len(block), tracked]
        return ((found - exact).square().mean(1) / exact.square().mean(1)).sqrt().cpu()


@dataclass(kw_only=True)
class NativeRun(Run):
    """Many draws at a time, within a kernel."""

    ensemble: NativeEnsemble
    wanted: int = 1

    @property
    def draws_at_once(self) -> int:
        return 1 if self.store else self.wanted  # a store takes a draw of all chains at a time

    def draw(self, pool: Workers[Runners], first: int, number: int) -> None:
        moving, started = self.ensemble, time.monotonic()
        drawn = moving.draws(self.totals, self.bundles, self.loss_set.columns, self.limit, number, bool(self.store))
        here = slice(first, first + number)
        phi, distance = drawn.phi.cpu(), drawn.distance.cpu()
        moving.traces.phi[:, here], moving.traces.distance[:, here] = phi.T, distance.T
        stopped = phi.isnan()
        if self.store and drawn.losses is not None:
            self.store.add(first, range(moving.plan.rows), phi[0], distance[0], drawn.losses[0])
        for row in (stopped.any(0) & ~moving.traces.diverged).nonzero().squeeze(1).tolist():
            self.freeze([row], first + int(stopped[:, row].nonzero()[0]))
        if time.monotonic() - started < CALL_SECONDS / 2:
            self.wanted = 2 * number


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
