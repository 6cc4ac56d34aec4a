"""Tables of the superposition recipe."""

from __future__ import annotations

import numpy as np

from patterning_fast.recipes.findings import Rows

from .estimates import exact_kinds
from .outcome import Outcome, named
from .plans import by_hand, frequencies
from .polygons import one_active
from .replicas import Course, at_snapshot, stage_snapshots, wanted_shares
from .settings import seeded


def last_held(course: Course) -> np.ndarray:
    """Share of replicas that hold the last feature, by snapshot; only in polygons can one tell."""
    return (course["held"][..., -1] & (course["sides"] > 0)).double().mean(1).numpy()


def collapsed(course: Course) -> dict[str, np.ndarray]:
    """Shares by kind and snapshot `[snapshots]`: corners, "+" where some left out have a positive bias, or "other"."""
    snapshots = [at_snapshot(course, at) for at in range(len(course["sides"]))]
    codes = np.array([np.where(each.sides > 0, 2 * each.sides - (each.positive > 0), 0) for each in snapshots])
    names = {code: "other" if code == 0 else f"{(code + 1) // 2}" + "+" * (code % 2) for code in np.unique(codes)}
    return {name: (codes == code).mean(1) for code, name in sorted(names.items())}


def ends(made: Outcome) -> list[tuple[str, int, Course]]:
    """The base run, the best plans, the controls and the weights by hand, at every seed there is."""
    names = ["base", *(each.name for each in made.best.values()), by_hand(made.settings).name]
    names += [each.name for each in made.controls]
    first, *others = made.settings.seeds
    found = [(name, first, made.courses[name]) for name in dict.fromkeys(names)]
    for seed in others:
        found += [(name, seed, made.courses[each]) for name in names if (each := seeded(name, seed)) in made.courses]
    return found


def end_rows(made: Outcome) -> Rows:
    """Shares of kinds at the end."""
    rows: Rows = []
    kinds = sorted({kind for _, _, course in ends(made) for kind in collapsed(course)}, reverse=True)
    for name, seed, course in ends(made):
        found = collapsed(course)
        rows.append(
            {"weights": name, "seed": seed}
            | {kind: float(found[kind][-1]) if kind in found else 0.0 for kind in kinds}
            | {
                f"{sides}-gon of the first {sides}": float(wanted_shares(course, sides)[-1])
                for sides in made.settings.wanted
                if sides < made.settings.features
            }
            | {"mean loss, unweighted": float(course["loss"][-1].mean())}
        )
    return rows


def plan_rows(made: Outcome) -> Rows:
    """Every plan that was tried, and what came of it."""
    rows: Rows = []
    for each in (*made.tried, *made.controls, by_hand(made.settings)):
        shares = wanted_shares(made.courses[each.name], each.wanted)
        five = (made.courses[each.name]["sides"] >= 5).double().mean(1).numpy()
        rows.append(
            {
                "wanted": f"{each.wanted}-gon",
                "by difference of": each.way,
                "alike within": each.unit,
                "strength": each.strength,
                "rms of ρ − 1": float((each.weights - 1).square().mean().sqrt()),
                "weights of 0": float((each.weights == 0).double().mean()),
                "effective samples": float(each.weights.sum() ** 2 / each.weights.square().sum()),
                "share as wanted": float(shares[-1]),
                "error": made.error(float(shares[-1])),
                "half as wanted by step": made.half(shares),
                "half past 4 corners by step": made.half(five),
            }
        )
    return rows


def adaptive_rows(made: Outcome) -> Rows:
    """What came of plans that were made again on the way, and of their controls."""
    return [
        {
            "wanted": f"{sides}-gon", "weights": way, "seed": seed, "share as wanted": found["share"],
            "error": made.error(found["share"]),
            "leave out a feature, by stage": ", ".join(map(str, found["lacking"])),
            "factor, by stage": ", ".join(f"{each:.2f}" for each in found["factors"]),
            "commonest": ", ".join(f"{kind}: {count}" for kind, count in found["kinds"].items()),
        }
        for (sides, way, seed), found in made.adaptive.items()
    ]  # fmt: skip


def frequency_rows(made: Outcome) -> Rows:
    """What the frequency of the last feature does."""
    size = made.settings.features
    rows: Rows = []
    for factor, course in by_frequency(made).items():
        held = last_held(course)
        rows.append(
            {
                "weight of the last feature": factor,
                "hold it at the end": float(held[-1]),
                "error": made.error(float(held[-1])),
                "half hold it by step": made.half(held),
                f"{size}-gon": float(wanted_shares(course, size)[-1]),
                named(size - 1, size): float(wanted_shares(course, size - 1)[-1]),
            }
        )
    return rows


def by_frequency(made: Outcome) -> dict[float, Course]:
    """Courses by the weight of the last feature, the base run among them."""
    found = {each.strength: made.courses[each.name] for each in frequencies(made.settings)}
    return dict(sorted((found | {1.0: made.courses["base"]}).items()))


def exact_rows(made: Outcome) -> Rows:
    """Loss and λ̂ of exact polygons."""
    rows = [made.coefficients[name] for name in exact_kinds(made.settings)]
    return [{"polygon": row["kind"]} | {name: each for name, each in row.items() if name != "kind"} for row in rows]


def stage_rows(made: Outcome) -> Rows:
    """λ̂ of single replicas along training."""
    return [
        {"ends as": kind, "step": int(made.steps[at]), **made.coefficients[f"λ̂ of {kind} at {at}"]}
        for kind in made.traced
        for at in stage_snapshots(made.settings)
    ]


def weight_rows(made: Outcome) -> Rows:
    """All weights, one row a sample."""
    data = one_active(made.settings.features, made.settings.magnitudes)
    every = [*made.tried, *made.controls, by_hand(made.settings), *frequencies(made.settings)]
    return [
        {"weights": each.name, "feature": int(feature) + 1, "magnitude": float(magnitude), "weight": weight}
        for each in every
        for feature, magnitude, weight in zip(data.feature, data.magnitude, each.weights.tolist(), strict=True)
    ]


def share_rows(made: Outcome) -> Rows:
    """Shares of kinds along training of every run."""
    return [
        {"run": name, "step": int(step), "kind": kind, "share": float(share)}
        for name, course in made.courses.items()
        for kind, shares in collapsed(course).items()
        for step, share in zip(made.steps, shares, strict=True)
    ]
