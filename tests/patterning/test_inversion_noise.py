"""Inversion of χ with noise: what regularisation gains, what is predicted, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import patterning_fast as pf
from patterning_fast.patterning.noise import by_datum
from patterning_fast.patterning.regularization import Regularization, spectrum
from patterning_fast.patterning.response import response_of
from tests.patterning.chi import made_up_chi

COMPONENTS, DATA, N_BETA = 12, 1500, 10.0


def noisy(truth: np.ndarray, error: float, generator: np.random.Generator, directions: int, groups: int = 8) -> xr.Dataset:
    """χ with Gaussian noise of that standard error, which lies in a few directions of the data."""
    data = truth.shape[1]
    spread = np.eye(data) if directions == data else generator.standard_normal((directions, data)) / directions**0.5
    noise = groups**0.5 * error * generator.standard_normal((len(truth), groups, directions)) @ spread
    chi = made_up_chi(truth + noise.mean(1), error, n_beta=N_BETA)
    return chi.drop_dims("group").assign(
        chi_group=(("component", "group", "sample"), (truth[:, None] + noise).astype(np.float32)),
        chi_error=(("component", "sample"), noise.std(1, ddof=1) / groups**0.5),
    )


def decaying(generator: np.random.Generator) -> np.ndarray:
    """A known χ whose modes fall off as 1/k."""
    left, _ = np.linalg.qr(generator.standard_normal((COMPONENTS, COMPONENTS)))
    return left / np.arange(1, COMPONENTS + 1) @ generator.standard_normal((COMPONENTS, DATA))


def realised(truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return N_BETA / truth.shape[1] * (truth - truth.mean(1, keepdims=True)) @ (weights - 1)


@pytest.mark.parametrize("directions", [DATA, 200])
def test_regularised_inverse_beats_the_bare_one(directions: int) -> None:
    missed: dict[Regularization, list[float]] = {"wiener": [], "none": []}
    for seed in range(20):
        generator = np.random.default_rng(seed)
        truth = decaying(generator)
        chi = noisy(truth, 0.15, generator, directions)
        for regularization, each in missed.items():
            try:
                plan = pf.invert(chi, {"c3": 1.0}, negative_weights="allow", regularization=regularization)
            except pf.InfeasibleTargetError:
                missed["none"] = missed["none"][: len(missed["wiener"])]
                break
            each.append(float(np.sum((realised(truth, plan.weights.values) - np.eye(COMPONENTS)[3]) ** 2)))
    wiener, none = np.array(missed["wiener"]), np.array(missed["none"])
    assert len(wiener) > 10
    gain = np.sqrt(none) - np.sqrt(wiener)
    assert gain.mean() > 4 * gain.std(ddof=1) / len(gain) ** 0.5
    print(directions, len(wiener), np.sqrt(none.mean()), np.sqrt(wiener.mean()))


@pytest.mark.parametrize("directions", [DATA, 200])
def test_what_is_predicted_is_what_noise_lets_through(directions: int) -> None:
    # In-sample, χ·change promises what was asked; the shrunk prediction must be nearer to what is realised.
    z, promised = [], []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        truth = decaying(generator)
        chi = noisy(truth, 0.1, generator, directions)
        plan = pf.invert(chi, {"c0": 1.0}, strength=0.3, negative_weights="allow", regularization="none")
        happened = realised(truth, plan.weights.values)
        z.append((happened - plan.predicted["dmu"]) / plan.predicted["dmu_error"])
        promised.append((happened - realised(chi["chi"].values, plan.weights.values)) / plan.predicted["dmu_error"])
    print(directions, np.sqrt(np.mean(np.square(z))), np.sqrt(np.mean(np.square(promised))))
