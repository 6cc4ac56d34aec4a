"""Chains whose minibatch gradients have control variates: what the same minibatch says at w*, where all data are known.

g_B(w) − g_B(w*) + g(w*) takes the place of g_B(w) (Baker, Fearnhead, Fox & Nemeth 2019, arXiv:1706.05439). Its mean is
the same, and the noise that minibatches have at w* is gone. One gradient of the minibatch that all chains share serves
all chains of a component.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from patterning_fast.chains.bank import ChainBank
from patterning_fast.chains.plan import ChainPlan
from patterning_fast.engine.evaluation import EvaluationSet
from patterning_fast.engine.options import Options
from patterning_fast.engine.recording import RECORDING_BATCH, Runners
from patterning_fast.engine.torch_ensemble import TorchEnsemble, torch_ensemble
from patterning_fast.engine.workers import Workers
from patterning_fast.estimators.traces import ChainTraces
from patterning_fast.ops.reference.minibatch import minibatch
from patterning_fast.posterior.data import sample_count
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Batch
from patterning_fast.samplers.langevin import Sampler
from patterning_fast.samplers.sgld import SGLD


@dataclass(kw_only=True)
class ControlledEnsemble(TorchEnsemble):
    """Chains whose minibatch gradients have control variates."""

    center: TorchEnsemble
    """One chain of each component, which stays at w*."""
    full_gradient: Tensor
    """g(w*) in the places of `bank.centers`."""

    def step(self, pool: Workers[Runners]) -> None:
        if int(self.state.step) == self.options.total_draws * self.options.steps_between_draws - 1:
            self.traces.gradient_noise = self.noise_left(pool)
        super().step(pool)

    def add_gradients(self, pool: Workers[Runners]) -> None:
        samples = self.minibatches()
        self.accumulate_gradients(pool, samples, range(self.plan.chains), int(self.tile))
        self.add_to_chains(slice(None), self.full_gradient - self.gradient_at_center(pool, samples[:1]))

    def gradient_at_center(self, pool: Workers[Runners], samples: Tensor) -> Tensor:
        """That of a minibatch `samples` `[1, batch]`, of all components, in the places of `bank.centers`."""
        self.center.bank.grads.zero_()
        self.center.accumulate_gradients(pool, samples, range(1), 1)
        return self.center.bank.grads

    def add_to_chains(self, chains: slice, values: Tensor) -> None:
        """Add a component's own of `values`, in the places of `bank.centers`, to the gradients of some chains."""
        each = self.plan.chains * len(self.plan.settings)
        for component, own in enumerate(values.tensor_split(self.center.bank.starts[1:-1])):
            first = component * each
            rows = self.bank.grads[self.bank.starts[first] : self.bank.starts[first + each]]
            rows.view(len(self.plan.settings), self.plan.chains, -1)[:, chains] += own

    def noise_left(self, pool: Workers[Runners]) -> Tensor:
        """Variance over minibatches of the gradient where the chains are, a coordinate: `[cells, 2]`, the first NaN.

        Half the mean square of the difference between two minibatches of each chain's own.
        """
        plan, bank, size, state = self.plan, self.bank, self.options.batch_size, self.state
        count, chains = sample_count(self.posterior.data), torch.arange(plan.chains, device=self.reference.device)
        one, other = (minibatch(state.seed, chains, state.step + ahead, size, count) for ahead in (0, 1))
        self.accumulate_gradients(pool, one, range(plan.chains), int(self.tile))
        bank.grads.neg_()
        self.accumulate_gradients(pool, other, range(plan.chains), int(self.tile))
        for chain in range(plan.chains):
            change = self.gradient_at_center(pool, one[chain, None]).clone()
            change -= self.gradient_at_center(pool, other[chain, None])
            self.add_to_chains(slice(chain, chain + 1), change)
        variance = bank.by_row(bank.grads.square()).cpu() / torch.tensor(bank.starts, dtype=torch.int64).diff() / 2
        bank.grads.zero_()
        healthy = variance.masked_fill(self.traces.diverged, torch.nan).view(plan.cells, plan.chains).nanmean(1)
        return torch.stack((torch.full_like(healthy, torch.nan), healthy), 1).double()


def controlled_ensemble(
    posterior: LocalPosterior,
    sampler: Sampler,
    plan: ChainPlan,
    sets: list[EvaluationSet],
    options: Options,
    pool: Workers[Runners],
) -> ControlledEnsemble:
    """An ensemble with all chains at w*, and the gradient of all data there."""
    chains = torch_ensemble(posterior, sampler, plan, sets, options, pool)
    at_center = replace(plan, chains=1, antithetic=False, groups=1, settings=plan.settings[:1])
    center = replace(
        chains,
        plan=at_center,
        bank=ChainBank(at_center, dict(posterior.model.named_parameters())),
        traces=ChainTraces.empty(at_center, 0),
    )
    count = sample_count(posterior.data)

    def share(model: nn.Module, batch: Batch, samples: Tensor) -> Tensor:
        """What some samples contribute to the mean over all."""
        return posterior.mean_loss(model, batch, samples) * (len(samples) / count)

    for part in torch.arange(count, device=posterior.device).split(max(RECORDING_BATCH, options.batch_size)):
        center.accumulate_gradients(pool, part[None], range(1), 1, share)
    given = {each.name: getattr(chains, each.name) for each in fields(chains) if each.init}
    return ControlledEnsemble(**given, center=center, full_gradient=center.bank.grads.clone())


def check_control_variates(posterior: LocalPosterior, sampler: Sampler, options: Options) -> None:
    """Raise ValueError where control variates are wanted with what they do not go with."""
    if not options.control_variates:
        return
    if not options.shared_minibatches:
        raise ValueError(
            "control_variates takes one gradient at w* for all chains, so they must share minibatches: "
            "pass shared_minibatches=True too"
        )
    if isinstance(sampler, SGLD) and sampler.gradient_noise_correction:
        raise ValueError(
            f"control_variates does not go with gradient_noise_correction, got {sampler!r}: choose one; "
            f"pass SGLD(lr={sampler.lr})"
        )
    if posterior.random_loss:
        raise ValueError(
            "control_variates needs the same loss at every evaluation, got a random one: make the loss deterministic, "
            "or leave control_variates out"
        )
