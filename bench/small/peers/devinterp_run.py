"""devinterp 2.0.1: its SGLD optimizer on one chain after another, as its sampler does with language models alone."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from devinterp.optim.sgmcmc import SGMCMC
from torch import nn

from bench.small.contestant import Advance, Run, contest
from bench.small.peers.models import losses
from bench.small.workload import Workload


def prepare(run: Run, workload: Workload, arrays: dict[str, np.ndarray]) -> Advance:
    torch.set_num_threads(1)  # suits it best
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    center = [torch.from_numpy(array) for name, array in arrays.items() if name not in ("x", "y")]
    loss = losses(torch.relu, F.cross_entropy)[workload.name]

    def advance() -> list[np.ndarray]:
        torch.manual_seed(0)
        ended = []
        for _ in range(run.chains):
            parameters = [nn.Parameter(each.clone()) for each in center]
            optimizer = SGMCMC.sgld(
                parameters, lr=workload.lr, localization=workload.localization, nbeta=workload.n_beta
            )
            for _ in range(run.steps):
                samples = torch.randint(len(x), (workload.batch_size,))
                optimizer.zero_grad()
                loss(parameters, x[samples], y[samples]).backward()
                optimizer.step()
            ended.append([each.detach().numpy() for each in parameters])
        return [np.stack(each) for each in zip(*ended, strict=True)]

    return advance


if __name__ == "__main__":
    contest(prepare)
