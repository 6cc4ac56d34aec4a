"""The steps of all chains, to go back along: kept where there is room, made again from kept ones where there is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from patterning_fast.engine.ensemble import Ensemble
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.workers import Workers


@dataclass(frozen=True)
class Place:
    """Where the chains of a bank were before a step, and the minibatch gradients that the step took."""

    params: Tensor
    grads: Tensor
    memory: Tensor | None
    """The sampler's second moment or momentum."""


@dataclass(frozen=True)
class Storage:
    """How many steps of a row are kept, and how many bytes a coordinate takes for it."""

    steps: int
    """From w* to the last place, both counted."""
    has_memory: bool

    @property
    def start_bytes(self) -> int:
        """Of what a step can be made again from."""
        return 8 if self.has_memory else 4

    @property
    def place_bytes(self) -> int:
        return self.start_bytes + 4

    def bytes(self, keep_every: int) -> int:
        """A coordinate's, where every so manyth step is kept and those in between are made again, a stretch at a time.

        Where one stretch is all there is, its first step is kept once.
        """
        starts = -(-self.steps // keep_every)
        within = min(keep_every, self.steps) * self.place_bytes
        return within if starts == 1 else starts * self.start_bytes + within

    def keep_every(self, coordinates: int, most: int) -> int | None:
        """The longest stretch that fits in `most` bytes; None where none does."""
        if coordinates * self.bytes(self.steps) <= most:
            return self.steps
        fitting = (each for each in range(self.steps - 1, 0, -1) if coordinates * self.bytes(each) <= most)
        return next(fitting, None)

    @property
    def least(self) -> int:
        """Bytes a coordinate that are always enough."""
        return min(self.bytes(each) for each in range(1, self.steps + 1))


@dataclass
class Trajectory:
    """Where the chains of an ensemble were at steps 0 to `steps` − 1, which can be gone back along.

    Raises nothing for a chain that diverges: it is frozen, and marked in the ensemble's traces.
    """

    moving: Ensemble
    storage: Storage
    keep_every: int
    starts: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    stretch: dict[int, Place] = field(default_factory=dict)

    def run(self, pool: Workers[Runners], done: Callable[[], object]) -> None:
        """All steps from w*; `done` is called after each."""
        for step in range(self.storage.steps):
            self.visit(pool, step)
            done()

    def at(self, pool: Workers[Runners], step: int) -> Place:
        """The place at a step, made again from the last one kept before it where it is not there."""
        if step not in self.stretch:
            first, state = step - step % self.keep_every, self.moving.state
            params, memory = self.starts[first]
            self.moving.bank.params.copy_(params)
            if state.memory is not None and memory is not None:
                state.memory.copy_(memory)
            state.step.fill_(first)
            for each in range(first, min(first + self.keep_every, self.storage.steps)):
                self.visit(pool, each)
        return self.stretch[step]

    def visit(self, pool: Workers[Runners], step: int) -> None:
        """Keep the place at a step, and take the step; after the last only its gradients are taken."""
        moving = self.moving
        bank, state = moving.bank, moving.state
        params, memory = bank.params.clone(), None if state.memory is None else state.memory.clone()
        if step % self.keep_every == 0:
            self.stretch = {}
            self.starts[step] = params, memory
        moving.add_gradients(pool)
        self.stretch[step] = Place(params, bank.grads.clone(), memory)
        if step + 1 < self.storage.steps:
            moving.sampler.update(bank, state)
            self.freeze_lost()
        else:
            bank.grads.zero_()

    def freeze_lost(self) -> None:
        """Freeze the chains that have left the finite numbers."""
        moving = self.moving
        lost = ~torch.isfinite(moving.bank.by_row(moving.bank.params)).cpu() & ~moving.traces.diverged
        for row in lost.nonzero().squeeze(1).tolist():
            moving.traces.diverged[row] = True
            moving.state.freeze(moving.bank, row)
