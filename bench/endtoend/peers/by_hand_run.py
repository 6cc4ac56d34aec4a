"""The honest alternative: what a good engineer would write with torch.func and torch.compile in an afternoon.

Chains of a component are rows; only what moves is stored and differentiated; rows are vmapped `batch` at a time;
co-moments are added up as draws arrive. Variant "BATCH" or "BATCH-compiled".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from bench.endtoend.contestant import Arrays, Prepared, Run, contest
from bench.endtoend.workload import Workload

Parameters = dict[str, Tensor]


def token_losses(model: nn.Module, parameters: Parameters, tokens: Tensor) -> Tensor:
    """Losses `[batch, tokens]` of each next token."""
    logits = functional_call(model, parameters, (tokens[:, :-1],))
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)


class Moments:
    """Running means of a component over its chains and draws: φ, φ², the probe's losses, and φ times each."""

    def __init__(self, loss_at_center: float, probe_at_center: Tensor) -> None:
        self.loss_at_center, self.probe_at_center = loss_at_center, probe_at_center
        self.count, self.phi, self.square = 0, 0.0, 0.0
        self.loss, self.cross = (torch.zeros(len(probe_at_center), dtype=torch.float64) for _ in range(2))

    def add(self, loss: Tensor, probe: Tensor) -> None:
        """Draws of some chains: L `[chains]` and the probe's losses `[chains, losses]`."""
        phi, shifted = (loss - self.loss_at_center).double(), (probe - self.probe_at_center).double()
        self.count += len(phi)
        self.phi += float(phi.sum())
        self.square += float(phi.square().sum())
        self.loss += shifted.sum(0)
        self.cross += phi @ shifted

    def chi(self) -> Tensor:
        """−Cov[φ, l_z − L]."""
        phi = self.phi / self.count
        return self.square / self.count - phi**2 - (self.cross / self.count - phi * self.loss / self.count)


class Restricted:
    """The functions of a component's chains: the SGLD step and the losses of a draw, vmapped over rows."""

    def __init__(self, model: nn.Module, workload: Workload, owned: dict[str, Tensor | None], compiled: bool) -> None:
        self.model, self.workload = model, workload
        self.center = {name: tensor.detach() for name, tensor in model.named_parameters()}
        self.owned = {name: None if mask is None else mask.flatten().nonzero()[:, 0] for name, mask in owned.items()}
        self.data = torch.cat([workload.data("loss"), workload.data("probe")])
        wrap: Callable[..., Callable[..., Any]] = torch.compile if compiled else lambda function: function
        self.step = wrap(vmap(self.one_step, randomness="different"))
        self.draw = wrap(vmap(self.one_draw))

    def start(self, rows: int) -> Parameters:
        """Rows of what moves, `[rows, coordinates]`, all at w*."""
        return {name: each.expand(rows, -1).clone() for name, each in self.moving_center().items()}

    def moving_center(self) -> Parameters:
        return {name: self.center[name].flatten()[slice(None) if index is None else index]
                for name, index in self.owned.items()}  # fmt: skip

    def parameters(self, moving: Parameters) -> Parameters:
        """All parameters, those that move set to a row's."""
        placed = {}
        for name, index in self.owned.items():
            center = self.center[name]
            flat = moving[name] if index is None else center.flatten().index_copy(0, index, moving[name])
            placed[name] = flat.view_as(center)
        return self.center | placed

    def one_step(self, moving: Parameters, tokens: Tensor) -> Parameters:
        workload, center = self.workload, self.moving_center()

        def loss(moving: Parameters) -> Tensor:
            return token_losses(self.model, self.parameters(moving), tokens).mean()

        gradient = grad(loss)(moving)
        return {
            name: w
            - workload.lr / 2 * (workload.n_beta * gradient[name] + workload.localization * (w - center[name]))
            + workload.lr**0.5 * torch.randn_like(w)
            for name, w in moving.items()
        }

    def one_draw(self, moving: Parameters) -> tuple[Tensor, Tensor]:
        """L and the probe's losses."""
        losses = token_losses(self.model, self.parameters(moving), self.data)
        return losses[: self.workload.loss_samples].mean(), losses[self.workload.loss_samples :].flatten()


def prepare(run: Run, workload: Workload) -> Prepared:
    model = workload.model().requires_grad_(False)
    train = workload.data("train")
    size, _, compiled = run.variant.partition("-")
    batch = min(int(size), run.chains)
    owned: dict[str, dict[str, Tensor | None]] = {
        **{head: dict(masks) for head, masks in workload.head_masks(model).items()},
        "full": dict.fromkeys(name for name, _ in model.named_parameters()),
    }
    torch.manual_seed(run.seed)

    def sample() -> tuple[Arrays, float, float]:
        compiling, chi, llc = 0.0, [], []
        for masks in owned.values():
            with torch.no_grad():
                component = Restricted(model, workload, masks, bool(compiled))
                loss, probe = component.one_draw(component.moving_center())
                moments = Moments(float(loss), probe)
                chains = component.start(run.chains)
                compiling += warm_up(component, batch, train[: workload.batch_size]) if compiled else 0.0
                for _ in range(run.draws):
                    tokens = train[torch.randint(len(train), (run.chains, workload.batch_size))]
                    for start in range(0, run.chains, batch):
                        rows = slice(start, start + batch)
                        moved = component.step({name: each[rows] for name, each in chains.items()}, tokens[rows])
                        for name, each in moved.items():
                            chains[name][rows] = each
                        moments.add(*component.draw(moved))
            chi.append(moments.chi().numpy())
            llc.append(workload.n_beta * moments.phi / moments.count)
        steps = len(owned) * run.chains * run.draws
        arrays = {"components": np.array(list(owned)), "chi": np.stack(chi), "llc": np.array(llc)}
        return arrays | {"chain_steps": np.array(steps)}, compiling, 0.0

    return sample


def warm_up(component: Restricted, batch: int, tokens: Tensor) -> float:
    """Seconds of the calls that compile."""
    started = time.perf_counter()
    moved = component.step(component.start(batch), tokens.expand(batch, *tokens.shape))
    component.draw(moved)
    return time.perf_counter() - started


if __name__ == "__main__":
    contest(prepare)
