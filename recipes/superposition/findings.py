"""What the superposition recipe found, in tables and sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from patterning_fast.recipes.findings import Findings, Picture, Rows
from patterning_fast.recipes.templates import sentences
from patterning_fast.recipes.verification import verification_picture, verification_rows

from . import pictures as drawn
from .estimates import exact_kinds
from .plans import BRIGHT, FAINT, MASS_OF_FAINT, by_hand, frequencies
from .polygons import one_active
from .replicas import Course, at_snapshot, wanted_shares
from .settings import Settings, Weighting, seeded

GOAL, AT_MOST = 0.9, 0.5
TEMPLATE = Path(__file__).with_name("findings.j2")


def stage_snapshots(settings: Settings) -> list[int]:
    """Snapshots, closer to each other early on."""
    spaced = np.geomspace(1, settings.snapshots, settings.stages).round().astype(int) - 1
    return sorted(set(spaced.tolist()))


@dataclass(frozen=True)
class Outcome:
    """All that findings are made of."""

    settings: Settings
    steps: np.ndarray
    """Of the snapshots."""
    paths: Tensor
    """Parameters of the base run by snapshot and replica."""
    traced: dict[str, int]
    """Replicas whose λ̂ was followed, by what they came to."""
    coefficients: dict[str, dict[str, Any]]
    planned: dict[int, dict[str, Any]]
    tried: list[Weighting]
    best: dict[int, Weighting]
    controls: list[Weighting]
    checked: dict[int, dict[str, Any]]
    courses: dict[str, Course]

    def share(self, name: str, sides: int) -> float:
        """Share of replicas that are as wanted at the end."""
        return float(wanted_shares(self.courses[name], sides)[-1])

    def error(self, share: float) -> float:
        """Standard error of a share over replicas."""
        return float(np.sqrt(share * (1 - share) / self.settings.replicas))

    def half(self, shares: np.ndarray) -> float:
        """Step of the first snapshot at which half of the replicas are so; NaN for never."""
        passed = np.flatnonzero(shares >= 0.5)
        return float(self.steps[passed[0]]) if len(passed) else float("nan")

    def over_seeds(self, name: str, sides: int) -> list[float]:
        """Shares at all seeds, the first of them that on which plans were made and chosen."""
        names = [name, *(seeded(name, seed) for seed in self.settings.seeds[1:])]
        return [self.share(each, sides) for each in names]


def findings(made: Outcome) -> Findings:
    """Tables, pictures and sentences."""
    settings = made.settings
    values = {
        "wanted": [wanted(made, sides) for sides in made.best],
        "seeds": settings.seeds,
        "features": settings.features,
        "by_hand": made.over_seeds(by_hand(settings).name, settings.features),
        "faint": FAINT,
        "bright": BRIGHT,
        "mass_of_faint": MASS_OF_FAINT,
        "frequencies": frequency_rows(made),
        "exact": exact_rows(made),
        "n_beta": settings.n_beta,
    }
    return Findings(
        title="Superposition: which polygon a toy model makes of its features",
        claim=(
            "Training a toy model of superposition passes through polygons of its features, each with its learning "
            "coefficient, and the frequencies of features decide which polygons are formed, sooner, later or never "
            "(arXiv:2310.06301; Patterning Toy Models of Superposition, Timaeus 2026)."
        ),
        goal=(
            f"The wanted final state in at least {GOAL:.0%} of {settings.replicas} replicas, where the base run has it "
            f"in at most {AT_MOST:.0%}."
        ),
        verdict=sentences(TEMPLATE, "verdict", **values),
        details=sentences(TEMPLATE, "details", **values),
        seeds=list(settings.seeds),
        tables={
            "What replicas come to": end_rows(made),
            "All plans": plan_rows(made),
            "Frequency of the last feature": frequency_rows(made),
            "Exact polygons": exact_rows(made),
            "Verification": [
                {"at": f"{sides}-gon"} | row for sides, each in made.checked.items() for row in verification_rows(each)
            ],
        },
        pictures=pictures(made),
        data={"weights": weight_rows(made), "shares": share_rows(made), "stages": stage_rows(made)},
    )


def named(sides: int, features: int) -> str:
    """A wanted polygon in words."""
    *most, last = [str(each + 1) for each in range(sides, features)] or [""]
    left_out = f"s {', '.join(most)} and {last}" if most else f" {last}"
    return f"{sides}-gon" + (f" without feature{left_out}" if last else "")


def wanted(made: Outcome, sides: int) -> dict[str, Any]:
    """What came of the plans for a polygon."""
    best, planned = made.best[sides], made.planned[sides]
    base, found = made.over_seeds("base", sides), made.over_seeds(best.name, sides)
    control = next(each for each in made.controls if each.wanted == sides)
    ways = [way for way in ("loss", "λ̂") if way not in planned["refused"]]
    return {
        "polygon": named(sides, made.settings.features),
        "base": base,
        "best": found,
        "way": f"{best.way} by {best.unit}, strength {best.strength:g}",
        "met": min(found) >= GOAL and max(base) <= AT_MOST,
        "control": made.share(control.name, sides),
        "by_way": {
            way: max((made.share(one.name, sides), one.name) for one in made.tried if one[:2] == (sides, way))
            for way in ways
        },
        "refused": planned["refused"],
    }


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


def pictures(made: Outcome) -> dict[str, Picture]:
    """All pictures, with what they show."""
    settings, steps, size = made.settings, made.steps, made.settings.features
    over_training = {"base run": made.courses["base"]}
    over_training |= {f"for a {sides}-gon:\n{each.way}, {each.unit}, {each.strength:g}": made.courses[each.name]
                      for sides, each in made.best.items()}  # fmt: skip
    hand = by_hand(settings)
    over_training |= {f"for a {size}-gon: by hand": made.courses[hand.name]}
    control = made.controls[-1]
    over_training |= {f"control of that for a {control.wanted}-gon": made.courses[control.name]}
    followed = {
        kind: drawn.Stage(*([row[name] for row in stage_rows(made) if row["ends as"] == kind]
                            for name in ("step", "loss", "λ̂", "error", "kind")))
        for kind in made.traced
    }  # fmt: skip
    final = made.paths[-1][:, : 2 * size].unflatten(1, (2, size)).numpy()
    maps = {f"for a {sides}-gon: {each.way}\n{each.unit}, {each.strength:g}": each.weights for sides, each in
            made.best.items()} | {"by hand": hand.weights}  # fmt: skip
    return {
        "shares": Picture(
            drawn.shares({title: (steps, collapsed(course)) for title, course in over_training.items()}),
            "Shares of polygons along training. Hatched (+): features that are left out, some of them with a positive "
            "bias, so that they are said to be active always, by their mean.",
        ),
        "strengths": Picture(
            drawn.strengths(
                {named(sides, size): (curves_of(made, sides), made.share("base", sides)) for sides in settings.wanted},
                GOAL,
            ),
            "Share of replicas that are the wanted polygon, against the strength of plans, with 95 % intervals.",
        ),
        "weights": Picture(
            drawn.weight_maps({title: each.view(size, settings.magnitudes).numpy() for title, each in maps.items()}),
            "Weights of samples by active feature and its magnitude.",
        ),
        "stages": Picture(
            drawn.stages(followed),
            "Loss and λ̂ (95 %) of one replica of each kind along training of the base run, and what it is at the time. "
            "Where a replica is not at a minimum chains go on downhill, and λ̂ is too low or negative.",
        ),
        "columns": Picture(
            drawn.columns({f"{kind}": final[replica] for kind, replica in made.traced.items()}),
            "Columns of W of these replicas at the end: where features lie.",
        ),
        "frequencies": Picture(
            drawn.frequencies(
                {f"weight {factor:g}": (steps, last_held(course)) for factor, course in by_frequency(made).items()},
                f"share of replicas that hold feature {size}",
            ),
            "How often the last feature is active decides whether and when it is held.",
        ),
        "verification": Picture(
            verification_picture(next(iter(made.checked.values()))),
            f"Predicted against realised dμ at the exact {settings.wanted[0]}-gon, for the weakest plan by loss.",
        ),
    }


def curves_of(made: Outcome, sides: int) -> dict[str, drawn.Tried]:
    """Shares by strength for each way and unit."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    for each in (*made.tried, *made.controls):
        if each.wanted == sides:
            label = f"{each.way} by {each.unit}"
            label = "again, on top of the best" if each.way.startswith("again") else label
            label = "shuffled best" if each.way.startswith("shuffled") else label
            share = made.share(each.name, sides)
            points.setdefault(label, []).append((each.strength, share, made.error(share)))
    return {label: drawn.Tried(*zip(*sorted(own), strict=True)) for label, own in points.items()}
