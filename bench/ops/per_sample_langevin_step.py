"""`per_sample_langevin_step` against one reading of the gradients, and `fused_draw` against its two parts."""

from __future__ import annotations

import torch

from bench.ops.comoments_update import inputs as comoments_inputs
from bench.ops.timing import interleaved
from patterning_fast import _C, ops

CHAINS, BATCH, PARAMS, THREADS, REPEATS = 256, 32, 4096, 2, 11
READING_BAR = 1.5
LOSSES, OBSERVABLES, GROUPS = 4096, 1, 16


def verified() -> bool:
    """Whether a step is within 1e-5 of the reference, which float64 runs on."""
    generator = torch.Generator().manual_seed(0)
    w, g = torch.randn(3, PARAMS, generator=generator), torch.randn(3, BATCH, PARAMS, generator=generator)
    center, exact = torch.randn(PARAMS, generator=generator), w.double()
    numbers = {"lr": 1e-3, "n_beta": 30.0, "localization": 300.0, "seed": 1, "step": 2}
    ops.per_sample_langevin_step(w, g, center, **numbers)  # type: ignore[arg-type]
    ops.per_sample_langevin_step(exact, g.double(), center.double(), **numbers)  # type: ignore[arg-type]
    return float((w - exact).abs().max()) < 1e-5


def rows() -> list[dict[str, object]]:
    """The figures, each with its bar and with its peers'."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    is_verified = verified()
    w, g, center = torch.randn(CHAINS, PARAMS), torch.randn(CHAINS, BATCH, PARAMS), torch.randn(PARAMS)
    totals = comoments_inputs(CHAINS, LOSSES, OBSERVABLES, GROUPS)
    numbers = {"lr": 1e-3, "n_beta": 30.0, "localization": 300.0, "seed": 0, "step": 0}

    def apart() -> None:
        ops.comoments_update(*totals)
        ops.per_sample_langevin_step(w, g, center, **numbers)  # type: ignore[arg-type]

    def eager() -> None:
        variance, mean = torch.var_mean(g, 1)
        injected = (1e-3 - (0.5 * 1e-3 * 30.0) ** 2 * variance / BATCH).clamp_(min=0)
        w.add_(30.0 * mean + 300.0 * (w - center), alpha=-0.5e-3).add_(injected.sqrt_() * torch.randn_like(w))

    seconds = interleaved(
        {
            "step": lambda: ops.per_sample_langevin_step(w, g, center, **numbers),  # type: ignore[arg-type]
            "reading": g.sum,
            "eager": eager,
            "fused": lambda: ops.fused_draw(w, g, center, *totals, **numbers),  # type: ignore[arg-type]
            "apart": apart,
        },
        REPEATS,
    )
    torch.set_num_threads(threads_before)
    size = f"{CHAINS} chains, {BATCH} samples, {PARAMS} params, {THREADS} threads"
    shared = {"form": f"cpp@{_C.build_info()['isa']}", "verified": is_verified}
    of_reading, of_parts = seconds["step"] / seconds["reading"], seconds["fused"] / seconds["apart"]
    return [
        shared | {"op": "per_sample_langevin_step", "size": size, "ms": 1e3 * seconds["step"],
                  "figure": "time over that of reading the gradients once", "value": of_reading, "bar": READING_BAR,
                  "holds": of_reading <= READING_BAR,
                  "peers": {"torch.sum of the gradients [ms]": 1e3 * seconds["reading"],
                            "eager [ms]": 1e3 * seconds["eager"]}},
        shared | {"op": "fused_draw", "size": f"{size}, {LOSSES} losses", "ms": 1e3 * seconds["fused"],
                  "figure": "time over that of its two parts", "value": of_parts, "bar": None, "holds": None,
                  "peers": {"apart [ms]": 1e3 * seconds["apart"]}},
    ]  # fmt: skip
