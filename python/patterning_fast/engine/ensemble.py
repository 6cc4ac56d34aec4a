"""An ensemble: a bank of chains, with all it takes to move them and to evaluate their losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from patterning_fast.chains.bank import ChainBank
from patterning_fast.chains.plan import ChainPlan
from patterning_fast.engine.evaluation import EvaluationSet
from patterning_fast.engine.options import Options
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.suffix import Suffix
from patterning_fast.engine.workers import Workers
from patterning_fast.estimators.traces import ChainTraces
from patterning_fast.posterior.data import take
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.samplers.langevin import LangevinState, Sampler

Gradient = Callable[[Tensor], Tensor]
"""From coordinates to the gradient there, `[coordinates]` both."""


@dataclass(kw_only=True)
class Ensemble(ABC):
    """Chains on their way."""

    posterior: LocalPosterior
    sampler: Sampler
    plan: ChainPlan
    bank: ChainBank
    state: LangevinState
    sets: list[EvaluationSet]
    reference: Tensor
    """Losses `[losses]` of all sets at w*."""
    traces: ChainTraces
    options: Options
    tile: Tensor = field(default_factory=lambda: torch.tensor(1, dtype=torch.int64))
    """0-d int64: chains of a cell that are evaluated together."""
    engine: str = "torch"
    """What runs it, and why."""

    @property
    @abstractmethod
    def evaluated(self) -> list[str]:
        """How the losses of each component's chains are computed."""

    @abstractmethod
    def advance(self, pool: Workers[Runners], steps: int) -> None:
        """Steps of every chain."""

    @abstractmethod
    def add_gradients(self, pool: Workers[Runners]) -> None:
        """Add the gradients of all chains' minibatch losses at the present step to those of the bank."""

    @abstractmethod
    def evaluated_rows(self, pool: Workers[Runners]) -> Iterator[tuple[slice, Tensor]]:
        """Losses of all sets where the chains are, in float32: some rows, and theirs `[rows, losses]`, at a time."""

    @abstractmethod
    def suffix(self, cell: int) -> Suffix:
        """What of the model a gradient of a cell's chains is taken of in torch."""

    @abstractmethod
    def known(self, runners: Runners, cell: int, samples: Tensor) -> dict[str, Tensor]:
        """What a cell's chains recall of their minibatches `samples` `[chains, batch]`: `[chains, batch, ...]`."""

    def gradient(self, runners: Runners, component: int, samples: Tensor) -> Gradient:
        """The gradient of L_ρ on some samples `[samples]`, as a function of a component's coordinates."""
        cell = component * len(self.plan.settings)
        runner, batch = runners[self.suffix(cell)], take(self.posterior.data, samples)
        known = {key: values.squeeze(0) for key, values in self.known(runners, cell, samples[None]).items()}

        def at(place: Tensor) -> Tensor:
            leaves = {
                name: leaf.requires_grad_() for name, leaf in self.bank.by_parameter(place.clone(), component).items()
            }
            with torch.enable_grad():
                loss = runner.run(lambda model: self.posterior.mean_loss(model, batch, samples), leaves, known)
            if not loss.requires_grad:
                return torch.zeros_like(place)
            grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            return torch.cat([each.flatten() for each in grads])

        return at

    def gradient_variance(self, setting: int) -> np.ndarray:
        """Of minibatches, mean over coordinates, as the chains of a setting saw it at their start: `[components]`."""
        return self.traces.gradient_noise.view(-1, len(self.plan.settings), 2)[:, setting, 1].numpy()

    @abstractmethod
    def measure_tile(self, pool: Workers[Runners]) -> None:
        """Set the tile: as wanted, or that with which the chains' gradients at w* take least time."""


def at_center(
    posterior: LocalPosterior, sampler: Sampler, plan: ChainPlan, options: Options
) -> tuple[ChainBank, LangevinState]:
    """All chains at w*."""
    bank = ChainBank(plan, dict(posterior.model.named_parameters()))
    device = bank.params.device
    per_row = {name: plan.setting_values(name).to(device) for name in ("lr", "n_beta", "localization")}
    return bank, sampler.init(bank, **per_row, seed=options.seed)


def gradient_noise(bank: ChainBank) -> Tensor:
    """Mean square of the minibatch gradient at w*, and its variance between replicas, a coordinate: `[cells, 2]`."""
    plan, found = bank.plan, []
    for cell in range(plan.cells):
        rows = slice(cell * plan.chains, (cell + 1) * plan.chains)
        grads = bank.grads[bank.starts[rows.start] : bank.starts[rows.stop]].view(plan.chains, -1)
        apart = grads[:: plan.chains_per_draw]
        found.append(torch.stack((apart.mean(0).square().mean(), apart.var(0).mean())))
    return torch.stack(found).double().cpu()
