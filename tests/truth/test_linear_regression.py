"""LLC, contributions, susceptibilities, loss kernel: against their closed forms, with coverage of standard errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.estimators.comoments import Comoments, Means, mean_and_error, pseudo_values
from patterning_fast.estimators.labelled import labelled
from patterning_fast.estimators.statistics import contribution, correlation, covariance, particular
from tests.truth.linear_regression import LinearRegression, linear_regression

FULL = [0, 1, 2, 3, 4, 5]
RESTRICTED = [0, 1]

EXPERIMENTS, GROUPS, CHAINS = 256, 8, 4
"""Independent experiments at once, groups in each, chains in each group."""


def simulate(problem: LinearRegression, coordinates: list[int], seed: int) -> Comoments:
    """Totals of `EXPERIMENTS * GROUPS` groups under full-batch gradients; observables: φ, then every loss."""
    chains = EXPERIMENTS * GROUPS * CHAINS
    solution = problem.model().weight.detach()[0]
    whole = solution.repeat(chains, 1)
    w, g = whole[:, coordinates].clone(), torch.zeros(chains, len(coordinates))
    at_center = 0.5 * (problem.x @ solution - problem.y[:, 0]) ** 2
    totals = Comoments.zeros(EXPERIMENTS * GROUPS, at_center, torch.zeros(1 + len(at_center)))
    groups = torch.arange(chains) // CHAINS
    for step in range(300):
        whole[:, coordinates] = w
        residual = whole @ problem.x.T - problem.y[:, 0]
        if step >= 100 and step % 5 == 0:
            shift = 0.5 * residual**2 - at_center
            totals.update(0.5 * residual**2, torch.cat((shift.mean(1, keepdim=True), shift), 1), groups)
        g.copy_(residual @ problem.x[:, coordinates] / len(problem.x))
        pf.ops.langevin_step(
            w, g, solution[coordinates].contiguous(), lr=problem.lr, n_beta=problem.n_beta,
            localization=problem.localization, seed=seed, step=step,
        )  # fmt: skip
    return totals


STATISTICS: dict[str, tuple[Callable[[Means], Tensor], Callable[[LinearRegression, list[int]], Tensor]]] = {
    "llc": (
        lambda means: 30.0 * means.observable[0],
        lambda problem, coordinates: torch.tensor(problem.llc(coordinates)),
    ),
    "contribution": (
        lambda means: contribution(means, 30.0, 40),
        lambda problem, coordinates: problem.contribution(coordinates),
    ),
    "susceptibility": (
        lambda means: particular(means, 0),
        lambda problem, coordinates: problem.susceptibility(coordinates),
    ),
    "loss kernel": (
        lambda means: covariance(means)[1:6],
        lambda problem, coordinates: problem.loss_kernel(coordinates)[:5],
    ),
    "loss correlation": (
        lambda means: correlation(covariance(means)[1:])[:5, 5:],
        lambda problem, coordinates: problem.loss_correlation(coordinates)[:5, 5:],
    ),
}


@pytest.fixture(scope="module", params=[RESTRICTED, FULL], ids=["restricted", "full"])
def simulated(request: pytest.FixtureRequest) -> tuple[LinearRegression, list[int], Comoments]:
    problem = linear_regression(seed=0)
    return problem, request.param, simulate(problem, request.param, seed=3)


@pytest.mark.parametrize("name", STATISTICS)
def test_estimates_meet_their_closed_forms(name: str, simulated: tuple[LinearRegression, list[int], Comoments]) -> None:
    problem, coordinates, totals = simulated
    statistic, exact = STATISTICS[name]
    truth = exact(problem, coordinates)
    value, error = mean_and_error(pseudo_values(statistic, totals.means(slice(None))))
    z = (value - truth) / error
    # Normal errors from 2048 groups; at most 200 of them, which are far from independent.
    assert float(z.abs().max()) < 5.0
    # Those of contributions, whose two terms all but cancel, are 7 %.
    most = 0.08 if name == "contribution" else 0.05
    assert float(error.mean()) < most * float(truth.abs().mean())


@pytest.mark.parametrize("name", STATISTICS)
def test_standard_errors_cover(name: str, simulated: tuple[LinearRegression, list[int], Comoments]) -> None:
    """Over 256 experiments of 8 groups, 95 % intervals hold the truth 95 % of the time, neither more nor less."""
    problem, coordinates, totals = simulated
    statistic, exact = STATISTICS[name]
    truth = exact(problem, coordinates)
    estimates = [
        mean_and_error(pseudo_values(statistic, totals.means(slice(GROUPS * at, GROUPS * (at + 1)))))
        for at in range(EXPERIMENTS)
    ]
    values, errors = (torch.stack(each) for each in zip(*estimates, strict=True))
    inside = ((values - truth).abs() < scipy.stats.t.ppf(0.975, GROUPS - 1) * errors).double().mean()
    # Binomial standard error over 256 experiments: 0.014, times 4; pseudo-values of covariances are skewed, which
    # costs a few hundredths of coverage at 8 groups.
    assert 0.89 < float(inside) < 0.99
    # The mean squared error reported is the variance there is, to 4 standard errors of a variance ratio (√(2/256)).
    ratio = errors.square().mean(0) / values.var(0)
    assert abs(float(ratio.mean()) - 1) < 4 * (2 / EXPERIMENTS) ** 0.5


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("name", ["llc", "susceptibility"])
def test_intervals_cover(name: str, groups: int, simulated: tuple[LinearRegression, list[int], Comoments]) -> None:
    """Student's t holds the truth as often as it says, from 2 groups on; two errors do not."""
    problem, coordinates, totals = simulated
    statistic, exact = STATISTICS[name]
    truth = exact(problem, coordinates).numpy()
    experiments = EXPERIMENTS * GROUPS // groups
    found = [
        (torch.arange(groups), pseudo_values(statistic, totals.means(slice(groups * at, groups * (at + 1)))))
        for at in range(experiments)
    ]
    dims = ("token",) if truth.ndim else ()
    estimates = labelled("x", [f"{at}" for at in range(experiments)], found, groups, dims, {}, "x", "1")
    assert estimates["degrees_of_freedom"].values.tolist() == [groups - 1] * experiments
    ends = pf.intervals(estimates, "x")
    inside = float(((ends["lower"] <= truth) & (truth <= ends["upper"])).mean())
    within_two = float((abs(estimates["x"] - truth) <= 2 * estimates["x_error"]).mean())
    # 4 binomial errors over the experiments; pseudo-values of covariances are skewed, which costs χ about 0.01.
    assert abs(inside - 0.95) < 4 * (0.95 * 0.05 / experiments) ** 0.5 + 0.01
    assert groups > 2 or within_two < 0.8


@pytest.mark.parametrize("coordinates", [RESTRICTED, FULL])
def test_contributions_are_the_derivative_of_the_llc_by_weights(coordinates: list[int]) -> None:
    """Their closed form at lr → 0, against central differences of the exact λ̂(ρ) of the Gaussian posterior."""
    problem = dataclasses.replace(linear_regression(seed=4), lr=0.0)
    step, eye = 1e-4, torch.eye(40, dtype=torch.float64)
    differences = torch.tensor(
        [
            (problem.weighted_llc(coordinates, 1 + step * one) - problem.weighted_llc(coordinates, 1 - step * one))
            / (2 * step)
            for one in eye
        ],
        dtype=torch.float64,
    )
    # Rounding of λ̂ ≈ 2 over the step is 1e-12, its third derivative times the step squared 1e-8; w* is in float32,
    # so that the gradient at it, which the closed form takes for 0, is 1e-7.
    assert torch.allclose(problem.contribution(coordinates), differences, rtol=1e-5, atol=1e-7)
    assert float(differences.abs().max()) > 0.01


@pytest.mark.parametrize("antithetic", [False, True])
def test_sample_meets_the_closed_forms(antithetic: bool) -> None:
    """The whole way through `sample`: any seed of noise, minibatches far larger than the data set."""
    problem = linear_regression(seed=1, samples=20, width=4)
    model = problem.model()
    mask = torch.zeros(1, 4, dtype=torch.bool)
    mask[0, :2] = True
    statistics = pf.sample(
        problem.posterior(model), pf.SGLD(problem.lr),
        components={"two": pf.component(model, "two", {"weight": mask})} | pf.components(model, "full"),
        chains=32, draws=30, burn_in=8, steps_between_draws=8, batch_size=400, antithetic=antithetic, progress=False,
    )  # fmt: skip
    llc, chi, contributions = statistics.llc(), statistics.susceptibilities(), statistics.contributions()
    for name, coordinates in (("two", [0, 1]), ("full", [0, 1, 2, 3])):
        own = llc.sel(component=name)
        # t with 15 degrees of freedom passes 6 once in 40,000; minibatch noise of 400 samples adds under 1 %.
        assert abs(float(own["llc"]) - problem.llc(coordinates)) < 6 * float(own["llc_error"])
        adds = contributions.sel(component=name)
        truth = problem.contribution(coordinates).numpy()
        assert abs((adds["contribution"].values - truth) / adds["contribution_error"].values).max() < 7
        # Summed over the data, E[l_j] − l_j(w*) is λ̂/β, exactly; losses enter in float32.
        influence = float(statistics.influence()["influence"].sel(component=name).sum())
        beta = problem.n_beta / 20
        total = float(own["llc"]) + problem.n_beta * beta * influence
        assert float(adds["contribution"].sum()) == pytest.approx(total, rel=1e-4, abs=1e-5)
        assert float(adds["llc"]) == float(own["llc"])
        truth = problem.susceptibility(coordinates).numpy()
        z = (chi["chi"].sel(component=name).values - truth) / chi["chi_error"].sel(component=name).values
        assert abs(z).max() < 7
        assert abs(truth).max() > 3 * chi["chi_error"].sel(component=name).values.mean()


@pytest.mark.parametrize("steps_between_draws", [1, 3])
def test_linear_response_meets_its_closed_form(steps_between_draws: int) -> None:
    """To 6 standard errors, which are a tenth of χ: the covariance's own closed form lies outside them."""
    problem = linear_regression(seed=1, samples=20, width=4)
    model = problem.model()
    mask = torch.zeros(1, 4, dtype=torch.bool)
    mask[0, :2] = True
    chi = pf.linear_response(
        problem.posterior(model), pf.SGLD(problem.lr), components={"two": pf.component(model, "two", {"weight": mask})},
        chains=96, draws=240 // steps_between_draws, burn_in=48 // steps_between_draws, batch_size=400,
        steps_between_draws=steps_between_draws, progress=False,
    )  # fmt: skip
    own, error = chi["chi"].values[0], chi["chi_error"].values[0]
    truth = problem.susceptibility_by_response([0, 1]).numpy()
    assert abs((own - truth) / error).max() < 6
    assert abs(truth).max() > 10 * error.mean()
    assert abs((own - problem.susceptibility([0, 1]).numpy()) / error).max() > 6


def test_realised_response_is_the_predicted_one() -> None:
    """Fluctuation-dissipation: for small weights the chains move by nβ·χ·(ρ − 1)/n, χ the closed form's."""
    problem = linear_regression(seed=2, samples=20, width=3)
    posterior = problem.posterior(problem.model())
    sampling: dict[str, Any] = {
        "chains": 32, "draws": 30, "burn_in": 8, "steps_between_draws": 8, "batch_size": 400, "progress": False,
    }  # fmt: skip
    statistics = pf.sample(posterior, pf.SGLD(problem.lr), **sampling)
    chi = statistics.susceptibilities()
    plan = pf.invert(chi, {"full": 1.0}, strength=0.1)
    checked = pf.verify(plan, posterior, pf.SGLD(problem.lr), fractions=[1.0], **sampling)
    checked = checked.isel(strength=0).sel(component="full")
    exact = problem.n_beta / 20 * float(problem.susceptibility([0, 1, 2]) @ (torch.from_numpy(plan.weights.values) - 1))
    assert exact > 8 * float(checked["realised_error"])
    assert abs(float(checked["realised"]) - exact) < 6 * float(checked["realised_error"]) + 0.15 * exact
    assert abs(float(checked["z"])) < 6
