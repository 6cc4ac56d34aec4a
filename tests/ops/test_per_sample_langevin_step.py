"""`per_sample_langevin_step`: every form against its reference, the same bits everywhere, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast import _C
from patterning_fast.ops.reference.per_sample_langevin_step import per_sample_langevin_step as reference
from tests.ops.forms import FORMS, skip_if_interpreted, use_form

ROUNDING = 2.0**-24

Arguments = dict[str, Any]


def inputs(chains: int, batch: int, params: int, generator: torch.Generator) -> Arguments:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(chains, generator=generator)

    return {
        "params": normal(chains, params),
        "grads": normal(chains, 1, params) + 0.5 * normal(chains, batch, params),
        "sample_weights": None,
        "center": normal(chains, params),
        "lr": uniform(1e-3, 1e-1),
        "n_beta": uniform(0, 50),
        "localization": uniform(0, 300),
        "noise_scale": uniform(-1, 1),
        "chain_ids": torch.randint(2**40, (chains,), generator=generator),
        "seed": torch.tensor(2**62 + 12345),
        "step": torch.tensor(2**32 + 3),
        "sampled_fraction": 0.25,
        "gradient_noise_scale": torch.full((chains,), torch.nan, dtype=torch.float64),
    }


def copy(arguments: Arguments, device: torch.device) -> Arguments:
    return {
        name: value.to(device, copy=True) if isinstance(value, Tensor) else value for name, value in arguments.items()
    }


def run(form: str, arguments: Arguments) -> Arguments:
    with use_form("per_sample_langevin_step", form) as device:
        moved = copy(arguments, device)
        torch.ops.patterning_fast.per_sample_langevin_step(*moved.values())
    return copy(moved, torch.device("cpu"))


SIZES = [(1, 2, 1), (3, 5, 67), (2, 9, 4100), (4096, 2, 1), (0, 3, 5), (3, 4, 0), (2, 33, 1025)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["plain", "weighted", "bfloat16", "shared center"])
@pytest.mark.parametrize(("chains", "batch", "params"), SIZES)
def test_agrees_with_reference(
    chains: int, batch: int, params: int, kind: str, form: str, generator: torch.Generator
) -> None:
    skip_if_interpreted(form, chains, chains * params)
    arguments = inputs(chains, batch, params, generator)
    if kind == "weighted":
        arguments["sample_weights"] = 2 * torch.rand(chains, batch, generator=generator) - 0.5
    if kind == "bfloat16":
        arguments["grads"] = arguments["grads"].bfloat16()
    if kind == "shared center":
        arguments["center"] = torch.randn(1, params, generator=generator)
    expected = copy(arguments, torch.device("cpu"))
    reference(**expected)
    got = run(form, arguments)

    rho = arguments["sample_weights"]
    g = arguments["grads"].double() * (1 if rho is None else rho.double()[:, :, None])
    lr, n_beta, pull, scale = (
        arguments[name].double()[:, None] for name in ("lr", "n_beta", "localization", "noise_scale")
    )
    # The mean is the first gradient and the mean of `batch` differences from it, each rounded as it is added up; the
    # variance the sum of their squares less what the mean takes off: batch + 6 roundings of either sum, and one more
    # of each weighted gradient.
    first = g[:, :1]
    mean_error = (batch + 3) * ROUNDING * (g.abs() + (g - first).abs()).mean(1)
    square = (g - first).square().sum(1) / (batch - 1)
    variance_error = (batch + 8) * ROUNDING * square + 4 * ROUNDING * (g.abs() * (g - first).abs()).sum(1) / (batch - 1)
    own = (0.5 * lr * n_beta) ** 2 * 0.75 / batch
    variance = (g - g.mean(1, keepdim=True)).square().sum(1) / (batch - 1)
    injected = (lr - own * variance).clamp(min=0)
    injected_error = own * variance_error + 4 * ROUNDING * (lr + own * variance)
    # A root moves by at most the change over twice the root, and never by more than the root of the change.
    root_error = torch.minimum(injected_error / (2 * injected.sqrt()).clamp(min=1e-30), injected_error.sqrt())
    distance = (arguments["params"] - arguments["center"]).abs().double()
    push = 0.5 * lr * (n_beta * g.mean(1).abs() + pull * distance)
    noise = scale.abs() * (6.7 * root_error + ROUNDING * injected.sqrt() * 6.7 * 7)
    w = arguments["params"].double().abs()
    bound = noise + 0.5 * lr * n_beta * mean_error + ROUNDING * (6 * push + 2 * w + expected["params"].abs())
    assert bool(((got["params"].double() - expected["params"].double()).abs() <= bound).all())

    # The noise scale is a quotient of sums; where the signal nearly vanishes it has no digits to compare.
    total, squared_mean = variance.sum(1), g.mean(1).square().sum(1)
    signal = squared_mean - total / batch
    sums_error = (4096 / 16 + 3) * ROUNDING * (squared_mean + total) + variance_error.sum(1)
    sums_error = sums_error + 2 * (g.mean(1).abs() * mean_error).sum(1)
    clear = signal > 10 * sums_error
    scales = expected["gradient_noise_scale"]
    relative = sums_error / signal + sums_error / total.clamp(min=1e-30)
    assert bool(((got["gradient_noise_scale"] - scales).abs() <= 2 * relative * scales)[clear].all())
    assert bool(torch.isinf(got["gradient_noise_scale"])[signal < -10 * sums_error].all())
    assert not bool(torch.isnan(got["gradient_noise_scale"]).any())


def test_variance_of_a_large_mean_survives() -> None:
    """Samples that differ by 1e-3 about a gradient of 100: the square of the mean is 10^10 times the variance."""
    g = 100 + 1e-3 * torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]).expand(4, 64)
    w = torch.zeros(1, 64)
    scale = pf.ops.per_sample_langevin_step(
        w, g[None].contiguous(), torch.zeros(64), lr=0.1, n_beta=0.0, localization=0.0, seed=0, step=0
    )
    exact = g.double().var(0, correction=1).sum() / g.double().mean(0).square().sum()
    # The differences from the first are exact, the rest a dozen roundings.
    assert abs(float(scale) / float(exact) - 1) < 12 * ROUNDING


def test_same_bits_for_any_number_of_threads(threads: int, generator: torch.Generator) -> None:
    def stepped() -> Arguments:
        arguments = inputs(3, 5, 9000, generator.manual_seed(20261121))
        torch.ops.patterning_fast.per_sample_langevin_step(*arguments.values())
        return arguments

    several = stepped()
    torch.set_num_threads(1)
    alone = stepped()
    assert torch.equal(several["params"], alone["params"])
    assert torch.equal(several["gradient_noise_scale"], alone["gradient_noise_scale"])


def test_same_bits_in_every_cpp_form(generator: torch.Generator) -> None:
    arguments = inputs(3, 7, 2051, generator)
    baseline, *others = [run(f"cpp@{isa}", arguments) for isa in _C.build_info()["isas"]]
    for other in others:
        assert torch.equal(baseline["params"], other["params"])
        assert torch.equal(baseline["gradient_noise_scale"], other["gradient_noise_scale"])


def test_without_gradient_noise_it_is_langevin_step(generator: torch.Generator) -> None:
    """Samples that agree have no noise of their own: all of lr is injected."""
    arguments = inputs(3, 4, 130, generator)
    g = arguments["grads"][:, :1].expand(3, 4, 130).contiguous()
    numbers = {name: arguments[name] for name in ("lr", "n_beta", "localization", "noise_scale", "chain_ids")}
    one, other = arguments["params"].clone(), arguments["params"].clone()
    pf.ops.per_sample_langevin_step(one, g, arguments["center"], seed=3, step=4, **numbers)
    pf.ops.langevin_step(other, g[:, 0].contiguous(), arguments["center"], seed=3, step=4, **numbers)
    assert torch.equal(one, other)


def test_opcheck(generator: torch.Generator) -> None:
    arguments = inputs(2, 3, 5, generator)
    torch.library.opcheck(torch.ops.patterning_fast.per_sample_langevin_step.default, tuple(arguments.values()))


def test_compiles_without_a_break() -> None:
    def step(params: Tensor, grads: Tensor, center: Tensor) -> Tensor:
        scale = pf.ops.per_sample_langevin_step(
            params, grads, center, lr=0.1, n_beta=1.0, localization=1.0, seed=1, step=0
        )
        return params + scale[:, None]

    grads = torch.arange(2 * 3 * 9.0).view(2, 3, 9)
    expected = step(torch.zeros(2, 9), grads, torch.zeros(9))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.zeros(2, 9), grads, torch.zeros(9)), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grads": torch.zeros(2, 1, 6)}, r"a variance needs at least 2 samples, but grads has shape \[2, 1, 6\]"),
        ({"grads": torch.zeros(2, 6)}, r"grads has shape \[2, 6\], but must have 3 dimensions"),
        ({"grads": torch.zeros(2, 3, 5)}, r"grads has shape \[2, 3, 5\], but must have \[2, 3, 6\]"),
        ({"grads": torch.zeros(2, 6, 3).mT}, "grads is not contiguous"),
        ({"grads": torch.zeros(2, 3, 6).half()}, "grads is torch.float16, but must be torch.float32 or torch.bfloat16"),
        ({"params": torch.zeros(6)}, r"params has shape \[6\], but must have 2 dimensions"),
        ({"center": torch.zeros(3, 6)}, r"center has shape \[3, 6\], but must have \[2, 6\]"),
        ({"sample_weights": torch.zeros(2, 4)}, r"sample_weights has shape \[2, 4\], but must have \[2, 3\]"),
        ({"sampled_fraction": 1.5}, r"sampled_fraction must be a finite number in \[0, 1\], got 1\.5"),
        ({"lr": torch.zeros(3)}, r"lr has shape \[3\], but must have \[2\]"),
        ({"center": torch.zeros(6, device="meta")}, "tensors are on different devices"),
    ],
)
def test_bad_input_is_refused(changes: Arguments, message: str) -> None:
    arguments: Arguments = {
        "params": torch.zeros(2, 6),
        "grads": torch.zeros(2, 3, 6),
        "center": torch.zeros(6),
        "lr": 0.1,
        "n_beta": 1,
        "localization": 1.0,
        "seed": 0,
        "step": 0,
    }
    pf.ops.per_sample_langevin_step(**arguments)
    with pytest.raises((TypeError, ValueError), match=message):
        pf.ops.per_sample_langevin_step(**arguments | changes)
