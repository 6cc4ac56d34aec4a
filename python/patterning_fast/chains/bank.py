"""The bank: all chains as rows of one flat buffer, which one launch advances."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from patterning_fast.chains.plan import ChainPlan
from patterning_fast.posterior.components import coordinates


class ChainBank:
    """Rows of float32 parameters, all starting at w*; a row holds only what its component moves.

    `params` and `grads` are flat `[total]`; what autograd sees are views. `centers` holds each component's w* once.
    """

    def __init__(self, plan: ChainPlan, parameters: Mapping[str, Tensor]) -> None:
        self.plan = plan
        base = {name: tensor.detach() for name, tensor in parameters.items()}
        device = next(iter(base.values())).device
        packed = [
            torch.cat([values.flatten() for values in coordinates(each, base).values()]) for each in plan.components
        ]
        rows_each = plan.chains * len(plan.settings)
        sizes = torch.tensor([row.numel() for row in packed], dtype=torch.int64)
        self.centers = torch.cat(packed)
        self.params = torch.cat([row.repeat(rows_each) for row in packed])
        self.grads = torch.zeros_like(self.params)
        zero = torch.zeros(1, dtype=torch.int64)
        self.row_starts = torch.cat((zero, sizes.repeat_interleave(rows_each).cumsum(0))).to(device)
        first = torch.cat((zero, sizes.cumsum(0)[:-1]))
        self.center_starts = first.repeat_interleave(rows_each).to(device)
        self.starts = self.row_starts.tolist()
        self.shapes = [
            {name: base[name].shape if index is None else index.shape for name, index in each.coordinates.items()}
            for each in plan.components
        ]

    def leaves(self, rows: slice) -> dict[str, Tensor]:
        """Leaf tensors `[rows, ...]` of rows of one component, one for each parameter it moves in: views of the bank.

        What a parameter moves only in part is a vector of its moving coordinates.
        """
        return {name: leaf.requires_grad_() for name, leaf in self.views(self.params, rows).items()}

    def views(self, flat: Tensor, rows: slice) -> dict[str, Tensor]:
        """Views `[rows, ...]` of `params` or `grads`, by parameter, on rows of one component."""
        here = flat[self.starts[rows.start] : self.starts[rows.stop]].view(rows.stop - rows.start, -1)
        return self.by_parameter(here, self.plan.component(rows.start))

    def by_parameter(self, places: Tensor, component: int) -> dict[str, Tensor]:
        """Views of a component's coordinates `[..., coordinates]`, by parameter."""
        shapes = self.shapes[component]
        parts = places.split([shape.numel() for shape in shapes.values()], -1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def center(self, component: int) -> Tensor:
        """A component's w* `[coordinates]`."""
        row = component * self.plan.chains * len(self.plan.settings)
        start = int(self.center_starts[row])
        return self.centers[start : start + self.starts[row + 1] - self.starts[row]]

    def add_gradients(self, total: Tensor, leaves: dict[str, Tensor], rows: slice) -> None:
        """Add the gradient of `total` by the leaves of some rows to the bank, 0 where it does not depend on them."""
        if total.requires_grad:
            grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            for own, grad in zip(self.views(self.grads, rows).values(), grads, strict=True):
                if grad is not None:
                    own += grad

    def by_row(self, values: Tensor) -> Tensor:
        """Sums over each row of numbers in the places of `params`, `[rows]`."""
        found, each = [], self.plan.chains * len(self.plan.settings)
        for first in range(0, self.plan.rows, each):
            found.append(values[self.starts[first] : self.starts[first + each]].view(each, -1).sum(1))
        return torch.cat(found)

    def spread(self, of_rows: Tensor) -> Tensor:
        """A value of each row `[rows]`, at all its places in `params`."""
        return of_rows.repeat_interleave(self.row_starts.diff(), output_size=self.params.numel())

    def distances(self) -> Tensor:
        """|w − w*| of each row, `[rows]`."""
        found, each = [], self.plan.chains * len(self.plan.settings)
        centers = self.center_starts.tolist()
        for first in range(0, self.plan.rows, each):
            rows = self.params[self.starts[first] : self.starts[first + each]].view(each, -1)
            center = self.centers[centers[first] :][: rows.shape[1]]
            found.append((rows - center).norm(dim=1))
        return torch.cat(found)
