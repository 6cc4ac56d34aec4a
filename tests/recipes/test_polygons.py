"""Polygons of the toy model of superposition: told apart, and where the loss is stationary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

import patterning_fast as pf
from patterning_fast.models.superposition import TiedAutoencoder
from superposition.polygons import left_out, one_active, polygons, regular_polygon

KINDS = [
    (features, sides, more) for features in (4, 6) for sides in range(2, features + 1)
    for more in range(features - sides + 1)
] + [(8, 8, 0)]  # fmt: skip


def vector(model: TiedAutoencoder) -> np.ndarray:
    return parameters_to_vector(model.parameters()).detach().numpy()


def moved(model: TiedAutoencoder, rng: np.random.Generator) -> np.ndarray:
    """The same polygon turned, mirrored, its features in another order, and a little noise."""
    turn = rng.uniform(0, 2 * math.pi)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) @ np.diag([1, -1])
    order = rng.permutation(model.bias.numel())
    weight = (rotation @ model.weight.detach().numpy())[:, order] + rng.normal(scale=0.02, size=(2, len(order)))
    return np.concatenate((weight.ravel(), model.bias.detach().numpy()[order]))


@pytest.mark.parametrize(("features", "sides", "more"), KINDS)
def test_exact_polygons_are_told_apart(features: int, sides: int, more: int) -> None:
    """Whatever way they lie, and in whatever order their features."""
    rng = np.random.default_rng()
    model = regular_polygon(features, sides, 16, more)
    found = polygons(np.stack([vector(model), *(moved(model, rng) for _ in range(20))]), features)
    assert found.sides.tolist() == [sides] * 21
    assert found.positive.tolist() == [more] * 21
    assert (found.held.sum(1) == sides).all()
    assert set(found.names) == {f"{sides}" + "+" * more}


def test_anything_else_is_other() -> None:
    """Corners missing, two features in one place, and nothing held at all."""
    hexagon = regular_polygon(6, 6, 16).weight.detach().numpy()
    gap, twice = hexagon.copy(), hexagon.copy()
    gap[:, 2] = 0
    twice[:, 2] = twice[:, 3]
    models = np.stack([np.concatenate((each.ravel(), np.zeros(6))) for each in (gap, twice, 0 * gap)])
    found = polygons(models, 6)
    assert found.sides.tolist() == [0, 0, 0]
    assert set(found.names) == {"other"}


def test_random_columns_are_mostly_other() -> None:
    columns = np.random.default_rng().normal(size=(2000, 18))
    assert (polygons(columns, 6).sides == 0).mean() > 0.8


@pytest.mark.parametrize(("features", "sides", "more"), KINDS)
def test_exact_polygons_are_critical_points(features: int, sides: int, more: int) -> None:
    """The gradient is 0 to float32; at a hexagon with columns 1 % longer it is 0.007."""
    data = one_active(features, 16)
    model = regular_polygon(features, sides, 16, more)
    pf.losses.squared_error(model, (data.x, data.x)).mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) < 2e-7


def test_squares_and_less_hold_their_features_exactly() -> None:
    """Loss of a square: that of what it leaves out, ½·E[magnitude²] for each of the features."""
    data = one_active(6, 16)
    mean_square = float(np.square(data.magnitude).mean())
    for sides in (2, 3, 4):
        with torch.no_grad():
            loss = float(pf.losses.squared_error(regular_polygon(6, sides, 16), (data.x, data.x)).mean())
        assert loss == pytest.approx(0.5 * mean_square * (6 - sides) / 6, rel=1e-5)


def test_one_feature_is_active_at_a_time() -> None:
    data = one_active(5, 4)
    assert data.x.shape == (20, 5)
    assert ((data.x > 0).sum(1) == 1).all()
    assert torch.equal(data.x[torch.arange(20), torch.from_numpy(data.feature)].double(), torch.tensor(data.magnitude))
    assert sorted(set(data.magnitude)) == [0.125, 0.375, 0.625, 0.875]


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="6 features make no 7-gon"):
        regular_polygon(6, 7, 16)
    with pytest.raises(ValueError, match=r"must be \[models, 18\], got \[3, 17\]"):
        polygons(np.zeros((3, 17)), 6)


def test_what_is_left_out_is_wanted_not_held_and_not_dead() -> None:
    """Of squares that leave out features 4 and 5: the first of positive bias, the shortest, only wanted ones."""
    dead, one, both = (vector(regular_polygon(6, 4, 16, more)) for more in (0, 1, 2))
    shorter = both.copy()
    shorter[4] = 0.01
    models = np.stack([dead, one, both, shorter])
    assert left_out(models, 6, 6).tolist() == [-1, 4, 4, 5]
    assert left_out(models, 6, 5).tolist() == [-1, 4, 4, 4]
    assert left_out(models, 6, 4).tolist() == [-1, -1, -1, -1]
    with pytest.raises(ValueError, match="at most the 6 features, got 7"):
        left_out(models, 6, 7)


def test_no_weights_bring_a_dead_feature_back() -> None:
    """Its gradients are exactly 0 on every sample; those of one with a positive bias are not."""
    x = one_active(6, 16).x
    for more, learns in ((0, False), (1, True)):
        model = regular_polygon(6, 5, 16, more)
        with torch.no_grad():
            model.weight[:, 5] = 0.01
        pf.losses.squared_error(model, (x, x))[-16:].sum().backward()
        assert model.weight.grad is not None
        assert bool(model.weight.grad[:, 5].any()) == learns


def test_a_pentagon_opens_where_what_it_leaves_out_weighs_more() -> None:
    """It is a minimum of the loss, and at four times the weight of the feature no more."""
    data = one_active(6, 16)
    start = torch.from_numpy(vector(regular_polygon(6, 5, 16, 1))).expand(8, -1)
    raised = torch.where(torch.from_numpy(data.feature) == 5, 4.0, 1.0)
    found = pf.train_replicas(
        TiedAutoencoder(6), start, (data.x, data.x), pf.losses.squared_error, steps=300, batch_size=32,
        optimizer=lambda params: torch.optim.Adam(params, lr=5e-3),
        weights=torch.stack((torch.ones(96), raised / raised.mean())), progress=False,
    )  # fmt: skip
    alike, more = (polygons(each, 6).sides for each in found["parameters"].values[-1])
    assert alike.tolist() == [5] * 8
    assert (more == 6).sum() >= 6  # of 8: noise of minibatches keeps some uneven
