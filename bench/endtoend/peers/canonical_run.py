"""canonical-interp 0.1.5: the LLC of the unrestricted posterior, all chains in one vmap.

Its `compile=True` fails here: torch 2.13 has no second derivative of fused attention on CPUs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bench.endtoend.contestant import Arrays, Prepared, Run, contest
from bench.endtoend.peers.canonical import slt
from bench.endtoend.workload import Workload

INITIAL_LOSS_BATCHES = 32
"""As many as devinterp takes its initial loss from; here they are also all that is sampled, again and again."""


def prepare(run: Run, workload: Workload) -> Prepared:
    model = workload.model()
    tokens = workload.data("train")[: INITIAL_LOSS_BATCHES * workload.batch_size]
    loader = DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=workload.batch_size, shuffle=True)
    estimator = slt.LLCEstimator(
        draws=run.draws,
        chains=run.chains,
        burnin_steps=0,
        steps_bw_draws=1,
        learning_rate=workload.lr,
        localization=workload.localization,
        nbeta=workload.n_beta,
    )

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def sample() -> tuple[Arrays, float, float]:
        estimator.estimate_llc(model, loader, criterion_fn=loss, seed=run.seed, compile=False, show_progress=False)
        llc = estimator.get_metrics()["llcs"].detach().numpy()
        return {"llc": llc, "chain_steps": torch.tensor(run.chains * run.draws).numpy()}, 0.0, 0.0

    return sample


if __name__ == "__main__":
    contest(prepare)
