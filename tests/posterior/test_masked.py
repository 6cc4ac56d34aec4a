"""Positions without a loss are no data: results are those of the data without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.engine.blindness import GaussianBall
from patterning_fast.posterior.data import present_in
from tests.decoders import decoder
from tests.models import CONTEXT, language_model, tokens

LENGTHS = torch.tensor([CONTEXT + 1, 5, 3, CONTEXT, 4, 7, CONTEXT + 1, 6, 3, 8, CONTEXT, 5])
"""Of the tokens of each sample; the others are padding."""
SAMPLING: dict[str, Any] = {"chains": 4, "draws": 3, "burn_in": 2, "batch_size": 6, "tile": 1, "progress": False}
TRAINING: dict[str, Any] = {"steps": 5, "batch_size": 4, "lr": 1e-2, "progress": False}

pytestmark = pytest.mark.filterwarnings("ignore:χ of .* is geometry of a Gaussian ball")


def padded(padding: int = 0) -> dict[str, Tensor]:
    mask = torch.arange(CONTEXT + 1) < LENGTHS[:, None]
    return {"input_ids": tokens().where(mask, padding), "attention_mask": mask.long()}


def posterior(data: Any, loss: Any = pf.losses.causal_lm, **changes: Any) -> pf.LocalPosterior:
    settings: dict[str, Any] = {"n_beta": 30.0, "localization": 300.0}
    return pf.LocalPosterior(changes.pop("model", language_model()), loss, data, **settings | changes)


def values(result: xr.Dataset) -> dict[str, np.ndarray]:
    return {str(name): each.values for name, each in result.variables.items() if each.dtype.kind in "fiub"}


def alike(one: xr.Dataset, other: xr.Dataset, tolerance: float = 0.0) -> None:
    """All numbers but times."""
    first, second = values(one), values(other)
    assert first.keys() == second.keys()
    for name, each in first.items():
        assert np.allclose(each, second[name], rtol=tolerance, atol=tolerance, equal_nan=True), name


def test_the_loss_is_that_of_the_model_itself() -> None:
    """Hugging Face's own loss, of labels without padding: a mean over what is there."""
    model = decoder("llama")
    data = padded()
    labels = data["input_ids"].masked_fill(data["attention_mask"] == 0, -100)
    own = model(**data, labels=labels).loss.detach()
    for batch in (data, data | {"labels": labels}, {"input_ids": data["input_ids"], "labels": labels}):
        losses = pf.losses.causal_lm(model, batch)
        present = present_in(pf.losses.causal_lm, batch, (CONTEXT,))
        assert present is not None
        assert torch.count_nonzero(losses[~present]) == 0
        assert float(losses[present].detach().mean()) == pytest.approx(float(own), rel=1e-5)
        assert int(present.sum()) == int((LENGTHS - 1).sum())
        assert posterior(batch, model=model).item_count == int(present.sum())


def test_padding_of_any_kind_changes_nothing() -> None:
    """To the bit: what the padding holds, and how labels say it."""
    data, other = padded(), padded(3)
    labels = data["input_ids"].masked_fill(data["attention_mask"] == 0, -100)
    runs = [
        pf.sample(posterior(each), pf.SGLD(1e-3), components=pf.attention_heads(language_model()), **SAMPLING)
        for each in (data, other, {"input_ids": other["input_ids"], "labels": labels})
    ]
    for each in runs[1:]:
        alike(runs[0].susceptibilities(), each.susceptibilities())
        alike(runs[0].llc(), each.llc())


@pytest.mark.parametrize("estimate", [pf.sample, pf.linear_response])
def test_without_padding_it_is_the_loss_of_next_tokens(estimate: Any) -> None:
    given = {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens())}
    found = [
        estimate(posterior(data, loss), pf.SGLD(1e-3), **SAMPLING)
        for data, loss in ((given, pf.losses.causal_lm), (tokens(), pf.losses.next_token))
    ]
    one, other = (each.susceptibilities() if isinstance(each, pf.Statistics) else each for each in found)
    alike(one, other)


class OwnLoss:
    """The same losses as `causal_lm`, of samples in which what is not there is cut off by hand."""

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        ids, keep = batch
        return torch.where(keep, pf.losses.next_token(model, ids), 0.0)


def by_hand(data: dict[str, Tensor]) -> tuple[pf.LocalPosterior, Tensor]:
    """A posterior whose ρ is 0 where there are no data, and which tokens are there."""
    present = data["attention_mask"][:, 1:].bool()
    return posterior((data["input_ids"], present), OwnLoss(), weights=present.float() / present.float().mean()), present


@pytest.mark.parametrize("control_variates", [False, True])
def test_chains_are_those_of_weights_of_zero(control_variates: bool) -> None:
    """φ is the mean of the losses that are there, and χ is of these alone; the steps differ by rounding only."""
    data = padded()
    weighted, present = by_hand(data)
    settings = SAMPLING | {"control_variates": control_variates, "shared_minibatches": control_variates}
    one = pf.sample(posterior(data), pf.SGLD(1e-3), **settings)
    other = pf.sample(weighted, pf.SGLD(1e-3), **settings)
    count = int(present.sum())
    chi = one.susceptibilities()
    assert chi.sizes["token"] == count
    assert [tuple(each) for each in present.nonzero().tolist()] == list(
        zip(chi["sample"].values.tolist(), chi["position"].values.tolist(), strict=True)
    )
    # L of the other run is the mean over all positions, of which those without data are 0.
    share = count / present.numel()
    assert np.allclose(one.llc()["mu"], other.llc()["mu"] / share, rtol=1e-3)


def test_responses_of_l_on_chosen_samples() -> None:
    """L on all samples by their numbers has a gradient of its own, and is L; probes have the losses that are there.

    The two ways count what is left of burn-in otherwise; after 20 steps and 20 draws they agree to some percent.
    """
    data, settings = padded(), SAMPLING | {"draws": 20, "burn_in": 20}
    found = pf.linear_response(posterior(data), pf.SGLD(1e-3), **settings)
    few = {name: each[:3] for name, each in data.items()}
    some = pf.linear_response(
        posterior(data), pf.SGLD(1e-3), loss_samples=torch.arange(12), probes={"few": few}, **settings
    )
    first = int((LENGTHS[:3] - 1).sum())
    assert some.sizes["token"] == first
    one, other = some["chi"].values[0], found["chi"].values[0][:first]
    assert np.corrcoef(one, other)[0, 1] > 0.98
    assert np.polyfit(other, one, 1)[0] == pytest.approx(1.0, abs=0.1)


def test_the_ball_is_of_what_is_there() -> None:
    """So small a ball that its χ is that of gradients: −σ²·∇φ·(∇l_z − ∇φ), φ a mean over what is there."""
    data, model = padded(), language_model()
    where = posterior(data, localization=1e6)
    ball = pf.sample(where, pf.SGLD(1e-7), **SAMPLING).twin
    assert isinstance(ball, GaussianBall)
    present = data["attention_mask"][:, 1:].bool()
    losses = pf.losses.causal_lm(model, data)[present]
    parameters = list(model.parameters())
    slopes = torch.stack([
        torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters, retain_graph=True)])
        for loss in losses
    ]).double()  # fmt: skip
    of_phi = slopes.mean(0)
    expected = -ball.variance * (slopes - of_phi) @ of_phi
    found = ball().chi[0].double().mean(0)
    assert np.allclose(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_training_is_that_of_weights_of_zero() -> None:
    data = padded()
    present = data["attention_mask"][:, 1:].bool()

    def trained(batch: Any, loss: Any, weights: Any, **changes: Any) -> Tensor:
        model = language_model()
        pf.train(model, batch, loss, weights=weights, **TRAINING | changes)
        return torch.cat([each.detach().flatten() for each in model.parameters()])

    pair = data["input_ids"], present
    rho = torch.rand(12, CONTEXT, generator=torch.Generator().manual_seed(0))
    for weighting in ("loss", "sampling"):
        for weights in (None, rho):
            own = torch.ones(12, CONTEXT) if weights is None else weights
            one = trained(data, pf.losses.causal_lm, weights, weighting=weighting)
            other = trained(pair, OwnLoss(), own * present, weighting=weighting)
            assert torch.equal(one, other)
    assert not torch.equal(trained(data, pf.losses.causal_lm, None), trained(pair, OwnLoss(), None))


def test_weights_of_a_plan_fit_where_data_are() -> None:
    """χ has no column for padding, so neither has the plan; its mean is 1 over what is there."""
    where = posterior(padded())
    chi = pf.linear_response(where, pf.SGLD(1e-3), **SAMPLING)
    plan = pf.invert(chi, {"full": -1e-4}, strength=0.3, negative_weights="clip", unsettled=True)
    assert plan.weights.size == int((LENGTHS - 1).sum())
    assert float(plan.weights.mean()) == pytest.approx(1.0)
    rho = where.reweighted(plan.weights).weights
    assert rho is not None
    assert where.present is not None
    assert torch.count_nonzero(rho[~where.present]) == 0
    assert np.allclose(rho[where.present].numpy(), plan.weights.values)
    pf.train(language_model(), padded(), pf.losses.causal_lm, weights=plan.weights, **TRAINING)
    with pytest.raises(ValueError, match="the weights miss 1 of the data's"):
        where.reweighted(plan.weights[1:])


def test_verification_weighs_what_is_there() -> None:
    where = posterior(padded(), n_beta=30.0)
    chi = pf.linear_response(where, pf.SGLD(1e-3), **SAMPLING | {"chains": 8})
    plan = pf.invert(chi, {"full": -1e-4}, strength=0.3, negative_weights="clip", unsettled=True)
    found = pf.verify(plan, where, pf.SGLD(1e-3), fractions=[1.0], **SAMPLING | {"chains": 8})
    assert np.isfinite(found["realised"].values).all()


def named(batch: Any) -> dict[str, Tensor]:
    assert isinstance(batch, dict)
    return batch


def test_a_mask_for_a_loss_of_one_s_own() -> None:
    data = padded()
    present = data["attention_mask"][:, 1:].bool()
    loss = pf.losses.masked(
        lambda model, batch: pf.losses.next_token(model, named(batch)["input_ids"]),
        lambda batch: named(batch)["attention_mask"][:, 1:].bool(),
    )
    one = pf.sample(posterior(data, loss), pf.SGLD(1e-3), **SAMPLING)
    other = pf.sample(posterior(data), pf.SGLD(1e-3), **SAMPLING)
    alike(one.susceptibilities(), other.susceptibilities(), 1e-5)  # one weighs losses, the other makes logits once
    assert one.attrs["items"] == int(present.sum())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_decoders_of_hugging_face(name: str) -> None:
    """Heads of a model of theirs on padded text, several chains together."""
    model = decoder(name)
    where = posterior(padded(), model=model)
    found = pf.linear_response(where, pf.SGLD(1e-4), components=pf.components(model, "l1h0"), **SAMPLING | {"tile": 2})
    assert found.sizes["token"] == int((LENGTHS - 1).sum())
    assert np.isfinite(found["chi"].values).all()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (lambda: tokens(), TypeError, "causal_lm takes a mapping of input_ids and, .* for token ids alone take"),
        (lambda: padded() | {"position_ids": tokens()}, TypeError, "causal_lm takes a mapping .* position_ids"),
        (lambda: {name: each.flip(1) for name, each in padded().items()}, ValueError, "pad on the right"),
        (lambda: padded() | {"labels": torch.full_like(tokens(), -100)}, ValueError, "no position of the data has a"),
        (lambda: padded() | {"attention_mask": torch.ones(3, CONTEXT + 1)}, ValueError, "agree on the number of sampl"),
        (lambda: padded() | {"labels": torch.full_like(tokens(), -1)}, ValueError, "labels must be token ids, or -100"),
        (lambda: {"input_ids": tokens() + 1000}, ValueError, "outside the model's vocabulary"),
        (lambda: {}, TypeError, "data must be a tensor, or a tuple or mapping of tensors"),
    ],
)  # fmt: skip
def test_batches_that_do_not_fit(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        posterior(data())


@pytest.mark.parametrize(
    ("present", "message"),
    [
        (torch.ones(12, CONTEXT), r"bool tensor \[batch, tokens\], got torch.float32 of shape \[12, 8\]"),
        (torch.ones(12, 1, dtype=torch.bool), r"bool tensor .* got torch.bool of shape \[12, 1\]"),
        ([True], "bool tensor .* got list"),
    ],
)
def test_masks_that_do_not_fit(present: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        present_in(pf.losses.masked(pf.losses.next_token, lambda _: present), tokens(), (CONTEXT,))


def test_pairs_are_asked_of_losses_of_pairs() -> None:
    with pytest.raises(TypeError, match=r"squared_error takes a pair \(x, y\), got a mapping of x, y"):
        pf.losses.squared_error(nn.Identity(), {"x": torch.ones(2, 1), "y": torch.ones(2, 1)})
