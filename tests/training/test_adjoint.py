"""The adjoint of training against finite differences of whole trainings, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import patterning_fast as pf
from patterning_fast.posterior.losses import Batch, cross_entropy
from patterning_fast.training.adjoint import of_outcomes
from patterning_fast.training.minibatches import Minibatches
from patterning_fast.training.retraceable import SGD, AdamW, Retraceable
from tests.models import language_model, tokens

SEEDS = [4, 5, 4]
SETTINGS: dict[str, Any] = {"steps": 11, "batch_size": 4, "lr": 0.05, "weight_decay": 0.1, "seeds": SEEDS}


def new_models(dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    models: list[nn.Module] = []
    for seed in range(len(SEEDS)):
        torch.manual_seed(seed)
        models.append(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype))
    return models


def samples(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(10, 3, generator=generator, dtype=torch.float64).to(dtype), torch.randint(
        2, (10,), generator=generator
    )


def margin(model: nn.Module) -> Tensor:
    return model(torch.eye(3, dtype=next(model.parameters()).dtype)).diff(dim=1).mean()


def size(model: nn.Module) -> Tensor:
    return sum((each**2).sum() for each in model.parameters())  # type: ignore[return-value]


def next_token(model: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(batch, Tensor)
    return F.cross_entropy(model(batch[:, :-1]).transpose(1, 2), batch[:, 1:], reduction="none")


OUTCOMES: dict[str, Callable[[nn.Module], Tensor]] = {"margin": margin, "size": size}


def retraceable(rho: Tensor, rule: SGD | AdamW, steps: int = 11) -> Retraceable:
    minibatches = [Minibatches(10, torch.ones(10), "loss", 4, seed) for seed in SEEDS]
    return Retraceable(new_models(), samples(), cross_entropy, rule, steps, minibatches, rho)


RULES = pytest.mark.parametrize("rule", [AdamW(0.05, 0.1), SGD(0.3, 0.1)], ids=["AdamW", "SGD"])


def run(training: Retraceable) -> tuple[Tensor, Tensor]:
    """Outcomes `[outcomes, models]` and their gradients at the end."""
    training.run()
    values, gradients = zip(*(of_outcomes(model, OUTCOMES) for model in training.models), strict=True)
    return torch.stack(values, 1), torch.stack(gradients, 1)


@RULES
def test_every_datum_answers_as_differences_of_whole_trainings_say(rule: SGD | AdamW) -> None:
    generator = torch.Generator().manual_seed(1)
    rho = 0.5 + torch.rand(3, 10, generator=generator, dtype=torch.float64)
    training = retraceable(rho, rule)
    found, growth = training.back(run(training)[1])
    step = 1e-6
    for datum in range(10):
        moved = torch.zeros_like(rho)
        moved[:, datum] = step
        above, below = (run(retraceable(each, rule))[0] for each in (rho + moved, rho - moved))
        # Central differences are wrong by step² times a third derivative, and by 1e-16/step of rounding.
        assert torch.allclose(found[..., datum], (above - below) / (2 * step), atol=1e-7, rtol=1e-6)
    assert (found.abs().amax(2) > 1e-3).all()
    assert growth.shape == (2, 3)
    if isinstance(rule, SGD):
        small = retraceable(rho, SGD(1e-9, 0.0))
        # Where training moves nothing the derivative is the same at both ends.
        assert torch.allclose(small.back(run(small)[1])[1], torch.zeros(2, 3, dtype=torch.float64), atol=1e-6)


@RULES
def test_steps_are_made_again_to_the_bit(rule: SGD | AdamW) -> None:
    some, every = (retraceable(torch.ones(3, 10, dtype=torch.float64), rule) for _ in range(2))
    every.kept_every = 1
    (_, gradients), _ = run(some), run(every)
    assert (len(some.kept), len(every.kept)) == (3, 11)
    for one, other in zip(some.back(gradients), every.back(gradients), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_models_are_trained_as_by_train(optimizer: Any) -> None:
    data, settings = samples(torch.float32), SETTINGS | {"optimizer": optimizer}
    models, alone = new_models(torch.float32), new_models(torch.float32)
    weights = torch.rand(10, generator=torch.Generator().manual_seed(2))
    found = pf.training_adjoint(models, data, cross_entropy, OUTCOMES, weights=weights, **settings)
    torch_optimizer = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    common = {name: each for name, each in SETTINGS.items() if name != "seeds"}
    for model, other, seed in zip(models, alone, SEEDS, strict=True):
        pf.train(
            other, data, cross_entropy, seed=seed, weights=weights, optimizer=torch_optimizer, progress=False, **common
        )
        # Adam divides a gradient by its own size, so that roundings of it, 1e-7, go into 11 steps of 0.05 as such.
        assert torch.allclose(
            parameters_to_vector(model.parameters()), parameters_to_vector(other.parameters()), atol=1e-5
        )
    assert np.allclose(found["outcome"][0], [float(margin(model).detach()) for model in models], atol=1e-6)


def test_the_result_is_a_chi_for_groups_and_plans() -> None:
    found = pf.training_adjoint(new_models(torch.float32), samples(torch.float32), cross_entropy, OUTCOMES, **SETTINGS)
    assert found["chi"].dims == ("component", "sample")
    assert found["chi_group"].shape == (2, 3, 10)
    # Single precision.
    assert np.allclose(found["chi_group"].mean("group"), found["chi"], atol=1e-6)
    assert np.allclose(found["chi"].mean("sample"), 0.0, atol=1e-6)
    training = retraceable(torch.ones(3, 10, dtype=torch.float64), AdamW(0.05, 0.1))
    by_weight = training.back(run(training)[1])[0].mean(1).numpy()
    # n·dO/dρ but for its mean; float32 against float64 over 11 steps of Adam.
    assert np.allclose(found["chi"], 10 * (by_weight - by_weight.mean(1, keepdims=True)), atol=1e-3)
    kinds = list("aabbbccccc")
    by_kind = pf.aggregate(found, kinds, name="kind")
    assert np.allclose(by_kind["chi"].sel(kind="a"), found["chi"][:, :2].mean("sample"))
    plan = pf.invert(by_kind, {"margin": 1.0}, strength=0.1, regularization="none")
    assert plan.weights.sizes == {"kind": 3}


def test_clipped_responses_keep_their_directions_and_no_model_outweighs_the_median_one() -> None:
    data = samples(torch.float32)
    plain, clipped = (
        pf.training_adjoint(new_models(torch.float32), data, cross_entropy, OUTCOMES, clip=clip, **SETTINGS)
        for clip in (False, True)
    )
    groups, smaller = plain["chi_group"].values, clipped["chi_group"].values
    size = np.linalg.norm(groups, axis=2, keepdims=True)
    # Single precision.
    assert np.allclose(smaller, groups * np.minimum(1.0, np.median(size, 1, keepdims=True) / size), rtol=1e-5)
    assert np.allclose(clipped["chi"], smaller.mean(1), atol=1e-6)
    assert not np.allclose(clipped["chi"], plain["chi"], rtol=0.01)


def test_losses_of_tokens_have_a_response_each() -> None:
    models = [language_model(seed) for seed in (0, 1)]
    text = tokens()
    outcome = {"loss": lambda model: next_token(model, text).mean()}
    found = pf.training_adjoint(models, text, next_token, outcome, steps=2, batch_size=3, lr=1e-3, seeds=[0, 1])
    assert found["chi"].dims == ("component", "token")
    assert found["position"].max() == text.shape[1] - 2
    assert np.isfinite(found["chi"]).all()


def test_the_built_in_attention_is_gone_back_over_as_differences_say() -> None:
    text = tokens()

    def trained(rho: Tensor) -> tuple[Retraceable, Tensor, Tensor]:
        models = [language_model(seed).double() for seed in (0, 1)]
        minibatches = [Minibatches(12, torch.ones(12), "loss", 3, seed) for seed in (0, 1)]
        training = Retraceable(models, text, next_token, SGD(0.5, 0.0), 6, minibatches, rho)
        training.run()
        values, gradients = zip(
            *(of_outcomes(each, {"o": lambda m: next_token(m, text).mean()}) for each in models), strict=True
        )
        return training, torch.stack(values, 1), torch.stack(gradients, 1)

    rho, moved = torch.ones(2, 12, 8, dtype=torch.float64), torch.zeros(2, 12, 8, dtype=torch.float64)
    moved[:, 3], moved[:, 7, 2] = 1e-5, -1e-5
    training, _, gradients = trained(rho)
    found = (training.back(gradients)[0] * moved).sum((2, 3)) / 1e-5
    expected = (trained(rho + moved)[1] - trained(rho - moved)[1]) / 2e-5
    # Central differences, of steps 1e-5 and a rounding of 1e-16.
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_smooth_trainings_agree_and_chaotic_ones_do_not() -> None:
    data, rho = samples(torch.float32), torch.linspace(0.9, 1.1, 10)
    before = new_models(torch.float32)
    models = [*before, *new_models(torch.float32)] * 4
    settings = SETTINGS | {"seeds": range(24), "optimizer": "sgd"}
    smooth = pf.metasmoothness(models, data, cross_entropy, {"size": size}, rho, **settings)
    # First-order changes are a hundred times those of second order where weights change by a tenth.
    assert float(smooth["agreement"][0]) > 0.95
    assert torch.equal(
        parameters_to_vector(models[0].parameters()), parameters_to_vector(new_models(torch.float32)[0].parameters())
    )
    folded = {"folded": lambda model: torch.sin(1e6 * size(model))}
    chaotic = pf.metasmoothness(models, data, cross_entropy, folded, rho, **settings)
    # A share of ½ of 24, with its error of a tenth.
    assert 0.2 < float(chaotic["agreement"][0]) < 0.8
    ends = [new_models(torch.float32)[0] for _ in range(2)]
    for model, weights in zip(ends, (torch.ones(10), rho), strict=True):
        pf.train(
            model, data, cross_entropy, seed=0, weights=weights, optimizer=torch.optim.SGD, progress=False,
            **{name: each for name, each in SETTINGS.items() if name != "seeds"},
        )  # fmt: skip
    whole = float((size(ends[1]) - size(ends[0])).detach())
    # Sums of 26 squares of about 1, in single precision.
    assert abs(float(smooth["first"][0, 0] + smooth["second"][0, 0]) - whole) < 1e-4


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"seeds": [1, 2]}, "each of the 3 models a seed"),
        ({"models": [*new_models()[:2], nn.Linear(3, 2)]}, "same names and shapes"),
        ({"outcomes": {"x": lambda model: margin(model).detach()}}, "has no gradient"),
        ({"outcomes": {"x": lambda model: margin(model) * torch.nan}}, "one finite number"),
        ({"outcomes": {"x": lambda model: model.weight}}, "weight"),
        ({"weights": torch.ones(3)}, "do not fit the data"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], why: str) -> None:
    given: dict[str, Any] = {
        "models": new_models(torch.float32),
        "data": samples(torch.float32),
        "loss": cross_entropy,
        "outcomes": OUTCOMES,
    }
    with pytest.raises((ValueError, AttributeError), match=why):
        pf.training_adjoint(**(given | SETTINGS | changed))


def test_trainings_that_run_away_are_refused() -> None:
    """A chain of steps whose derivative overflows while the outcome stays finite."""
    bounded = {"size": lambda model: torch.sigmoid(margin(model))}

    def steep(model: nn.Module, batch: Batch) -> Tensor:
        return torch.sin(1e15 * cross_entropy(model, batch))

    with pytest.raises(FloatingPointError, match="have a finite response"):
        pf.training_adjoint(new_models(torch.float32), samples(torch.float32), steep, bounded, **SETTINGS)


class Once(torch.autograd.Function):
    """A square, as if its derivative were a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.slope = 2 * inputs[0].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.slope


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x @ self.weight.T)  # type: ignore[no-untyped-call]


def test_a_loss_without_a_second_derivative_is_refused() -> None:
    models = [Squares() for _ in SEEDS]
    with pytest.raises(ValueError, match="the loss has no second derivative: along a random direction its gradient ch"):
        pf.training_adjoint(models, samples(torch.float32), cross_entropy, {"size": size}, **SETTINGS)


def test_a_language_model_of_ours_answers_as_finite_differences_do() -> None:
    """Its attention and losses are kernels whose gradients have gradients."""
    data, token = tokens(6), (2, 5)

    def trained(rho: Tensor) -> list[nn.Module]:
        models: list[nn.Module] = [language_model(seed=seed) for seed in (0, 1)]
        for model, seed in zip(models, (4, 5), strict=True):
            pf.train(model, data, pf.losses.next_token, weights=rho, seed=seed, progress=False, weight_decay=0.0, **few)
        return models

    def outcome(model: nn.Module) -> Tensor:
        return pf.losses.next_token(model, data).mean()

    few: dict[str, Any] = {"steps": 6, "batch_size": 4, "lr": 0.01}
    models = [language_model(seed=seed) for seed in (0, 1)]
    found = pf.training_adjoint(models, data, pf.losses.next_token, {"loss": outcome}, seeds=[4, 5], **few)
    ends = []
    for sign in (1, -1):
        rho = torch.ones(6, data.shape[1] - 1)
        rho[token] += 0.1 * sign
        ends.append(np.mean([float(outcome(model).detach()) for model in trained(rho)]))
    # ρ is divided by its mean, as χ is about its mean; steps of 0.1 in float32 know the slope to some percent.
    expected = (ends[0] - ends[1]) / 0.2 * rho.numel()
    assert float(found["chi"][0, token[0] * (data.shape[1] - 1) + token[1]]) == pytest.approx(expected, rel=0.05)


def test_models_are_left_in_the_mode_they_were_in() -> None:
    models = [nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)) for _ in range(2)]
    data = (torch.randn(8, 3), torch.randn(8, 1))
    pf.training_adjoint(
        models, data, pf.losses.squared_error, {"at 0": lambda model: model(torch.zeros(1, 3)).sum()}, steps=2,
        batch_size=4, lr=1e-2, seeds=[0, 1],
    )  # fmt: skip
    assert all(module.training for model in models for module in model.modules())
