"""What responses cost: `python -m bench.responses [FIGURE...]`, all of them by default; nothing else should run.

- `step`: a chain-step of `linear_response` beside one of `sample`, by turns, both at their defaults, on workload A.
- `known`: seconds until χ of workload A's median head correlates 0.9 with the truth, by the stopping rule itself.
- `demo`: seconds until every head of a model of the induction recipe has reliability 0.8 on all its tokens.
- `memory`: peak of the whole model's chains, 0.4M weights, at 500 steps over that at 50.
- `native`: responses a second of a dense stack, 1,024 chains in kernels, over those that torch runs.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import patterning_fast as pf

DEVINTERP_SECONDS = 22_460.0
"""Until χ of workload A's median head correlates 0.9 with the truth (bench.endtoend, figure C, extrapolated)."""

RELIABILITY = 0.81
"""Of an estimate that correlates 0.9 with the truth."""


@dataclass(frozen=True)
class Size:
    """How large the benchmarks are; the defaults are what the figures are of."""

    turns: int = 3
    draws: int = 10
    heads: int = 16
    contexts: int = 2048
    train_steps: int = 1500
    width: int = 128
    steps: tuple[int, int] = (50, 500)
    chains: int = 1024
    torch_chains: int = 64
    reliability: float = RELIABILITY


TOY = Size(1, 2, 1, 64, 20, 16, (5, 10), 8, 2, 0.01)

Row = dict[str, object]


def row(figure: str, value: float, bar: float, at_most: bool, unit: str, **peers: object) -> Row:
    holds = value <= bar if at_most else value >= bar
    return {"figure": figure, "value": value, "bar": bar, "holds": holds, "unit": unit, "peers": peers}


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def workload(size: Size) -> tuple[pf.LocalPosterior, dict[str, pf.Component], Tensor, int]:
    """Workload A of bench.endtoend: its posterior, heads, probes, and the samples that L is taken on."""
    from bench.endtoend.workload import A, our_model, prepare

    prepare(A)
    model = our_model(A)
    model.load_state_dict(A.weights())
    posterior = pf.LocalPosterior(
        model, pf.losses.next_token, A.data("train"), n_beta=A.n_beta, localization=A.localization
    )
    heads = dict(list(pf.attention_heads(model).items())[: size.heads])
    return posterior, heads, A.data("probe"), A.loss_samples


def step(size: Size) -> list[Row]:
    posterior, heads, probe, loss_samples = workload(size)
    common: dict[str, Any] = {
        "components": heads, "probes": {"probe": probe}, "chains": 4, "loss_samples": torch.arange(loss_samples),
        "progress": False,
    }  # fmt: skip
    sampling, responding = [], []
    for turn in range(size.turns):
        run = pf.sample(posterior, pf.SGLD(1e-3), draws=4 * size.draws, seed=turn, **common)
        sampling.append(run.attrs["seconds"] / (4 * size.draws * 4 * (len(heads) + 1)))
        chi = pf.linear_response(posterior, pf.SGLD(1e-3), draws=size.draws, seed=turn, **common)
        steps = (size.draws + chi.attrs["burn_in"]) * chi.attrs["steps_between_draws"]
        responding.append(chi.attrs["seconds"] / (steps * 4 * len(heads)))
    ratio = statistics.median(here / there for here, there in zip(responding, sampling, strict=True))
    return [
        row("a chain-step of the response over one of sample, both at their defaults, workload A", ratio, 1.5, True,
            "times", **{"sample [ms]": 1e3 * statistics.median(sampling),
                        "linear_response [ms]": 1e3 * statistics.median(responding)})
    ]  # fmt: skip


def known(size: Size) -> list[Row]:
    """The rule stops each head when it is known: the median head's seconds are those of its last chain."""
    posterior, heads, probe, loss_samples = workload(size)
    chi = pf.linear_response(
        posterior, pf.SGLD(1e-3), components=heads, probes={"probe": probe}, loss_samples=torch.arange(loss_samples),
        reliability=size.reliability, **KNOWN,
    )  # fmt: skip
    seconds = float(np.quantile(chi.attrs["seconds_run"], 0.5, method="higher"))
    reliable = chi["chi_reliability"].values
    return [
        row("seconds of devinterp over those of the stopping rule, until r ≥ 0.9 for the median head, workload A",
            DEVINTERP_SECONDS / seconds, 300.0, False, "times",
            **{"median head [s]": seconds, "all heads [s]": float(chi.attrs["seconds"]),
               "chains by head": dict(zip(heads, chi["chains_run"].values.tolist(), strict=True)),
               "least reliability": float(reliable.min()), "settled": bool(chi["settled"].all())})
    ]  # fmt: skip


KNOWN: dict[str, Any] = {"chains": 4, "draws": 10, "burn_in": 3, "steps_between_draws": 4}


def demo(size: Size) -> list[Row]:
    from patterning_fast.recipes.induction.runs import at, trained
    from patterning_fast.recipes.induction.settings import Settings
    from patterning_fast.recipes.induction.text import text_of

    settings = Settings(
        contexts=size.contexts, chi_contexts=size.contexts, train_steps=size.train_steps, heads=2, head_width=32
    )
    text = text_of(settings, 0)
    model = at(settings, text.vocabulary, trained(settings, 0, None)["parameters"])
    posterior = pf.LocalPosterior(model, pf.losses.next_token, text.tokens, n_beta=30.0, localization=300.0)
    started = time.perf_counter()
    chi = pf.linear_response(
        posterior, pf.SGLD(1e-3), components=pf.attention_heads(model), reliability=min(0.8, size.reliability), **DEMO
    )
    seconds = time.perf_counter() - started
    return [
        row("seconds until every head of a model of the induction recipe has reliability 0.8, nβ 30, localization 300",
            seconds, 240.0, True, "s",
            **{"tokens": chi.sizes["token"], "reliability": chi["chi_reliability"].values.tolist(),
               "chains": chi["chains_run"].values.tolist(), "settled": chi["settled"].values.tolist()})
    ]  # fmt: skip


DEMO: dict[str, Any] = {"chains": 4, "draws": 10, "burn_in": 4, "steps_between_draws": 6}


def language(width: int) -> nn.Module:
    from patterning_fast.models.attention_only import AttentionOnlyLM

    torch.manual_seed(0)
    return AttentionOnlyLM(1000, 64, width=width, heads=8, head_width=width // 8)


def differentiate_whole(width: int, steps: int) -> float:
    """Chains of the whole model, so many steps after burn-in. Peak resident memory [MiB]."""
    tokens = torch.randint(1000, (64, 65), generator=torch.Generator().manual_seed(0))
    posterior = pf.LocalPosterior(language(width), pf.losses.next_token, tokens, n_beta=30.0, localization=300.0)
    pf.linear_response(posterior, pf.SGLD(1e-3), chains=2, draws=steps // 5, burn_in=2, steps_between_draws=5,
                       progress=False)  # fmt: skip
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(size: Size) -> list[Row]:
    few, many = (
        float(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "bench.responses", "peak", str(size.width), str(steps)],
                check=True, capture_output=True, text=True,
            ).stdout
        )
        for steps in size.steps
    )  # fmt: skip
    weights = sum(each.numel() for each in language(size.width).parameters())
    return [
        row("peak memory of the whole model's chains at 500 steps over that at 50", many / few, 1.3, True, "times",
            **{"weights": weights, "MiB": [few, many], "steps": list(size.steps)})
    ]  # fmt: skip


def native(size: Size) -> list[Row]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    data = torch.randn(64, 4), torch.randn(64, 2)
    posterior = pf.LocalPosterior(model, pf.losses.squared_error, data, n_beta=30.0, localization=100.0)
    rates: dict[str, list[float]] = {"native": [], "torch": []}
    for turn in range(size.turns):
        turns: list[tuple[Literal["native", "torch"], int]]
        turns = [("native", size.chains), ("torch", size.torch_chains), ("torch", size.chains)]
        for engine, chains in turns:
            chi = pf.linear_response(
                posterior, pf.SGLD(1e-3), chains=chains, engine=engine, seed=turn, burn_in=10, progress=False
            )
            rates[engine].append(chains / chi.attrs["seconds"])
    here, there = statistics.median(rates["native"]), max(rates["torch"])
    return [
        row("responses a second of a dense stack, 1,024 chains in kernels over those of the torch engine", here / there,
            20.0, False, "times", **{"native [1/s]": here, "torch, at its best [1/s]": there})
    ]  # fmt: skip


FIGURES: dict[str, Callable[[Size], list[Row]]] = {each.__name__: each for each in (step, known, demo, memory, native)}


def main(names: list[str]) -> None:
    from bench.results import record

    for name in names or FIGURES:
        rows = FIGURES[name](Size())
        for each in rows:
            print(f"{each['figure']}: {each['value']:.3g} {each['unit']} (bar {each['bar']:g}) {each['peers']}")
        record(f"responses, {name}", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        print(differentiate_whole(int(sys.argv[2]), int(sys.argv[3])))
    else:
        main(sys.argv[1:])
