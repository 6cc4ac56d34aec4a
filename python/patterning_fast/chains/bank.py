"""The bank: all chains as rows of one flat buffer, which one launch advances."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from patterning_fast.chains.plan import ChainPlan


class ChainBank:
    """Rows of float32 parameters, all starting at w*; a row holds only the coordinates that its component moves.

    What autograd sees are views: each row's leaves lie in `params`, and their gradients accumulate in `grads`.
    `params` and `grads` are flat `[total]`; `centers` holds each component's w* once, for all its chains.
    """

    def __init__(self, plan: ChainPlan, parameters: Mapping[str, Tensor]) -> None:
        self.plan = plan
        self.base = {name: tensor.detach() for name, tensor in parameters.items()}
        device = next(iter(self.base.values())).device
        packed = [
            torch.cat(
                [
                    self.base[name].flatten() if index is None else self.base[name].flatten()[index.to(device)]
                    for name, index in each.coordinates.items()
                ]
            )
            for each in plan.components
        ]
        sizes = torch.tensor([row.numel() for row in packed])
        self.centers = torch.cat(packed)
        self.params = torch.cat([row.repeat(plan.chains) for row in packed])
        self.grads = torch.zeros_like(self.params)
        zero = torch.zeros(1, dtype=torch.int64)
        self.row_starts = torch.cat((zero, sizes.repeat_interleave(plan.chains).cumsum(0))).to(device)
        first = torch.cat((zero, sizes.cumsum(0)[:-1]))
        self.center_starts = first.repeat_interleave(plan.chains).to(device)
        self.indices = [
            {name: None if index is None else index.to(device) for name, index in each.coordinates.items()}
            for each in plan.components
        ]
        starts = self.row_starts.tolist()
        self.leaves = [self.make_leaves(row, starts[row]) for row in range(plan.rows)]

    def make_leaves(self, row: int, start: int) -> dict[str, Tensor]:
        """Leaf tensors of a row, one for each parameter it moves in, as views of the bank."""
        leaves = {}
        for name, index in self.indices[self.plan.component(row)].items():
            shape = self.base[name].shape if index is None else index.shape
            stop = start + shape.numel()
            leaf = self.params[start:stop].view(shape).requires_grad_()
            leaf.grad = self.grads[start:stop].view(shape)
            leaves[name] = leaf
            start = stop
        return leaves

    def parameters(self, row: int) -> dict[str, Tensor]:
        """The model's parameters on a row: its leaves, set into w* where a component moves only part of a parameter."""
        leaves = self.leaves[row]
        parameters = dict(self.base)
        for name, index in self.indices[self.plan.component(row)].items():
            whole = leaves[name]
            if index is not None:
                whole = self.base[name].flatten().index_copy(0, index, whole).view(self.base[name].shape)
            parameters[name] = whole
        return parameters

    def distances(self) -> Tensor:
        """|w − w*| of each row, `[rows]`."""
        starts, centers = self.row_starts.tolist(), self.center_starts.tolist()
        return torch.stack(
            [
                (
                    self.params[starts[row] : starts[row + 1]]
                    - self.centers[centers[row] :][: starts[row + 1] - starts[row]]
                ).norm()
                for row in range(self.plan.rows)
            ]
        )
