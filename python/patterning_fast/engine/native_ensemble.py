"""Chains of stacks of dense layers: kernels run each chain's whole loop, many steps a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from patterning_fast import ops
from patterning_fast.chains.plan import ChainPlan
from patterning_fast.engine.ensemble import Ensemble, at_center, gradient_noise
from patterning_fast.engine.evaluation import EvaluationSet, Precision, losses_at_center
from patterning_fast.engine.options import Options
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.workers import Workers
from patterning_fast.estimators.traces import ChainTraces
from patterning_fast.ops.dense_stack import DenseStack
from patterning_fast.posterior.dense import NotDense, dense_stack
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.samplers.langevin import Sampler
from patterning_fast.samplers.sgld import SGLD


@dataclass(kw_only=True)
class NativeEnsemble(Ensemble):
    """Chains that kernels run."""

    engine: str = "native"
    stack: DenseStack
    """The model on the posterior's data."""
    of_sets: list[DenseStack]
    """The model on the samples of each set."""
    replicas: Tensor
    """Whose minibatches each row sees, int64 `[rows]`."""
    of_blocks: dict[range, list[DenseStack]] = field(default_factory=dict)
    """`of_sets` for the chains of each block, checked once."""

    @property
    def evaluated(self) -> list[str]:
        return ["native kernel"] * len(self.plan.components)

    def advance(self, pool: Workers[Runners], steps: int) -> None:
        apart = not self.options.shared_minibatches and self.plan.units > 1
        if apart and not self.corrects_noise and int(self.state.step) == 0:
            self.steps(0)
            self.traces.gradient_noise = gradient_noise(self.bank)
            self.bank.grads.zero_()
        self.steps(steps)
        self.state.step += steps

    @property
    def corrects_noise(self) -> bool:
        return isinstance(self.sampler, SGLD) and self.sampler.gradient_noise_correction

    def steps(self, steps: int) -> None:
        """Steps by the kernel; 0 for the gradients of the first alone."""
        state, bank = self.state, self.bank
        ops.dense_steps(
            self.stack,
            bank.params,
            bank.grads,
            bank.centers,
            row_starts=bank.row_starts,
            center_starts=bank.center_starts,
            lr=state.lr,
            n_beta=state.n_beta,
            localization=state.localization,
            noise_scale=state.noise_scale,
            chain_ids=state.chain_ids,
            seed=state.seed,
            step=state.step,
            rule=self.sampler.rule(state),
            replicas=self.replicas,
            batch_size=self.options.batch_size,
            steps=steps,
            gradient_noise_correction=self.corrects_noise,
        )

    def evaluate(
        self,
        pool: Workers[Runners],
        block: range,
        precision: Precision,
        observe: Callable[[slice], None] = lambda here: None,
    ) -> None:
        rows, starts = slice(block.start, block.stop), self.bank.row_starts[block.start : block.stop + 1]
        if block not in self.of_blocks:
            self.of_blocks[block] = [
                replace(stack, coordinate_starts=stack.coordinate_starts[rows]) for stack in self.of_sets
            ]
        params = self.bank.params[self.bank.starts[block.start] : self.bank.starts[block.stop]]
        for each, stack in zip(self.sets, self.of_blocks[block], strict=True):
            ops.dense_losses(stack, params, starts - starts[0], self.losses[: len(block), each.columns])
        observe(slice(0, len(block)))

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
    of_sets = [dense_stack(*model, each.data, None) for each in sets]
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
