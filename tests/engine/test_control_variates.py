"""Control variates: the gradient they make, what it does to estimates, and what is left of minibatch noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.chains.plan import Setting, chain_plan
from patterning_fast.engine.controlled_ensemble import ControlledEnsemble, controlled_ensemble
from patterning_fast.engine.evaluation import lay_out_sets
from patterning_fast.engine.options import Options
from patterning_fast.engine.recording import Runners
from patterning_fast.engine.workers import Workers, workers
from patterning_fast.posterior.components import coordinates, resolve_components
from patterning_fast.posterior.data import take
from tests.models import language_model, language_posterior, tokens
from tests.truth.linear_regression import linear_regression

CONTROLLED: dict[str, Any] = {"shared_minibatches": True, "control_variates": True, "progress": False}


@contextmanager
def ensemble(
    posterior: pf.LocalPosterior, components: Any, settings: tuple[Setting, ...], chains: int, batch_size: int
) -> Iterator[tuple[ControlledEnsemble, Workers[Runners]]]:
    options = Options(
        chains, 1, 0, 1, batch_size, True, False, None, False, 2**28, "float32", 2, 0, control_variates=True
    )
    resolved = resolve_components(posterior.model, components, posterior.moving)
    plan = chain_plan(resolved, chains, False, None, settings)
    sets, _ = lay_out_sets(posterior, None, None, 0)
    with workers(lambda: Runners(posterior), posterior.device) as pool:
        moving = controlled_ensemble(posterior, pf.SGLD(1e-3), plan, sets, options, pool)
        moving.measure_tile(pool)
        yield moving, pool


def own_gradient(posterior: pf.LocalPosterior, component: pf.Component, row: Tensor, samples: Tensor) -> Tensor:
    """Gradient of L_ρ on `samples` by what a component moves, the rest at w*: by autograd of the whole model."""
    base = {name: tensor.detach().clone() for name, tensor in posterior.model.named_parameters()}
    start = 0
    for name, values in coordinates(component, base).items():
        here = row[start : start + values.numel()]
        index = component.coordinates[name]
        base[name].view(-1)[slice(None) if index is None else index] = here
        start += values.numel()
    leaves = {name: tensor.requires_grad_() for name, tensor in base.items()}

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = posterior.model

        def forward(self) -> Tensor:
            return posterior.mean_loss(self.model, take(posterior.data, samples), samples)

    loss = torch.func.functional_call(Mean(), {f"model.{name}": leaf for name, leaf in leaves.items()}, ())
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True), strict=True))
    return torch.cat([each.flatten() for each in coordinates(component, grads).values()])


def test_gradients_are_those_of_minibatches_less_what_they_are_at_the_center() -> None:
    """g_B(w) − g_B(w*) + g(w*) in each row, of a weighted posterior, restricted components and two settings.

    To 1e-5 of the largest: sums of a few hundred float32 products, in another order.
    """
    posterior = language_posterior(weights=torch.linspace(0.2, 1.8, 12))
    settings = (Setting(1e-3, 10.0, 100.0), Setting(1e-3, 40.0, 100.0))
    heads = pf.components(language_model(), "l0h1", "l1h0", "full")
    with ensemble(posterior, heads, settings, chains=2, batch_size=5) as (moving, pool):
        moving.bank.params += 0.3 * torch.randn(moving.bank.params.shape, generator=torch.Generator().manual_seed(0))
        moving.add_gradients(pool)
        plan, bank, batch = moving.plan, moving.bank, moving.minibatches()[0]
        assert plan.rows == 12
        for row in range(plan.rows):
            component = plan.components[plan.component(row)]
            here = slice(bank.starts[row], bank.starts[row + 1])
            first = moving.state.center_starts[row]
            center = bank.centers[first : first + here.stop - here.start]
            expected = (
                own_gradient(posterior, component, bank.params[here], batch)
                - own_gradient(posterior, component, center, batch)
                + own_gradient(posterior, component, center, torch.arange(12))
            )
            torch.testing.assert_close(bank.grads[here], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_learning_coefficients_are_free_of_the_minibatches_at_the_center() -> None:
    """At nβ = 3,000 minibatches of 32 widen plain SGLD by a third, and hardly with control variates."""
    problem = dataclasses.replace(linear_regression(0), n_beta=3000.0, lr=1e-4)
    posterior, exact = problem.posterior(problem.model()), problem.llc([0, 1, 2, 3, 4, 5])

    def estimate(**changes: Any) -> tuple[float, float, float]:
        run = pf.sample(
            posterior, pf.SGLD(problem.lr), chains=16, draws=60, burn_in=15, steps_between_draws=4, batch_size=32,
            tile=16, seed=1, **CONTROLLED | changes,
        )  # fmt: skip
        llc, health = run.llc().sel(component="full"), run.diagnostics().sel(component="full")
        return float(llc["llc"]), float(llc["llc_error"]), float(health["gradient_noise"])

    llc, error, left = estimate()
    # The share that is left of the noise, over coordinates weighed as λ̂ weighs them, is within 3 of their mean.
    assert 0 < left < 0.03
    # t with 15 degrees of freedom passes 5 once in 6,000.
    assert abs(llc - exact) < 5 * error + 3 * left * exact
    plain, plain_error, felt = estimate(control_variates=False)
    assert plain > exact + 8 * plain_error
    assert plain > llc + 8 * plain_error
    assert felt > 10 * left


def test_noise_that_is_left_is_that_where_chains_are() -> None:
    """Of a squared error x_i x_iᵀd is what a sample's gradient is less that at w*: its variance over the batch.

    Chains are at one place d, but one has diverged. From 800 differences of minibatches of 4 whose entries have a
    kurtosis of under 10: 4 standard errors are under 4·√(10/800)/√(2 coordinates that are independent) = 0.32; 0.15
    holds for this seed, and half or twice the variance does not.
    """
    problem = linear_regression(0)
    posterior = problem.posterior(problem.model())
    with ensemble(posterior, None, (Setting(1e-3, 30.0, 5.0),), chains=800, batch_size=4) as (moving, pool):
        moving.tile.fill_(800)
        assert float(moving.noise_left(pool)[0, 1]) < 1e-12
        away = torch.linspace(-0.5, 1.0, 6)
        moving.bank.params.view(800, 6).add_(away)
        moving.bank.params[:6] = 1e3
        moving.traces.diverged[0] = True
        square, variance = moving.noise_left(pool)[0].tolist()
        assert not moving.bank.grads.any()
    each = problem.x * (problem.x @ away)[:, None]
    assert variance == pytest.approx(float(each.var(0, correction=0).mean() / 4), rel=0.15)
    assert square != square


def test_runs_say_so_and_resume(tmp_path: Path) -> None:
    sampling: dict[str, Any] = {
        "chains": 2, "batch_size": 4, "tile": 1, "components": pf.attention_heads(language_model()),
    } | CONTROLLED  # fmt: skip
    posterior, sampler = language_posterior(), pf.SGLD(1e-3)
    whole = pf.sample(posterior, sampler, draws=6, **sampling)
    assert whole.attrs["control_variates"] == 1
    assert whole.attrs["engine"].startswith("torch: control variates")
    pf.sample(posterior, sampler, draws=3, checkpoint=tmp_path, **sampling)
    with pytest.raises(ValueError, match="control_variates"):
        pf.sample(posterior, sampler, draws=6, checkpoint=tmp_path, **sampling | {"control_variates": False})
    gone_on = pf.sample(posterior, sampler, draws=6, checkpoint=tmp_path, **sampling)
    xr.testing.assert_equal(gone_on.diagnostics(), whole.diagnostics())
    xr.testing.assert_equal(gone_on.susceptibilities(), whole.susceptibilities())


def test_what_control_variates_do_not_go_with() -> None:
    posterior = language_posterior()
    few: dict[str, Any] = {"chains": 2, "draws": 2}
    with pytest.raises(ValueError, match="shared_minibatches=True"):
        pf.sample(posterior, pf.SGLD(1e-3), **few, **CONTROLLED | {"shared_minibatches": False})
    with pytest.raises(ValueError, match="gradient_noise_correction"):
        pf.sample(posterior, pf.SGLD(1e-3, gradient_noise_correction=True), **few, **CONTROLLED)
    with pytest.raises(ValueError, match='engine="native" cannot run this: control variates'):
        pf.sample(posterior, pf.SGLD(1e-3), engine="native", **few, **CONTROLLED)

    def noisy(model: nn.Module, batch: Any) -> Tensor:
        losses = pf.losses.next_token(model, batch)
        return losses + 0.1 * torch.randn_like(losses)

    random = pf.LocalPosterior(language_model(), noisy, tokens(), n_beta=1.0, localization=1.0, random_loss=True)
    with pytest.raises(ValueError, match="same loss at every evaluation"):
        pf.sample(random, pf.SGLD(1e-3), **few, **CONTROLLED)
