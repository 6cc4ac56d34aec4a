"""devinterp 2.0.1 on deep linear networks of given widths: seconds of a chain-step of an optimizer of its, for each.

Its sampler is for language models alone: what it would add to these steps (losses at draws, statistics) is left out.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise

import torch
from devinterp.optim.sgmcmc import SGMCMC
from torch import nn

STEPS, REPEATS = 50, 3
SAMPLES = 1000


def seconds_of_step(method: str, widths: list[int], batch_size: int) -> float:
    """The best of several repeats."""
    network = nn.Sequential(*[nn.Linear(*each, bias=False) for each in pairwise(widths)])
    x = torch.randn(SAMPLES, widths[0])
    y = network(x).detach()
    optimizer = SGMCMC.get_method(method)(network.parameters(), lr=1e-9, localization=1.0, nbeta=10.0)
    took = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(STEPS):
            samples = torch.randint(SAMPLES, (batch_size,))
            optimizer.zero_grad()
            (0.5 * (network(x[samples]) - y[samples]).square().sum(1).mean()).backward()
            optimizer.step()
        took.append((time.perf_counter() - started) / STEPS)
    return min(took)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)  # suits it best: two processes fill two cores
    print(json.dumps([seconds_of_step(asked["method"], each, asked["batch_size"]) for each in asked["widths"]]))
