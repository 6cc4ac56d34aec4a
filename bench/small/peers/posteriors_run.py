"""posteriors 0.1.3: its SGLD under the user's own vmap."""

from __future__ import annotations

import numpy as np
import posteriors
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from bench.small.contestant import Advance, Run, contest
from bench.small.peers.models import losses
from bench.small.workload import Workload


def prepare(run: Run, workload: Workload, arrays: dict[str, np.ndarray]) -> Advance:
    torch.set_num_threads(run.threads)
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    center = {name: torch.from_numpy(array) for name, array in arrays.items() if name not in ("x", "y")}
    loss = losses(torch.relu, F.cross_entropy)[workload.name]

    def log_posterior(parameters: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        mean = loss(list(parameters.values()), *batch)
        pull = sum((parameters[name] - at).square().sum() for name, at in center.items())
        return -workload.n_beta * mean - workload.localization / 2 * pull, mean

    # Its step is θ + lr ∇log p + √(2 lr) ξ: our ε is twice its lr.
    transform = posteriors.sgmcmc.sgld.build(log_posterior, lr=workload.lr / 2)

    def step(parameters: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        state, _ = transform.update(transform.init(parameters), batch)
        return dict(state.params)

    update = vmap(step, randomness="different")

    def advance() -> list[np.ndarray]:
        torch.manual_seed(0)
        chains = {name: at.expand(run.chains, *at.shape).clone() for name, at in center.items()}
        for _ in range(run.steps):
            samples = torch.randint(len(x), (run.chains, workload.batch_size))
            chains = update(chains, (x[samples], y[samples]))
        return [each.numpy() for each in chains.values()]

    return advance


if __name__ == "__main__":
    contest(prepare)
