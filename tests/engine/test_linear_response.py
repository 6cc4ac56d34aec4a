"""`linear_response`: the exact derivative of chains, and by it χ; in waves, and until it is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import patterning_fast as pf
from patterning_fast.chains.plan import Setting, chain_plan
from patterning_fast.engine.sweep import Sweep
from patterning_fast.engine.torch_ensemble import TorchEnsemble
from patterning_fast.engine.trajectory import Storage
from patterning_fast.ops.reference.minibatch import minibatch
from patterning_fast.posterior.components import resolve_components
from tests.models import language_model, language_posterior, tokens

DATUM = tokens(2, seed=5)
RESPONDING: dict[str, Any] = {"chains": 2, "draws": 5, "burn_in": 4, "batch_size": 4, "tile": 1, "progress": False}
SAMPLER = pf.SGLD(1e-3)
SAMPLERS = (SAMPLER, pf.SGHMC(1e-4, friction=0.3), pf.RMSPropSGLD(1e-4, decay=0.8, stability=0.1))


def heads(*names: str) -> dict[str, pf.Component]:
    found = pf.attention_heads(language_model())
    return {name: found[name] for name in names}


def mlp() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def mlp_data(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 3, generator=generator), torch.randn(samples, 2, generator=generator)


def roughness(model: nn.Module) -> Tensor:
    """An observable that is no loss."""
    return sum((each.square().sum() for each in model.parameters()), torch.zeros(())).sqrt()


class Chains:
    """A chain in double precision, by a loop of its own; one datum can be up-weighted and another down-weighted."""

    def __init__(self, posterior: pf.LocalPosterior, sampler: Any, options: dict[str, Any], apart: int) -> None:
        self.posterior, self.sampler, self.options, self.apart = posterior, sampler, options, apart
        self.model = posterior.model.double()
        self.base = {name: each.detach().clone() for name, each in self.model.named_parameters()}
        self.steps = (options["burn_in"] + options["draws"]) * apart
        self.begun = options["burn_in"] * apart
        full = resolve_components(self.model, None, posterior.moving)
        setting = Setting(sampler.lr, posterior.n_beta, posterior.localization)
        self.ids = chain_plan(full, options["chains"], False, None, (setting,)).chain_ids()
        self.step_sizes: list[dict[str, Tensor]] = []
        """RMSProp's, of the chain when nothing was up-weighted, which ran first."""

    def batch(self, chain: int, step: int) -> Any:
        """The minibatch of a step."""
        seed, at = torch.tensor(0, dtype=torch.int64), torch.tensor(step, dtype=torch.int64)
        index = minibatch(seed, torch.tensor([chain]), at, self.options["batch_size"], count(self.posterior.data))
        return taken(self.posterior.data, index[0])

    def mean(self, chain: int, observable: Observable, up: float, data: Any) -> float:
        """Mean of an observable over the chain's steps, while the first of two data weighs more and the second less."""
        posterior, lr, sampler = self.posterior, self.sampler.lr, self.sampler
        here = {name: each.clone().requires_grad_() for name, each in self.base.items()}
        second, momentum = ({name: torch.zeros_like(each) for name, each in here.items()} for _ in range(2))
        values = []
        for step in range(self.steps + 1):
            if step > self.begun and (value := observable(self, chain, step, here)) is not None:
                values.append(float(value.detach()))
            if step == self.steps:
                break
            felt = self.losses(here, self.batch(chain, step)).mean()
            if up and step % self.apart == 0:  # where responses are taken, for all steps of a draw
                more, less = (
                    self.losses(here, data).flatten(1).sum(1) if isinstance(data, Tensor) else self.losses(here, data)
                )
                felt = felt + up * self.apart * (more - less)
            grads = dict(zip(here, torch.autograd.grad(felt, list(here.values())), strict=True))
            drawn = torch.empty(1, sum(each.numel() for each in here.values()))
            pf.ops.normal_(drawn, seed=0, step=step, chain_ids=self.ids[chain : chain + 1])
            noise = dict(zip(here, drawn[0].double().split([each.numel() for each in here.values()]), strict=True))
            if isinstance(sampler, pf.RMSPropSGLD) and step == len(self.step_sizes):
                second = {
                    name: sampler.decay * each + (1 - sampler.decay) * grads[name].square()
                    for name, each in second.items()
                }
                corrected = 1 - sampler.decay ** (step + 1)
                self.step_sizes.append(
                    {name: lr / ((each / corrected).sqrt() + sampler.stability) for name, each in second.items()}
                )
            with torch.no_grad():
                for name, each in here.items():
                    push = posterior.n_beta * grads[name] + posterior.localization * (each - self.base[name])
                    xi = noise[name].view(each.shape)
                    if isinstance(sampler, pf.SGHMC):
                        momentum[name] = (1 - sampler.friction) * momentum[name] - lr * push
                        momentum[name] += (2 * sampler.friction * lr) ** 0.5 * xi
                        each += momentum[name]
                    else:
                        size = self.step_sizes[step][name] if self.step_sizes else torch.tensor(lr)
                        each += -size / 2 * push + size.sqrt() * xi
        return float(np.mean(values))

    def losses(self, here: dict[str, Tensor], batch: Any) -> Tensor:
        return self.posterior.loss(Calling(self.model, here), batch)


Observable = Callable[[Chains, int, int, dict[str, Tensor]], Tensor | None]


class Calling(nn.Module):
    def __init__(self, model: nn.Module, here: dict[str, Tensor]) -> None:
        super().__init__()
        self.inner, self.here = [model], here

    def forward(self, *inputs: Tensor) -> Tensor:
        doubles = [each.double() if each.is_floating_point() else each for each in inputs]
        return functional_call(self.inner[0], self.here, tuple(doubles))


def taken(data: Any, index: Tensor) -> Any:
    return tuple(each[index] for each in data) if isinstance(data, tuple) else data[index]


def count(data: Any) -> int:
    return len(data[0] if isinstance(data, tuple) else data)


def minibatch_loss(chains: Chains, chain: int, step: int, here: dict[str, Tensor]) -> Tensor:
    """φ on the minibatch of every step."""
    return chains.losses(here, chains.batch(chain, step)).mean()


CHOSEN = torch.tensor([0, 3, 5])


def observed_steps(chains: Chains) -> set[int]:
    """One of each draw, drawn as `linear_response` does."""
    draws = chains.options["draws"] + chains.options["burn_in"]
    within = torch.randint(chains.apart, (draws,), generator=torch.Generator().manual_seed(0)).tolist()
    return {draw * chains.apart + 1 + offset for draw, offset in enumerate(within)}


def of_chosen(chains: Chains, chain: int, step: int, here: dict[str, Tensor]) -> Tensor | None:
    """φ on some of the data, so few that all of them are taken."""
    if step not in observed_steps(chains):
        return None
    return chains.losses(here, taken(chains.posterior.data, CHOSEN)).mean()


def of_roughness(chains: Chains, chain: int, step: int, here: dict[str, Tensor]) -> Tensor | None:
    if step not in observed_steps(chains):
        return None
    return sum((each.square().sum() for each in here.values()), torch.zeros(())).sqrt()


@pytest.mark.parametrize(
    ("sampler", "case"),
    [(SAMPLERS[0], "language"), (SAMPLERS[2], "language, roughness")]
    + [(sampler, case) for sampler in SAMPLERS for case in ("mlp", "mlp, roughness", "mlp, chosen", "mlp, native")],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_it_is_the_derivative_of_the_chains(sampler: Any, case: str) -> None:
    """Up-weight a datum in what chains feel, same noise, minibatches and step sizes: means move as the response says.

    The loop is in double precision. What is left is the one-sided differences' error, of random sign: 1e-2 of how
    curvature changes over the posterior, which is small here.
    """
    apart, up, chain = 2, 1e-3, 1
    options = RESPONDING | {"draws": 4, "burn_in": 3}
    data: Tensor | tuple[Tensor, Tensor]
    if case.startswith("language"):
        posterior, data = language_posterior(), DATUM
    else:
        posterior = pf.LocalPosterior(mlp(), pf.losses.squared_error, mlp_data(9, 0), n_beta=10.0, localization=50.0)
        data = mlp_data(2, 1)
    wanted = {"roughness": roughness} if "roughness" in case else None
    engine: Literal["native", "torch"] = "native" if "native" in case else "torch"
    chosen = CHOSEN if "chosen" in case else None
    found = pf.linear_response(posterior, sampler, probes={"data": data}, observable=wanted, loss_samples=chosen,
                               engine=engine, steps_between_draws=apart, **options)  # fmt: skip
    assert found.attrs["engine"] == engine
    assert found.attrs["observable"] == ("roughness" if wanted else "phi")
    chains = Chains(posterior, sampler, options, apart)
    observable = of_roughness if wanted else minibatch_loss if chosen is None else of_chosen
    if isinstance(sampler, pf.RMSPropSGLD):
        chains.mean(chain, observable, 0.0, data)
    moved = (chains.mean(chain, observable, up, data) - chains.mean(chain, observable, -up, data)) / (2 * up)
    # What is taken out of each datum's response is the same for all of them.
    more, less = posterior.n_beta * found["chi_group"].values[0, chain].reshape(2, -1).sum(1)
    assert more - less == pytest.approx(moved, rel=2e-3)


def test_alike_on_tiles_and_with_what_is_recalled() -> None:
    one = pf.linear_response(language_posterior(), SAMPLER, components=heads("l0h1", "l1h0"), **RESPONDING)
    with pytest.warns(UserWarning, match="whole model"):
        other = pf.linear_response(
            language_posterior(), SAMPLER, components=heads("l0h1", "l1h0"), recording_bytes=0,
            **RESPONDING | {"tile": 2},
        )  # fmt: skip
    scale = float(np.abs(one["chi"]).max())
    np.testing.assert_allclose(one["chi"], other["chi"], atol=1e-3 * scale)  # the rounding of differences
    assert list(one["component"].values) == ["l0h1", "l1h0"]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("steps_kept", [30, 0])
def test_less_memory_is_the_same(sampler: Any, steps_kept: int) -> None:
    """As many chains at a time as fit, steps made again from kept ones: the same to the bit, in any memory."""
    options = RESPONDING | {"chains": 3, "draws": 3, "components": heads("l1h1")}
    together = pf.linear_response(language_posterior(), sampler, **options)
    storage = Storage(steps=29, has_memory=not isinstance(sampler, pf.SGLD))
    bytes_each = storage.place_bytes * steps_kept if steps_kept else storage.least
    less = 128 * max(bytes_each, storage.least)
    frugal = pf.linear_response(language_posterior(), sampler, trajectory_bytes=less, **options)
    for name in ("chi_group", "contribution_group", "mu_group"):
        np.testing.assert_array_equal(together[name], frugal[name])


def test_a_run_resumes_on_other_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory makes chains wait, threads decide how many run together, but not of a run that was begun."""
    storage = Storage(steps=29, has_memory=False)
    options = RESPONDING | {
        "chains": 3, "draws": 3, "components": heads("l1h1"), "trajectory_bytes": 128 * 2 * storage.least,
        "checkpoint": tmp_path, "checkpoint_seconds": 0,
    }  # fmt: skip
    whole = pf.linear_response(language_posterior(), SAMPLER, **options | {"checkpoint": None})
    threads, back, left = torch.get_num_threads(), Sweep.back, [20]

    def cut_short(sweep: Sweep, pool: Any, step: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        back(sweep, pool, step)

    monkeypatch.setattr(Sweep, "back", cut_short)
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            pf.linear_response(language_posterior(), SAMPLER, **options)
        torch.set_num_threads(1)
        found = pf.linear_response(language_posterior(), SAMPLER, **options)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(found["chi_group"], whole["chi_group"])


def test_how_much_is_kept_fits() -> None:
    """Whatever the budget, what is kept at once is within it, and from the least that is said on, there is a way."""
    for steps in (1, 2, 7, 100, 501):
        for has_memory in (False, True):
            storage = Storage(steps, has_memory)
            for most in (storage.least, 2 * storage.least, steps * storage.place_bytes, 10**6):
                kept = storage.keep_every(1, most)
                assert kept is not None
                assert storage.bytes(kept) <= most
            assert storage.keep_every(1, storage.least - 1) is None
    assert Storage(501, False).least < 64 * 8  # grows with the root of steps


def test_phi_is_unweighted() -> None:
    """Weights of 2 are twice nβ to the chains, and nothing to φ, which is then taken on minibatches of its own."""
    twice = pf.linear_response(language_posterior(weights=torch.full((12, 8), 2.0)), SAMPLER, **RESPONDING)
    every = torch.arange(12)
    warm = pf.linear_response(language_posterior(n_beta=20.0), SAMPLER, loss_samples=every, **RESPONDING)
    # One takes L on all data out of χ, the other on minibatches: a constant over the data.
    one, other = (each["chi"].values - each["chi"].values.mean() for each in (twice, warm))
    np.testing.assert_allclose(one, other, atol=2e-3 * np.abs(one).max())
    assert list(warm["component"].values) == ["full"]
    assert "contribution" not in twice


def test_antithetic_pairs_are_one_group() -> None:
    pairs = pf.linear_response(language_posterior(), SAMPLER, antithetic=True, **RESPONDING | {"chains": 4})
    assert pairs.sizes["group"] == 2
    assert pairs["chains_run"].values.tolist() == [4]
    alone = pf.linear_response(language_posterior(), SAMPLER, **RESPONDING | {"chains": 2})
    scale = float(np.abs(alone["chi"]).max())
    assert 0 < np.abs(pairs["chi_group"].values - alone["chi_group"].values).max() < scale


def test_what_goes_with_chi() -> None:
    """E[φ] and contributions are those of `sample`, within errors, and φ's own chains are looked at."""
    posterior = pf.LocalPosterior(mlp(), pf.losses.squared_error, mlp_data(9, 0), n_beta=20.0, localization=50.0)
    options = RESPONDING | {"chains": 32, "draws": 20, "burn_in": 25, "batch_size": 64}
    ours = pf.linear_response(posterior, SAMPLER, **options).isel(component=0)
    sampled = pf.sample(posterior, SAMPLER, seed=1, **options | {"chains": 256, "steps_between_draws": 4})
    llc, adds = sampled.llc().isel(component=0), sampled.contributions().isel(component=0)
    assert ours.attrs["engine"] == "native"
    apart = float(ours["llc"] - llc["llc"]) / np.hypot(float(ours["llc_error"]), float(llc["llc_error"]))
    assert abs(apart) < 5
    z = (ours["contribution"] - adds["contribution"]) / np.hypot(ours["contribution_error"], adds["contribution_error"])
    assert float(abs(z).max()) < 5  # of 9
    assert abs(float(ours["llc"])) > 4 * float(ours["llc_error"])
    assert 0.9 < float(ours["r_hat"]) < 1.5  # of 20 draws, 4 steps apart, that take 40 to forget
    assert 32 < float(ours["ess"]) < 32 * 20
    assert bool(ours["settled"])
    assert 25 < float(ours["relaxation_steps"]) < 45  # 2/(lr·localization) is 40, and what curves the loss is sooner
    assert float(ours["difference_error"]) < 0.1
    assert np.isfinite([float(ours["blind"]), float(ours["blind_correlation"])]).all()


def test_a_chain_that_diverges_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    step = TorchEnsemble.add_gradients
    options = RESPONDING | {"chains": 4}
    alone = pf.linear_response(language_posterior(), SAMPLER, **options)

    def stumble(moving: TorchEnsemble, pool: Any) -> None:
        step(moving, pool)
        moving.bank.grads[moving.bank.starts[1] : moving.bank.starts[2]] = torch.nan

    monkeypatch.setattr(TorchEnsemble, "add_gradients", stumble)
    found = pf.linear_response(language_posterior(), SAMPLER, **options)
    by_chain, expected = found["chi_group"].values[0], alone["chi_group"].values[0]
    assert np.isnan(by_chain[1]).all()
    assert found["diverged"].values.tolist() == [[False, True, False, False]]
    np.testing.assert_array_equal(by_chain[[0, 2, 3]], expected[[0, 2, 3]])
    np.testing.assert_allclose(found["chi"][0], expected[[0, 2, 3]].mean(0), rtol=1e-4, atol=1e-9)


def round_off(model: nn.Module) -> Tensor:
    return next(model.parameters()).round().sum().detach()


def test_what_cannot_work_is_said_at_once() -> None:
    posterior = language_posterior()
    with pytest.raises(ValueError, match="only SGLD without"):
        pf.linear_response(posterior, pf.SGLD(1e-3, gradient_noise_correction=True))
    with pytest.raises(TypeError, match="sampler must be"):
        pf.linear_response(posterior, pf.SGNHT(1e-3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="raise trajectory_bytes"):
        pf.linear_response(posterior, SAMPLER, trajectory_bytes=1000)
    with pytest.raises(ValueError, match="at least 2 independent chains"):
        pf.linear_response(posterior, SAMPLER, chains=1)
    with pytest.raises(ValueError, match="indices"):
        pf.linear_response(posterior, SAMPLER, loss_samples=torch.tensor([99]))
    with pytest.raises(ValueError, match=r"observable\['round'\] has no gradient"):
        pf.linear_response(posterior, SAMPLER, observable={"round": round_off})
    with pytest.raises(ValueError, match="one observable is differentiated at a time"):
        pf.linear_response(posterior, SAMPLER, observable={"one": roughness, "two": roughness})
    with pytest.raises(ValueError, match="error names unknown components"):
        pf.linear_response(posterior, SAMPLER, error={"l9h9": 0.1})
    with pytest.raises(ValueError, match='engine="native" cannot run this'):
        pf.linear_response(posterior, SAMPLER, engine="native")
    with pytest.raises(pf.ChainDivergedError, match="lower lr"):
        pf.linear_response(posterior, pf.SGLD(10.0), **RESPONDING | {"draws": 20})


@pytest.mark.filterwarnings("ignore:finite differences")
def test_chains_that_do_not_contract_are_told() -> None:
    """A step of 2.2/(localization) turns every direction over and makes it longer: lr·localization/2 = 2.2 > 2."""
    posterior = language_posterior(n_beta=1e-3)
    with pytest.warns(UserWarning, match="do not contract: what they answer to grows"):
        found = pf.linear_response(posterior, pf.SGLD(0.044), **RESPONDING | {"draws": 2, "burn_in": 2})
    assert not found["settled"].any()


def test_waves_end_when_the_goal_is_reached() -> None:
    """Components that are known stop; the others go on. What is said of reliability is what there is."""
    options = RESPONDING | {"chains": 4, "components": heads("l0h1", "l1h0"), "burn_in": 10}
    found = pf.linear_response(language_posterior(), SAMPLER, reliability=0.9, max_chains=200, **options)
    assert found.attrs["stopped"] == "reached"
    assert (found["chi_reliability"] >= 0.9).all()
    ran = found["chains_run"].values
    assert ran.min() >= 4
    assert (np.isfinite(found["chi_group"].values).all(2).sum(1) == ran).all()
    first = pf.linear_response(language_posterior(), SAMPLER, **options)
    np.testing.assert_array_equal(found["chi_group"][:, :4], first["chi_group"])
    error = {"l1h0": 0.6 * float(np.sqrt((first["chi_error"].sel(component="l1h0") ** 2).mean()))}
    found = pf.linear_response(language_posterior(), SAMPLER, error=error, **options)
    assert found["chains_run"].sel(component="l0h1") == 4 < found["chains_run"].sel(component="l1h0")
    assert float(np.sqrt((found["chi_error"].sel(component="l1h0") ** 2).mean())) <= error["l1h0"]


@pytest.mark.parametrize("budget", [{"max_chains": 7}, {"max_seconds": 1e-3}])
def test_a_budget_that_is_spent_is_told(budget: dict[str, Any], tmp_path: Path) -> None:
    """And a call with more goes on from there."""
    options = RESPONDING | {"chains": 4, "components": heads("l1h0"), "burn_in": 10, "checkpoint": tmp_path}
    (name,) = budget
    with pytest.warns(UserWarning, match=f"{name} was spent before.*reliability"):
        found = pf.linear_response(language_posterior(), SAMPLER, reliability=0.9999, **budget, **options)
    assert found.attrs["stopped"] == name
    assert found["chains_run"].values.tolist() == [7 if name == "max_chains" else 4]
    with pytest.warns(UserWarning, match="max_chains was spent"):
        more = pf.linear_response(language_posterior(), SAMPLER, reliability=0.9999, max_chains=10, **options)
    (ran,) = found["chains_run"].values
    assert more["chains_run"].values[0] > ran
    np.testing.assert_array_equal(more["chi_group"][:, :ran], found["chi_group"])
