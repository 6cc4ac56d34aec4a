"""Chains of stacks of dense layers: kernels run each chain's whole loop, many steps a call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from patterning_fast import ops
from patterning_fast.chains.plan import ChainPlan
from patterning_fast.engine.ensemble import Ensemble, at_center, gradient_noise
from patterning_fast.engine.evaluation import EvaluationSet, losses_at_center
from patterning_fast.engine.options import Options
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.suffix import WholeModel
from patterning_fast.engine.trial import Truth
from patterning_fast.engine.workers import Workers
from patterning_fast.estimators.comoments import Comoments
from patterning_fast.estimators.traces import ChainTraces
from patterning_fast.ops.dense_stack import DenseStack, Steps
from patterning_fast.posterior.components import Component, coordinates
from patterning_fast.posterior.data import take
from patterning_fast.posterior.dense import NotDense, dense_stack, joined
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.probing import ROUNDING, differ, few_samples
from patterning_fast.samplers.langevin import Sampler
from patterning_fast.samplers.rmsprop_sgld import RMSPropSGLD
from patterning_fast.samplers.sghmc import SGHMC
from patterning_fast.samplers.sgld import SGLD
from patterning_fast.samplers.sgnht import SGNHT

SAMPLERS = (SGLD, RMSPropSGLD, SGHMC, SGNHT)
"""Those whose update the kernels have; a subclass may have another."""


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
    whole: list[WholeModel] = field(init=False)
    """By component."""

    def __post_init__(self) -> None:
        self.whole = [WholeModel(component) for component in self.plan.components]

    def suffix(self, cell: int) -> WholeModel:
        return self.whole[cell // len(self.plan.settings)]

    def known(self, runners: Runners, cell: int, samples: Tensor) -> dict[str, Tensor]:
        return {}

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

    def add_gradients(self, pool: Workers[Runners]) -> None:
        ops.dense_steps(self.stack, *self.bank_tensors, **self.steps(0))

    def evaluated_rows(self, pool: Workers[Runners]) -> Iterator[tuple[slice, Tensor]]:
        losses = self.bank.params.new_empty(self.plan.rows, self.reference.numel())
        ops.dense_losses(self.of_sets, self.bank.params, self.bank.row_starts, losses)
        yield slice(0, self.plan.rows), losses

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
    if type(sampler) not in SAMPLERS:
        raise NotDense(f"{type(sampler).__name__} is not one of the library's samplers: its update runs in torch")
    chains = plan.chains * len(plan.settings)
    model = posterior.model, posterior.loss, plan.components, chains
    stack = dense_stack(*model, posterior.data, posterior.weights)
    of_sets = dense_stack(*model, joined([each.data for each in sets]), None)
    check_same_model(posterior, plan.components)
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


def check_same_model(posterior: LocalPosterior, components: list[Component]) -> None:
    """Raise NotDense unless kernels give the losses and gradients of the model itself, at w* and away from it.

    A subclass's own forward pass, hooks, and gradients that are changed on their way are in no table of layers.
    """
    truth = Truth(posterior, take(few_samples(posterior.data), slice(0, 1)), requires_grad=True)
    stack = dense_stack(posterior.model, posterior.loss, components, 1, truth.batch, None)
    at_center = [coordinates(each, truth.base) for each in components]
    found = [truth.felt_move(each) for each in components]
    away = [values if move is None else move[0] for move, values in zip(found, at_center, strict=True)]
    for places in (at_center, away):
        losses, grads = kernel_losses_and_gradients(stack, places)
        for component, values, loss, grad in zip(components, places, losses, grads, strict=True):
            with torch.enable_grad(), truth.twin.at(truth.parameters(component, values)) as model:
                expected = truth.losses(model).squeeze()
                wanted = [truth.twin.parameters[name] for name in component.coordinates]
                slopes = torch.autograd.grad(expected, wanted, materialize_grads=True)
            slope = coordinates(component, dict(zip(component.coordinates, slopes, strict=True)))
            if differ(loss, expected.detach(), ROUNDING) or differ(grad, flat(slope), ROUNDING):
                raise NotDense(f"the kernel's losses or gradients are not the model's in {component.name}")


def kernel_losses_and_gradients(
    stack: DenseStack, places: list[dict[str, Tensor]]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Of a stack's only sample, at a place for each chain, by parameter."""
    rows = [flat(values) for values in places]
    sizes, params = [len(row) for row in rows], torch.cat(rows)
    starts = torch.tensor([0, *sizes], dtype=torch.int64, device=params.device).cumsum(0)
    losses, grads = params.new_empty(len(rows), 1), torch.zeros_like(params)
    ops.dense_losses(stack, params, starts, losses)
    ops.dense_steps(
        stack, params, grads, params, row_starts=starts, center_starts=starts[:-1].contiguous(),
        lr=1.0, n_beta=0.0, localization=0.0, seed=0, step=0, replicas=torch.zeros_like(starts[1:]),
        batch_size=1, steps=0,
    )  # fmt: skip
    return losses[:, 0], grads.split(sizes)


def flat(values: dict[str, Tensor]) -> Tensor:
    """A row of a bank."""
    return torch.cat([each.flatten() for each in values.values()])
