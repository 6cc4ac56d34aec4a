"""The superposition recipe: which polygon a toy model makes of its features, and data that decide it.

After arXiv:2310.06301 (stages of training are regular polygons, each with its learning coefficient) and Patterning Toy
Models of Superposition (Timaeus 2026: the frequencies of features decide which are formed). Thousands of replicas are
trained from random starts; weights come from differences between solutions, and wanted polygons are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from patterning_fast.progress import progress_bar
from patterning_fast.recipes.findings import Findings
from patterning_fast.recipes.pieces import Pieces
from patterning_fast.recipes.responses import with_comparison

from .adaptive import ADAPTIVE, ALONE, DEALT, HIGHEST_LOSS, adapted
from .estimates import coefficient, exact_kinds, exact_polygon, responses
from .findings import findings
from .outcome import Outcome
from .plans import by_hand, frequencies, plans_for, shuffled, verified
from .replicas import Course, course_of, representatives, retrained, stage_snapshots, trained, wanted_shares
from .settings import Settings, Weighting, seeded

T = TypeVar("T")
K = TypeVar("K", str, int)


def run(settings: Settings, pieces: Pieces) -> Findings:
    """Train the base run, make plans of it, train replicas on each, and count polygons."""
    first, *others = settings.seeds
    base = pieces.map("base run", trained, {"base": (settings, first, None)})["base"]
    paths, courses = base["parameters"], {"base": course_of(settings, base)}
    traced = representatives(courses["base"])
    models = {
        f"λ̂ of {kind} at {at}": paths[at, replica]
        for kind, replica in traced.items()
        for at in stage_snapshots(settings)
    } | {name: exact_polygon(settings, *kind) for name, kind in exact_kinds(settings).items()}
    coefficients = parts(pieces, "λ̂", coefficient, {name: (settings, each) for name, each in models.items()})
    of_base = {sides: (settings, sides, paths[-1]) for sides in settings.wanted}
    planned = parts(pieces, "plans", plans_for, of_base)
    tried = [
        Weighting(sides, way, unit, strength, weights)
        for sides, found in planned.items()
        for way, unit, strength, weights in found["plans"]
    ]

    def retrain(description: str, more: list[Weighting]) -> None:
        found = pieces.map(description, retrained, {each.name: (settings, first, each.weights) for each in more})
        courses.update(found)

    retrain("retraining", [*tried, *frequencies(settings), by_hand(settings)])
    best = {sides: best_for(sides, tried, courses) for sides in settings.wanted}
    controls = [shuffled(settings, each) for each in best.values()]
    retrain("controls", controls)
    one_off = {
        each.wanted: each.weights
        for each in tried
        if (each.way, each.unit, each.strength) == ("loss", "magnitude", settings.strengths[-1])
    }
    ways = [(ADAPTIVE, seed) for seed in settings.seeds] + [(way, first) for way in (DEALT, HIGHEST_LOSS, ALONE)]
    wanted = {(sides, way, seed): one_off[sides] for sides in settings.wanted for way, seed in ways}
    runs = pieces.map("adaptive plans", adapted, {
        f"{sides}-gon, {way}, seed {seed}": (settings, seed, sides, weights, way)
        for (sides, way, seed), weights in wanted.items()
    })  # fmt: skip
    adaptive = dict(zip(wanted, runs.values(), strict=True))
    kept = {each.name: each.weights for each in (*best.values(), by_hand(settings))}
    courses |= pieces.map("other seeds", retrained, {
        seeded(name, seed): (settings, seed, kept.get(name)) for seed in others for name in ("base", *kept)
    })  # fmt: skip
    checked = parts(pieces, "verification", verified, of_base)
    steps = base["step"].numpy()
    made = Outcome(
        settings, steps, paths, traced, coefficients, planned, tried, best, controls, checked, courses, adaptive
    )
    compared = pieces.of("covariances against responses", partial(responses, settings, paths[-1][0]))
    return with_comparison(findings(made), compared["rows"], "around what the first replica came to")


def parts(
    pieces: Pieces, description: str, function: Callable[..., T], arguments: Mapping[K, tuple[Any, ...]]
) -> dict[K, T]:
    """Parts `function(*arguments)` with all threads: kernels share out chains, whose whole loops are theirs."""
    return {
        name: pieces.of(f"{description}: {name}", partial(function, *each))
        for name, each in progress_bar(arguments.items(), desc=description, unit="part")
    }


def best_for(sides: int, tried: list[Weighting], courses: Mapping[str, Course]) -> Weighting:
    """Of the plans tried for a polygon, the one that most replicas followed."""
    return max(
        (each for each in tried if each.wanted == sides), key=lambda each: wanted_shares(courses[each.name], sides)[-1]
    )
