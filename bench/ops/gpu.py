"""Every form of the heaviest ops on a GPU, against its copy bandwidth and its library's matrix product."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.ops.comoments_update import inputs as comoments_inputs
from bench.ops.langevin_step import eager_step
from bench.ops.timing import interleaved
from bench.small.ours import LAYERS
from patterning_fast import ops
from patterning_fast.ops import DenseLayer, DenseStack, library

CHAINS, PARAMS, REPEATS = 4096, 65_536, 21
COPY_BAR, EAGER_BAR, COMPILED_BAR, PRODUCT_BAR = 0.85, 5.0, 2.0, 0.7


def in_form(form: str, function: Callable[[], object]) -> Callable[[], object]:
    """The function, run with one backend."""

    def run() -> None:
        with library.use_backend(form):
            function()

    return run


def kernels(op: str) -> list[str]:
    """The backends with kernels of their own."""
    return [name for name in library.backends(op, "cuda") if name != "reference"]


def verified(form: str, function: Callable[[], torch.Tensor]) -> bool:
    """Whether a form's result is within 1e-4 of the reference's, relative to its largest."""
    results = []
    for backend in (form, "reference"):
        with library.use_backend(backend):
            results.append(function().double())
    return float((results[0] - results[1]).abs().max() / results[1].abs().max()) < 1e-4


def row(
    op: str,
    form: str,
    size: str,
    figure: str,
    value: float,
    bar: float | None,
    seconds: dict[str, float],
    is_verified: bool,
) -> dict[str, object]:
    """A figure that must reach its bar, where it has one, with the time of all that took turns."""
    peers = {f"{name} [ms]": 1e3 * each for name, each in seconds.items()}
    return {
        "op": op, "form": form, "size": size, "figure": figure, "value": value, "bar": bar,
        "holds": None if bar is None else value >= bar, "ms": 1e3 * seconds[form], "peers": peers,
        "verified": is_verified,
    }  # fmt: skip


def langevin_rows() -> list[dict[str, object]]:
    w, g = (torch.randn(CHAINS, PARAMS, device="cuda") for _ in range(2))
    center, copy = torch.randn(PARAMS, device="cuda"), torch.empty_like(w)
    numbers = {"lr": 1e-3, "n_beta": 30.0, "localization": 300.0, "seed": 0, "step": 0}
    compiled = torch.compile(eager_step)
    functions: dict[str, Callable[[], object]] = {
        form: in_form(form, lambda: ops.langevin_step(w, g, center, **numbers))  # type: ignore[arg-type]
        for form in kernels("langevin_step")
    }

    def one_step() -> torch.Tensor:
        moved = w[:3].clone()
        ops.langevin_step(moved, g[:3].clone(), center, **numbers)  # type: ignore[arg-type]
        return moved

    is_verified = {form: verified(form, one_step) for form in functions}
    functions |= {
        "copy": lambda: copy.copy_(w),
        "eager": lambda: eager_step(w, g, center),
        "torch.compile": lambda: compiled(w, g, center),
    }
    seconds = interleaved(functions, REPEATS)
    size, bandwidth = f"{CHAINS} chains, {PARAMS} params", 8 * w.numel() / seconds["copy"]
    figures = []
    for form in kernels("langevin_step"):
        share = 16 * w.numel() / seconds[form] / bandwidth
        eager, compiled_ratio = seconds["eager"] / seconds[form], seconds["torch.compile"] / seconds[form]
        for figure, value, bar in (
            ("share of the copy bandwidth", share, COPY_BAR),
            ("faster than eager", eager, EAGER_BAR),
            ("faster than torch.compile", compiled_ratio, COMPILED_BAR),
        ):
            figures.append(row("langevin_step", form, size, figure, value, bar, seconds, is_verified[form]))
    return figures


def comoments_rows() -> list[dict[str, object]]:
    chains, n, k = 1024, 16_384, 1024
    arguments = [tensor.cuda() for tensor in comoments_inputs(chains, n, k, 1)]
    functions: dict[str, Callable[[], object]] = {
        form: in_form(form, lambda: ops.comoments_update(*arguments)) for form in kernels("comoments_update")
    }

    def few_losses() -> torch.Tensor:
        few = [tensor.cuda() for tensor in comoments_inputs(chains, 130, 70, 1)]
        ops.comoments_update(*few)
        return few[-2]

    is_verified = {form: verified(form, few_losses) for form in functions}
    functions["torch.mm"] = lambda: torch.mm(arguments[1].T, arguments[0])
    seconds = interleaved(functions, REPEATS)
    size = f"{chains} chains, {n} losses, {k} observables"
    return [
        row("comoments_update", form, size, "rate over that of torch.mm", seconds["torch.mm"] / seconds[form],
            PRODUCT_BAR, seconds, is_verified[form])
        for form in kernels("comoments_update")
    ]  # fmt: skip


def cross_entropy_rows() -> list[dict[str, object]]:
    tokens, width, vocabulary = 32_768, 256, 5000
    hidden, unembedding = torch.randn(tokens, width, device="cuda"), torch.randn(vocabulary, width, device="cuda")
    labels = torch.randint(vocabulary, (tokens,), device="cuda")
    functions: dict[str, Callable[[], object]] = {
        form: in_form(form, lambda: ops.linear_cross_entropy(hidden, unembedding, labels))
        for form in kernels("linear_cross_entropy")
    }

    def few_tokens() -> torch.Tensor:
        return ops.linear_cross_entropy(hidden[:500], unembedding, labels[:500])

    is_verified = {form: verified(form, few_tokens) for form in functions}
    functions["torch.mm"] = lambda: torch.mm(hidden, unembedding.T)
    seconds = interleaved(functions, REPEATS)
    size = f"{tokens} tokens, width {width}, vocabulary {vocabulary}"
    return [
        row("linear_cross_entropy", form, size, "losses: rate over that of torch.mm",
            seconds["torch.mm"] / seconds[form], PRODUCT_BAR, seconds, is_verified[form])
        for form in kernels("linear_cross_entropy")
    ]  # fmt: skip


def square_layers(width: int) -> list[DenseLayer]:
    """Three of them, with relu between."""
    return [DenseLayer(width, width, at * width**2, activation="relu" if at < 2 else "identity") for at in range(3)]


SMALL_MODELS = [
    # name, layers, chains, batch, steps of a call
    ("superposition", LAYERS["superposition"], 65_536, 64, 100),
    ("three layers of width 64", square_layers(64), 4096, 128, 20),
    ("three layers of width 128", square_layers(128), 4096, 128, 20),
]


def chains_of(layers: list[DenseLayer], chains: int, batch: int, steps: int) -> Callable[[], torch.Tensor]:
    """What takes chains of a model through some steps from w*, and returns their parameters."""
    params = max(max(each.weight + each.inputs * each.outputs, each.bias + each.outputs) for each in layers)
    generator = torch.Generator("cuda").manual_seed(0)
    base = torch.randn(params, device="cuda", generator=generator) / layers[0].inputs ** 0.5
    x = torch.rand(4096, layers[0].inputs, device="cuda", generator=generator)
    numbers, zero = torch.arange(chains + 1, device="cuda"), torch.tensor(0, device="cuda")
    stack = DenseStack(layers, base, torch.full((chains,), -1, device="cuda"), numbers[:0], x, x)
    rows, center_starts = base.repeat(chains), torch.zeros_like(numbers[1:])
    grads = torch.zeros_like(rows)

    def advance() -> torch.Tensor:
        rows.view(chains, -1).copy_(base)
        ops.dense_steps(
            stack, rows, grads, base, row_starts=params * numbers, center_starts=center_starts, lr=1e-3, n_beta=10.0,
            localization=100.0, seed=zero, step=zero, replicas=numbers[1:], batch_size=batch, steps=steps,
        )  # fmt: skip
        return rows.clone()

    return advance


def dense_rows() -> list[dict[str, object]]:
    """Chain-steps of small autoencoders, and what share their products are of the rate of large ones."""
    a, figures = torch.randn(4096, 4096, device="cuda"), []
    for name, layers, chains, batch, steps in SMALL_MODELS:
        few = chains_of(layers, 3, batch, 2)
        is_verified = {form: verified(form, few) for form in kernels("dense_steps")}
        many = chains_of(layers, chains, batch, steps)
        functions: dict[str, Callable[[], object]] = {form: in_form(form, many) for form in is_verified}
        functions["torch.mm"] = lambda: torch.mm(a, a)
        seconds = interleaved(functions, REPEATS)
        rate = 2 * 4096**3 / seconds["torch.mm"]
        # Forward, the gradient of each weight, and back to the first layer's outputs.
        sizes = [each.inputs * each.outputs for each in layers]
        flops = 2 * batch * (3 * sum(sizes) - sizes[0])
        for form in is_verified:
            per_second = chains * steps / seconds[form]
            for figure, value in (
                ("million chain-steps a second", per_second / 1e6),
                ("share of the rate of torch.mm", per_second * flops / rate),
            ):
                size = f"{name}: {chains} chains, batches of {batch}"
                figures.append(row("dense_steps", form, size, figure, value, None, seconds, is_verified[form]))
    return figures


def rows() -> list[dict[str, object]]:
    """The figures, each with its bar and the times of its peers; none without a GPU."""
    if not torch.cuda.is_available():
        return []
    torch.backends.cuda.matmul.allow_tf32 = False  # the ops are float32 too
    return [*langevin_rows(), *comoments_rows(), *cross_entropy_rows(), *dense_rows()]
