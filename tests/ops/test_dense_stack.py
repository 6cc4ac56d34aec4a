"""`dense_losses`, `dense_steps`, `dense_draws`: kernels against the reference, and that against torch's modules."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patterning_fast import ops
from patterning_fast.ops import use_backend
from patterning_fast.ops.dense_stack import DenseLayer, DenseStack, dense_draws, dense_losses, dense_steps
from patterning_fast.ops.reference import dense_stack as reference
from tests.ops.forms import FORMS, use_form

SAMPLES = 23
CPP = [form for form in FORMS if form.startswith("cpp")]


def layers_of(widths: list[int], activation: str, bias: bool) -> tuple[list[DenseLayer], int]:
    """An ordinary stack, its last layer linear, and its number of parameters."""
    layers, at = [], 0
    for index, (width, out) in enumerate(pairwise(widths)):
        last = index == len(widths) - 2
        first_bias = at + width * out if bias else -1
        layers.append(DenseLayer(width, out, at, first_bias, activation="identity" if last else activation))
        at += width * out + bias * out
    return layers, at


def tied(features: int, hidden: int) -> tuple[list[DenseLayer], int]:
    """The superposition autoencoder relu(Wᵀ W x + b)."""
    size = features * hidden
    return [
        DenseLayer(features, hidden, 0),
        DenseLayer(hidden, features, 0, size, transposed=True, activation="relu"),
    ], size + features


MODELS = {
    "tied": tied(6, 2),
    "deep linear": layers_of([10, 8, 8, 10], "identity", False),
    "relu": layers_of([7, 19, 3], "relu", True),
    "tanh": layers_of([3, 5, 5, 2], "tanh", True),
    "gelu": layers_of([2, 33, 4], "gelu", True),
    "one layer": layers_of([1, 2], "identity", True),
}


def stack(
    name: str, labels: bool, weighted: bool, restricted: bool, chains: int = 5
) -> tuple[DenseStack, Tensor, Tensor]:
    """A stack, rows for its chains (every other one of a few coordinates if restricted), and where they start."""
    generator = torch.Generator().manual_seed(1)
    chains = 5
    layers, size = MODELS[name]
    outputs = layers[-1].outputs
    few = torch.randperm(size, generator=generator)[: max(1, size // 3)].sort().values
    starts = torch.full((chains,), -1)
    if restricted:
        starts[::2] = 0
    lengths = torch.where(starts < 0, size, len(few))
    row_starts = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    made = DenseStack(
        layers,
        0.5 * torch.randn(size, generator=generator),
        starts,
        few,
        torch.randn(SAMPLES, layers[0].inputs, generator=generator),
        None if labels else torch.randn(SAMPLES, outputs, generator=generator),
        torch.randint(outputs, (SAMPLES,), generator=generator) if labels else None,
        torch.rand(SAMPLES, generator=generator) if weighted else None,
    )
    return made, 0.5 * torch.randn(int(row_starts[-1]), generator=generator), row_starts


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("form", CPP)
def test_losses(form: str, name: str, labels: bool, restricted: bool) -> None:
    """To 1e-5 of the largest: sums of at most 33 products of order 1, each rounded at 6e-8, through three layers."""
    made, rows, row_starts = stack(name, labels, True, restricted)
    expected, found = (torch.full((5, SAMPLES + 3), torch.nan)[:, :SAMPLES] for _ in range(2))
    with use_backend("reference"):
        dense_losses(made, rows, row_starts, expected)
    with use_form("dense_losses", form):
        dense_losses(made, rows, row_starts, found)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def arguments(rows: Tensor, row_starts: Tensor, **changes: Any) -> dict[str, Any]:
    chains = row_starts.numel() - 1
    lengths = row_starts.diff()
    center_starts = torch.where(lengths == lengths.max(), 0, int(lengths.max()))
    return {
        "params": rows.clone(),
        "grads": torch.zeros_like(rows),
        "center": torch.zeros(2 * int(lengths.max())),
        "row_starts": row_starts,
        "center_starts": center_starts,
        "lr": torch.linspace(1e-3, 2e-3, chains),
        "n_beta": 3.0,
        "localization": 2.0,
        "noise_scale": torch.tensor([1.0, -1.0] * chains)[:chains],
        "chain_ids": torch.arange(chains) * 7,
        "seed": 11,
        "step": 5,
        "replicas": torch.arange(chains) // 2,
        "batch_size": 9,
        "steps": 4,
    } | changes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("form", CPP)
def test_gradients(form: str, name: str, labels: bool, restricted: bool) -> None:
    made, rows, row_starts = stack(name, labels, True, restricted)
    expected, found = (arguments(rows, row_starts, steps=0) for _ in range(2))
    with use_backend("reference"):
        dense_steps(made, **expected)
    with use_form("dense_steps", form):
        dense_steps(made, **found)
    torch.testing.assert_close(found["grads"], expected["grads"], rtol=1e-5, atol=1e-5)
    assert torch.equal(found["params"], rows)
    assert float(expected["grads"].abs().max()) > 0.01


def rules(rows: Tensor, chains: int) -> dict[str, Any]:
    return {
        "sgld": None,
        "rmsprop": ops.RMSProp(torch.zeros_like(rows)),
        "sghmc": ops.SGHMC(torch.zeros_like(rows)),
        "sgnht": ops.SGNHT(torch.zeros_like(rows), torch.full((chains,), 0.01)),
    }


@pytest.mark.parametrize("rule", ["sgld", "rmsprop", "sghmc", "sgnht"])
@pytest.mark.parametrize("name", ["tied", "relu"])
@pytest.mark.parametrize("batch_size", [1, 8, 70])
def test_steps(name: str, rule: str, batch_size: int) -> None:
    """Four steps as the reference takes them, on the same minibatches and noise; a chain of lr 0 stays."""
    made, rows, row_starts = stack(name, False, False, True)
    lr = torch.linspace(1e-3, 2e-3, 5)
    lr[3] = 0
    ran = []
    for backend in ("reference", "cpp"):
        with use_backend(backend):
            own = arguments(rows, row_starts, batch_size=batch_size, lr=lr, rule=rules(rows, 5)[rule])
            dense_steps(made, **own)
            ran.append(own)
    torch.testing.assert_close(ran[1]["params"], ran[0]["params"], rtol=1e-5, atol=1e-5)
    frozen = slice(int(row_starts[3]), int(row_starts[4]))
    assert torch.equal(ran[1]["params"][frozen], rows[frozen])
    assert not torch.equal(ran[1]["params"], rows)
    assert not ran[1]["grads"].any()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("form", CPP)
def test_corrected_steps(form: str, name: str, labels: bool) -> None:
    """Large steps, so that the minibatch's own noise is a good part of a step's, and more than all of some."""
    made, rows, row_starts = stack(name, labels, True, True)
    ran = []
    for backend in ("reference", form):
        own = arguments(rows, row_starts, n_beta=60.0, gradient_noise_correction=True)
        with use_backend("reference") if backend == "reference" else use_form("dense_steps", backend):
            dense_steps(made, **own)
        ran.append(own["params"])
    torch.testing.assert_close(ran[1], ran[0], rtol=1e-4, atol=1e-4)
    plain = arguments(rows, row_starts, n_beta=60.0)
    dense_steps(made, **plain)
    assert float((plain["params"] - ran[0]).abs().max()) > 1e-3


def drawn(
    made: DenseStack, rows: Tensor, row_starts: Tensor, tracked: int, kernel: bool, device: str = "cpu", **changes: Any
) -> dict[str, Tensor]:
    """Two draws, three steps apart: all that they write, by name, after garbage in what is only written."""
    moved = moved_to(device, arguments(rows, row_starts, steps=3, **changes))
    params, grads, center = (moved.pop(name) for name in ("params", "grads", "center"))
    chains, observables = row_starts.numel() - 1, 1 + tracked * kernel
    assert made.targets is not None
    assert isinstance(made.inputs, Tensor)
    evaluated = replace(made, inputs=made.inputs[:17], targets=torch.ones_like(made.targets[:17]), weights=None)
    shapes = [(3,), (3, tracked), (3, observables), (3, observables, tracked), (3, observables, observables)]
    written = {
        "phi": torch.full((2, chains), torch.nan, dtype=torch.float64),
        "distance": torch.full((2, chains), torch.nan),
        "losses": torch.full((2, chains, tracked), torch.nan),
    }
    draws = moved_to(device, written | {
        "center_losses": torch.linspace(0, 1, 17),
        "observable_shift": torch.full((observables,), 0.1),
        "phi_samples": slice(4, 17),
        "limit": 100.0,
        "groups": torch.arange(chains) % 3,
        "totals": tuple(torch.ones(shape, dtype=torch.float64, device=device) for shape in shapes),
    })  # fmt: skip
    stack, on = (replace(each, **moved_to(device, vars(each))) for each in (made, evaluated))
    dense_draws(stack, on, params, grads, center, draws, **moved)  # type: ignore[arg-type]
    totals = {f"total {at}": each for at, each in enumerate(draws["totals"])}
    return {"params": params, **{name: draws[name] for name in written}, **totals}


def moved_to(device: str, values: dict[str, Any]) -> dict[str, Any]:
    return {name: each.to(device) if isinstance(each, Tensor) else each for name, each in values.items()}


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", CPP)
def test_draws(form: str, name: str, kernel: bool) -> None:
    """To 1e-4: sums of squares of losses of order 1 to 10, each of them to 1e-5 as in `test_losses`."""
    made, rows, row_starts = stack(name, False, True, True)
    with use_backend("reference"):
        expected = drawn(made, rows, row_starts, 5, kernel)
    with use_form("dense_draws", form):
        found = drawn(made, rows, row_starts, 5, kernel)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
    assert found["phi"].isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_chain_that_diverges_stops_at_once(backend: str) -> None:
    """One of lr 10 does between two draws, one of lr 0 has before; the other chains take no notice."""
    made, rows, row_starts = stack("relu", False, False, False)
    lr = torch.full((5,), 1e-3)
    with use_backend(backend):
        sound = drawn(made, rows, row_starts, 17, False, lr=lr)
        lr[1], lr[3] = 10.0, 0.0
        found = drawn(made, rows, row_starts, 17, False, lr=lr)
    assert found["phi"].isfinite().tolist() == 2 * [[True, False, True, False, True]]
    assert torch.equal(found["losses"].isfinite().all(2), found["phi"].isfinite())
    for chain in (0, 2, 4):
        here = slice(int(row_starts[chain]), int(row_starts[chain + 1]))
        assert torch.equal(found["params"][here], sound["params"][here])
    here = slice(int(row_starts[3]), int(row_starts[4]))
    assert torch.equal(found["params"][here], rows[here])
    torch.testing.assert_close(found["distance"][:, 3], rows[here].norm().expand(2))
    assert found["total 0"].tolist() == [3.0, 3.0, 3.0]  # 1, and two draws of chains 0, 4 and 2


def test_many_steps_are_as_many_calls() -> None:
    made, rows, row_starts = stack("tied", False, True, True)
    together, apart = arguments(rows, row_starts, steps=6), arguments(rows, row_starts, steps=1)
    dense_steps(made, **together)
    for step in range(6):
        dense_steps(made, **apart | {"step": 5 + step})
    assert torch.equal(together["params"], apart["params"])


def test_the_same_bits_for_any_number_of_threads() -> None:
    made, rows, row_starts = stack("relu", True, False, True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(arguments(rows, row_starts))
            dense_steps(made, **found[-1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each["params"], found[0]["params"]) for each in found)


def test_the_reference_is_what_modules_compute() -> None:
    module = nn.Sequential(nn.Linear(7, 19), nn.ReLU(), nn.Linear(19, 3))
    layers, _ = MODELS["relu"]
    params = torch.cat([each.detach().flatten() for each in module.parameters()])
    inputs, labels = torch.randn(SAMPLES, 7), torch.randint(3, (SAMPLES,))
    table = DenseStack(
        layers, params, torch.tensor([-1]), torch.zeros(0, dtype=torch.int64), inputs, labels=labels
    ).table()
    expected = nn.functional.cross_entropy(module(inputs), labels, reduction="none")
    torch.testing.assert_close(reference.losses_of(params, table, inputs, None, labels), expected)


def test_what_does_not_fit_is_refused() -> None:
    made, rows, row_starts = stack("relu", False, False, False)
    with pytest.raises(ValueError, match="follows one of"):
        replace(made, layers=made.layers[::-1])
    with pytest.raises(ValueError, match="reaches outside"):
        replace(made, layers=[DenseLayer(7, 3, 10**6)])
    with pytest.raises(ValueError, match="no activation is called"):
        replace(made, layers=[DenseLayer(7, 3, 0, activation="swish")])
    with pytest.raises(ValueError, match="labels must lie"):
        replace(made, targets=None, labels=torch.full((SAMPLES,), 3))
    with pytest.raises(ValueError, match="targets or labels"):
        replace(made, targets=None)
    with pytest.raises(ValueError, match="rows must hold"):
        dense_losses(made, rows[:-1], torch.cat((row_starts[:-1], row_starts[-1:] - 1)), torch.empty(5, SAMPLES))
    with pytest.raises(ValueError, match="batches of 2"):
        dense_steps(made, **arguments(rows, row_starts, batch_size=1, gradient_noise_correction=True))
    with pytest.raises(ValueError, match="batch_size"):
        dense_steps(made, **arguments(rows, row_starts, batch_size=0))
    with pytest.raises(TypeError, match="float32"):
        dense_steps(made, **arguments(rows.double(), row_starts))
