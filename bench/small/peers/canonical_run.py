"""canonical-interp 0.1.5: its estimator, all chains in one vmap on minibatches that they share.

Its `compile=True` compiles anew for every estimate; without, as here, it is faster at the steps of these runs. Where
its chains end it does not say: its step is wrapped to see them.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bench.endtoend.peers.canonical import slt
from bench.small.contestant import Advance, Run, contest
from bench.small.workload import Workload

logging.disable(logging.WARNING)


class DeepLinear(nn.Module):
    def __init__(self, matrices: list[np.ndarray]) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([nn.Parameter(torch.from_numpy(each)) for each in matrices])

    def forward(self, x: Tensor) -> Tensor:
        for matrix in self.matrices:
            x = x @ matrix.T
        return x


def prepare(run: Run, workload: Workload, arrays: dict[str, np.ndarray]) -> Advance:
    torch.set_num_threads(run.threads)
    matrices = [array for name, array in arrays.items() if name not in ("x", "y")]
    data = TensorDataset(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]))
    loader = DataLoader(data, batch_size=workload.batch_size, shuffle=True, drop_last=True)
    estimator = slt.LLCEstimator(
        draws=1, chains=run.chains, burnin_steps=0, steps_bw_draws=run.steps, learning_rate=workload.lr,
        localization=workload.localization, nbeta=workload.n_beta,
    )  # fmt: skip
    moved: dict[str, Tensor] = {}
    step = slt.sgld_step

    def seen(params: dict[str, Tensor], *rest: Any, **how: Any) -> None:
        step(params, *rest, **how)
        moved.update(params)

    slt.sgld_step = seen

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (output - y).square().sum(1).mean()

    def advance() -> list[np.ndarray]:
        estimator.estimate_llc(
            DeepLinear(matrices), loader, criterion_fn=loss, seed=0, compile=False, show_progress=False
        )
        return [each.detach().numpy() for each in moved.values()]

    return advance


if __name__ == "__main__":
    contest(prepare)
