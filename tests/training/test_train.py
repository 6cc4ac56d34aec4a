"""Weighted training: weights mean what they say, and mismatches are errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import patterning_fast as pf
from tests.models import CONTEXT, WithDropout, language_model, tokens

SETTINGS: dict[str, Any] = {"steps": 6, "batch_size": 4, "lr": 1e-2, "progress": False}


def trained(weights: Tensor | xr.DataArray | None, data: Tensor | None = None, **changes: Any) -> Tensor:
    model = language_model()
    pf.train(model, tokens() if data is None else data, pf.losses.next_token, weights=weights, **SETTINGS | changes)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_weights_of_one_change_no_bit() -> None:
    assert torch.equal(trained(None), trained(torch.ones(12, CONTEXT)))
    assert not torch.equal(trained(None), trained(torch.rand(12, CONTEXT)))
    assert not torch.equal(trained(None), trained(None, seed=1))


def test_weights_of_one_change_no_bit_under_dropout() -> None:
    def trained_with(weights: Tensor | None) -> Tensor:
        torch.manual_seed(0)
        model = WithDropout()
        data = (torch.randn(8, 3), torch.tensor([0, 1] * 4))
        pf.train(model, data, pf.losses.cross_entropy, weights=weights, **SETTINGS)
        return model.linear.weight.detach()

    assert torch.equal(trained_with(None), trained_with(torch.ones(8)))


def test_scale_of_the_weights_does_not_matter() -> None:
    weights = torch.rand(12, CONTEXT) + 0.5
    # Powers of two scale exactly.
    assert torch.equal(trained(weights), trained(4 * weights))


def test_tokens_of_weight_zero_are_as_good_as_absent() -> None:
    """Targets at weight 0 can be replaced by anything when nothing else reads them: the last token of each sample."""
    weights = torch.ones(12, CONTEXT)
    weights[:, -1] = 0.0
    other = tokens()
    other[:, -1] = 0
    assert torch.equal(trained(weights), trained(weights, other))


def test_weighted_loss_is_a_weighted_mean() -> None:
    losses, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 3.0])
    assert float(pf.weighted_loss(losses, weights)) == pytest.approx(13 / 4)


def test_metrics_are_gathered() -> None:
    seen: list[bool] = []

    def metrics(model: torch.nn.Module) -> dict[str, float]:
        seen.append(model.training)
        return {"answer": 42.0}

    rows = pf.train(language_model(), tokens(), pf.losses.next_token, metrics=metrics, metrics_every=4, **SETTINGS)
    assert [row["step"] for row in rows] == [0, 4, 6]
    assert all(row["answer"] == 42.0 for row in rows)
    assert np.isnan(rows[0]["loss"])
    assert rows[2]["loss"] < rows[1]["loss"]
    assert seen == [False] * 3


def test_weights_of_a_plan_fit_their_data_alone() -> None:
    sample, position = (("token", each.ravel()) for each in np.indices((12, CONTEXT)))
    coordinates = {"probe": ("token", ["a"] * 12 * CONTEXT), "sample": sample, "position": position}
    table = xr.DataArray(np.ones(12 * CONTEXT), dims="token", coords=coordinates)
    assert torch.equal(trained(table), trained(None))
    two = table.assign_coords(probe=("token", ["a", "b"] * 6 * CONTEXT))
    with pytest.raises(ValueError, match=r"belong to several probes \['a', 'b'\]"):
        trained(two)
    with pytest.raises(ValueError, match="they must come from a plan on this very data"):
        trained(table[:-1])
    with pytest.raises(ValueError, match="coordinate 'probe' and none that says which sample each belongs to: give"):
        trained(table[::-1].drop_vars(["sample", "position"]))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(CONTEXT, 12), "do not fit the data"),
        (torch.full((12, CONTEXT), float("nan")), f"{12 * CONTEXT} weights are not finite"),
        (torch.zeros(12, CONTEXT), "the weights are all zero: that leaves no data"),
    ],
)
def test_bad_weights_are_refused(weights: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(weights)


@pytest.mark.parametrize("name", ["steps", "batch_size", "lr", "metrics_every"])
def test_bad_settings_are_refused(name: str) -> None:
    setting: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be a"):
        trained(None, **setting)


def test_a_loss_that_is_lost_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="the training loss is not finite by step 6; lower lr"):
        trained(None, lr=1e30)


def interrupted(_: Any) -> dict[str, float]:
    raise KeyboardInterrupt


def test_modules_are_left_in_the_mode_they_were_in() -> None:
    """Training and evaluation, module by module; also where training is interrupted."""
    data = (torch.randn(8, 3), torch.tensor([0, 1] * 4))
    for training in (True, False):
        model = WithDropout().train(training)
        model.linear.train(not training)
        before = [module.training for module in model.modules()]
        pf.train(model, data, pf.losses.cross_entropy, metrics=lambda _: {"one": 1.0}, **SETTINGS)
        assert [module.training for module in model.modules()] == before
        with pytest.raises(KeyboardInterrupt):
            pf.train(model, data, pf.losses.cross_entropy, metrics=interrupted, **SETTINGS)
        assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_refused(dtype: torch.dtype) -> None:
    model = language_model()
    model.layers[0].to(dtype)
    with pytest.raises(TypeError, match=r"layers.0.qkv.* of half precision; use model.float\(\)"):
        pf.train(model, tokens(), pf.losses.next_token, **SETTINGS)
