"""torch.func: vmap of grad over chains, one call a step."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from bench.small.contestant import Advance, Run, contest
from bench.small.peers.models import losses
from bench.small.workload import Workload


def prepare(run: Run, workload: Workload, arrays: dict[str, np.ndarray]) -> Advance:
    torch.set_num_threads(run.threads)
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    center = [torch.from_numpy(array) for name, array in arrays.items() if name not in ("x", "y")]
    gradient = vmap(grad(losses(torch.relu, F.cross_entropy)[workload.name]))
    lr = workload.lr

    @torch.no_grad()
    def advance() -> list[np.ndarray]:
        generator = torch.Generator().manual_seed(0)
        chains: list[Tensor] = [each.expand(run.chains, *each.shape).clone() for each in center]
        for _ in range(run.steps):
            samples = torch.randint(len(x), (run.chains, workload.batch_size), generator=generator)
            for w, g, c in zip(chains, gradient(chains, x[samples], y[samples]), center, strict=True):
                w -= lr / 2 * (workload.n_beta * g + workload.localization * (w - c))
                w += lr**0.5 * torch.randn(w.shape, generator=generator)
        return [each.numpy() for each in chains]

    return advance


if __name__ == "__main__":
    contest(prepare)
