"""Waves of chains: run from w*, gone back along, and kept; as many as are wanted, or as it takes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from patterning_fast.engine.checkpoint import Checkpoint
from patterning_fast.engine.identity import check_losses
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.responding import Responding
from patterning_fast.engine.sweep import Sweep
from patterning_fast.engine.trajectory import Trajectory
from patterning_fast.engine.workers import Workers
from patterning_fast.estimators.goal import Goal, Known, amount_to_add
from patterning_fast.estimators.labelled import root_mean_square
from patterning_fast.estimators.response import Found, reliability
from patterning_fast.progress import Progress


@dataclass(frozen=True)
class Wave:
    """Chains that are wanted of some components, in all."""

    components: list[int]
    chains: int


@dataclass
class Waves:
    """Chains that are differentiated so many at a time, and the checkpoint of what has been found."""

    chosen: Responding
    center_losses: Tensor
    bar: Progress
    saved: Checkpoint | None
    pieces: list[dict[str, Tensor]] = field(default_factory=list)
    """What has been found of chains that ran together."""
    wave: Wave = field(default_factory=lambda: Wave([], 0))
    """What is wanted now."""
    under_way: dict[str, Tensor] = field(default_factory=dict)
    """Saved of chains in the middle of their way back."""
    before: float = 0.0
    """Seconds that were spent before this run was resumed."""
    started: float = field(default_factory=time.monotonic)
    stopped: str = ""
    """Why waves have ended."""

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    @property
    def sweep_steps(self) -> int:
        """Steps of the way back."""
        return self.chosen.storage.steps

    def resume(self) -> None:
        """Take up what was saved; raises ValueError for other losses at w*."""
        state = self.saved.load() if self.saved else None
        if self.saved is None or state is None:
            return
        check_losses(state.pop("center_losses"), self.center_losses)
        self.chosen.tile.copy_(state.pop("tile"))
        self.before = float(state.pop("seconds"))
        self.wave = Wave(state.pop("wave.components").tolist(), int(state.pop("wave.chains")))
        for number in range(self.saved.draws_done // self.sweep_steps):
            prefix = f"{number}."
            names = [name for name in state if name.startswith(prefix)]
            self.pieces.append({name.removeprefix(prefix): state.pop(name) for name in names})
        self.under_way = state

    def until(
        self, goal: Goal | None, chains: int, max_chains: int, max_seconds: float, pool: Workers[Runners]
    ) -> None:
        """Run the chains that are wanted, or, with a goal, waves until it is reached or its budget is spent."""
        if not self.wave.chains:
            self.wave = Wave(list(range(len(self.names))), chains if goal is None else min(chains, max_chains))
        while True:
            self.run_wave(pool)
            if goal is None:
                return
            known = {name: self.known(at) for at, name in enumerate(self.names)}
            left = [at for at, name in enumerate(self.names) if not goal.reached(name, known[name])]
            if not left:
                self.stopped = "reached"
                return
            there, together = self.ran(left[0]), self.chosen.plan.chains_per_draw
            needed = min(goal.needed(self.names[at], known[self.names[at]]) for at in left)
            each = self.seconds * len(left) / sum(map(self.ran, range(len(self.names))))
            affordable = (max_seconds - self.seconds) / each
            more = (
                amount_to_add(needed, there, 2 * together, min(affordable, max_chains - there)) // together * together
            )
            if not more:
                self.stopped = "max_seconds" if affordable < max_chains - there else "max_chains"
                return
            self.bar.set_description(f"differentiating chains: {goal.said(known)}")
            self.wave = Wave(left, there + more)

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.chosen.plan.components]

    def ran(self, component: int) -> int:
        """Chains of a component that are done."""
        return sum(piece["diverged"].shape[1] for piece in self.pieces if component in piece["components"].tolist())

    def run_wave(self, pool: Workers[Runners]) -> None:
        """The chains of a wave that are not done yet, as many at a time as there is memory for."""
        components, chosen = self.wave.components, self.chosen
        left = self.wave.chains - self.ran(components[0])
        chains = sum(map(self.ran, range(len(chosen.plan.components)))) + left * len(components)
        self.bar.total = 2 * self.sweep_steps * chains
        while left > 0:
            number = chosen.chains_at_once(components, left, pool)
            if self.under_way:  # as many as were begun, by whichever number of workers
                number = len(self.under_way["response"]) // len(components)
            self.differentiate(components, number, pool)
            left -= number

    def differentiate(self, components: list[int], chains: int, pool: Workers[Runners]) -> None:
        """Run chains of some components, and go back along them from where a run before was cut short."""
        moving = self.chosen.ensemble(components, chains, self.ran(components[0]), pool)
        rows, first = moving.plan.rows, len(self.pieces) * self.sweep_steps
        trajectory = Trajectory(moving, self.chosen.storage, self.chosen.keep_every(components, chains))
        trajectory.run(pool, lambda: self.bar.update(rows))
        sweep, swept = Sweep(moving, trajectory, self.chosen.wanted(moving)), 0
        if self.saved and not self.saved.last:
            self.saved.reserve(self.tensors(sweep))
        if self.under_way and self.saved:
            sweep.load(self.under_way)
            swept, self.under_way = self.saved.draws_done - first, {}
            self.bar.update(rows * swept)
        while swept < self.sweep_steps:
            sweep.back(pool, self.sweep_steps - 1 - swept)
            swept += 1
            self.bar.update(rows)
            if self.saved and self.saved.due() and swept < self.sweep_steps:
                self.saved.save(first + swept, self.tensors(sweep))
        self.pieces.append(piece_of(components, sweep, self.seconds))
        if self.saved:
            self.saved.save(first + swept, self.tensors(None))

    def tensors(self, sweep: Sweep | None) -> dict[str, Tensor]:
        """All that a run goes on with, that of chains on their way back included."""
        found = {f"{number}.{name}": each for number, piece in enumerate(self.pieces) for name, each in piece.items()}
        own = {
            "center_losses": self.center_losses, "tile": self.chosen.tile,
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "wave.components": torch.tensor(self.wave.components, dtype=torch.int64),
            "wave.chains": torch.tensor(self.wave.chains, dtype=torch.int64),
        }  # fmt: skip
        return found | own | (sweep.tensors() if sweep else {})

    def found(self, component: int) -> Found:
        """What all chains of a component say."""
        parts = []
        for piece in self.pieces:
            ran = piece["components"].tolist()
            if component in ran:
                at = ran.index(component)
                parts.append({name: each[at] for name, each in piece.items() if name != "components"})
        return Found.joined(parts)

    def known(self, component: int) -> Known:
        """How well a component is known."""
        found = self.found(component)
        if len(found.healthy) < 2:
            return Known(self.ran(component), math.nan, math.nan)
        error = found.chi[found.healthy].std(0) / len(found.healthy) ** 0.5
        return Known(self.ran(component), reliability(found), root_mean_square(error))


def piece_of(components: list[int], sweep: Sweep, seconds: float) -> dict[str, Tensor]:
    """What a sweep has found after that many seconds, by component and unit; on the CPU."""
    plan = sweep.moving.plan
    found = {
        "response": sweep.by_unit(sweep.response),
        "loss_response": sweep.by_unit(sweep.loss_response[:, None]).squeeze(2),
        "means": sweep.by_unit(sweep.means),
        "phi": sweep.phi.view(plan.cells, plan.chains, -1),
        "shares": sweep.shares,
        "sizes": sweep.sizes.view(plan.cells, plan.chains, 2),
        "errors": sweep.errors,
        "diverged": sweep.moving.traces.diverged.view(plan.cells, plan.chains),
        "seconds": torch.full((plan.cells,), seconds, dtype=torch.float64),
        "components": torch.tensor(components, dtype=torch.int64),
    }
    return {name: each.detach().cpu().clone() for name, each in found.items()}
