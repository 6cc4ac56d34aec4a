"""`langevin_step`: the kernel against its reference, the same bits everywhere, and what it refuses."""

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
from patterning_fast.ops.reference.langevin_step import langevin_step as reference
from patterning_fast.ops.reference.normal import noise

ROUNDING = 2.0**-24


def inputs(lengths: list[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Random arguments for rows of the given lengths; chains 0 and 1 share their w* where they are as long."""
    chains, total = len(lengths), sum(lengths)
    row_starts = torch.tensor([0, *lengths]).cumsum(0)
    center_starts = row_starts[:-1].clone()
    if chains > 1 and lengths[0] == lengths[1]:
        center_starts[1] = center_starts[0]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(chains, generator=generator)

    return {
        "params": torch.randn(total, generator=generator),
        "grads": torch.randn(total, generator=generator),
        "center": torch.randn(total, generator=generator),
        "row_starts": row_starts,
        "center_starts": center_starts,
        "lr": uniform(1e-3, 1e-1),
        "n_beta": uniform(0, 100),
        "localization": uniform(0, 300),
        "noise_scale": uniform(-1, 1),
        "chain_ids": torch.randint(2**40, (chains,), generator=generator),
        "seed": torch.tensor(2**62 + 12345),
        "step": torch.tensor(2**32 + 3),
    }


LENGTHS = [[1], [0, 3], [63, 63, 1], [64, 65, 4096, 4097], [8192 * 3 + 5, 0, 7], [1] * 4096, []]


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)} rows of {lengths[:3]}")
def test_kernel_agrees_with_reference(lengths: list[int], generator: torch.Generator) -> None:
    arguments = inputs(lengths, generator)
    expected = {name: tensor.clone() for name, tensor in arguments.items()}
    reference(**expected)
    before = arguments["params"].clone()
    grads = arguments["grads"].clone()
    torch.ops.patterning_fast.langevin_step(*arguments.values())

    chain = torch.repeat_interleave(arguments["row_starts"].diff())
    index = torch.arange(sum(lengths)) - arguments["row_starts"][chain]
    xi = noise(arguments["seed"], arguments["chain_ids"][chain], arguments["step"], index)
    lr = arguments["lr"][chain].double()
    center = arguments["center"][arguments["center_starts"][chain] + index]
    pull = 0.5 * lr * arguments["localization"][chain] * (before - center).abs()
    push = 0.5 * lr * arguments["n_beta"][chain] * grads.abs()
    spread = arguments["noise_scale"][chain].abs() * lr.sqrt()
    # Each term is rounded at most 4 times on its way (w - w*, its product, the drift's fma, two sums); the noise as
    # in test_noise, times a scale and a root that are rounded once each. The reference rounds once, at the end.
    bound = ROUNDING * (spread * (6 * xi.abs() + 7) + 4 * (before.abs() + pull + push) + expected["params"].abs())
    assert bool(((arguments["params"].double() - expected["params"].double()).abs() <= bound).all())
    assert torch.equal(arguments["grads"], torch.zeros_like(grads))


def test_same_bits_for_any_number_of_threads(threads: int, generator: torch.Generator) -> None:
    arguments = inputs([5000] * 7, generator)
    torch.ops.patterning_fast.langevin_step(*arguments.values())
    torch.set_num_threads(1)
    alone = inputs([5000] * 7, generator.manual_seed(20261121))
    torch.ops.patterning_fast.langevin_step(*alone.values())
    assert torch.equal(arguments["params"], alone["params"])


@pytest.mark.parametrize("isa", _C.build_info()["isas"])
def test_same_bits_on_every_isa(isa: str) -> None:
    program = (
        "import torch, hashlib, patterning_fast as pf\n"
        "w = torch.linspace(-1, 1, 3 * 5003).view(3, 5003); g = w.flip(1).contiguous(); c = w[0] / 2\n"
        "for step in range(5):\n"
        "    pf.ops.langevin_step(w, g, c, lr=0.01, n_beta=7.0, localization=3.0, seed=9, step=step)\n"
        "print(hashlib.sha256(w.numpy().tobytes()).hexdigest())\n"
    )

    def digest(level: str) -> str:
        environment = os.environ | {"PATTERNING_FAST_ISA": level}
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert digest(isa) == digest("baseline")


def test_unknown_isa_is_refused() -> None:
    environment = os.environ | {"PATTERNING_FAST_ISA": "mmx"}
    result = subprocess.run(
        [sys.executable, "-c", "import patterning_fast"], env=environment, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "PATTERNING_FAST_ISA is 'mmx'; this machine can run: baseline" in result.stderr


def test_antithetic_chains_mirror_each_other(generator: torch.Generator) -> None:
    center = torch.randn(101, generator=generator)
    params, grads = center.repeat(2, 1), torch.zeros(2, 101)
    pf.ops.langevin_step(
        params, grads, center, lr=0.1, n_beta=0.0, localization=0.0, seed=1, step=0,
        noise_scale=torch.tensor([1.0, -1.0]), chain_ids=torch.tensor([5, 5]),
    )  # fmt: skip
    assert torch.allclose(params[0] - center, center - params[1], atol=4 * ROUNDING * 4)  # values up to about 4
    assert not torch.equal(params[0], center)


def test_opcheck(generator: torch.Generator) -> None:
    arguments = inputs([7, 5], generator)
    torch.library.opcheck(torch.ops.patterning_fast.langevin_step.default, tuple(arguments.values()))


def test_compiles_without_a_break(generator: torch.Generator) -> None:
    def step(params: Tensor, grads: Tensor, center: Tensor) -> Tensor:
        pf.ops.langevin_step(params, grads, center, lr=0.1, n_beta=1.0, localization=1.0, seed=1, step=0)
        return params * 2

    params, grads, center = torch.zeros(2, 9), torch.ones(2, 9), torch.zeros(9)
    expected = step(params.clone(), grads.clone(), center)
    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(params, grads, center), expected)


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
        ({"params": torch.zeros(2, 6, dtype=torch.float64)}, "params is torch.float64, but must be torch.float32"),
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
    ],
)  # fmt: skip
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    call()
    with pytest.raises((TypeError, ValueError), match=message):
        call(**changes)
