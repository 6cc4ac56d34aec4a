"""What the superposition recipe found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patterning_fast.recipes.findings import Findings, findings_of
from patterning_fast.recipes.verification import verification_rows

from .adaptive import ADAPTIVE
from .outcome import AT_MOST, GOAL, Outcome, named
from .pictures import pictures
from .plans import BRIGHT, FAINT, MASS_OF_FAINT, by_hand
from .tables import adaptive_rows, end_rows, exact_rows, frequency_rows, plan_rows, share_rows, stage_rows, weight_rows

TEMPLATE = Path(__file__).with_name("findings.j2")


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
        "replicas": settings.replicas,
        "goal": GOAL,
        "at_most": AT_MOST,
    }
    tables = {
        "Plans made again on the way": adaptive_rows(made),
        "What replicas come to": end_rows(made),
        "All plans": plan_rows(made),
        "Frequency of the last feature": frequency_rows(made),
        "Exact polygons": exact_rows(made),
        "Verification": [
            {"at": f"{sides}-gon"} | row for sides, each in made.checked.items() for row in verification_rows(each)
        ],
    }
    data = {"weights": weight_rows(made), "shares": share_rows(made), "stages": stage_rows(made)}
    return findings_of(TEMPLATE, values, seeds=settings.seeds, tables=tables, pictures=pictures(made), data=data)


def wanted(made: Outcome, sides: int) -> dict[str, Any]:
    """What came of the plans for a polygon."""
    best, planned = made.best[sides], made.planned[sides]
    base, found = made.over_seeds("base", sides), made.over_seeds(best.name, sides)
    adaptive = [made.adaptive[sides, ADAPTIVE, seed]["share"] for seed in made.settings.seeds]
    control = next(each for each in made.controls if each.wanted == sides)
    ways = [way for way in ("loss", "λ̂") if way not in planned["refused"]]
    return {
        "polygon": named(sides, made.settings.features),
        "base": base,
        "best": found,
        "way": f"{best.way} by {best.unit}, strength {best.strength:g}",
        "met": min(found) >= GOAL and max(base) <= AT_MOST,
        "adaptive": adaptive,
        "adaptive_met": min(adaptive) >= GOAL and max(base) <= AT_MOST,
        "adaptive_controls": {
            way: each["share"]
            for (wanted, way, _), each in made.adaptive.items()
            if (wanted, way != ADAPTIVE) == (sides, True)
        },
        "control": made.share(control.name, sides),
        "by_way": {
            way: max((made.share(one.name, sides), one.name) for one in made.tried if one[:2] == (sides, way))
            for way in ways
        },
        "refused": planned["refused"],
    }
