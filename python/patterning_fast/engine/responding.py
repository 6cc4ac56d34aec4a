"""What responses are taken of: the losses that are followed, the observable's gradient, and the ensembles that run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from patterning_fast.callbacks import calling
from patterning_fast.chains.plan import ChainPlan
from patterning_fast.engine.ensemble import Ensemble
from patterning_fast.engine.evaluation import EvaluationSet, joined, lay_out_sets, loss_indices
from patterning_fast.engine.native_ensemble import native_ensemble
from patterning_fast.engine.options import Options
from patterning_fast.engine.recording import Recordings, Runners, recordings
from patterning_fast.engine.suffix import WholeModel
from patterning_fast.engine.sweep import Gradients, Wanted
from patterning_fast.engine.torch_ensemble import TorchEnsemble, torch_ensemble
from patterning_fast.engine.trajectory import Storage
from patterning_fast.engine.workers import Workers
from patterning_fast.ops.reference.minibatch import minibatch
from patterning_fast.ops.reference.philox import Stream
from patterning_fast.posterior.components import Component
from patterning_fast.posterior.data import sample_count
from patterning_fast.posterior.dense import NotDense
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Batch, Probes
from patterning_fast.posterior.observables import Observable, values_at_center
from patterning_fast.samplers.langevin import Sampler
from patterning_fast.samplers.sgld import SGLD


@dataclass
class Responding:
    """All that is the same for every wave of chains."""

    posterior: LocalPosterior
    sampler: Sampler
    plan: ChainPlan
    """Of all components, and the chains of one wave."""
    probe_sets: list[EvaluationSet]
    loss_set: EvaluationSet
    observable: Mapping[str, Observable]
    loss_indices: Tensor | None
    options: Options
    trajectory_bytes: int
    engine: str = "torch"
    tile: Tensor = field(default_factory=lambda: torch.tensor(0, dtype=torch.int64))
    """That of the first wave, for all; 0 until it is measured."""
    recorded: Recordings | None = None

    @property
    def native(self) -> bool:
        return self.engine == "native"

    @property
    def follows_loss(self) -> bool:
        """Whether L is among the losses that are evaluated."""
        return self.native or self.loss_set in self.probe_sets

    @property
    def sets(self) -> list[EvaluationSet]:
        """Those that are evaluated."""
        return (
            [*self.probe_sets, self.loss_set]
            if self.native and self.loss_set not in self.probe_sets
            else self.probe_sets
        )

    @property
    def storage(self) -> Storage:
        return Storage(
            self.options.total_draws * self.options.steps_between_draws + 1, not isinstance(self.sampler, SGLD)
        )

    def coordinates(self, components: list[int]) -> int:
        """Numbers that one chain of each of some components moves."""
        parameters = dict(self.posterior.model.named_parameters())
        return sum(self.plan.components[each].size(parameters) for each in components)

    def chains_at_once(self, components: list[int], chains: int, pool: Workers[Runners]) -> int:
        """Chains of some components that run together: as many as can keep all their steps.

        Where that leaves workers idle, more, whose steps are made again. Raises ValueError where there is no memory
        for one of each.
        """
        storage, most, together = self.storage, self.trajectory_bytes, self.plan.chains_per_draw
        each = self.coordinates(components) * together
        keeping, least = most // (each * storage.bytes(storage.steps)), most // (each * storage.least)
        if least < 1:
            raise ValueError(
                f"the steps of one chain of each component take {each * storage.least / 2**20:.1f} MiB at the least, "
                f"more than trajectory_bytes ({most / 2**20:.1f} MiB): ask for fewer components or draws at a time, or "
                "raise trajectory_bytes"
            )
        busy = chains if self.posterior.device.type == "cuda" else -(-pool.count // (len(components) * together))
        return min(chains // together, max(keeping, min(busy, least))) * together

    def keep_every(self, components: list[int], chains: int) -> int:
        """Of how many steps of some chains one is kept, and those between it and the next made again."""
        every = self.storage.keep_every(self.coordinates(components) * chains, self.trajectory_bytes)
        return every or 1

    def ensemble(self, components: list[int], chains: int, first: int, pool: Workers[Runners]) -> Ensemble:
        """Chains of some components at w*, the first of them number `first`."""
        together = self.plan.chains_per_draw
        some = replace(
            self.plan, components=[self.plan.components[each] for each in components], chains=chains,
            groups=chains // together, first_unit=first // together,
        )  # fmt: skip
        options = replace(self.options, chains=chains)
        if self.native:
            return native_ensemble(self.posterior, self.sampler, some, self.sets, options, pool)
        if self.recorded is None:
            data = [each.data for each in joined(self.sets, self.posterior)]
            self.recorded = recordings(self.posterior, self.plan.components, data, options.recording_bytes, pool)
        own = replace(self.recorded, suffixes=[self.recorded.suffixes[each] for each in components])
        moving = torch_ensemble(self.posterior, self.sampler, some, self.sets, options, pool, own)
        if int(self.tile) == 0:
            moving.measure_tile(pool)
            self.tile.copy_(moving.tile)
        moving.tile.copy_(self.tile)
        return moving

    def wanted(self, moving: Ensemble) -> Wanted:
        """What is differentiated along the chains of an ensemble."""
        columns = self.loss_set.columns if self.follows_loss else None
        gradient: Gradients | None = None
        if self.observable:
            assert isinstance(moving, TorchEnsemble)
            (function,) = self.observable.values()
            gradient = ObservableGradient(moving, function)
        elif self.posterior.weights is not None or self.loss_indices is not None:
            assert isinstance(moving, TorchEnsemble)
            gradient = LossGradient(moving, self.loss_indices)
        loss_gradient: Gradients | None = None
        if columns is None:
            assert isinstance(moving, TorchEnsemble)
            same = isinstance(gradient, LossGradient)
            loss_gradient = gradient if same else LossGradient(moving, self.loss_indices)
        return Wanted(gradient=gradient, loss_gradient=loss_gradient, loss_columns=columns)


@dataclass
class LossGradient:
    """Of L, unweighted, on a minibatch of twice the samples of a step's, or on all where these are no more."""

    moving: TorchEnsemble
    indices: Tensor | None
    """The posterior's samples that L is taken on; None for all."""

    def __call__(self, pool: Workers[Runners], params: Tensor, number: int) -> Tensor:
        moving, posterior = self.moving, self.moving.posterior
        count = sample_count(posterior.data) if self.indices is None else len(self.indices)
        replicas = moving.plan.replica_units().to(moving.reference.device)
        at, most = torch.tensor(number, dtype=torch.int64, device=replicas.device), 2 * moving.options.batch_size
        if count <= most:
            samples = torch.arange(count, device=replicas.device).expand(len(replicas), count)
        else:
            samples = minibatch(moving.state.seed, replicas, at, most, count, Stream.observable)
        if self.indices is not None:
            samples = self.indices[samples]

        share = posterior.share_present(self.indices)

        def unweighted(model: nn.Module, batch: Batch, samples: Tensor) -> Tensor:
            return posterior.mean_unweighted(model, batch, samples, share)

        moving.bank.params.copy_(params)
        moving.accumulate_gradients(pool, samples, range(moving.plan.chains), int(moving.tile), unweighted)
        gradient = moving.bank.grads.clone()
        moving.bank.grads.zero_()
        return gradient


@dataclass
class ObservableGradient:
    """Of a function of the model."""

    moving: TorchEnsemble
    function: Observable
    whole: list[WholeModel] = field(init=False)

    def __post_init__(self) -> None:
        self.whole = [WholeModel(component) for component in self.moving.plan.components]

    def __call__(self, pool: Workers[Runners], params: Tensor, number: int) -> Tensor:
        moving = self.moving
        moving.bank.params.copy_(params)

        def one(runners: Runners, row: int) -> None:
            rows = slice(row, row + 1)
            leaves = moving.bank.leaves(rows)
            moved = {name: leaf[0] for name, leaf in leaves.items()}
            with torch.enable_grad():
                value = runners[self.whole[moving.plan.component(row)]].run(self.function, moved, {})
                moving.bank.add_gradients(value.sum(), leaves, rows)

        pool.each(one, [row for row in range(moving.plan.rows) if not moving.traces.diverged[row]])
        gradient = moving.bank.grads.clone()
        moving.bank.grads.zero_()
        return gradient


def responding(
    posterior: LocalPosterior,
    sampler: Sampler,
    plan: ChainPlan,
    probes: Probes | None,
    observable: Mapping[str, Observable] | None,
    loss_samples: int | Tensor | None,
    options: Options,
    trajectory_bytes: int,
    pool: Workers[Runners],
) -> Responding:
    """What is the same for all waves; raises ValueError where the engine wanted, or the memory, cannot run it."""
    probe_sets, loss_set = lay_out_sets(posterior, probes, loss_samples, options.seed)
    indices = loss_indices(posterior, loss_samples, options.seed)
    result = Responding(
        posterior, sampler, plan, probe_sets, loss_set, dict(observable or {}), indices, options, trajectory_bytes
    )
    if observable:
        values_at_center(posterior.model, observable)
        check_gradients(posterior, plan.components, observable)
    result.chains_at_once(list(range(len(plan.components))), plan.chains, pool)
    if options.engine != "torch":
        try:
            if observable:
                raise NotDense(
                    f"the observable ({', '.join(observable)}) is a function of the model, which torch calls"
                )
            if posterior.weights is not None or indices is not None:
                raise NotDense("φ is not the loss that the chains feel: data have weights, or loss_samples are given")
            native_ensemble(posterior, sampler, plan, [*probe_sets, loss_set], options, pool)
            result.engine = "native"
        except NotDense as why:
            if options.engine == "native":
                raise ValueError(f'engine="native" cannot run this: {why}; engine="auto" runs it in torch') from None
            result.engine = f"torch: {why}"
    return result


def check_gradients(
    posterior: LocalPosterior, components: list[Component], observable: Mapping[str, Observable]
) -> None:
    """Raise ValueError for an observable that no component's parameters have a gradient of."""
    ((name, function),) = observable.items()
    moving = {each for component in components for each in component.coordinates}
    parameters = dict(posterior.model.named_parameters())
    leaves = [parameters[each] for each in sorted(moving)]
    try:
        for leaf in leaves:
            leaf.requires_grad_()
        with torch.enable_grad(), calling(f"observable[{name!r}]", "take the model and return a tensor of one number"):
            value = function(posterior.model)
        grads = torch.autograd.grad(value.sum(), leaves, allow_unused=True) if value.requires_grad else ()
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False)
    if not any(each is not None and bool(each.any()) for each in grads):
        raise ValueError(
            f"observable[{name!r}] has no gradient by what the components move: it may round, count, detach, or leave "
            f"torch; make it differentiable, or use sample(..., observables=...).susceptibilities({name!r})"
        )
