"""`comoments_update` against torch's matrix product, and with few observables against one reading of the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.ops.timing import interleaved
from patterning_fast import _C
from patterning_fast.ops.reference import comoments_update as reference

THREADS, REPEATS, STREAM_REPEATS = 2, 11, 61
PRODUCTS = [(256, 8192, 512, 1), (256, 8192, 512, 4)]
"""Chains, losses, observables and groups where arithmetic is the work; the bar is a share of torch.mm's rate."""
PRODUCT_BAR = 0.6
STREAMS = [(1024, 16384, 1, 16), (1024, 16384, 4, 16)]
"""The same where reading the losses is the work; the bar is a multiple of torch.sum's time."""
STREAM_BAR = 1.5
KERNEL = (256, 4096)
"""Chains and losses of the losses with themselves; the rate is that of the whole product, half of which is computed."""


def inputs(chains: int, n: int, k: int, groups: int) -> list[Tensor]:
    """Arguments of `comoments_update`, totals at zero, chains of a group side by side."""
    generator = torch.Generator().manual_seed(0)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64)

    losses, observables = 3 + torch.randn(chains, n, generator=generator), torch.randn(chains, k, generator=generator)
    shifts = [torch.full((n,), 3.0), torch.zeros(k)]
    group = torch.arange(chains) * groups // chains
    totals = [zeros(groups), zeros(groups, n), zeros(groups, k), zeros(groups, k, n), zeros(groups, k, k)]
    return [losses, observables, *shifts, group, *totals]


def loss_inputs(chains: int, n: int) -> list[Tensor]:
    """Arguments of `loss_comoments_update`, one group."""
    losses, _, loss_shift, _, group, count, loss_sum, *_ = inputs(chains, n, 0, 1)
    return [losses, loss_shift, group, count, loss_sum, torch.zeros(1, n, n, dtype=torch.float64)]


def verified(op: str, arguments: list[Tensor], totals: int) -> bool:
    """Whether one draw's totals, the last `totals` arguments, are within 1e-5 of the reference's largest.

    Rows verify a sixteenth of the losses, as the reference holds every chain's products.
    """
    actual, expected = ([tensor.clone() for tensor in arguments] for _ in range(2))
    getattr(torch.ops.patterning_fast, op)(*actual)
    getattr(reference, op)(*expected)
    pairs = zip(actual[-totals:], expected[-totals:], strict=True)
    return all(float((a - e).abs().max() / e.abs().max()) < 1e-5 for a, e in pairs)


def product_row(chains: int, n: int, k: int, groups: int) -> dict[str, object]:
    """The rate of the update beside torch.mm's on the same product in float32."""
    arguments = inputs(chains, n, k, groups)
    losses, observables, out = arguments[0], arguments[1], torch.empty(k, n)
    seconds = interleaved(
        {
            "update": lambda: torch.ops.patterning_fast.comoments_update(*arguments),
            "torch.mm": lambda: torch.mm(observables.T, losses, out=out),
        },
        REPEATS,
    )
    rates = {name: 2e-9 * chains * k * n / each for name, each in seconds.items()}
    return {
        "op": "comoments_update",
        "size": f"{chains} chains, {n} losses, {k} observables, {groups} groups, {THREADS} threads",
        "figure": "rate over that of torch.mm",
        "value": rates["update"] / rates["torch.mm"],
        "unit": "times",
        "bar": PRODUCT_BAR,
        "holds": rates["update"] >= PRODUCT_BAR * rates["torch.mm"],
        "peers": {f"{name} [GF/s]": rate for name, rate in rates.items()},
        "verified": verified("comoments_update", inputs(chains, n // 16, k // 16, groups), 5),
    }


def kernel_row(chains: int, n: int) -> dict[str, object]:
    """The rate of the losses with themselves beside torch.mm's on the whole product."""
    arguments = loss_inputs(chains, n)
    losses, out = arguments[0], torch.empty(n, n)
    seconds = interleaved(
        {
            "update": lambda: torch.ops.patterning_fast.loss_comoments_update(*arguments),
            "torch.mm": lambda: torch.mm(losses.T, losses, out=out),
        },
        REPEATS,
    )
    rates = {name: 2e-9 * chains * n * n / each for name, each in seconds.items()}
    return {
        "op": "loss_comoments_update",
        "size": f"{chains} chains, {n} losses, {THREADS} threads",
        "figure": "rate over that of torch.mm",
        "value": rates["update"] / rates["torch.mm"],
        "unit": "times",
        "bar": PRODUCT_BAR,
        "holds": rates["update"] >= PRODUCT_BAR * rates["torch.mm"],
        "peers": {f"{name} [GF/s]": rate for name, rate in rates.items()},
        "verified": verified("loss_comoments_update", loss_inputs(chains, n // 16), 3),
    }


def stream_row(chains: int, n: int, k: int, groups: int) -> dict[str, object]:
    """The time of the update beside that of reading the losses once."""
    arguments = inputs(chains, n, k, groups)
    losses = arguments[0]
    seconds = interleaved(
        {
            "update": lambda: torch.ops.patterning_fast.comoments_update(*arguments),
            "torch.sum of the losses": lambda: torch.sum(losses),
        },
        STREAM_REPEATS,
    )
    ratio = seconds["update"] / seconds["torch.sum of the losses"]
    return {
        "op": "comoments_update",
        "size": f"{chains} chains, {n} losses, {k} observables, {groups} groups, {THREADS} threads",
        "figure": "time over that of reading the losses once",
        "value": ratio,
        "unit": "times",
        "bar": STREAM_BAR,
        "holds": ratio <= STREAM_BAR,
        "peers": {f"{name} [ms]": 1e3 * each for name, each in seconds.items()},
        "verified": verified("comoments_update", inputs(chains, n // 16, k, groups), 5),
    }


def rows() -> list[dict[str, object]]:
    """The figures, each with its bar and with its peers'."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    measured = [
        *(product_row(*size) for size in PRODUCTS),
        kernel_row(*KERNEL),
        *(stream_row(*size) for size in STREAMS),
    ]
    torch.set_num_threads(threads_before)
    return [{**row, "form": f"cpp@{_C.build_info()['isa']}"} for row in measured]


if __name__ == "__main__":
    for each in rows():
        print(each)
