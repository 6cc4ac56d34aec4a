"""The streaming statistics of a run: totals of losses, observables and their products, by group of chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from patterning_fast import ops


class Means(NamedTuple):
    """Means over the draws of each group, about the shifts; float64."""

    loss: Tensor
    """E[l], `[groups, losses]`."""
    observable: Tensor
    """E[φ], `[groups, observables]`."""
    cross: Tensor
    """E[φl], `[groups, observables, losses]`."""
    square: Tensor
    """E[φφᵀ], `[groups, observables, observables]`."""

    def of(self, group: int) -> Means:
        """Means of one group."""
        return Means(*(each[group] for each in self))


@dataclass
class Comoments:
    """Totals that `ops.comoments_update` adds to: memory does not grow with draws."""

    loss_shift: Tensor
    observable_shift: Tensor
    count: Tensor
    loss_sum: Tensor
    observable_sum: Tensor
    cross: Tensor
    observable_square: Tensor

    @classmethod
    def zeros(cls, groups: int, loss_shift: Tensor, observable_shift: Tensor) -> Comoments:
        """Empty totals for `groups` about the shifts `[losses]` and `[observables]`."""
        n, k = loss_shift.numel(), observable_shift.numel()

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=loss_shift.device)

        return cls(
            loss_shift, observable_shift, empty(groups), empty(groups, n), empty(groups, k), empty(groups, k, n),
            empty(groups, k, k),
        )  # fmt: skip

    def update(self, losses: Tensor, observables: Tensor, groups: Tensor) -> None:
        """Add one draw of some chains: losses `[chains, losses]`, observables `[chains, observables]`."""
        ops.comoments_update(losses, observables, self.loss_shift, self.observable_shift, groups, *self.tensors())

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What draws are added to, in the order of the op."""
        return self.count, self.loss_sum, self.observable_sum, self.cross, self.observable_square

    def merge(self, other: Comoments) -> Comoments:
        """Totals of the draws of both, of the same groups about the same shifts.

        Raises ValueError naming what differs: a shape, or a shift (see `reshift`).
        """
        for name, own in vars(self).items():
            theirs = getattr(other, name)
            if theirs.shape != own.shape:
                raise ValueError(
                    f"merge: {name} has shapes {list(own.shape)} and {list(theirs.shape)}; they must agree"
                )
        for name in ("loss_shift", "observable_shift"):
            if not torch.equal(getattr(self, name), getattr(other, name)):
                raise ValueError(f"merge: {name} differs; bring one to the other's with reshift first")
        totals = {name: own + getattr(other, name) for name, own in vars(self).items() if not name.endswith("_shift")}
        return replace(self, **totals)

    def reshift(self, loss_shift: Tensor, observable_shift: Tensor) -> Comoments:
        """The same draws about other shifts, float32 `[losses]` and `[observables]`, by exact algebra in float64.

        Raises ValueError where a shift's shape or dtype is not that of the old one.
        """
        for name, new in (("loss_shift", loss_shift), ("observable_shift", observable_shift)):
            old = getattr(self, name)
            if new.shape != old.shape or new.dtype != old.dtype:
                raise ValueError(
                    f"reshift: {name} is {new.dtype} of shape {list(new.shape)}, "
                    f"but must be {old.dtype} of shape {list(old.shape)}"
                )
        loss = loss_shift.double() - self.loss_shift.double()
        phi = observable_shift.double() - self.observable_shift.double()
        loss_sum = self.loss_sum - self.count[:, None] * loss
        observable_sum = self.observable_sum - self.count[:, None] * phi
        return Comoments(
            loss_shift,
            observable_shift,
            self.count.clone(),
            loss_sum,
            observable_sum,
            # Σ(φ − p)(l − d) = Σφl − p Σl − Σ(φ − p) d, and so for φφᵀ.
            self.cross - phi[:, None] * self.loss_sum[:, None, :] - observable_sum[:, :, None] * loss,
            self.observable_square - phi[:, None] * self.observable_sum[:, None, :] - observable_sum[:, :, None] * phi,
        )

    def means(self, groups: slice | Tensor) -> Means:
        """Means of some of the groups."""
        count = self.count[groups]
        return Means(
            self.loss_sum[groups] / count[:, None],
            self.observable_sum[groups] / count[:, None],
            self.cross[groups] / count[:, None, None],
            self.observable_square[groups] / count[:, None, None],
        )

    def of_observables(self) -> Comoments:
        """The same totals without losses, for what is about observables alone; views, not copies."""
        return replace(
            self,
            loss_shift=self.loss_shift[:0],
            loss_sum=self.loss_sum[:, :0],
            cross=self.cross[..., :0],
        )

    def of_losses(self) -> Comoments:
        """The same totals without observables; views, not copies."""
        return replace(
            self,
            observable_shift=self.observable_shift[:0],
            observable_sum=self.observable_sum[:, :0],
            cross=self.cross[:, :0],
            observable_square=self.observable_square[:, :0, :0],
        )

    def joined(self, groups: Tensor, number: int) -> Comoments:
        """Totals of `number` new groups, the sum of those that `groups` `[own groups]` deals to each; −1 for none."""
        kept = groups >= 0
        totals = {
            name: torch.zeros(number, *own.shape[1:], dtype=own.dtype, device=own.device).index_add_(
                0, groups[kept], own[kept]
            )
            for name, own in vars(self).items()
            if not name.endswith("_shift")
        }
        return replace(self, **totals)


def pseudo_values(statistic: Callable[[Means], Tensor], groups: Means) -> Tensor:
    """Jackknife pseudo-values `[groups, ...]` of a statistic of overall means, from groups independent of each other.

    `statistic` maps means without the group dimension to a tensor. The mean of the pseudo-values is free of the
    1/groups bias of the plug-in value; for covariances it is exactly unbiased, however correlated the draws within a
    group are (it pairs φ̄ and l̄ of different groups only). Source: Efron & Tibshirani 1993, §11.
    """
    number = len(groups.loss)
    totals = Means(*(tensor.sum(0) for tensor in groups))
    plug_in = statistic(Means(*(total / number for total in totals)))

    def without(group: int) -> Means:
        return Means(*((total - tensor[group]) / (number - 1) for total, tensor in zip(totals, groups, strict=True)))

    return torch.stack([number * plug_in - (number - 1) * statistic(without(group)) for group in range(number)])


def unbiased_covariance(groups: Means) -> Tensor:
    """Cov[φ, l] `[observables, losses]` of independent groups, in which φ̄ and l̄ only meet those of other groups.

    The mean of the pseudo-values of the covariance, in one pass.
    """
    number = len(groups.loss)
    total = groups.observable.sum(0)[:, None] * groups.loss.sum(0)
    own = torch.einsum("gk,gn->kn", groups.observable, groups.loss)
    return groups.cross.mean(0) - (total - own) / (number * (number - 1))


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over independent groups `[groups, ...]` and its standard error."""
    return values.mean(0), values.std(0) / len(values) ** 0.5
