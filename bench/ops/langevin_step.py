"""`langevin_step` and the noise in it against a plain pass over the same memory, eager torch, and devinterp."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from bench.ops.timing import interleaved
from patterning_fast import _C, ops

CHAINS, PARAMS, THREADS, REPEATS = 1024, 65_536, 2, 9
LR, N_BETA, LOCALIZATION = 1e-3, 30.0, 300.0
TRIAD_BAR, EAGER_BAR, DEVINTERP_BAR = 2.0, 12.0, 12.0


def verified() -> bool:
    """Whether a step is within 1e-5 of the reference, which float64 runs on."""
    generator = torch.Generator().manual_seed(0)
    w, g, center = (torch.randn(shape, generator=generator) for shape in ((3, PARAMS), (3, PARAMS), (PARAMS,)))
    exact, gradient = w.double(), g.double()
    numbers = {"lr": LR, "n_beta": N_BETA, "localization": LOCALIZATION, "seed": 1, "step": 2}
    ops.langevin_step(w, g, center, **numbers)  # type: ignore[arg-type]
    ops.langevin_step(exact, gradient, center.double(), **numbers)  # type: ignore[arg-type]
    return float((w - exact).abs().max()) < 1e-5


def eager_step(w: Tensor, g: Tensor, center: Tensor) -> None:
    """The step as one writes it in torch."""
    w.add_(N_BETA * g + LOCALIZATION * (w - center), alpha=-LR / 2)
    w.add_(torch.randn_like(w), alpha=LR**0.5)
    g.zero_()


def plain_pass(w: Tensor, g: Tensor) -> None:
    """What memory alone takes: w + a g and a zeroed g, in place, the bytes that a step reads and writes."""
    torch.add(w, g, alpha=LR, out=w)
    g.zero_()


def devinterp_step(w: Tensor, g: Tensor) -> Callable[[], object] | None:
    """A step of devinterp's SGMCMC on the same tensors, or None where it is not installed."""
    try:
        from devinterp.optim.sgmcmc import SGMCMC
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parameter = torch.nn.Parameter(w)
        optimizer = SGMCMC.sgld([parameter], lr=LR, localization=LOCALIZATION, nbeta=N_BETA)
    parameter.grad = g
    return optimizer.step


def rows() -> list[dict[str, object]]:
    """The figures, each with its bar and with its peers'."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    is_verified = verified()
    w, g, center = torch.randn(CHAINS, PARAMS), torch.randn(CHAINS, PARAMS), torch.randn(PARAMS)
    momentum, shadow = torch.zeros_like(w), torch.zeros_like(w, dtype=torch.bfloat16)

    def step(**options: object) -> None:
        numbers = {"lr": LR, "n_beta": N_BETA, "localization": LOCALIZATION, "seed": 0, "step": 0}
        ops.langevin_step(w, g, center, **numbers, **options)  # type: ignore[arg-type]

    functions: dict[str, Callable[[], object]] = {
        "step": step,
        "plain pass": lambda: plain_pass(w, g),
        "with statistics": lambda: step(statistics=True),
        "with box and shadow": lambda: step(box=5.0, shadow=shadow),
        "SGHMC": lambda: step(rule=ops.SGHMC(momentum)),
        "RMSProp": lambda: step(rule=ops.RMSProp(momentum)),
        "normal_": lambda: ops.normal_(momentum, seed=0, step=0),
    }
    fast = interleaved(functions, REPEATS)
    slow_functions: dict[str, Callable[[], object]] = {"step": step, "eager": lambda: eager_step(w, g, center)}
    devinterp = devinterp_step(w.clone(), g.clone())
    if devinterp is not None:
        slow_functions["devinterp"] = devinterp
    slow = interleaved(slow_functions, 3)
    torch.set_num_threads(threads_before)

    size = f"{CHAINS} chains, {PARAMS} params, {THREADS} threads"
    shared = {"op": "langevin_step", "form": f"cpp@{_C.build_info()['isa']}", "size": size, "verified": is_verified}
    of_pass = fast["step"] / fast["plain pass"]
    figures = [
        shared | {"figure": "time over that of a plain pass over the same bytes", "value": of_pass, "bar": TRIAD_BAR,
                  "holds": of_pass <= TRIAD_BAR, "ms": 1e3 * fast["step"],
                  "peers": {"plain pass [ms]": 1e3 * fast["plain pass"]}},
    ]  # fmt: skip
    for peer, bar in (("eager", EAGER_BAR), ("devinterp", DEVINTERP_BAR)):
        if peer in slow:
            ratio = slow[peer] / slow["step"]
            figures.append(
                shared | {"figure": f"faster than {peer}", "value": ratio, "bar": bar, "holds": ratio >= bar,
                          "ms": 1e3 * slow["step"], "peers": {f"{peer} [ms]": 1e3 * slow[peer]}}
            )  # fmt: skip
    for name in ("with statistics", "with box and shadow", "SGHMC", "RMSProp"):
        figures.append(
            shared | {"figure": f"{name}: time over that of the plain step", "value": fast[name] / fast["step"],
                      "bar": None, "holds": None, "ms": 1e3 * fast[name], "peers": {}}
        )  # fmt: skip
    rate = w.numel() / fast["normal_"] / 1e9
    figures.append(
        shared | {"op": "normal_", "figure": "normals per second [10⁹]", "value": rate, "bar": None, "holds": None,
                  "ms": 1e3 * fast["normal_"], "peers": {}}
    )  # fmt: skip
    return figures
