"""Sets of samples whose losses are taken at every draw, with the places their losses have among all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from patterning_fast.domains import shown
from patterning_fast.engine.recording import recalled
from patterning_fast.engine.suffix import Recorded, Runner, Suffix
from patterning_fast.engine.workers import Workers
from patterning_fast.posterior.data import MOST_SAMPLES, check_data, held, present_in, sample_count, take, to_device
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Batch, Data

LOSS_SAMPLES = "samples of L"
"""Name of the evaluation set that is only there for L."""

EVALUATED_TOGETHER = 4096
"""Losses per forward pass where only losses are wanted: so many that what Python takes for one is little beside it."""

Precision = Literal["float32", "bfloat16"]


def computing_in(precision: Precision, device: torch.device) -> torch.autocast:
    """Where matrix products are made in a precision; sums, norms and losses stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@dataclass(frozen=True)
class EvaluationSet:
    """Samples whose losses are taken at every draw."""

    name: str
    data: Batch
    columns: slice
    loss_shape: tuple[int, ...]
    present: Tensor | None = None
    """Which losses there are, bool `[samples, *loss_shape]`; None for all. Others have no column."""

    def losses(
        self,
        posterior: LocalPosterior,
        suffix: Suffix,
        runner: Runner,
        moved: Mapping[str, Tensor],
        recorded: Recorded,
        out: Tensor,
    ) -> None:
        """Write this set's losses on `moved` `[chains, ...]` into its columns of `out` `[chains, losses]`."""
        chains, at = len(out), self.columns.start
        with torch.no_grad():
            for here in self.parts():
                batch, known = take(self.data, here), recalled(recorded, suffix, here)

                def one(moved: Mapping[str, Tensor], batch: Batch = batch, known: Recorded = known) -> Tensor:
                    return runner.run(lambda model: posterior.loss(model, batch), moved, known).flatten()

                losses = self.those_present(on_chains(one, chains, moved, random=posterior.random_loss), here)
                out[:, at : at + losses.shape[1]] = losses
                at += losses.shape[1]

    def those_present(self, losses: Tensor, here: slice) -> Tensor:
        """Of losses `[..., samples · losses a sample]` of some samples, those that are there."""
        return losses if self.present is None else losses[..., self.present[here].flatten()]

    def parts(self) -> list[slice]:
        """The samples, in slices that are evaluated together."""
        samples = max(1, EVALUATED_TOGETHER // math.prod(self.loss_shape))
        return [slice(start, start + samples) for start in range(0, sample_count(self.data), samples)]

    def coordinates(self) -> dict[str, np.ndarray]:
        """Where each loss comes from: `probe`, `sample` and, for losses per token, `position`."""
        index = np.indices((sample_count(self.data), *self.loss_shape)).reshape(1 + len(self.loss_shape), -1)
        if self.present is not None:
            index = index[:, self.present.flatten().cpu().numpy()]
        places = zip(("sample", "position"), index.astype(np.int32), strict=False)
        return {"probe": np.full(index.shape[1], self.name), **dict(places)}


def on_chains(function: Callable[..., Tensor], chains: int, *arguments: Any, random: bool = False) -> Tensor:
    """`function` of each chain's arguments, trees of tensors with a first dimension of chains; results likewise.

    Where it is `random`, each chain has random numbers of its own.
    """
    if chains > 1:
        return vmap(function, randomness="different" if random else "error")(*arguments)
    return function(*tree_map(lambda tensor: tensor.squeeze(0), arguments)).unsqueeze(0)


def joint_coordinates(sets: list[EvaluationSet]) -> dict[str, np.ndarray]:
    """The coordinates of the losses of all sets, which must all be per sample or all per token."""
    tables = [each.coordinates() for each in sets]
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def lay_out_sets(
    posterior: LocalPosterior, probes: Mapping[str, Data] | None, loss_samples: int | Tensor | None, seed: int
) -> tuple[list[EvaluationSet], EvaluationSet]:
    """The probes, and the set whose mean loss is L: one of the probes where that is the posterior's very data."""
    device = posterior.device
    wanted = {"data": posterior.data} if probes is None else probes
    for name, data in wanted.items():
        check_data(f"probes[{name!r}]", data, posterior.model)
    sets = {name: to_device(held(f"probes[{name!r}]", data), str(device)) for name, data in wanted.items()}
    own = [name for name, data in wanted.items() if data is posterior.data]
    indices = loss_indices(posterior, loss_samples, seed)
    if indices is not None:
        own = []
    more = []
    if not own:
        loss_data = held("data", posterior.data) if indices is None else take(posterior.data, indices)
        more.append((LOSS_SAMPLES, loss_data))
    laid_out = evaluation_sets(posterior, [*sets.items(), *more])
    return laid_out[: len(sets)], laid_out[list(sets).index(own[0])] if own else laid_out[-1]


def loss_indices(posterior: LocalPosterior, loss_samples: int | Tensor | None, seed: int) -> Tensor | None:
    """The posterior's samples that L is taken on, int64, from their number or indices; None for all."""
    count = sample_count(posterior.data)
    if isinstance(loss_samples, int):
        if loss_samples < 1:
            raise ValueError(f"loss_samples must be at least 1, got {loss_samples}")
        if loss_samples >= count:
            return None
        if count > MOST_SAMPLES:  # made on the spot, and independent: the first are as good as any
            loss_samples = torch.arange(loss_samples)
        else:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            loss_samples = order[:loss_samples].sort().values
    if loss_samples is None:
        return None
    if loss_samples.dtype != torch.int64:
        raise TypeError(f"loss_samples must be int64 indices, got {loss_samples.dtype}; pass loss_samples.long()")
    if loss_samples.dim() != 1 or not loss_samples.numel() or not 0 <= loss_samples.min() <= loss_samples.max() < count:
        raise ValueError(
            f"loss_samples must be indices [samples] of the posterior's {count} samples, got "
            f"{shown(loss_samples.tolist())}; they lie in [0, {count})"
        )
    if len(loss_samples.unique()) < len(loss_samples):
        raise ValueError(
            f"loss_samples must be distinct, got {len(loss_samples) - len(loss_samples.unique())} twice; "
            "pass loss_samples.unique()"
        )
    return loss_samples.to(posterior.device)


def evaluation_sets(posterior: LocalPosterior, sets: list[tuple[str, Batch]]) -> list[EvaluationSet]:
    """The sets in order, each with its columns."""
    laid_out, start = [], 0
    for name, data in sets:
        shape = posterior.loss_shape(data)
        present = present_in(posterior.loss, data, shape)
        count = sample_count(data) * int(np.prod(shape, dtype=int)) if present is None else int(present.sum())
        stop = start + count
        laid_out.append(EvaluationSet(name, data, slice(start, stop), shape, present))
        start = stop
    return laid_out


def joined(sets: list[EvaluationSet], posterior: LocalPosterior) -> list[EvaluationSet]:
    """The same losses in fewer sets: neighbours whose samples are alike are one, while one forward pass takes both.

    The posterior's own data stays a set of its own, as what is recalled of it serves the gradients too.
    """
    result = sets[:1]
    for each in sets[1:]:
        last = result[-1]
        alike = (
            isinstance(last.data, Tensor)
            and isinstance(each.data, Tensor)
            and last.present is None
            and each.present is None
            and (last.data.shape[1:], last.data.dtype) == (each.data.shape[1:], each.data.dtype)
            and each.columns.stop - last.columns.start <= EVALUATED_TOGETHER
            and not any(data is posterior.data for data in (last.data, each.data))
        )
        if alike:
            data = torch.cat([last.data, each.data])  # type: ignore[list-item]
            columns = slice(last.columns.start, each.columns.stop)
            result[-1] = EvaluationSet(f"{last.name}, {each.name}", data, columns, last.loss_shape)
        else:
            result.append(each)
    return result


def losses_at_center(
    posterior: LocalPosterior, sets: list[EvaluationSet], pool: Workers[Any], precision: Precision
) -> Tensor:
    """Losses `[losses]` of all sets at w*; raises ValueError that names the samples where one is not finite."""
    losses = torch.empty(sets[-1].columns.stop, dtype=torch.float32, device=posterior.device)

    def one(_: Any, each: EvaluationSet) -> None:
        at = each.columns.start
        with torch.no_grad(), computing_in(precision, losses.device):
            for here in each.parts():
                values = each.those_present(posterior.loss(posterior.model, take(each.data, here)).flatten(), here)
                losses[at : at + values.numel()] = values
                at += values.numel()

    pool.each(one, sets)
    for each in sets:
        broken = ~torch.isfinite(losses[each.columns]).cpu().numpy()
        if broken.any():
            samples = np.unique(each.coordinates()["sample"][broken]).tolist()
            shown = ", ".join(map(str, samples[:10])) + (", ..." if len(samples) > 10 else "")
            raise ValueError(
                f"{each.name}: the loss at w* is not finite for {len(samples)} samples (at {shown}); "
                "mend or remove them: one such sample would spoil every estimate"
            )
    return losses
