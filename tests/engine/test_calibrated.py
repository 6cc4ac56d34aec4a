"""`calibrated`: settings for models of four kinds, and what is said where none will do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import patterning_fast as pf
from patterning_fast.engine.calibrated import settings
from patterning_fast.models.deep_linear import deep_linear_network, learning_coefficient
from tests.decoders import decoder
from tests.models import language_model, language_posterior, tokens
from tests.truth.linear_regression import linear_regression

Case = tuple[nn.Module, Any, Any, dict[str, pf.Component] | None]


def attention_only() -> Case:
    model, data = language_model(), tokens(32)
    pf.train(model, data, pf.losses.next_token, steps=30, batch_size=16, lr=1e-2, progress=False)
    return model, pf.losses.next_token, data, {"l1h0": pf.attention_heads(model)["l1h0"]}


def small_llama() -> Case:
    model, data = decoder("llama"), {"input_ids": tokens(16)}
    pf.train(model, data, pf.losses.causal_lm, steps=30, batch_size=8, lr=1e-2, progress=False)
    return model, pf.losses.causal_lm, data, pf.components(model, "l1h0")


def classifier() -> Case:
    """Of two classes by a product, a tenth of them labelled wrong, so that its losses have a minimum."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, flipped = torch.randn(256, 4), torch.rand(256) < 0.1
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    data = (x, ((x[:, 0] * x[:, 1] > 0) ^ flipped).long())
    pf.train(model, data, pf.losses.cross_entropy, steps=300, batch_size=64, lr=1e-2, progress=False)
    return model, pf.losses.cross_entropy, data, None


def deep_linear() -> Case:
    network = deep_linear_network([6, 3, 6], 1)
    x = torch.randn(1000, 6, generator=torch.Generator().manual_seed(1))
    return network, pf.losses.squared_error, (x, network(x).detach()), None


@pytest.mark.filterwarnings("ignore:.*runs the whole model:UserWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("case", [attention_only, small_llama, classifier, deep_linear])
def test_chains_settle_and_feel_the_loss(case: Callable[[], Case]) -> None:
    """In a run of its own, by another seed, with no warning: an unsettled estimate would be one."""
    model, loss, data, components = case()
    with warnings.catch_warnings():
        warnings.simplefilter("error", pf.UnsettledWarning)
        posterior, sampler, pace, tried = pf.calibrated(
            model, loss, data, components=components, max_burn_in=60, progress=False
        )
        estimate = pf.sample(
            posterior, sampler, components=components, chains=8, draws=30, seed=5, progress=False, **pace
        ).llc()
    chosen = tried.isel(setting=tried.attrs["chosen"])
    assert (posterior.n_beta, posterior.localization, sampler.lr) == tuple(
        float(chosen[each]) for each in ("n_beta", "localization", "lr")
    )
    names = list(components or ["full"])
    assert tried["component"].values.tolist() == names
    assert bool(estimate["settled"].sel(component=names).all())
    assert float(estimate["blind"].sel(component=names).max()) < 0.95
    assert (abs(chosen["step_size_bias"]) < 1 / 3).all()


def test_more_burn_in_lets_the_loss_weigh_more() -> None:
    """The pull to w* takes off what flat directions give; a weaker one, which takes more steps, takes off less."""
    network, loss, data, _ = deep_linear()
    truth, found = learning_coefficient([6, 3, 6], 1).value, []
    for steps in (30, 300, 3000):
        posterior, sampler, pace, _ = pf.calibrated(network, loss, data, max_burn_in=steps, progress=False)
        llc = pf.sample(posterior, sampler, draws=50, seed=5, progress=False, **pace).llc()
        assert bool(llc["settled"].all())
        found.append(float(llc["llc"][0]))
    assert found == sorted(found)
    assert found[-1] == pytest.approx(truth, rel=0.1)  # standard errors are 2 %, bias of steps about as much


def test_the_step_size_is_what_curvature_and_noise_allow() -> None:
    """On a quadratic, whose largest curvature is known, steps widen the stiffest direction by a ninth."""
    problem = linear_regression(seed=1, samples=40, width=4)
    stiffest = float(torch.linalg.eigvalsh(problem.x.T @ problem.x / 40).max())
    model = problem.model()
    # Minibatches so large that their noise does not count.
    posterior, sampler, _, tried = pf.calibrated(
        model, pf.losses.squared_error, (problem.x, problem.y), batch_size=4000, draws=200, progress=False
    )
    share = sampler.lr * (posterior.n_beta * stiffest + posterior.localization) / 4
    assert 1 / (1 - share) - 1 == pytest.approx(1 / 9, rel=1e-3)  # central differences in float32
    assert (posterior.n_beta, posterior.localization) == (30.0, 3.0)  # 40/log 40 is 10.8
    # Minibatches of one sample heat chains the more, the longer their steps are.
    _, noisy, _, _ = pf.calibrated(
        model, pf.losses.squared_error, (problem.x, problem.y), batch_size=1, max_burn_in=600, progress=False
    )
    assert noisy.lr < sampler.lr / 2
    assert tried.sizes["setting"] == 1  # the first was good enough


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_what_to_try_fits_the_budget_and_comes_in_order(noise: float) -> None:
    found = settings(items=5000, curvature=1.0, noise=noise, max_burn_in=300)
    assert len(found) == 9
    for n_beta, localization, lr in found:
        assert math.log(20) / (lr * localization) <= 300 * (1 + 1e-9)
        share = lr / 4 * (n_beta + localization)
        assert 1 / (1 - share) - 1 <= (1 + 1e-9) / 9
        assert lr / 4 * n_beta**2 * noise <= (1 + 1e-9) / 30
    # Without noise the ratio is the same for all, so the largest n_beta comes first; noise weighs with its square.
    assert found[0][0] == pytest.approx(30.0 if noise else 5000 / math.log(5000))
    ratios = [n_beta / localization for n_beta, localization, _ in found]
    assert all(later <= earlier * 1.11 for earlier, later in pairwise(ratios))


def test_a_flat_loss_is_held() -> None:
    assert {localization for _, localization, _ in settings(5000, 0.0, 0.0, 300)} == {3.0, 30.0, 300.0}


def test_where_nothing_will_do_it_says_so() -> None:
    """A saddle, from which chains run however short their steps are: at its top no learning coefficient is above 0."""

    class Saddle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (-2 * self.w.square().sum()).expand(len(x), 1)

    def height(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0]).squeeze(1)

    x = torch.ones(64, 1)
    with pytest.warns(pf.UnsettledWarning, match=r"no setting that was tried has healthy chains.*full \(negative\)"):
        _, _, _, tried = pf.calibrated(Saddle(), height, (x, x), draws=8, max_burn_in=20, progress=False)
    assert set(np.unique(tried["verdict"])) <= {"negative", "diverged", "on the way out"}
    assert (tried["verdict"].isel(setting=tried.attrs["chosen"]) == "negative").all()


def test_a_posterior_at_other_settings() -> None:
    posterior = language_posterior()
    other = posterior.tempered(5.0, 7.0)
    assert (other.n_beta, other.localization, posterior.n_beta) == (5.0, 7.0, 10.0)
    assert other.model is posterior.model
    with pytest.raises(ValueError, match="both 0: nothing would hold the chains"):
        posterior.tempered(0.0, 0.0)
