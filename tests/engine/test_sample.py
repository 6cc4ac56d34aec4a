"""`sample`: reproducible, honest about bad input, and the same whatever runs beside a chain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import patterning_fast as pf
from tests.models import CONTEXT, VOCABULARY, language_model, language_posterior, tokens

SMALL: dict[str, Any] = {"chains": 2, "draws": 3, "batch_size": 4, "tile": 1, "progress": False}


def run(posterior: pf.LocalPosterior | None = None, sampler: pf.SGLD | None = None, **changes: Any) -> pf.Statistics:
    return pf.sample(posterior or language_posterior(), sampler or pf.SGLD(1e-3), **SMALL | changes)


def chi(**changes: Any) -> xr.Dataset:
    return run(**changes).susceptibilities()


def test_estimates_are_labelled() -> None:
    model = language_model()
    statistics = run(components=pf.components(model, "heads", "full"), probes={"a": tokens(3, 1), "b": tokens(2, 2)})
    result = statistics.susceptibilities()
    assert dict(result.sizes) == {"component": 5, "token": 5 * CONTEXT, "group": 2}
    assert result["component"].values.tolist() == ["l0h0", "l0h1", "l1h0", "l1h1", "full"]
    token = result.isel(token=3 * CONTEXT + CONTEXT + 2)
    assert (str(token["probe"].values), int(token["sample"]), int(token["position"])) == ("b", 1, 2)
    assert result["chi"].attrs["units"] == "nats^2"
    assert "up-weighting" in result.attrs["sign"]
    assert result.attrs["sampler"] == "SGLD(lr=0.001, gradient_noise_correction=False)"
    assert set(statistics.llc()) >= {"llc", "llc_error", "mu", "mu_error"}
    assert statistics.influence()["influence"].shape == (5, 5 * CONTEXT)
    assert statistics.diagnostics()["distance"].shape == (5, 2, 3)
    assert float(statistics.diagnostics()["distance"].min()) > 0


def test_susceptibility_is_influence_less_its_part_on_l() -> None:
    """Over the posterior's own data the mean of l_z is L, so χ averages to 0 over them."""
    result = chi()
    # float32 losses near 3 carry 2e-7 each; φ and the fluctuations of l are below 1.
    assert abs(float(result["chi"].sel(component="full").mean())) < 1e-6
    assert float(result["chi"].std()) > 1e-5


def test_same_seed_same_bits_for_any_number_of_threads(threads: int) -> None:
    result = chi(components=pf.attention_heads(language_model()))
    torch.set_num_threads(1)
    xr.testing.assert_identical(result["chi"], chi(components=pf.attention_heads(language_model()))["chi"])
    assert not result["chi"].identical(chi(components=pf.attention_heads(language_model()), seed=1)["chi"])


def test_a_component_s_estimate_does_not_depend_on_the_others() -> None:
    heads = pf.attention_heads(language_model())
    alone = chi(components={"l1h0": heads["l1h0"]}).sel(component="l1h0")
    xr.testing.assert_identical(chi(components=heads).sel(component="l1h0")["chi"], alone["chi"])


def test_global_generators_are_left_alone() -> None:
    before = torch.random.get_rng_state()
    run()
    assert torch.equal(before, torch.random.get_rng_state())


def test_only_the_component_moves() -> None:
    """A component the loss does not depend on: its chains move, its φ and χ are exactly 0."""
    model = nn.Linear(3, 1)
    model.unused = nn.Linear(2, 2)
    posterior = pf.LocalPosterior(
        model, pf.losses.squared_error, (torch.randn(6, 3), torch.randn(6, 1)), n_beta=1.0, localization=10.0
    )
    unused = pf.component(model, "unused", ["unused.weight"])
    components = {"unused": unused} | pf.components(model, "full")
    statistics = pf.sample(posterior, pf.SGLD(1e-2), components=components, **SMALL)
    assert float(statistics.diagnostics()["distance"].sel(component="unused").min()) > 0
    assert float(abs(statistics.susceptibilities()["chi"].sel(component="unused")).max()) == 0
    assert float(abs(statistics.susceptibilities()["chi"].sel(component="full")).max()) > 0


def test_loss_samples_are_a_fixed_subset() -> None:
    result = run(loss_samples=3)
    assert result.attrs["loss_samples"] == 3
    assert result.susceptibilities().sizes["token"] == 12 * CONTEXT
    assert float(result.llc()["mu"][0]) != float(run().llc()["mu"][0])


def test_loss_samples_may_be_named() -> None:
    every = run(loss_samples=torch.arange(12)).llc()["mu"]
    # Means of the same float32 losses, evaluated as another set.
    assert np.allclose(every, run().llc()["mu"], rtol=0, atol=1e-7)
    assert run(loss_samples=torch.tensor([3, 1])).attrs["loss_samples"] == 2
    with pytest.raises(ValueError, match=r"must be indices .* of the posterior's 12 samples"):
        run(loss_samples=torch.tensor([12]))


def test_zero_n_beta_ignores_the_loss() -> None:
    posterior = language_posterior(n_beta=0.0)
    one, other = run(posterior, batch_size=2), run(posterior, batch_size=7)
    assert torch.equal(one.traces.distance, other.traces.distance)


def test_per_sample_losses_and_any_module() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    data = (torch.randn(10, 4), torch.randint(3, (10,)))
    posterior = pf.LocalPosterior(model, pf.losses.cross_entropy, data, n_beta=5.0, localization=5.0)
    statistics = pf.sample(
        posterior, pf.SGLD(1e-3), components=pf.layers(model) | pf.components(model, "full"), **SMALL
    )
    assert dict(statistics.susceptibilities().sizes) == {"component": 3, "sample": 10, "group": 2}


def test_loss_kernel_is_symmetric_and_holds_the_influence() -> None:
    result = run(loss_kernel=True)
    kernel = result.loss_kernel()["kernel"].sel(component="full").values
    assert kernel.shape == (12 * CONTEXT, 12 * CONTEXT)
    # Entries are sums of float32 products of values below 1, in double.
    assert abs(kernel - kernel.T).max() < 1e-6 * abs(kernel).max()
    influence = result.influence()["influence"].sel(component="full").values
    assert abs(kernel.mean(0) + influence).max() < 1e-5 * abs(influence).max()
    with pytest.raises(ValueError, match=r"was not tracked: call sample\(..., loss_kernel=True\)"):
        run().loss_kernel()


def broken_at(bad: int) -> Any:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        losses = pf.losses.next_token(model, batch)
        return torch.where(batch[:, :1] == bad, torch.inf, losses)

    return loss


def test_samples_whose_loss_is_not_finite_are_named() -> None:
    data = tokens() % (VOCABULARY - 1)
    data[[2, 7], 0] = VOCABULARY - 1
    posterior = pf.LocalPosterior(language_model(), broken_at(VOCABULARY - 1), data, n_beta=1.0, localization=1.0)
    with pytest.raises(ValueError, match=r"data: the loss at w\* is not finite for 2 samples \(at 2, 7\)"):
        run(posterior)


def test_diverging_chains_are_named_with_what_to_change() -> None:
    with pytest.raises(
        pf.ChainDivergedError, match=r"all 2 chains have diverged by draw 1: lr·localization is 1e\+12, and must be"
    ):
        run(language_posterior(localization=1e12), pf.SGLD(1.0), draws=20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probes": {}}, "probes must be .* not empty"),
        ({"probes": {"p": torch.zeros(0, 9, dtype=torch.int64)}}, r"probes\['p'\] is empty"),
        ({"probes": {"p": tokens(2, length=CONTEXT + 3)}}, r"probes\['p'\]: samples of 11 tokens are longer"),
        ({"probes": {"p": tokens(2) + VOCABULARY}}, r"probes\['p'\]: token ids lie in"),
        ({"draws": 0}, "draws must be a whole number >= 1, got 0"),
        ({"burn_in": -1}, "burn_in must be a whole number >= 0, got -1"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"steps_between_draws": 0}, "steps_between_draws must be a whole number >= 1"),
        ({"loss_samples": 0}, "loss_samples must be a Tensor or a whole number >= 1, or None"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"chains": 1}, "at least 2 independent chains"),
        ({"components": pf.layers(nn.Sequential(nn.Linear(2, 2)))}, "which the model lacks"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**changes)


@pytest.mark.parametrize("lr", [0.0, -1e-3, float("inf"), float("nan")])
def test_bad_step_sizes_are_refused(lr: float) -> None:
    with pytest.raises(ValueError, match="lr must be a finite number > 0"):
        pf.SGLD(lr)


def test_bfloat16_says_how_much_it_rounds() -> None:
    heads = pf.attention_heads(language_model())
    sampling: dict[str, Any] = {"components": heads, "chains": 4, "draws": 8, "groups": 2}
    exact, rounded = run(**sampling), run(precision="bfloat16", **sampling)
    rounding = rounded.diagnostics()["rounding"].values
    # 2⁻⁹ of logits near 1, beside fluctuations of some hundredths; float32 rounds 2¹⁶ times less.
    assert (rounding > 1e-3).all()
    assert (rounding < 1).all()
    assert float(exact.diagnostics()["rounding"].max()) == 0
    # Gradients are float32: the chains are the same, and only what is seen of them is rounded.
    assert torch.equal(exact.traces.distance, rounded.traces.distance)
    for name in heads:
        one, other = (each.susceptibilities()["chi"].sel(component=name).values for each in (exact, rounded))
        assert np.corrcoef(one, other)[0, 1] > 0.9
    with pytest.raises(ValueError, match=r"precision must be one of \('float32', 'bfloat16'\), got 'half'"):
        run(precision="half")
