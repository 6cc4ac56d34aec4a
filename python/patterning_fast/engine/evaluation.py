"""Losses of fixed sets of samples, at w* and on a chain's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from patterning_fast.engine.workers import Workers
from patterning_fast.posterior.data import sample_count, take
from patterning_fast.posterior.local_posterior import LocalPosterior, LossModule
from patterning_fast.posterior.losses import Batch

EVALUATION_BATCH = 64
"""Samples per forward pass where only losses are wanted: enough to fill vectors, few enough to stay in cache."""


def losses_on(module: LossModule, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Losses `[batch]` or `[batch, tokens]` of a batch on the given parameters of the model."""
    return functional_call(module, {f"model.{name}": tensor for name, tensor in parameters.items()}, (batch,))


@dataclass(frozen=True)
class EvaluationSet:
    """Samples whose losses are taken at every draw, with the places their losses have among all."""

    name: str
    data: Batch
    columns: slice
    loss_shape: tuple[int, ...]

    def losses(self, module: LossModule, parameters: Mapping[str, Tensor], out: Tensor) -> None:
        """Write this set's losses into its columns of `out` `[losses]`."""
        at = self.columns.start
        with torch.no_grad():
            for start in range(0, sample_count(self.data), EVALUATION_BATCH):
                losses = losses_on(module, parameters, take(self.data, slice(start, start + EVALUATION_BATCH)))
                out[at : at + losses.numel()] = losses.flatten()
                at += losses.numel()

    def coordinates(self) -> dict[str, np.ndarray]:
        """Where each loss comes from: `probe`, `sample` and, for losses per token, `position`."""
        index = np.indices((sample_count(self.data), *self.loss_shape)).reshape(1 + len(self.loss_shape), -1)
        places = zip(("sample", "position"), index.astype(np.int32), strict=False)
        return {"probe": np.full(index.shape[1], self.name), **dict(places)}


def joint_coordinates(sets: list[EvaluationSet]) -> dict[str, np.ndarray]:
    """The coordinates of the losses of all sets, which must all be per sample or all per token."""
    tables = [each.coordinates() for each in sets]
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def evaluation_sets(posterior: LocalPosterior, sets: list[tuple[str, Batch]]) -> list[EvaluationSet]:
    """The sets in order, each with its columns."""
    laid_out, start = [], 0
    for name, data in sets:
        shape = posterior.loss_shape(data)
        stop = start + sample_count(data) * int(np.prod(shape, dtype=int))
        laid_out.append(EvaluationSet(name, data, slice(start, stop), shape))
        start = stop
    return laid_out


def losses_at_center(posterior: LocalPosterior, sets: list[EvaluationSet], pool: Workers) -> Tensor:
    """Losses `[losses]` of all sets at w*; raises ValueError that names the samples where one is not finite."""
    parameters = dict(posterior.model.named_parameters())
    losses = torch.empty(sets[-1].columns.stop, device=next(iter(parameters.values())).device)
    pool.each(lambda module, at: sets[at].losses(module, parameters, losses), range(len(sets)))
    for each in sets:
        broken = ~torch.isfinite(losses[each.columns]).view(sample_count(each.data), -1).all(1)
        if bool(broken.any()):
            samples = broken.nonzero().squeeze(1).tolist()
            shown = ", ".join(map(str, samples[:10])) + (", ..." if len(samples) > 10 else "")
            raise ValueError(
                f"{each.name}: the loss at w* is not finite for {len(samples)} samples (at {shown}); "
                "mend or remove them: one such sample would spoil every estimate"
            )
    return losses
