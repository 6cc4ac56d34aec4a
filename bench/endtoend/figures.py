"""The figures A to F and those of other peers: rows of figure, value, bar, whether it holds, and what peers took."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable

import numpy as np

from bench.endtoend import runs
from bench.endtoend.agreement import apart, chains_needed, correlation, load, of_devinterp, of_ours
from bench.endtoend.contestant import Run, Taken, measure
from bench.endtoend.ours import BURN_IN
from bench.endtoend.workload import FOLDER, WORKLOADS, A

Row = dict[str, object]

SMOLLM2 = FOLDER / "runs" / "smollm2.json"
"""What bench.endtoend.smollm2 has printed."""

TRAJECTORY_MIB = 512.0
"""What linear_response may take for steps where it is told nothing else."""

C2_CHAINS, C2_DRAWS, C2_HOURS, C2_MIB = 1000, 200, 6.0, 2048.0
T_BEYOND_3 = 0.02
"""How often Student's t with the 7 degrees of freedom of 8 chains is beyond 3."""


def row(figure: str, value: float, bar: float | None, holds: bool | None, unit: str, **peers: object) -> Row:
    return {"figure": figure, "value": value, "bar": bar, "holds": holds, "unit": unit, "peers": peers}


def seconds(several: list[Run]) -> float:
    """Median over runs, without what was spent on compiling."""
    return statistics.median(measure(run).seconds - measure(run).compiling for run in several)


def speed(name: str, ours: list[Run], theirs: list[Run]) -> Row:
    """Wall time; devinterp's is linear in chains, which run one after another."""
    chains = ours[0].chains
    here, there = seconds(ours), seconds(theirs) * chains / theirs[0].chains
    shape = f"{chains} chains × {ours[0].draws} draws, {WORKLOADS[name].component_count()} components"
    figure = f"{name}: susceptibilities, {shape}: faster than devinterp"
    peers = {"devinterp [s]": there, "devinterp's chains": theirs[0].chains, "here [s]": here}
    return row(figure, there / here, 5.0, there / here >= 5, "times", **peers)


def reference() -> dict[str, float]:
    """Split-half reliability of χ of each head in the long run."""
    (arrays,) = load([runs.LONG])
    return dict(zip(map(str, arrays["components"]), arrays["chi_reliability"].tolist(), strict=True))


CONTESTANTS = {
    "devinterp": runs.DEVINTERP_A,
    "here": runs.OURS_A,
    "here, thinned": [runs.THINNED],
    "here, response": [runs.RESPONSE],
}
"""Of figure C."""


def needed() -> dict[str, float]:
    """Chains of each contestant for which χ of the median head correlates 0.9 with its true value.

    Of devinterp's chains the first draws may be left out, whichever is better for it. The correlation of linear
    responses with the reference is too near to what the reference's own noise allows to tell their number: where their
    own halves ask for more chains, it is that many.
    """
    long, reliability = of_ours([runs.LONG]), reference()
    theirs = [of_devinterp(runs.DEVINTERP_A, A, burn_in) for burn_in in (0, BURN_IN)]
    ours = {name: of_ours(each) for name, each in CONTESTANTS.items() if name != "devinterp"}
    chains = {name: chains_needed(each, long, reliability) for name, each in ours.items()}
    (response,) = load([runs.RESPONSE])
    chains["here, response"] = max(chains["here, response"], float(np.median(response["chains_for_r_0.9"])))
    return {"devinterp": min(chains_needed(each, long, reliability) for each in theirs)} | chains


def until_known() -> list[Row]:
    """C: seconds in which χ of the median head correlates 0.9 with its true value; time is linear in chains."""
    long, reliability, chains = of_ours([runs.LONG]), reference(), needed()
    took = {name: chains[name] * seconds(each) / each[0].chains for name, each in CONTESTANTS.items()}
    described = {f"{name} [s]": took[name] for name in took} | {f"{name} [chains]": chains[name] for name in chains}
    described["reliability of the reference"] = statistics.median(reliability[head] for head in long.heads)
    fewer = {name: took["devinterp"] / took[name] for name in took}
    return [
        row(f"C: seconds until r ≥ 0.9 with the truth{how}: fewer than devinterp's", fewer[name], 15.0,
            fewer[name] >= 15, "times", **described)
        for name, how in (
            ("here, response", ", by linear_response"),
            ("here", ", same draws"),
            ("here, thinned", ", a draw every 4 steps"),
        )
    ]  # fmt: skip


def at_scale() -> list[Row]:
    """C2: what 1,000 chains of 200 draws would take, from the long run."""
    taken = measure(runs.LONG)
    steps = C2_CHAINS * C2_DRAWS * A.component_count()
    hours = steps * taken.ms_per_chain_step / 3.6e6
    theirs = measure(runs.DEVINTERP_A[0])
    disk = theirs.disk / theirs.chain_steps * steps
    more = C2_CHAINS - runs.LONG.chains
    held = sum(each.numel() for each in A.weights().values())
    coordinates = held + sum(int(m.sum()) for masks in A.head_masks(A.model()).values() for m in masks.values())
    memory = taken.peak + more * coordinates * 8 / 2**20
    peers = {
        "devinterp [h]": steps * theirs.ms_per_chain_step / 3.6e6,
        "devinterp's disk [GiB]": disk / 1024,
        "minutes measured": taken.seconds / 60,
        "here [ms per chain-step]": taken.ms_per_chain_step,
    }
    chains = needed()
    alike = chains["here, response"] / chains["here"] * C2_CHAINS * C2_DRAWS / A.draws
    responding = measure(runs.RESPONSE)
    responding_hours = alike * seconds([runs.RESPONSE]) / runs.RESPONSE.chains / 3600
    # Steps of as many chains as fit are held at a time.
    responding_memory = responding.peak + TRAJECTORY_MIB
    return [
        row("C2: χ as well known as by them, by linear_response", responding_hours, C2_HOURS,
            responding_hours <= C2_HOURS, "hours", **{"chains of each head": alike}),
        row("C2: its memory, with all it may hold of steps", responding_memory, C2_MIB,
            responding_memory < C2_MIB, "MiB", **{f"measured at {runs.RESPONSE.chains} chains": responding.peak}),
        row("C2: 1,000 chains × 200 draws × 16 heads and full", hours, C2_HOURS, hours <= C2_HOURS, "hours", **peers),
        row("C2: memory, with the chains' parameters and gradients", memory, C2_MIB, memory < C2_MIB, "MiB",
            **{f"measured at {runs.LONG.chains} chains": taken.peak}),
    ]  # fmt: skip


def memory() -> list[Row]:
    """D: peak memory, and how it grows with draws. devinterp's disk is linear in chains and draws."""
    many, few, theirs = measure(runs.MANY_DRAWS), measure(runs.FEW_DRAWS), measure(runs.DEVINTERP_A[0])
    held = theirs.disk / theirs.chain_steps * many.chain_steps
    chains = runs.MANY_CHAINS.chains
    of_chains = held * chains / runs.MANY_DRAWS.chains
    larger = measure(runs.MANY_CHAINS).peak / (theirs.peak + of_chains)
    whole, own = many.peak / (theirs.peak + held), (many.peak - many.imported) / (theirs.peak - theirs.imported + held)
    peers = {
        "here [MiB]": many.peak,
        "of which imports [MiB]": many.imported,
        "devinterp's memory [MiB]": theirs.peak,
        "of which imports [MiB] ": theirs.imported,
        "devinterp's disk [MiB]": held,
    }
    growth, size = many.peak / few.peak, f"{runs.MANY_DRAWS.chains} chains × {runs.MANY_DRAWS.draws} draws"
    drawn = {"fewer draws [MiB]": few.peak, "many draws [MiB]": many.peak}
    return [
        row(f"D: peak memory of {size} over devinterp's memory and disk", whole, 0.2, whole <= 0.2, "", **peers),
        row("D: the same beyond what imports take", own, 0.2, own <= 0.2, "", **peers),
        row(
            f"D: the first, at {chains} chains",
            larger,
            0.2,
            larger <= 0.2,
            "",
            **{"here, at 50 draws [MiB]": measure(runs.MANY_CHAINS).peak, "devinterp's disk [MiB]": of_chains},
        ),
        row("D: peak memory at 500 draws over that at 50", growth, 1.02, growth <= 1.02, "", **drawn),
    ]


def suffixes() -> list[Row]:
    """E: a draw of SmolLM2-135M with suffixes."""
    found = json.loads(SMOLLM2.read_text())
    rows = []
    for head, each in found.items():
        ratio, bar = each["off"] / each["on"], 0.9 * each["multiply-adds"]
        what = f"E: losses of a draw of SmolLM2-135M, {head}: faster by its suffix"
        peers = {"multiply-adds": each["multiply-adds"], "whole model [s]": each["off"], "suffix [s]": each["on"]}
        rows.append(row(what, ratio, bar, ratio >= bar, "times", **peers))
    return rows


def agreement() -> list[Row]:
    """F: the same estimators on our draws and on devinterp's, as differences in their standard errors."""
    ours, theirs = of_ours(runs.OURS_A), of_devinterp(runs.DEVINTERP_A, A)
    chi = np.concatenate([apart(ours.chi[name], theirs.chi[name]) for name in ours.chi])
    llc = np.array([apart(ours.llc[name], theirs.llc[name]) for name in ours.llc])
    beyond = float((np.abs(chi) > 3).mean())
    r = statistics.median(correlation(ours.chi[head], theirs.chi[head]) for head in ours.heads)
    means = np.corrcoef([[float(each.llc[name].mean()) for name in ours.llc] for each in (ours, theirs)])[0, 1]
    return [
        row("F: share of χ further than 3 standard errors from devinterp's", beyond, T_BEYOND_3, beyond <= T_BEYOND_3,
            "", **{"root mean square difference [errors]": float(np.sqrt(np.mean(chi**2))),
                   "correlation of the two, median head": r, "entries": chi.size}),
        row("F: largest difference of LLCs", float(np.abs(llc).max()), 3.0, bool(np.abs(llc).max() <= 3),
            "standard errors", **{"correlation over components": float(means)}),
    ]  # fmt: skip


def rounding() -> list[Row]:
    """What evaluating in bfloat16 does: its error beside the fluctuations, and its cost."""
    (arrays,), float32 = load([runs.ROUNDED]), measure(runs.OURS_A[0])
    z = np.concatenate([
        np.abs(apart(of_ours([runs.ROUNDED]).chi[name], of_ours([runs.OURS_A[0]]).chi[name]))
        for name in of_ours([runs.ROUNDED]).heads
    ])  # fmt: skip
    value = float(np.nanmedian(arrays["rounding"]))
    return [
        row("bfloat16: its error over the fluctuations of losses, median component", value, None, None, "",
            **{"seconds": measure(runs.ROUNDED).seconds, "float32 [s]": float32.seconds,
               "median difference of χ [errors]": float(np.median(z))}),
    ]  # fmt: skip


def ahead_of(peer: str, what: str, ours: Run | list[Run], theirs: list[Run]) -> Row:
    """Milliseconds per chain-step beside a peer at its best."""
    taken = {run.variant: milliseconds(measure(run)) for run in theirs}
    here = statistics.median(milliseconds(measure(run)) for run in (ours if isinstance(ours, list) else [ours]))
    best = min(taken.values())
    peers = {f"{variant or peer} [ms per chain-step]": each for variant, each in taken.items()}
    return row(f"{what}: faster than {peer}", best / here, 1.0, best > here, "times", **{"here [ms]": here}, **peers)


def milliseconds(taken: Taken) -> float:
    return taken.ms_per_chain_step


FIGURES: list[Callable[[], list[Row]]] = [
    lambda: [speed("A", runs.OURS_A, runs.DEVINTERP_A)],
    lambda: [speed("B", [runs.OURS_B], [runs.DEVINTERP_B])],
    until_known,
    at_scale,
    memory,
    suffixes,
    agreement,
    lambda: [
        ahead_of("torch.func.vmap and torch.compile", "heads and full of A", runs.OURS_A, runs.HEADS_BY_HAND),
        ahead_of("posteriors", "full of A", runs.FULL, runs.POSTERIORS),
        ahead_of("canonical-interp", "the LLC of A", runs.LLC, runs.CANONICAL),
    ],
    rounding,
]


def line(each: Row) -> str:
    """A row of the table."""
    value, bar = each["value"], each["bar"]
    assert isinstance(value, float)
    assert isinstance(each["peers"], dict)
    judged = "" if bar is None else f"bar {bar:g}, {'holds' if each['holds'] else 'MISSED'}"
    beside = ", ".join(f"{name} {other:.4g}" for name, other in each["peers"].items())
    shown = "inf" if math.isinf(value) else f"{value:.3g}"
    return f"{each['figure']:<76} {shown:>7} {each['unit']:<16} {judged:<18} {beside}"
