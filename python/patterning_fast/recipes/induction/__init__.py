"""The induction recipe: find the data that an induction circuit answers to, and retrain with more or less of it.

After arXiv:2601.13548, §4: susceptibilities of every attention head on every training token, their modes, the mode that
is induction, and retraining from the same start with that mode amplified and suppressed, beside controls.
"""

from __future__ import annotations

from functools import partial

from patterning_fast.recipes.findings import Findings
from patterning_fast.recipes.pieces import Pieces
from patterning_fast.recipes.responses import with_comparison

from .findings import findings
from .runs import trained
from .settings import MIXTURE, WAYS, Settings
from .text import text_of
from .weights import modes_and_weights, responses, verified_plan


def run(settings: Settings, pieces: Pieces) -> Findings:
    """Everything, seed by seed; a training or an estimate at a time is kept."""
    if settings.source != MIXTURE:  # tokenizer and tokens are made once, before several processes look for them
        text_of(settings, settings.seeds[0])
    unweighted = {f"base, seed {seed}": (settings, seed, None, True) for seed in settings.seeds}
    base = pieces.map("base runs", trained, unweighted)
    found = {
        seed: pieces.of(
            f"modes and weights, seed {seed}",
            partial(modes_and_weights, settings, seed, base[f"base, seed {seed}"]["parameters"]),
        )
        for seed in settings.seeds
    }
    wanted = {
        f"{name}, seed {seed}": (settings, seed, rho, name in (f"{way} {settings.strengths[-1]:g}" for way in WAYS))
        for seed in settings.seeds
        for name, rho in found[seed]["weights"].items()
    }
    runs = base | pieces.map("retraining", trained, wanted)
    verified = None
    if settings.verify:
        seed = settings.seeds[0]
        parameters = base[f"base, seed {seed}"]["parameters"]
        verified = pieces.of("verification", partial(verified_plan, settings, seed, parameters, found[seed]))
    first = settings.seeds[0]
    compared = pieces.of(
        "covariances against responses", partial(responses, settings, first, base[f"base, seed {first}"]["parameters"])
    )
    return with_comparison(findings(settings, runs, found, verified), compared["rows"], "of the base run's heads")
