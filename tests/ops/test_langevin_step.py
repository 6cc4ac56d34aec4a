"""`langevin_step`: every form against its reference, the same bits everywhere, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast import _C
from patterning_fast.ops.langevin_step import SGHMC, SGNHT, RMSProp
from patterning_fast.ops.reference.langevin_step import RULES
from patterning_fast.ops.reference.langevin_step import langevin_step as reference
from tests.ops.forms import FORMS, skip_if_interpreted, use_form

ROUNDING = 2.0**-24
PIECE_ROUNDING = (4096 / 16 + 3) * ROUNDING
"""Of sums over a row: up to 4,096 / 16 additions in float, then double; w − w* rounds as well."""
CONSTANTS = {"sgld": [], "rmsprop": [0.9, 0.1], "rmsprop_bias_corrected": [0.9, 0.1], "sghmc": [0.1], "sgnht": [0.01]}
LENGTHS = [[1], [0, 3], [63, 63, 1], [64, 65, 4096, 4097], [8192 * 3 + 5, 0, 7], [1] * 4096, []]

Arguments = dict[str, Any]


def inputs(lengths: list[int], generator: torch.Generator, rule: str = "sgld", bfloat16: bool = False) -> Arguments:
    """Random arguments for rows of the given lengths; chains 0 and 1 share their w* where they are as long."""
    chains, total = len(lengths), sum(lengths)
    row_starts = torch.tensor([0, *lengths]).cumsum(0)
    center_starts = row_starts[:-1].clone()
    if chains > 1 and lengths[0] == lengths[1]:
        center_starts[1] = center_starts[0]

    def normal() -> Tensor:
        return torch.randn(total, generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(chains, generator=generator)

    memory = None
    if rule != "sgld":
        memory = normal().abs() if rule.startswith("rmsprop") else normal()
    return {
        "params": normal(),
        "grads": normal().bfloat16() if bfloat16 else normal(),
        "center": normal(),
        "row_starts": row_starts,
        "center_starts": center_starts,
        "lr": uniform(1e-3, 1e-1),
        "n_beta": uniform(0, 100),
        "localization": uniform(0, 300),
        "noise_scale": uniform(-1, 1),
        "chain_ids": torch.randint(2**40, (chains,), generator=generator),
        "seed": torch.tensor(2**62 + 12345),
        "step": torch.tensor(2**32 + 3),
        "rule": rule,
        "constants": CONSTANTS[rule],
        "memory": memory,
        "thermostat": uniform(0, 2) if rule == "sgnht" else None,
        "box": None,
        "shadow": None,
        "statistics": None,
    }


def copy(arguments: Arguments, device: torch.device | None = None) -> Arguments:
    return {
        name: value.to(device or value.device, copy=True) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def run(form: str, arguments: Arguments) -> Arguments:
    """Copies of the arguments after the op in one form."""
    with use_form("langevin_step", form) as device:
        moved = copy(arguments, device)
        torch.ops.patterning_fast.langevin_step(*moved.values())
    return copy(moved, torch.device("cpu"))


def of_params(arguments: Arguments, name: str) -> Tensor:
    """A per-chain number at each parameter."""
    return torch.repeat_interleave(arguments[name].double(), arguments["row_starts"].diff())


def bounds(before: Arguments, after: Arguments) -> dict[str, Tensor]:
    """How far params and memory may lie from the reference's, which rounds once, at the end.

    Each operation rounds by 2^-24 of its result. w − w*, its product and the drift's fma: 3 roundings of what the pull
    and the push add to w, whose factor of lr adds at most 3 more (rmsprop: a root, a sum, a quotient); the sum one.
    The noise is within 2.7 units of its size and 6.7 absolute (test_noise), times a scale that takes up to 8
    operations to make (rmsprop: v, its correction, root, sum, quotient, root, product).
    """
    w, g, lr = before["params"].double(), before["grads"].double(), of_params(before, "lr")
    place = torch.arange(len(w)) - of_params(before, "row_starts_of_chain").long()
    center = before["center"][of_params(before, "center_starts").long() + place].double()
    drift = of_params(before, "n_beta") * g.abs() + of_params(before, "localization") * (w - center).abs()
    scale, rule = of_params(before, "noise_scale").abs(), before["rule"]
    memory = None if before["memory"] is None else before["memory"].double()
    if rule.startswith("rmsprop"):
        assert memory is not None
        v = 0.9 * memory + 0.1 * g * g  # the bias is corrected by 1 - 2e-197: by nothing
        lr = lr / (v.sqrt() + 0.1)
        return {
            "params": ROUNDING * (lr.sqrt() * scale * 24 * 6.7 + 7 * 0.5 * lr * drift + 2 * w.abs() + 2 * lr * drift),
            "memory": 4 * ROUNDING * v,
        }
    if rule == "sgld":
        push, noise = 0.5 * lr * drift, lr.sqrt() * scale * (4.7 * 6.7 + 6.7)
        return {"params": ROUNDING * (noise + 5 * push + 2 * w.abs() + after["params"].abs())}
    assert memory is not None
    friction = 0.1 if rule == "sghmc" else of_params(before, "thermostat") * lr
    noise = (2 * (0.1 if rule == "sghmc" else 0.01) * lr).sqrt() * scale * (6.7 * 6.7 + 6.7)
    momentum = ROUNDING * (noise + 6 * lr * drift + (4 + 3 * friction) * memory.abs() + after["memory"].abs())
    if rule == "sghmc":
        return {"memory": momentum, "params": momentum + ROUNDING * 2 * after["params"].abs()}
    moved = lr * (momentum + ROUNDING * after["memory"].abs()) + ROUNDING * 2 * after["params"].abs()
    return {"memory": momentum, "params": moved}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)} rows of {lengths[:3]}")
def test_agrees_with_reference(lengths: list[int], rule: str, form: str, generator: torch.Generator) -> None:
    skip_if_interpreted(form, len(lengths), sum(lengths))
    arguments = inputs(lengths, generator, rule, bfloat16=rule == "rmsprop")
    expected = copy(arguments)
    reference(**expected)
    got = run(form, arguments)
    bound_of = bounds(arguments | {"row_starts_of_chain": arguments["row_starts"][:-1]}, expected)
    for name, bound in bound_of.items():
        assert bool(((got[name].double() - expected[name].double()).abs() <= bound).all()), name
    assert torch.equal(got["grads"], torch.zeros_like(got["grads"]))
    if rule == "sgnht":
        # Σp² moves by 2|p| times the bound above, and is summed in float as the statistics are (below).
        p, size = expected["memory"].double().abs(), arguments["row_starts"].diff()
        terms = 2 * p * bound_of["memory"] + PIECE_ROUNDING * p * p
        chain = torch.repeat_interleave(size)
        kinetic = torch.zeros(len(lengths), dtype=torch.float64).index_add_(0, chain, terms) / size.clamp(min=1)
        bound = arguments["lr"] * kinetic + ROUNDING * expected["thermostat"].abs()
        assert bool(((got["thermostat"].double() - expected["thermostat"].double()).abs() <= bound).all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [[5, 0, 300], [64, 4097]], ids=str)
def test_statistics_box_and_shadow(lengths: list[int], form: str, generator: torch.Generator) -> None:
    chains, total = len(lengths), sum(lengths)
    arguments = inputs(lengths, generator) | {
        "box": torch.linspace(0.01, 2.0, chains),
        "shadow": torch.full((total,), torch.nan).bfloat16(),
        "statistics": torch.full((4, chains), torch.nan, dtype=torch.float64),
    }
    expected = copy(arguments)
    reference(**expected)
    got = run(form, arguments)
    chain = torch.repeat_interleave(arguments["row_starts"].diff())
    place = torch.arange(total) - arguments["row_starts"][chain]
    center = arguments["center"][arguments["center_starts"][chain] + place]
    width = arguments["box"][chain]
    # The box's edges round once: by half a unit of w*, or of the edge itself.
    assert bool(((got["params"] - center).abs() <= width + ROUNDING * 2 * (center.abs() + width)).all())
    assert bool(((got["params"] - center).abs() < width * 0.99).any())
    assert bool(((got["params"] - center).abs() > width * 0.999).any())
    assert torch.equal(got["shadow"], got["params"].bfloat16())
    magnitude = torch.zeros(chains, dtype=torch.float64)
    distance = (arguments["params"] - center).double()
    magnitude.index_add_(0, chain, arguments["grads"].double() ** 2 + distance**2)
    bound = PIECE_ROUNDING * magnitude
    for row in range(3):
        assert bool(((got["statistics"][row] - expected["statistics"][row]).abs() <= bound).all()), row
    assert got["statistics"][3].tolist() == [1.0] * chains


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_statistics_tell_which_chain_is_no_longer_finite(broken: float, form: str, generator: torch.Generator) -> None:
    lengths = [70] * 4
    arguments = inputs(lengths, generator) | {
        "statistics": torch.empty(4, 4, dtype=torch.float64),
        "box": torch.full((4,), torch.inf),
    }
    arguments["grads"][[70 + 3, 140 + 66]] = broken  # in the first block of a row, and in the last
    alone = run(form, inputs(lengths, generator.manual_seed(20261121)))
    got = run(form, arguments)
    assert got["statistics"][3].tolist() == [1.0, 0.0, 0.0, 1.0]
    for healthy in (slice(0, 70), slice(210, 280)):
        assert torch.equal(got["params"][healthy], alone["params"][healthy])


@pytest.mark.parametrize("rule", RULES)
def test_same_bits_for_any_number_of_threads(rule: str, threads: int, generator: torch.Generator) -> None:
    def stepped() -> Arguments:
        arguments = inputs([5000] * 7, generator.manual_seed(20261121), rule)
        arguments["statistics"] = torch.empty(4, 7, dtype=torch.float64)
        torch.ops.patterning_fast.langevin_step(*arguments.values())
        return arguments

    several = stepped()
    torch.set_num_threads(1)
    alone = stepped()
    for name in ("params", "memory", "thermostat", "statistics"):
        assert several[name] is None or torch.equal(several[name], alone[name]), name


@pytest.mark.parametrize("rule", RULES)
def test_same_bits_in_every_cpp_form(rule: str, generator: torch.Generator) -> None:
    arguments = inputs([5003, 64, 17], generator, rule) | {
        "step": torch.tensor(4),
        "statistics": torch.empty(4, 3, dtype=torch.float64),
    }
    baseline, *others = [run(f"cpp@{isa}", arguments) for isa in _C.build_info()["isas"]]
    for other in others:
        for name in ("params", "memory", "thermostat", "statistics"):
            assert baseline[name] is None or torch.equal(baseline[name], other[name]), name


@pytest.mark.skipif("cuda" not in FORMS, reason="needs a GPU")
@pytest.mark.parametrize("rule", RULES)
def test_same_bits_on_a_gpu(rule: str, generator: torch.Generator) -> None:
    arguments = inputs([5003, 64, 17], generator, rule) | {"step": torch.tensor(4)}
    here, there = run(FORMS[0], arguments), run("cuda", arguments)
    for name in ("params", "memory"):
        assert here[name] is None or torch.equal(here[name], there[name]), name


def test_unknown_isa_is_refused() -> None:
    environment = os.environ | {"PATTERNING_FAST_ISA": "mmx"}
    result = subprocess.run(
        [sys.executable, "-c", "import patterning_fast"], env=environment, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "PATTERNING_FAST_ISA is 'mmx'; this machine can run: baseline" in result.stderr


@pytest.mark.parametrize("bias_correction", [False, True])
def test_rmsprop_corrects_the_bias_of_its_first_steps(bias_correction: bool) -> None:
    """With v = 0 and a constant gradient the corrected v̂ is g² from the first step on; the plain v is (1 − a^t)·g²."""
    w, v = torch.zeros(1, 4), torch.zeros(1, 4)
    rule = RMSProp(v, decay=0.9, stability=0.5, bias_correction=bias_correction)
    for step in range(5):
        before, g = w.clone(), torch.full((1, 4), 2.0)
        pf.ops.langevin_step(
            w, g, torch.zeros(4), lr=0.1, n_beta=3.0, localization=0.0, seed=0, step=step, noise_scale=0.0, rule=rule
        )
        root = 2.0 * (1.0 if bias_correction else (1 - 0.9 ** (step + 1)) ** 0.5)
        # A dozen roundings of numbers near 1.
        assert torch.allclose(before - w, torch.full((1, 4), 0.5 * 0.1 / (root + 0.5) * 3.0 * 2.0), rtol=1e-6)


def test_antithetic_chains_mirror_each_other(generator: torch.Generator) -> None:
    center = torch.randn(101, generator=generator)
    params, grads = center.repeat(2, 1), torch.zeros(2, 101)
    pf.ops.langevin_step(
        params, grads, center, lr=0.1, n_beta=0.0, localization=0.0, seed=1, step=0,
        noise_scale=torch.tensor([1.0, -1.0]), chain_ids=torch.tensor([5, 5]),
    )  # fmt: skip
    assert torch.allclose(params[0] - center, center - params[1], atol=4 * ROUNDING * 4)  # values up to about 4
    assert not torch.equal(params[0], center)


def test_float64_is_exact(generator: torch.Generator) -> None:
    """Everything but the words of the noise in float64: the reference itself."""
    w = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    g, center = torch.randn(2, 9, generator=generator, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
    expected = w - 0.5 * 0.25 * (3.0 * g + 2.0 * w)
    pf.ops.langevin_step(w, g, center, lr=0.25, n_beta=3.0, localization=2.0, seed=0, step=0, noise_scale=0.0)
    assert torch.allclose(w, expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("rule", ["sgld", "sgnht"])
def test_opcheck(rule: str, generator: torch.Generator) -> None:
    arguments = inputs([7, 5], generator, rule) | {"statistics": torch.empty(4, 2, dtype=torch.float64)}
    torch.library.opcheck(torch.ops.patterning_fast.langevin_step.default, tuple(arguments.values()))


def test_compiles_without_a_break() -> None:
    def step(params: Tensor, grads: Tensor, center: Tensor, momentum: Tensor) -> Tensor:
        sums = pf.ops.langevin_step(
            params, grads, center, lr=0.1, n_beta=1.0, localization=1.0, seed=1, step=0, rule=SGHMC(momentum),
            statistics=True,
        )  # fmt: skip
        assert sums is not None
        return params * 2 + sums.squared_gradient[:, None]

    params, grads, center, momentum = torch.zeros(2, 9), torch.ones(2, 9), torch.zeros(9), torch.zeros(2, 9)
    expected = step(params.clone(), grads.clone(), center, momentum.clone())
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(params, grads, center, momentum), expected)


def call(**changes: Any) -> None:
    arguments: dict[str, Any] = {
        "params": torch.zeros(2, 6),
        "grads": torch.zeros(2, 6),
        "center": torch.zeros(6),
        "lr": 0.1,
        "n_beta": 1,
        "localization": 1.0,
        "seed": 0,
        "step": 0,
    }
    pf.ops.langevin_step(**arguments | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": torch.zeros(2, 6).half()}, "params is torch.float16, but must be torch.float32"),
        ({"grads": torch.zeros(2, 6).double()}, "grads is torch.float64, but must be torch.float32 or torch.bfloat16"),
        ({"grads": torch.zeros(2, 5)}, r"grads has shape \[2, 5\], but must have \[2, 6\]"),
        ({"grads": torch.zeros(6, 2).T}, "grads is not contiguous"),
        ({"center": torch.zeros(5)}, r"center has shape \[5\], but must have \[6\]"),
        ({"lr": torch.zeros(3)}, r"lr has shape \[3\], but must have \[2\]"),
        ({"chain_ids": torch.zeros(2)}, "chain_ids is torch.float32, but must be torch.int64"),
        ({"params": torch.zeros(12), "grads": torch.zeros(12)}, "need row_starts and center_starts"),
        (
            {"params": torch.zeros(12), "grads": torch.zeros(12), "row_starts": torch.tensor([0, 13, 12]),
             "center_starts": torch.tensor([0, 0])},
            "row_starts must begin at 0, never decrease and end at the number of params",
        ),
        (
            {"params": torch.zeros(12), "grads": torch.zeros(12), "row_starts": torch.tensor([0, 6, 12]),
             "center_starts": torch.tensor([0, 1])},
            "reaches outside center",
        ),
        ({"row_starts": torch.tensor([0, 6, 12])}, "row_starts and center_starts go with flat params"),
        ({"center": torch.zeros(6, device="meta")}, "tensors are on different devices"),
        ({"rule": RMSProp(torch.zeros(2, 5))}, r"second_moment has shape \[2, 5\], but must have \[2, 6\]"),
        ({"rule": SGNHT(torch.zeros(2, 6), torch.zeros(3))}, r"thermostat has shape \[3\], but must have \[2\]"),
        ({"shadow": torch.zeros(2, 6)}, "shadow is torch.float32, but must be torch.bfloat16"),
        ({"box": torch.zeros(3)}, r"box has shape \[3\], but must have \[2\]"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    call()
    with pytest.raises((TypeError, ValueError), match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("rule", "constants", "message"),
    [
        (RMSProp, {"decay": 1.0}, r"decay must be a finite number in \[0, 1\), got 1\.0"),
        (RMSProp, {"stability": 0.0}, "stability must be a finite number > 0, got 0"),
        (SGHMC, {"friction": 1.5}, r"friction must be a finite number in \(0, 1\], got 1\.5"),
        (SGNHT, {"thermostat": torch.zeros(2), "diffusion": -1.0}, "diffusion must be a finite number >= 0, got -1"),
    ],
)
def test_rules_with_bad_constants_are_refused(rule: Any, constants: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(torch.zeros(2, 6), **constants)
