"""The rule of agreement, and what `verify` and `importance_check` refuse. Closed forms are in tests/truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import patterning_fast as pf
from patterning_fast.patterning import importance
from patterning_fast.patterning.agreement import agreement, radius
from patterning_fast.report import figures
from tests.models import language_model, language_posterior, tokens

SAMPLING: dict[str, Any] = {"chains": 4, "draws": 3, "batch_size": 4, "progress": False}
SGLD = pf.SGLD(1e-3)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[pf.Plan, Path]:
    """A plan, and the traces of the run that its χ is of."""
    path = tmp_path_factory.mktemp("traces") / "t.zarr"
    chi = pf.sample(language_posterior(), SGLD, traces=path, **SAMPLING).susceptibilities()
    mode = pf.modes(chi.isel(component=[0, 0]), centre_data=False, unsettled=True)[0]
    return pf.invert(chi, mode, strength=0.1, unsettled=True), path


def made_plan(dmu: list[float], error: float) -> pf.Plan:
    """A plan of strength 0.2 that predicts dμ."""
    values = {"dmu": ("component", dmu), "dmu_error": ("component", [error] * len(dmu))}
    predicted = xr.Dataset(values, coords={"component": [f"c{at}" for at in range(len(dmu))]})
    return pf.Plan(xr.DataArray(np.ones(3), dims="sample"), predicted, {"strength": 0.2, "n_beta": 10.0})


def judged(realised: list[list[float]], error: float = 0.01, predicted_error: float = 0.0) -> xr.Dataset:
    """The verdicts on dμ = (1, −2) at two strengths, realised with a spread over 16 groups that gives the error."""
    plan = made_plan([1.0, -2.0], predicted_error)
    noise = np.linspace(-1, 1, 16)
    noise *= error / (noise.std(ddof=1) / 4)
    by_group = np.array(realised)[:, :, None] + noise
    return agreement(plan, ["c0", "c1"], [0.5, 1.0], by_group, [None, None], 0.25, {})


def test_the_rule_of_agreement() -> None:
    kept = judged([[0.5, -1.0], [1.1, -2.1]])
    assert kept["verdict"].values.tolist() == ["kept", "kept"]  # off by many errors, but within the tolerance
    assert kept.attrs["radius"] == 0.2
    np.testing.assert_allclose(kept["realised_error"], 0.01)
    np.testing.assert_allclose(kept["deviation"], [0.0, np.hypot(0.1, 0.1) / np.hypot(1, 2)], atol=1e-12)
    np.testing.assert_allclose(kept["z"].sel(component="c1").values, [0.0, -10.0], atol=1e-9)
    broken = judged([[0.5, -1.0], [1.0, -1.0]])
    assert (broken["verdict"].values.tolist(), broken.attrs["radius"]) == (["kept", "broken"], 0.1)
    assert judged([[0.5, 0.0], [1.0, -2.0]]).attrs["radius"] == 0.0  # nothing counts beyond what is broken
    noisy = judged([[0.5, -1.0], [1.0, -2.0]], error=0.3, predicted_error=0.0)
    assert (noisy["verdict"].values.tolist(), noisy.attrs["radius"]) == (["too noisy", "kept"], 0.2)
    assert judged([[0.5, -1.0], [1.0, -2.0]], predicted_error=0.6)["verdict"].values.tolist() == ["too noisy"] * 2
    assert judged([[np.nan, -1.0], [1.0, -2.0]]).attrs["radius"] == 0.2
    assert figures.png(figures.verification(broken)).startswith(b"\x89PNG")


def test_p_values_are_uniform_where_the_prediction_holds() -> None:
    generator = np.random.default_rng(0)
    plan = made_plan([1.0, -2.0, 0.5], 1e-9)
    truth = plan.predicted["dmu"].values[None, :, None]
    draws = [truth + generator.normal(size=(1, 3, 5)) for _ in range(2000)]
    p = np.array([agreement(plan, ["c0", "c1", "c2"], [1.0], each, [None], 0.25, {})["p_value"][0] for each in draws])
    # 2,000 draws: the share under 0.05 has a standard error of 0.005; normal errors of 5 groups would make it 0.2.
    assert abs((p < 0.05).mean() - 0.05) < 0.02
    assert abs(p.mean() - 0.5) < 0.03


def test_errors_are_of_both_sides_and_p_values_of_student_s_t() -> None:
    plan = made_plan([1.0], 0.3)
    by_group = np.array([[[0.9, 1.6, 1.4]], [[1.0, 2.0, 3.0]]])
    found = agreement(plan, ["c0"], [0.5, 1.0], by_group, ["diverged", None], 0.25, {}).squeeze("component")
    realised_error = by_group[:, 0].std(1, ddof=1) / 3**0.5
    np.testing.assert_allclose(found["predicted_error"], [0.15, 0.3])
    z = (by_group[:, 0].mean(1) - [0.5, 1.0]) / np.hypot([0.15, 0.3], realised_error)
    np.testing.assert_allclose(found["z"], z)
    np.testing.assert_allclose(found["p_value"], 2 * scipy.stats.t.sf(abs(z), 2))
    np.testing.assert_allclose(found["deviation_error"], np.hypot([0.15, 0.3], realised_error) / [0.5, 1.0])
    verdicts = np.array(["diverged", "kept"])  # what has diverged ends the range, whatever comes beyond
    assert radius(np.array([0.1, 0.2]), verdicts) == found.attrs["radius"] == 0.0


def test_a_plan_must_fit_the_posterior(traced: tuple[pf.Plan, Path]) -> None:
    plan, _ = traced
    posterior = language_posterior()
    checked = pf.verify(plan, posterior, SGLD, fractions=[1.0, 0.5], **SAMPLING)
    assert checked["settled"].values.tolist() == [False]  # after three steps
    np.testing.assert_allclose(checked["strength"], [0.5 * plan.attrs["strength"], plan.attrs["strength"]])
    assert plan.verified(checked.attrs["radius"]).within_verified is (checked["verdict"].values[-1] == "kept")
    with pytest.raises(ValueError, match=r"the plan was made at n_beta 10.0, the posterior has 20.0"):
        pf.verify(plan, language_posterior(n_beta=20.0), SGLD, **SAMPLING)
    for fractions in ([], [0.0], [float("nan")]):
        with pytest.raises(ValueError, match=r"fractions(\[0\])? must be a"):
            pf.verify(plan, posterior, SGLD, fractions=fractions, **SAMPLING)
    with pytest.raises(ValueError, match="the posterior has weights of its own"):
        pf.verify(plan, posterior.reweighted(plan.weights), SGLD, **SAMPLING)
    with pytest.raises(ValueError, match="traces would be of one"):
        pf.verify(plan, posterior, SGLD, traces="anywhere", **SAMPLING)
    fewer = pf.LocalPosterior(language_model(), pf.losses.next_token, tokens(5), n_beta=10.0, localization=1.0)
    with pytest.raises(ValueError, match="must be numbers of the data, 0 to 4"):
        pf.verify(plan, fewer, SGLD, **SAMPLING)


def test_draws_are_weighted_by_what_the_traces_hold(
    traced: tuple[pf.Plan, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, path = traced
    checked = pf.importance_check(plan, path, fractions=[1.0])
    with pf.load_traces(path) as tree:
        phi = tree["/chains"].to_dataset()["phi"].sel(component="full").values
        (probe,) = tree["/probes"].children
        losses = tree[f"/probes/{probe}"].to_dataset()["losses"].sel(component="full").values.astype(np.float64)
    exponent = -10.0 * ((plan.weights.values - 1) * losses).mean(-1)
    weights = np.exp(exponent - exponent.max())
    assert float(checked["effective_sample_size"][0, 0]) == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    whole = [(weights * phi).sum() / weights.sum() - phi.mean()]
    whole += [
        (np.delete(weights, at, 0) * np.delete(phi, at, 0)).sum() / np.delete(weights, at, 0).sum()
        - np.delete(phi, at, 0).mean()
        for at in range(4)
    ]
    assert float(checked["realised"][0, 0]) == pytest.approx(4 * whole[0] - 3 * np.mean(whole[1:]), rel=1e-6)
    assert float(checked["realised_error"][0, 0]) == pytest.approx(np.sqrt(3 / 4 * 4) * np.std(whole[1:]), rel=1e-6)
    chosen: dict[str, Any] = {"fractions": [0.01], "tolerance": 1e9}
    assert pf.importance_check(plan, path, **chosen)["verdict"].values.tolist() == ["kept"]
    monkeypatch.setattr(importance, "LEAST_SHARE", 1.0)
    assert pf.importance_check(plan, path, **chosen)["verdict"].values.tolist() == ["too noisy"]
    far = pf.importance_check(plan, path, fractions=[1e4])
    assert far["verdict"].values.tolist() == ["too noisy"]
    assert float(far["effective_sample_size"][0, 0]) < 1.2


def test_chains_of_a_group_are_neighbours(traced: tuple[pf.Plan, Path], tmp_path: Path) -> None:
    """At vanishing weights the jackknife is the plain error of −nβ·Cov(φ, tilt), here of two groups of two chains."""
    plan, path = traced[0], tmp_path / "t.zarr"
    run = pf.sample(language_posterior(), SGLD, traces=path, groups=2, **SAMPLING)
    found = pf.importance_check(plan, path, fractions=[1e-4])
    by_group = 10.0 / 96 * run.influence()["influence_group"].values[0] @ (plan.weights.values.ravel() - 1)
    error = abs(by_group[0] - by_group[1]) / 2 * 1e-4
    assert float(found["realised_error"][0, 0]) == pytest.approx(error, rel=0.02)


def test_traces_must_be_of_the_data(traced: tuple[pf.Plan, Path], tmp_path: Path) -> None:
    plan, _ = traced
    posterior = language_posterior()
    with pytest.raises(FileNotFoundError, match="no traces at"):
        pf.importance_check(plan, tmp_path / "none.zarr")
    runs: list[tuple[str, pf.LocalPosterior, dict[str, Any]]] = [
        ("not of the posterior's data", posterior, {"probes": {"other": tokens(12, seed=5)}}),
        ("40 losses where the posterior's data have 96", posterior, {"probes": {"few": tokens(5)}}),
        ("had weights already", posterior.reweighted(plan.weights), {}),
        ("on 6 of 12 samples only", posterior, {"loss_samples": 6}),
        ("the posterior has 20.0", language_posterior(n_beta=20.0), {}),
    ]
    for at, (message, sampled, changes) in enumerate(runs):
        pf.sample(sampled, SGLD, traces=tmp_path / f"{at}.zarr", **SAMPLING | changes)
        with pytest.raises(ValueError, match=message):
            pf.importance_check(plan, tmp_path / f"{at}.zarr")
