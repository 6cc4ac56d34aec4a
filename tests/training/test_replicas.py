"""`train_replicas`: every replica as if it were trained alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD, Adam, Optimizer

import patterning_fast as pf
from patterning_fast.ops.reference.minibatch import minibatch
from patterning_fast.posterior.dense import NotDense

SAMPLES, BATCH, STEPS, SEED = 30, 8, 25, 5
OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "sgd": lambda params: SGD(params, lr=0.05),
    "momentum": lambda params: SGD(params, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adam": lambda params: Adam(params, lr=0.01),
}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))


def initial(replicas: int) -> Tensor:
    rows = []
    for seed in range(replicas):
        torch.manual_seed(seed)
        rows.append(parameters_to_vector(network().parameters()).detach())
    return torch.stack(rows)


def classes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(SAMPLES, 4, generator=generator), torch.randint(3, (SAMPLES,), generator=generator)


def run(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "steps": STEPS, "batch_size": BATCH, "optimizer": OPTIMIZERS["adam"], "seed": SEED, "progress": False,
    }  # fmt: skip
    return pf.train_replicas(network(), initial(3), classes(), pf.losses.cross_entropy, **arguments | changes)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_is_as_if_trained_alone(name: str) -> None:
    """To 1e-4: 25 steps of float32, with the same minibatches."""
    weights = torch.stack((torch.ones(SAMPLES), torch.linspace(0, 2, SAMPLES)))
    found = run(optimizer=OPTIMIZERS[name], weights=weights, snapshots=5)
    assert found["step"].values.tolist() == [5, 10, 15, 20, 25]
    x, y = classes()
    for at, rho in enumerate(weights):
        for replica, row in enumerate(initial(3)):
            alone = network()
            vector_to_parameters(row, alone.parameters())
            update = OPTIMIZERS[name](list(alone.parameters()))
            for step in range(STEPS):
                place = torch.tensor(SEED), torch.tensor([replica]), torch.tensor(step)
                samples = minibatch(*place, BATCH, SAMPLES)[0]
                update.zero_grad()
                (rho[samples] * pf.losses.cross_entropy(alone, (x[samples], y[samples]))).mean().backward()
                update.step()
            own = found.isel(snapshot=-1, weighting=at, replica=replica)
            expected = parameters_to_vector(alone.parameters()).detach().numpy()
            np.testing.assert_allclose(own["parameters"].values, expected, rtol=1e-4, atol=1e-4)
            loss = pf.losses.cross_entropy(alone.requires_grad_(False), (x, y)).mean()
            assert float(own["loss"]) == pytest.approx(float(loss), rel=1e-4)


def test_weights_of_one_are_no_weights() -> None:
    weighted = run(weights=torch.ones(1, SAMPLES))
    np.testing.assert_array_equal(weighted["parameters"], run()["parameters"])


def test_what_cannot_work_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"weights must be \[weightings, 30\]"):
        run(weights=torch.ones(SAMPLES))
    with pytest.raises(ValueError, match="not finite"):
        run(weights=torch.full((1, SAMPLES), torch.nan))
    with pytest.raises(ValueError, match="snapshots must be between"):
        run(snapshots=STEPS + 1)
    with pytest.raises(ValueError, match="replicas are not finite"):
        run(optimizer=lambda params: SGD(params, lr=1e30, weight_decay=1e30), steps=5)
    with pytest.raises(ValueError, match="initial must be"):
        pf.train_replicas(network(), initial(2)[:, 1:], classes(), pf.losses.cross_entropy, steps=1, batch_size=1,
                          optimizer=OPTIMIZERS["sgd"])  # fmt: skip
    model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    rows = parameters_to_vector(model.parameters()).detach()[None]
    with pytest.raises(NotDense, match="Sigmoid"):
        pf.train_replicas(model, rows, classes(), pf.losses.cross_entropy, steps=1, batch_size=1,
                          optimizer=OPTIMIZERS["sgd"])  # fmt: skip
