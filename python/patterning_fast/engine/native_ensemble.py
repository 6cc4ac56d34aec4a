"""Chains of stacks of dense layers: kernels run each chain's whole loop, many steps a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from patterning_fast import ops
from patterning_fast.chains.plan import ChainPlan
from patterning_fast.engine.ensemble import Ensemble, at_center, gradient_noise
from patterning_fast.engine.evaluation import EvaluationSet, losses_at_center
from patterning_fast.engine.options import Options
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.workers import Workers
from patterning_fast.estimators.comoments import Comoments
from patterning_fast.estimators.traces import ChainTraces
from patterning_fast.ops.dense_stack import DenseStack, Steps
from patterning_fast.posterior.dense import NotDense, dense_stack, joined
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.samplers.langevin import Sampler
from patterning_fast.samplers.sgld import SGLD


class Drawn(NamedTuple):
    """What `draws` gives beside totals."""

    phi: Tensor
    """float64 `[draws, rows]`, NaN from where a chain has diverged, as losses."""
    distance: Tensor
    """float32 `[draws, rows]`"""
    losses: Tensor | None
    """float32 `[draws, rows, tracked losses]` where they are wanted."""


@dataclass(kw_only=True)
class NativeEnsemble(Ensemble):
    """Chains that kernels run."""

    engine: str = "native"
    stack: DenseStack
    """The model on the posterior's data."""
    of_sets: DenseStack
    """The model on the samples of all sets."""
    replicas: Tensor
    """Whose minibatches each row sees, int64 `[rows]`."""

    @property
    def evaluated(self) -> list[str]:
        return ["native kernel"] * len(self.plan.components)

    def advance(self, pool: Workers[Runners], steps: int) -> None:
        self.observe_gradients()
        ops.dense_steps(self.stack, *self.bank_tensors, **self.steps(steps))
        self.state.step += steps

    def draws(
        self, totals: Comoments, bundles: Tensor, loss_columns: slice, limit: float, number: int, with_losses: bool
    ) -> Drawn:
        """Draws of every chain, each after its steps, added to the totals of its bundle."""
        self.observe_gradients()
        rows, tracked = self.plan.rows, totals.loss_shift.numel()
        drawn = Drawn(
            phi=torch.empty(number, rows, dtype=torch.float64, device=self.bank.params.device),
            distance=self.bank.params.new_empty(number, rows),
            losses=self.bank.params.new_empty(number, rows, tracked) if with_losses else None,
        )
        ops.dense_draws(
            self.stack,
            self.of_sets,
            *self.bank_tensors,
            draws={
                "center_losses": self.reference,
                "observable_shift": totals.observable_shift,
                "phi_samples": loss_columns,
                "limit": limit,
                "groups": bundles,
                "totals": totals.tensors(),
                "phi": drawn.phi,
                "distance": drawn.distance,
                "losses": drawn.losses,
            },
            **self.steps(self.options.steps_between_draws),
        )
        self.state.step += number * self.options.steps_between_draws
        return drawn

    def observe_gradients(self) -> None:
        """Of the first minibatches, at w*, before anything has moved."""
        apart = not self.options.shared_minibatches and self.plan.units > 1
        if apart and not self.corrects_noise and int(self.state.step) == 0:
            ops.dense_steps(self.stack, *self.bank_tensors, **self.steps(0))
            self.traces.gradient_noise = gradient_noise(self.bank)
            self.bank.grads.zero_()

    @property
    def corrects_noise(self) -> bool:
        return isinstance(self.sampler, SGLD) and self.sampler.gradient_noise_correction

    @property
    def bank_tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.bank.params, self.bank.grads, self.bank.centers

    def steps(self, steps: int) -> Steps:
        """So many steps from here; 0 for the gradients of the first alone."""
        state, bank = self.state, self.bank
        return {
            "row_starts": bank.row_starts,
            "center_starts": bank.center_starts,
            "lr": state.lr,
            "n_beta": state.n_beta,
            "localization": state.localization,
            "noise_scale": state.noise_scale,
            "chain_ids": state.chain_ids,
            "seed": state.seed,
            "step": state.step,
            "rule": self.sampler.rule(state),
            "replicas": self.replicas,
            "batch_size": self.options.batch_size,
            "steps": steps,
            "gradient_noise_correction": self.corrects_noise,
        }

    def measure_tile(self, pool: Workers[Runners]) -> None:
        """A kernel runs one chain at a time."""


def native_ensemble(
    posterior: LocalPosterior,
    sampler: Sampler,
    plan: ChainPlan,
    sets: list[EvaluationSet],
    options: Options,
    pool: Workers[Runners],
) -> NativeEnsemble:
    """An ensemble with all chains at w*; raises NotDense where a kernel cannot run it."""
    if options.precision != "float32":
        raise NotDense(f"the precision is {options.precision}")
    chains = plan.chains * len(plan.settings)
    model = posterior.model, posterior.loss, plan.components, chains
    stack = dense_stack(*model, posterior.data, posterior.weights)
    of_sets = dense_stack(*model, joined([each.data for each in sets]), None)
    bank, state = at_center(posterior, sampler, plan, options)
    replicas = plan.replica_units().repeat(plan.cells).to(bank.params.device)
    return NativeEnsemble(
        posterior=posterior,
        sampler=sampler,
        plan=plan,
        bank=bank,
        state=state,
        sets=sets,
        reference=losses_at_center(posterior, sets, pool, options.precision),
        traces=ChainTraces.empty(plan, options.draws),
        options=options,
        stack=stack,
        of_sets=of_sets,
        replicas=torch.zeros_like(replicas) if options.shared_minibatches else replicas,
    )
