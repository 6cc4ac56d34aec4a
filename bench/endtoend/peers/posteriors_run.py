"""posteriors 0.1.3: its SGLD under the user's own vmap, all parameters; the statistics are the user's too."""

from __future__ import annotations

import numpy as np
import posteriors
import torch
from torch import Tensor
from torch.func import vmap

from bench.endtoend.contestant import Arrays, Prepared, Run, contest
from bench.endtoend.peers.by_hand_run import Moments, Restricted, token_losses
from bench.endtoend.workload import Workload


def prepare(run: Run, workload: Workload) -> Prepared:
    model = workload.model().requires_grad_(False)
    center = dict(model.named_parameters())
    train = workload.data("train")

    def log_posterior(parameters: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        loss = token_losses(model, parameters, tokens).mean()
        pull = sum((parameters[name] - at).square().sum() for name, at in center.items())
        return -workload.n_beta * loss - workload.localization / 2 * pull, loss

    # posteriors' step is θ + lr ∇log p + √(2 lr) ξ: our ε is twice its lr.
    transform = posteriors.sgmcmc.sgld.build(log_posterior, lr=workload.lr / 2)

    def step(parameters: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
        # A state made within vmap does not come out of it; its parameters do.
        state, _ = transform.update(transform.init(parameters), tokens)
        return dict(state.params)

    update = vmap(step, randomness="different")
    observed = Restricted(model, workload, dict.fromkeys(center), compiled=False)
    torch.manual_seed(run.seed)
    batch = min(int(run.variant), run.chains)

    def sample() -> tuple[Arrays, float, float]:
        loss, probe = observed.one_draw(observed.moving_center())
        moments = Moments(float(loss), probe)
        for _ in range(0, run.chains, batch):
            chains = {name: at.expand(batch, *at.shape).clone() for name, at in center.items()}
            for _ in range(run.draws):
                chains = update(chains, train[torch.randint(len(train), (batch, workload.batch_size))])
                moments.add(*observed.draw({name: each.flatten(1) for name, each in chains.items()}))
        arrays = {"chi": moments.chi().numpy(), "llc": np.array(workload.n_beta * moments.phi / moments.count)}
        return arrays | {"chain_steps": np.array(run.chains * run.draws)}, 0.0, 0.0

    return sample


if __name__ == "__main__":
    contest(prepare)
