"""Chains whose model torch runs, by the suffix of each component, a tile of them at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from patterning_fast.chains.plan import ChainPlan
from patterning_fast.engine.ensemble import Ensemble, at_center, gradient_noise
from patterning_fast.engine.evaluation import (
    EvaluationSet,
    Precision,
    computing_in,
    joined,
    losses_at_center,
    on_chains,
)
from patterning_fast.engine.options import Options
from patterning_fast.engine.recording import Recordings, Runners, recalled, recordings
from patterning_fast.engine.suffix import Suffix
from patterning_fast.engine.tiles import fastest_tile
from patterning_fast.engine.workers import Workers
from patterning_fast.estimators.traces import ChainTraces
from patterning_fast.ops.reference.minibatch import minibatch
from patterning_fast.posterior.data import sample_count, take
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Batch
from patterning_fast.samplers.langevin import Sampler
from patterning_fast.samplers.sgld import SGLD

BLOCK_BYTES = 64 * 2**20
"""Losses of the chains evaluated before they are added to the totals: small beside the totals themselves."""

MeanLoss = Callable[[nn.Module, Batch, Tensor], Tensor]
"""Mean loss of a model on a minibatch, given its data and its samples' indices."""


@dataclass(kw_only=True)
class TorchEnsemble(Ensemble):
    """Chains whose model torch runs: any there is."""

    recordings: Recordings
    losses: Tensor = field(init=False)
    """Of a block of rows as evaluated last, `[rows of a block, losses]`."""

    def __post_init__(self) -> None:
        row_bytes = 4 * self.reference.numel()
        block = min(self.plan.rows, max(4 * torch.get_num_threads(), BLOCK_BYTES // row_bytes))
        self.losses = self.reference.new_empty(block, self.reference.numel())

    def blocks(self) -> list[range]:
        """All rows, in blocks that are evaluated in turn."""
        starts = range(0, self.plan.rows, len(self.losses))
        return [range(start, min(start + len(self.losses), self.plan.rows)) for start in starts]

    @property
    def evaluated(self) -> list[str]:
        return [suffix.name for suffix in self.recordings.suffixes]

    def advance(self, pool: Workers[Runners], steps: int) -> None:
        for _ in range(steps):
            self.step(pool)

    def step(self, pool: Workers[Runners]) -> None:
        """One step of every chain."""
        if isinstance(self.sampler, SGLD) and self.sampler.gradient_noise_correction:
            self.corrected_updates(pool, self.minibatches())
        else:
            self.add_gradients(pool)
            if not self.options.shared_minibatches and self.plan.units > 1 and int(self.state.step) == 0:
                self.traces.gradient_noise = gradient_noise(self.bank)
            self.sampler.update(self.bank, self.state)

    def add_gradients(self, pool: Workers[Runners]) -> None:
        self.accumulate_gradients(pool, self.minibatches(), range(self.plan.chains), int(self.tile))

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

    def accumulate_gradients(
        self, pool: Workers[Runners], samples: Tensor, chains: range, tile: int, mean_loss: MeanLoss | None = None
    ) -> None:
        """Add the gradients of some replicas' minibatch losses, in all cells, to the bank; `samples` `[chains, batch]`.

        The loss is L_ρ where no other is given.

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
                    losses = self.minibatch_losses(runners, rows, leaves, here, batch, known, mean_loss)
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
        mean_loss: MeanLoss | None = None,
    ) -> Tensor:
        """L_ρ, or another mean loss, `[chains]` of chains on minibatches of their own.

        All tensors have a first dimension of chains.
        """
        mean = mean_loss or self.posterior.mean_loss
        runner = runners[self.suffix(rows.start // self.plan.chains)]

        def loss(moved: Mapping[str, Tensor], samples: Tensor, batch: Batch, known: Mapping[str, Tensor]) -> Tensor:
            return runner.run(lambda model: mean(model, batch, samples), moved, known)

        return on_chains(loss, len(samples), moved, samples, batch, known, random=self.posterior.random_loss)

    def suffix(self, cell: int) -> Suffix:
        return self.recordings.suffixes[cell // len(self.plan.settings)]

    def cells_that_recall_alike(self, parts: int) -> list[list[int]]:
        """Lists of cells that recall the same; such lists are split into `parts`, for workers to share."""
        together: dict[tuple[str, ...], list[int]] = {}
        for cell in range(self.plan.cells):
            together.setdefault(self.suffix(cell).keys, []).append(cell)
        return [cells[part::parts] for cells in together.values() for part in range(min(parts, len(cells)))]

    def evaluate(
        self,
        pool: Workers[Runners],
        block: range,
        precision: Precision,
        observe: Callable[[slice], None] = lambda here: None,
    ) -> None:
        """Write the losses of some rows into the top of `losses`, and `observe` those written as they come."""

        def one(runners: Runners, rows: slice) -> None:
            suffix = self.suffix(rows.start // self.plan.chains)
            here = slice(rows.start - block.start, rows.stop - block.start)
            own, moved = self.losses[here], self.bank.leaves(rows)
            with computing_in(precision, own.device):
                for each, recorded in zip(self.sets, self.recordings.of_sets, strict=True):
                    each.losses(self.posterior, suffix, runners[suffix], moved, recorded, own)
            observe(here)

        tiles = self.plan.tiles(block, int(self.tile))
        pool.each(one, [rows for rows in tiles if not all(self.traces.diverged[rows])])

    def evaluated_rows(self, pool: Workers[Runners]) -> Iterator[tuple[slice, Tensor]]:
        for block in self.blocks():
            self.evaluate(pool, block, "float32")
            yield slice(block.start, block.stop), self.losses[: len(block)]

    def measure_tile(self, pool: Workers[Runners]) -> None:
        """Set the tile: as wanted, or that with which the chains' gradients at w* take least time."""
        if self.options.tile is not None:
            self.tile.fill_(self.options.tile)
            return
        samples = self.minibatches()

        def gradients(tile: int) -> None:
            self.accumulate_gradients(pool, samples, range(min(self.plan.chains, pool.count * tile)), tile)
            self.bank.grads.zero_()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operators that vmap runs one chain after another: the clock tells that
            self.tile.fill_(fastest_tile(self.plan.chains // pool.count, gradients, self.reference.device))


def torch_ensemble(
    posterior: LocalPosterior,
    sampler: Sampler,
    plan: ChainPlan,
    sets: list[EvaluationSet],
    options: Options,
    pool: Workers[Runners],
    recorded: Recordings | None = None,
) -> TorchEnsemble:
    """An ensemble with all chains at w*; what is recorded of its sets may be there already."""
    reference = losses_at_center(posterior, sets, pool, options.precision)
    sets = joined(sets, posterior)
    if recorded is None:
        data = [each.data for each in sets]
        recorded = recordings(posterior, plan.components, data, options.recording_bytes, pool)
    bank, state = at_center(posterior, sampler, plan, options)
    return TorchEnsemble(
        posterior=posterior,
        sampler=sampler,
        plan=plan,
        bank=bank,
        state=state,
        sets=sets,
        recordings=recorded,
        reference=reference,
        traces=ChainTraces.empty(plan, options.draws),
        options=options,
    )
