"""Pictures of the superposition recipe."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from patterning_fast.recipes.findings import Rows
from patterning_fast.recipes.verification import verification_picture
from patterning_fast.report import charts
from patterning_fast.report.figures import COLOURS

from .outcome import GOAL, Outcome, named
from .plans import by_hand
from .replicas import wanted_shares
from .settings import Weighting
from .tables import by_frequency, last_held, stage_rows

BRIGHTEST = 4.0
"""Weights from here on look alike."""


def pictures(made: Outcome) -> dict[str, Figure]:
    """All pictures; their captions are in the template."""
    settings, steps, size = made.settings, made.steps, made.settings.features
    hand = by_hand(settings)
    maps = {f"for a {sides}-gon: {each.way}\n{each.unit}, {each.strength:g}": each.weights
            for sides, each in made.best.items()} | {"by hand": hand.weights}  # fmt: skip
    rows = stage_rows(made)
    final = made.paths[-1][:, : 2 * size].unflatten(1, (2, size)).numpy()
    return {
        "ways": ways(made),
        "shares": shares(made),
        "strengths": strengths(made),
        "weights": charts.maps(
            {title: each.view(size, settings.magnitudes).numpy() for title, each in maps.items()},
            [f"feature {feature + 1}" for feature in range(size)], "magnitude, 0 to 1", "weight ρ", (0, BRIGHTEST),
        ),
        "stages": charts.lines(
            {f"ends as {kind}": along(rows, kind) for kind in made.traced},
            "training step", "λ̂", {}, log=True,
        ),
        "columns": columns({kind: final[replica] for kind, replica in made.traced.items()}),
        "frequencies": charts.lines(
            {f"weight {factor:g}": (steps, last_held(course)) for factor, course in by_frequency(made).items()},
            "training step", f"share of replicas that hold feature {size}", {"half": 0.5}, log=False,
        ),
        "verification": verification_picture(next(iter(made.checked.values()))),
    }  # fmt: skip


def ways(made: Outcome) -> Figure:
    """Share of replicas that are as wanted at the end, a panel a polygon, a bar a way; at the first seed."""
    first = made.settings.seeds[0]
    names = ["base", "best one-off plan", *dict.fromkeys(way for _, way, _ in made.adaptive)]
    panels = {}
    for sides, best in made.best.items():
        found = [made.share("base", sides), made.share(best.name, sides)]
        found += [made.adaptive[sides, way, first]["share"] for way in names[2:]]
        panels[named(sides, made.settings.features)] = {
            "": (np.array(found), np.array([made.error(share) for share in found]))
        }
    return charts.bars(names, panels)


def along(rows: Rows, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and λ̂ of the replica that ends as a kind."""
    steps, values = (np.array([row[name] for row in rows if row["ends as"] == kind]) for name in ("step", "λ̂"))
    return steps, values


def shares(made: Outcome) -> Figure:
    """Share of replicas that are as wanted along training: base, best plan and control, by wanted polygon."""
    series = {}
    for sides, best in made.best.items():
        control = next(each for each in made.controls if each.wanted == sides)
        for what, name in (("best plan", best.name), ("base", "base"), ("control", control.name)):
            series[f"{named(sides, made.settings.features)}: {what}"] = (
                made.steps,
                wanted_shares(made.courses[name], sides),
            )
    return charts.lines(series, "training step", "share as wanted", {"goal": GOAL}, log=False)


def strengths(made: Outcome) -> Figure:
    """Share of the wanted polygon against a plan's strength, a panel a polygon, a name a way of making plans."""

    def label(each: Weighting) -> str:
        for start, short in (("again", "again, on top of the best"), ("shuffled", "shuffled best")):
            if each.way.startswith(start):
                return short
        return f"{each.way} by {each.unit}"

    panels: dict[str, dict[str, charts.Points]] = {}
    for sides in made.best:
        mine = [each for each in (*made.tried, *made.controls) if each.wanted == sides]
        panels[named(sides, made.settings.features)] = {
            name: points([(each.strength, made.share(each.name, sides)) for each in mine if label(each) == name], made)
            for name in dict.fromkeys(map(label, mine))
        }
    return charts.scatter(panels, "strength: rms of ρ − 1, before weights below 0 are cut", "share as wanted")


def points(pairs: list[tuple[float, float]], made: Outcome) -> charts.Points:
    x, y = zip(*sorted(pairs), strict=True)
    return charts.Points(x, y, y_error=[made.error(share) for share in y])


def columns(models: Mapping[str, np.ndarray]) -> Figure:
    """Columns of W `[2, features]` in the plane, a panel a model, numbered by feature."""
    figure = Figure(figsize=(2.5 * len(models), 2.9), layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False, sharex=True, sharey=True)[0]
    reach = 1.25 * max(float(np.abs(weight).max()) for weight in models.values())
    for own, (title, weight) in zip(axes, models.items(), strict=True):
        for feature, end in enumerate(weight.T):
            own.plot(*np.stack((np.zeros(2), end), 1), color=COLOURS[1], marker="o", markevery=[1], markersize=4)
            length = float(np.hypot(*end))
            if length > 0.1:
                own.annotate(str(feature + 1), end * (1 + 0.18 / length), ha="center", va="center", fontsize=8)
        own.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        own.set_title(title, fontsize=9)
    return figure
