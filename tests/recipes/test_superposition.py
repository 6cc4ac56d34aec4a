"""The superposition recipe: what it counts, what its weights are, and a small run of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

import patterning_fast as pf
from patterning_fast.models.superposition import TiedAutoencoder
from patterning_fast.recipes import recipe
from superposition import estimates, plans, replicas
from superposition.outcome import named
from superposition.polygons import one_active, polygons
from superposition.settings import Settings, Weighting

pytestmark = pytest.mark.filterwarnings("ignore:χ of .* is geometry of a Gaussian ball")  # as of a toy run

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = Settings(magnitudes=8, chains=4, draws=6, burn_in=2, steps_between_draws=2, sampling_batch=48, rivals=2)


def moved_features(settings: Settings, sides: int, order: list[int]) -> torch.Tensor:
    """An exact polygon with its features in another order."""
    exact = estimates.exact_polygon(settings, sides).view(3, settings.features)
    return exact[:, order].flatten()


def test_losses_are_those_of_the_model() -> None:
    generator = torch.Generator().manual_seed(3)
    models = torch.randn(4, 18, generator=generator)
    x = one_active(6, 8).x
    found = estimates.losses_of(SMALL, models)
    for row, parameters in zip(found, models, strict=True):
        model = TiedAutoencoder(6).requires_grad_(False)
        torch.nn.utils.vector_to_parameters(parameters, model.parameters())
        np.testing.assert_allclose(row, pf.losses.squared_error(model, (x, x)).numpy(), rtol=1e-5, atol=1e-6)


def test_only_the_first_features_are_as_wanted() -> None:
    orders = ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0])
    models = torch.stack([moved_features(SMALL, 5, list(order)) for order in orders])
    found = polygons(models.numpy(), 6)
    assert replicas.as_wanted(found, 5).tolist() == [True, False]
    assert replicas.as_wanted(found, 6).tolist() == [False, False]


def test_plans_favour_what_is_wanted_by_loss() -> None:
    """Against pentagons that leave out another feature: less of the last feature, and no weight below 0."""
    finals = torch.stack([moved_features(SMALL, 5, [5, 1, 2, 3, 4, 0]), moved_features(SMALL, 5, [0, 5, 2, 3, 4, 1])])
    made = plans.plans_for(SMALL, 5, finals)["plans"]
    by_loss = {(unit, strength): weights for way, unit, strength, weights in made if way == "loss"}
    assert set(by_loss) == {(unit, strength) for unit in plans.UNITS for strength in SMALL.strengths}
    for (unit, _), weights in by_loss.items():
        assert float(weights.mean()) == pytest.approx(1, abs=1e-5)
        assert float(weights.min()) >= 0
        by_feature = weights.view(6, 8).mean(1)
        if unit != "magnitude":
            assert by_feature[5] < by_feature[2] < by_feature[0] + 1e-6
    feature = by_loss["feature", 0.35].view(6, 8)
    assert torch.equal(feature, feature[:, :1].expand(6, 8))
    assert float((feature - 1).square().mean().sqrt()) == pytest.approx(0.35, rel=1e-4)


def test_controls_keep_the_weights_and_move_them() -> None:
    best = Weighting(5, "loss", "sample", 1.0, torch.rand(6 * 8))
    control = plans.shuffled(SMALL, best)
    assert torch.equal(control.weights.sort().values, best.weights.sort().values)
    rows, moved = best.weights.view(6, 8), control.weights.view(6, 8)
    assert torch.equal(moved[0].sort().values, rows[5].sort().values)
    assert control.name != best.name


def test_frequencies_and_weights_by_hand() -> None:
    for each in plans.frequencies(SMALL):
        weights = each.weights.view(6, 8)
        assert float(weights.mean()) == pytest.approx(1)
        assert float(weights[5, 0] / weights[0, 0]) == pytest.approx(each.strength)
    settings = replace(SMALL, magnitudes=32)
    by_hand = plans.by_hand(settings).weights
    faint = torch.from_numpy(one_active(6, 32).magnitude < plans.FAINT)
    assert float(by_hand.mean()) == pytest.approx(1)
    assert float(by_hand[faint].sum() / by_hand.sum()) == pytest.approx(plans.MASS_OF_FAINT)


def test_replicas_are_the_same_for_the_same_seed() -> None:
    settings = replace(SMALL, replicas=3, steps=4, snapshots=2)
    one, again, other = (replicas.trained(settings, seed, None) for seed in (0, 0, 1))
    assert torch.equal(one["parameters"], again["parameters"])
    assert not torch.equal(one["parameters"], other["parameters"])
    ones = replicas.trained(settings, 0, torch.ones(48))
    assert torch.equal(one["parameters"], ones["parameters"])


def test_the_recipe_runs(tmp_path: Path) -> None:
    summary = recipe.run_file(RECIPES / "superposition.toml", tmp_path / "out", quick=True)
    assert "the goal is" in summary
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"What replicas come to", "All plans", "Exact polygons"} <= set(found["tables"])
    kinds = {"other", "6", "5+", "5", "4++", "4+", "4", "3+", "3", "2+", "2"}
    for row in found["tables"]["What replicas come to"]:
        assert sum(share for kind, share in row.items() if kind in kinds) == pytest.approx(1)
    for name in found["pictures"]:
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000
    weights = pyarrow.parquet.read_table(tmp_path / "out" / "weights.parquet")
    assert set(weights.column_names) == {"weights", "feature", "magnitude", "weight"}


def test_wanted_polygons_in_words() -> None:
    assert named(6, 6) == "6-gon"
    assert named(5, 6) == "5-gon without feature 6"
    assert named(4, 6) == "4-gon without features 5 and 6"
    assert named(5, 8) == "5-gon without features 6, 7 and 8"
