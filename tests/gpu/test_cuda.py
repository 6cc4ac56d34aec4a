"""The CUDA forms where only a GPU can tell: the bits of the C++ forms, capture, streams, no waiting, its own tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.models.superposition import TiedAutoencoder
from patterning_fast.ops import library
from patterning_fast.ops.dense_stack import DenseStack, dense_losses, dense_steps
from patterning_fast.ops.reference.comoments_update import comoments_update, loss_comoments_update
from patterning_fast.ops.reference.langevin_step import RULES
from tests.ops import test_dense_stack as dense
from tests.ops.test_langevin_step import inputs

DEVICE = torch.device("cuda")
CPU = torch.device("cpu")
BUILT = torch.cuda.is_available() and library.is_built("cuda")

pytestmark = pytest.mark.skipif(not BUILT, reason="needs a GPU and the CUDA kernels")

Arguments = dict[str, Any]


def copied(arguments: Arguments, device: torch.device) -> Arguments:
    return {
        name: value.to(device, copy=True) if isinstance(value, Tensor) else value for name, value in arguments.items()
    }


def run(op: str, arguments: Arguments, device: torch.device) -> Arguments:
    """Copies of the arguments after the op: in CUDA on the GPU, in C++ on the CPU."""
    moved = copied(arguments, device)
    with pf.ops.use_backend("cuda" if device == DEVICE else "cpp"):
        getattr(torch.ops.patterning_fast, op)(*moved.values())
    return copied(moved, CPU)


def same_bits(a: Tensor, b: Tensor) -> bool:
    integer = torch.int16 if a.dtype == torch.bfloat16 else torch.int32
    return torch.equal(a.view(integer), b.view(integer))


@pytest.mark.parametrize("shape", [(1, 1), (3, 1021), (2, 1024), (2, 4099), (5, 100_003)])
def test_noise_has_the_bits_of_the_cpp_form(shape: tuple[int, int], generator: torch.Generator) -> None:
    arguments = {
        "out": torch.full(shape, torch.nan),
        "chain_ids": torch.randint(2**40, shape[:1], generator=generator),
        "seed": torch.tensor(2**62 + 12345),
        "step": torch.tensor(2**32 + 3),
    }
    assert same_bits(run("normal_", arguments, DEVICE)["out"], run("normal_", arguments, CPU)["out"])


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    "lengths",
    [[1], [0, 3, 0], [2047, 2048, 2049, 4096], [64, 64, 100_003, 5], [7] * 300],
    ids=lambda lengths: f"{len(lengths)} rows of {lengths[:3]}",
)
@pytest.mark.parametrize("rule", RULES)
def test_step_has_the_bits_of_the_cpp_form(
    rule: str, lengths: list[int], bfloat16: bool, generator: torch.Generator
) -> None:
    arguments = inputs(lengths, generator, rule, bfloat16)
    arguments["box"] = 3 * torch.rand(len(lengths), generator=generator)
    arguments["shadow"] = torch.zeros(sum(lengths), dtype=torch.bfloat16)
    arguments["statistics"] = torch.full((4, len(lengths)), torch.nan, dtype=torch.float64)
    got, expected = run("langevin_step", arguments, DEVICE), run("langevin_step", arguments, CPU)
    for name in ("params", "grads", "shadow", "memory"):
        assert arguments[name] is None or same_bits(got[name], expected[name]), name
    # Both add up to 256 numbers of one sign in float, then in double; of mixed sign in the third row, whose terms the
    # first two bound.
    magnitude = expected["statistics"].clone()
    magnitude[2] = (magnitude[0] * magnitude[1]).sqrt()
    assert bool(((got["statistics"] - expected["statistics"]).abs() <= 2.0**-24 * 512 * magnitude).all())
    if rule == "sgnht":
        assert torch.allclose(got["thermostat"], expected["thermostat"], rtol=2.0**-24 * 512, atol=0)


def test_a_row_outside_is_not_moved(generator: torch.Generator) -> None:
    arguments = inputs([100, 200, 300], generator)
    arguments["center_starts"][1] = 500
    arguments["statistics"] = torch.full((4, 3), torch.nan, dtype=torch.float64)
    got = run("langevin_step", arguments, DEVICE)
    assert same_bits(got["params"][100:300], arguments["params"][100:300])
    assert not bool((got["params"][300:] == arguments["params"][300:]).all())
    assert got["statistics"][3].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(("chains", "params"), [(1, 1), (3, 511), (2, 4096), (4, 0), (300, 7)])
def test_per_sample_step_has_the_bits_of_the_cpp_form(
    chains: int, params: int, bfloat16: bool, batch: int, generator: torch.Generator
) -> None:
    arguments = per_sample(chains, batch, params, generator)
    if bfloat16:
        arguments["grads"] = arguments["grads"].bfloat16()
    expected = run("per_sample_langevin_step", arguments, CPU)
    for _ in range(2):  # the counters of arrivals are 0 again
        got = run("per_sample_langevin_step", arguments, DEVICE)
        assert same_bits(got["params"], expected["params"])
        scale = expected["gradient_noise_scale"]
        finite = scale.isfinite()
        # Sums of up to 256 floats in the C++ form; their difference, the signal, is at least a tenth of either here.
        assert torch.allclose(got["gradient_noise_scale"][finite], scale[finite], rtol=2.0**-24 * 512 * 20, atol=0)
        assert torch.equal(got["gradient_noise_scale"].isfinite(), finite)


def per_sample(chains: int, batch: int, params: int, generator: torch.Generator) -> Arguments:
    """Arguments of per_sample_langevin_step, whose gradients stand well above their noise."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "params": normal(chains, params),
        "grads": 3 + normal(chains, batch, params),
        "sample_weights": 0.5 + torch.rand(chains, batch, generator=generator),
        "center": normal(1, params),
        "lr": 0.01 * torch.rand(chains, generator=generator),
        "n_beta": 10 * torch.rand(chains, generator=generator),
        "localization": torch.rand(chains, generator=generator),
        "noise_scale": torch.ones(chains),
        "chain_ids": torch.arange(chains),
        "seed": torch.tensor(5),
        "step": torch.tensor(7),
        "sampled_fraction": 0.25,
        "gradient_noise_scale": torch.full((chains,), torch.nan, dtype=torch.float64),
    }


def comoments(chains: int, n: int, k: int, groups: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Arguments of comoments_update."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "losses": 3 + normal(chains, n),
        "observables": normal(chains, k),
        "loss_shift": 3 + 0.1 * normal(n),
        "observable_shift": 0.1 * normal(k),
        "groups": torch.randint(groups, (chains,), generator=generator),
        "count": normal(groups).double(),
        "loss_sum": normal(groups, n).double(),
        "observable_sum": normal(groups, k).double(),
        "cross": normal(groups, k, n).double(),
        "observable_square": normal(groups, k, k).double(),
    }


def agree(got: dict[str, Tensor], before: dict[str, Tensor], reference: Callable[..., None]) -> None:
    """Assert that totals are those of the reference."""
    expected = {name: tensor.clone() for name, tensor in before.items()}
    reference(**expected)
    magnitude = {name: tensor.abs() if tensor.is_floating_point() else tensor for name, tensor in before.items()}
    for name in {"loss", "observable"} & {name.removesuffix("_shift") for name in before}:
        values = {"loss": "losses", "observable": "observables"}[name]
        magnitude[values] = (before[values] - before[f"{name}_shift"]).abs()
        magnitude[f"{name}_shift"] = torch.zeros_like(before[f"{name}_shift"])
    reference(**magnitude)
    for name in before:
        # Both factors of a product are rounded, then up to 64 sums of them in float; totals in double.
        bound = 2.0**-24 * (64 + 3) * magnitude[name]
        assert bool(((got[name] - expected[name]).abs() <= bound).all()), name


# Around the edges of what a block owns: 64 by 64 totals, or 128 losses of up to 8 observables; 4,096 chains at a time.
SIZES = [
    (1, 1, 1, 1), (0, 5, 2, 3), (5, 0, 1, 2), (5, 0, 9, 2), (7, 130, 0, 2), (300, 257, 8, 3), (70, 66, 9, 2),
    (65, 64, 64, 1), (9, 129, 130, 2), (9000, 5, 3, 4), (9000, 3, 9, 2), (3, 5, 2, 40),
]  # fmt: skip


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("chains", "n", "k", "groups"), SIZES)
def test_comoments_agree_with_reference(
    chains: int, n: int, k: int, groups: int, ordered: bool, generator: torch.Generator
) -> None:
    arguments = comoments(chains, n, k, groups, generator)
    if ordered:  # so that a group has no chains in some of the windows
        arguments["groups"] = arguments["groups"].sort().values
    got = run("comoments_update", arguments, DEVICE)
    agree(got, arguments, comoments_update)
    again = run("comoments_update", arguments, DEVICE)
    assert all(torch.equal(got[name], again[name]) for name in got)


@pytest.mark.parametrize(("chains", "n", "groups"), [(1, 1, 1), (0, 5, 2), (5, 0, 2), (70, 200, 3), (9000, 65, 2)])
def test_loss_comoments_agree_with_reference(chains: int, n: int, groups: int, generator: torch.Generator) -> None:
    whole = comoments(chains, n, 0, groups, generator)
    arguments = {name: whole[name] for name in ("losses", "loss_shift", "groups", "count", "loss_sum")}
    arguments["loss_square"] = torch.randn(groups, n, n, generator=generator).double()
    agree(run("loss_comoments_update", arguments, DEVICE), arguments, loss_comoments_update)


def test_a_group_that_does_not_exist_is_left_out(generator: torch.Generator) -> None:
    for k in (2, 9):
        arguments = comoments(40, 30, k, 2, generator)
        of_chains = ("losses", "observables", "groups")
        kept = arguments | {name: arguments[name][8:].clone() for name in of_chains}
        arguments["groups"][:8] = torch.tensor([-1, 2, 2**40, -(2**40), 3, -2, 5, 2])
        got = run("comoments_update", arguments, DEVICE)
        agree(got | {name: kept[name] for name in of_chains}, kept, comoments_update)


@pytest.mark.parametrize("k", [3, 9])
def test_fused_draw_is_its_parts(k: int, generator: torch.Generator) -> None:
    step, totals = per_sample(5, 3, 2000, generator), comoments(70, 300, k, 3, generator)
    got = run("fused_draw", step | totals, DEVICE)
    expected = run("per_sample_langevin_step", step, DEVICE) | run("comoments_update", totals, DEVICE)
    assert all(torch.equal(got[name], expected[name]) for name in ("params", "gradient_noise_scale", "cross", "count"))


@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_a_label_that_does_not_exist_makes_its_loss_nan(label: int, generator: torch.Generator) -> None:
    logits = torch.randn(3, 5, generator=generator)
    labels = torch.tensor([1, label, 4])
    arguments = {
        "logits": logits, "labels": labels, "weights": None, "ignore_index": -100, "losses": torch.zeros(3),
        "grad_logits": torch.full((3, 5), torch.nan),
    }  # fmt: skip
    got = run("weighted_cross_entropy", arguments, DEVICE)
    assert got["losses"].isnan().tolist() == [False, True, False]
    assert torch.equal(got["grad_logits"][1], torch.zeros(5))
    linear = {
        "hidden": logits[None], "unembedding": torch.eye(5)[None], "labels": labels[None], "weights": None,
        "offset": None, "offset_scale": None, "ignore_index": -100, "losses": torch.zeros(1, 3),
        "grad_hidden": torch.full((1, 3, 5), torch.nan), "grad_unembedding": torch.full((1, 5, 5), torch.nan),
        "grad_offset_scale": None,
    }  # fmt: skip
    got_linear = run("linear_cross_entropy", linear, DEVICE)
    assert torch.equal(got_linear["losses"][0].nan_to_num(-1), got["losses"].nan_to_num(-1))
    assert torch.allclose(got_linear["grad_hidden"][0], got["grad_logits"], atol=2.0**-22)
    assert bool(got_linear["grad_unembedding"].isfinite().all())


def bank(chains: int, params: int) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters, a gradient for each step to be copied in, and w*, on the GPU."""
    w = torch.linspace(-1, 1, chains * params, device=DEVICE).view(chains, params)
    return w, w.flip(1).contiguous(), w[0] / 2


def step_eagerly(draws: int) -> tuple[Tensor, Tensor]:
    w, g, center = bank(3, 5003)
    fresh = g.clone()
    momentum, thermostat = torch.ones_like(w), torch.full((3,), 0.01, device=DEVICE)
    for draw in range(draws):
        g.copy_(fresh)
        rule = pf.ops.SGNHT(momentum, thermostat)
        pf.ops.langevin_step(w, g, center, lr=0.01, n_beta=7.0, localization=3.0, seed=9, step=draw, rule=rule)
    return w.cpu(), thermostat.cpu()


def test_a_captured_step_moves_on_with_its_step() -> None:
    expected, expected_thermostat = step_eagerly(3)  # first, as it loads the kernels, which a capture must not
    w, g, center = bank(3, 5003)
    fresh, seed, step = g.clone(), torch.tensor(9, device=DEVICE), torch.tensor(0, device=DEVICE)
    momentum, thermostat = torch.ones_like(w), torch.full((3,), 0.01, device=DEVICE)
    numbers = {"lr": 0.01, "n_beta": 7.0, "localization": 3.0, "noise_scale": 1.0}
    per_chain: Arguments = {name: torch.full((3,), value, device=DEVICE) for name, value in numbers.items()}
    chain_ids = torch.arange(3, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        g.copy_(fresh)
        pf.ops.langevin_step(
            w, g, center, **per_chain, chain_ids=chain_ids, seed=seed, step=step,
            rule=pf.ops.SGNHT(momentum, thermostat),
        )  # fmt: skip
        step += 1
    for _ in range(3):
        graph.replay()
    assert same_bits(w.cpu(), expected)
    assert torch.equal(thermostat.cpu(), expected_thermostat)


def test_a_captured_draw_can_be_replayed(generator: torch.Generator) -> None:
    arguments = per_sample(5, 3, 2000, generator) | comoments(70, 300, 3, 3, generator)
    once = run("fused_draw", arguments, DEVICE)
    twice = run("fused_draw", arguments | {name: once[name] for name in arguments}, DEVICE)
    moved = copied(arguments, DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.ops.patterning_fast.fused_draw(*moved.values())
    for expected in (once, twice):
        graph.replay()
        for name in ("params", "gradient_noise_scale", "cross"):
            assert torch.equal(moved[name].cpu(), expected[name]), name


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_runs_on_the_current_stream_without_waiting(generator: torch.Generator) -> None:
    """A stream held up by a long sleep: what runs elsewhere, or waits, would not see what is written after it."""
    arguments = per_sample(5, 3, 2000, generator) | comoments(70, 300, 3, 3, generator)
    expected = run("fused_draw", arguments, DEVICE)
    moved = copied(arguments, DEVICE)
    fresh = moved["params"].clone()
    stream, done = torch.cuda.Stream(), torch.cuda.Event()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.ops.patterning_fast.fused_draw(*copied(moved, DEVICE).values())  # gets this stream its memory
    moved["params"].fill_(torch.nan)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            moved["params"].copy_(fresh)
            torch.ops.patterning_fast.fused_draw(*moved.values())
            done.record()
        assert not done.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.equal(moved["params"].cpu(), expected["params"])


def moved_stack(stack: DenseStack, device: torch.device) -> DenseStack:
    """The same on a device; an autoencoder's targets stay its inputs."""
    moved = copied(vars(stack), device) | {"inputs": stack.inputs.to(str(device))}
    if stack.targets is stack.inputs:
        moved["targets"] = moved["inputs"]
    return DenseStack(**moved)


def dense_run(stack: DenseStack, arguments: Arguments, device: torch.device) -> Arguments:
    """Copies of the arguments of dense_steps after it: in CUDA on the GPU, in C++ on the CPU."""
    moved, rule = copied(arguments, device), arguments.get("rule")
    if rule is not None:
        moved["rule"] = type(rule)(**copied(dict(vars(rule)), device))
    with pf.ops.use_backend("cuda" if device == DEVICE else "cpp"):
        dense_steps(moved_stack(stack, device), **moved)
    state = {} if rule is None else copied(dict(vars(moved["rule"])), CPU)
    return copied(moved, CPU) | state


def dense_losses_on(stack: DenseStack, rows: Tensor, row_starts: Tensor, device: torch.device) -> Tensor:
    losses = torch.full((row_starts.numel() - 1, len(stack.inputs) + 3), torch.nan, device=device)
    with pf.ops.use_backend("cuda" if device == DEVICE else "cpp"):
        dense_losses(moved_stack(stack, device), rows.to(device), row_starts.to(device), losses[:, : len(stack.inputs)])
    assert bool(losses[:, len(stack.inputs) :].isnan().all())
    return losses[:, : len(stack.inputs)].cpu()


WIDE = {
    "width 64": ([64, 64, 64, 64], "relu"),
    "more than shared memory": ([200, 256, 130, 200], "gelu"),
    "deep": ([5] * 300, "tanh"),
}


def wide_stack(name: str, generator: torch.Generator) -> tuple[DenseStack, Tensor, Tensor]:
    """A stack of 3 chains that many warps run, the middle one of a few coordinates."""
    widths, activation = WIDE[name]
    layers, size = dense.layers_of(widths, activation, True)
    few = torch.arange(1, size, 3)
    lengths = torch.tensor([size, len(few), size])
    stack = DenseStack(
        layers,
        torch.randn(size, generator=generator) / max(widths) ** 0.5,
        torch.tensor([-1, 0, -1]),
        few,
        torch.randn(150, widths[0], generator=generator),
        torch.randn(150, widths[-1], generator=generator),
        weights=torch.rand(150, generator=generator),
    )
    rows = torch.cat((stack.base, stack.base[few], 0.5 * stack.base))
    return stack, rows, torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", dense.MODELS)
def test_dense_losses_agree_with_the_cpp_form(name: str, labels: bool, restricted: bool) -> None:
    """Each output is a sum in the same order, so squared errors are equal but for the activation's own rounding."""
    made = dense.stack(name, labels, True, restricted)
    got, expected = dense_losses_on(*made, DEVICE), dense_losses_on(*made, CPU)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    if not labels and name not in ("tanh", "gelu"):
        assert same_bits(got, expected)


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", dense.MODELS)
def test_dense_gradients_agree_with_the_cpp_form(name: str, labels: bool, restricted: bool) -> None:
    """To 1e-5 of the largest, as the C++ form agrees with the reference."""
    stack, rows, row_starts = dense.stack(name, labels, True, restricted)
    arguments = dense.arguments(rows, row_starts, steps=0)
    got, expected = (dense_run(stack, arguments, device) for device in (DEVICE, CPU))
    assert torch.allclose(got["grads"], expected["grads"], rtol=1e-5, atol=1e-5)
    assert same_bits(got["params"], rows)


RULES_OF_CHAINS = ["sgld", "rmsprop", "sghmc", "sgnht"]


@pytest.mark.parametrize("batch_size", [1, 8, 70])
@pytest.mark.parametrize("rule", RULES_OF_CHAINS)
@pytest.mark.parametrize("name", ["tied", "relu", "deep linear"])
def test_dense_steps_agree_with_the_cpp_form(name: str, rule: str, batch_size: int) -> None:
    stack, rows, row_starts = dense.stack(name, False, False, True)
    lr = torch.linspace(1e-3, 2e-3, 5)
    lr[3] = 0
    arguments = dense.arguments(rows, row_starts, batch_size=batch_size, lr=lr, rule=dense.rules(rows, 5)[rule])
    got, expected = (dense_run(stack, arguments, device) for device in (DEVICE, CPU))
    for key in ("params", "second_moment", "momentum", "thermostat"):
        assert key not in got or torch.allclose(got[key], expected[key], rtol=1e-5, atol=1e-5), key
    frozen = slice(int(row_starts[3]), int(row_starts[4]))
    assert same_bits(got["params"][frozen], rows[frozen])
    assert not got["grads"].any()
    again = dense_run(stack, arguments, DEVICE)
    assert same_bits(again["params"], got["params"])


@pytest.mark.parametrize("rule", RULES_OF_CHAINS)
@pytest.mark.parametrize("name", ["tied", "relu", "gelu"])
def test_dense_noise_and_rule_have_the_bits_of_the_cpp_form(name: str, rule: str) -> None:
    """On data that weigh nothing; one step of SGNHT, whose thermostat is a sum, of the same terms in another order."""
    stack, rows, row_starts = dense.stack(name, False, False, True)
    stack = replace(stack, weights=torch.zeros(dense.SAMPLES))
    changes = {"steps": 1 if rule == "sgnht" else 9, "seed": 2**40 + 3, "step": 2**33 + 1}
    arguments = dense.arguments(rows, row_starts, rule=dense.rules(rows, 5)[rule], **changes)
    got, expected = (dense_run(stack, arguments, device) for device in (DEVICE, CPU))
    assert same_bits(got["params"], expected["params"])
    assert not same_bits(got["params"], rows)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", dense.MODELS)
def test_dense_corrected_steps_agree_with_the_cpp_form(name: str, labels: bool) -> None:
    stack, rows, row_starts = dense.stack(name, labels, True, True)
    arguments = dense.arguments(rows, row_starts, n_beta=60.0, gradient_noise_correction=True)
    got, expected = (dense_run(stack, arguments, device) for device in (DEVICE, CPU))
    assert torch.allclose(got["params"], expected["params"], rtol=1e-4, atol=1e-4)
    plain = dense_run(stack, arguments | {"gradient_noise_correction": False}, CPU)
    assert float((plain["params"] - expected["params"]).abs().max()) > 1e-3


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("name", WIDE)
def test_wide_and_deep_stacks_agree_with_the_cpp_form(name: str, corrected: bool, generator: torch.Generator) -> None:
    """To 1e-5 of the largest: sums of up to 256 products, each rounded at 6e-8, whose rounding is of either sign."""
    stack, rows, row_starts = wide_stack(name, generator)
    losses = dense_losses_on(stack, rows, row_starts, CPU)
    assert torch.allclose(
        dense_losses_on(stack, rows, row_starts, DEVICE), losses, rtol=1e-5, atol=1e-5 * float(losses.max())
    )
    shared = {"batch_size": 100, "gradient_noise_correction": corrected}
    for key, steps in (("grads", 0), ("params", 3)):
        arguments = dense.arguments(rows, row_starts, steps=steps, **shared)
        got, expected = (dense_run(stack, arguments, device)[key] for device in (DEVICE, CPU))
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_dense_row_outside_is_not_moved() -> None:
    stack, rows, row_starts = dense.stack("relu", False, False, False)
    bad = row_starts.clone()
    bad[2] -= 1  # rows 1 and 2 are of the wrong lengths
    arguments = {name: each for name, each in dense.arguments(rows, row_starts).items() if name != "row_starts"}
    moved = copied(arguments, DEVICE)
    dense_steps(moved_stack(stack, DEVICE), row_starts=bad.to(DEVICE), **moved)
    change = (moved["params"].cpu() != rows).view(5, -1).any(1)
    assert change.tolist() == [True, False, False, True, True]
    losses = torch.zeros(5, dense.SAMPLES, device=DEVICE)
    dense_losses(moved_stack(stack, DEVICE), rows.to(DEVICE), bad.to(DEVICE), losses)
    assert losses.isnan().any(1).tolist() == [False, True, True, False, False]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_dense_ops_do_not_wait() -> None:
    stack, rows, row_starts = dense.stack("relu", True, True, True)
    there = moved_stack(stack, DEVICE)
    moved = copied(dense.arguments(rows, row_starts), DEVICE)
    moved |= {name: torch.tensor(moved[name], device=DEVICE) for name in ("seed", "step")}
    losses = torch.empty(5, dense.SAMPLES, device=DEVICE)

    def both() -> None:
        dense_steps(there, **moved)
        dense_losses(there, moved["params"], moved["row_starts"], losses)

    both()  # brings the table of layers
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "sampler",
    [pf.SGLD(1e-3), pf.SGLD(2e-3, gradient_noise_correction=True), pf.SGNHT(3e-3)],
    ids=["sgld", "corrected", "sgnht"],
)
def test_sampling_on_a_gpu_is_native_and_gives_what_the_cpu_gives(sampler: Any) -> None:
    torch.manual_seed(3)
    model, x = TiedAutoencoder(6), pf.SparseFeatures(100, torch.full((6,), 0.3))[:]
    found = []
    for device in (DEVICE, CPU):
        posterior = pf.LocalPosterior(model.to(device), pf.losses.squared_error, (x, x), n_beta=20.0, localization=50.0)
        components = {"weight": pf.component(model, "weight", ["weight"])}
        result = pf.sample(
            posterior, sampler, components=components, chains=6, draws=5, steps_between_draws=3, batch_size=7,
            progress=False,
        )  # fmt: skip
        assert result.attrs["engine"] == "native"
        found.append(torch.from_numpy(result.diagnostics()["phi"].values))
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-4 * float(found[1].abs().max()))


@pytest.mark.parametrize("kernel", [False, True])
def test_draws_agree_with_the_cpp_form(kernel: bool) -> None:
    """To 1e-4, as the C++ form agrees with the reference."""
    stack, rows, row_starts = dense.stack("tied", False, False, True)
    expected = dense.drawn(stack, rows, row_starts, 5, kernel)
    got = dense.drawn(stack, rows, row_starts, 5, kernel, device="cuda")
    for name, value in expected.items():
        assert torch.allclose(got[name].cpu(), value, rtol=1e-4, atol=1e-4), name


def test_made_features_are_those_of_the_cpu() -> None:
    features = pf.SparseFeatures(2**31, torch.tensor([0.1, 0.9, 1.0, 0.5, 0.3, 0.2]), seed=2**40 + 1)
    samples = torch.randint(2**31, (1000,))
    assert torch.equal(features.to("cuda")[samples.to(DEVICE)].cpu(), features[samples])
    stack, rows, row_starts = dense.stack("tied", False, False, False)
    made = replace(stack, inputs=features, targets=None)
    arguments = dense.arguments(rows, row_starts)
    got, expected = (dense_run(made, arguments, device)["params"] for device in (DEVICE, CPU))
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_replicas_trained_on_a_gpu_are_those_of_the_cpu() -> None:
    torch.manual_seed(3)
    model, x = TiedAutoencoder(6), pf.SparseFeatures(100, torch.full((6,), 0.3))[:]
    initial, weights = 0.5 * torch.randn(4, 18), torch.stack((torch.ones(100), torch.linspace(0, 2, 100)))
    found = []
    for device in (DEVICE, CPU):
        trained = pf.train_replicas(
            model.to(device), initial.to(device), (x.to(device), x.to(device)), pf.losses.squared_error, steps=20,
            batch_size=16, optimizer=lambda params: torch.optim.SGD(params, lr=0.1), weights=weights, snapshots=2,
            progress=False,
        )  # fmt: skip
        found.append(torch.from_numpy(trained["parameters"].values))
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
