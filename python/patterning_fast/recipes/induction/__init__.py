"""The induction recipe: find the data that an induction circuit answers to, and retrain with more or less of it.

After arXiv:2601.13548, §4: susceptibilities of every attention head, their modes, the mode that is induction, and
retraining from the same start with that mode amplified and suppressed. Beside it other sources of weights, judged by
what they were told, and controls.
"""

from __future__ import annotations

from functools import partial

from patterning_fast.recipes.findings import Findings
from patterning_fast.recipes.pieces import Pieces

from .estimates import compared, seen, verified
from .findings import findings
from .on_the_way import trained_on_the_way
from .runs import trained
from .settings import CROSSED, ON_THE_WAY, Settings
from .text import text_of

WAYS = ("amplified", "suppressed")


def run(settings: Settings, pieces: Pieces) -> Findings:
    """Everything, seed by seed; a training or an estimate at a time is kept."""
    first, *_ = settings.seeds
    if settings.source != CROSSED:  # tokenizer and tokens are made once, before several processes look for them
        text_of(settings, first)
    base = pieces.map("base runs", trained, {f"base, seed {seed}": (settings, seed, None) for seed in settings.seeds})
    estimated = {f"weights, seed {seed}": (settings, seed, base[f"base, seed {seed}"]) for seed in settings.seeds}
    made = (
        {name: pieces.of(name, partial(seen, *each)) for name, each in estimated.items()}
        if len(estimated) == 1  # a part alone may use all threads
        else pieces.map("weights", seen, estimated)
    )
    found = {seed: made[f"weights, seed {seed}"] for seed in settings.seeds}
    wanted = {
        f"{name}, seed {seed}": (settings, seed, found[seed]["weights"][name])
        for seed in settings.seeds
        for name in (*WAYS, *settings.retrained)
        if name != ON_THE_WAY
    }
    runs = base | pieces.map("retraining", trained, wanted)
    if ON_THE_WAY in settings.retrained:
        runs |= pieces.map(f"training {ON_THE_WAY}", trained_on_the_way, {
            f"{ON_THE_WAY}, seed {seed}": (settings, seed) for seed in settings.seeds
        })  # fmt: skip
    again = pieces.map("verification", verified, {
        f"verification, seed {seed}": (settings, seed, base[f"base, seed {seed}"])
        for seed in settings.seeds[: settings.verified]
    })  # fmt: skip
    checks = dict(zip(settings.seeds, again.values(), strict=False))
    agreement = (
        pieces.of("covariances against responses", partial(compared, settings, first, base[f"base, seed {first}"]))
        if settings.compared
        else {"rows": []}
    )
    return findings(settings, runs, found, checks, agreement["rows"])
