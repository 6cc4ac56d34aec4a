"""The parentheses recipe: weights on data that choose between two algorithms which fit the data alike.

After arXiv:2601.13548, §5: of runs from many seeds some learn to follow how parentheses nest and some to count them.
Kinds of string are scored in several ways: by the adjoint of training early on, by χ, by losses and gradients there, by
contributions to the learning coefficients of solutions of both kinds. All scores are held to the same yardstick, what
whole runs on random weights came to. Then runs are trained on weights made of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from patterning_fast.recipes.findings import Findings
from patterning_fast.recipes.pieces import Pieces

from .estimates import adjoint, averaged, by_n_grams, early_scores, learning_coefficient, responses
from .findings import findings
from .runs import drawn, solutions, trained
from .second_order import second_order
from .settings import (
    ADJOINT,
    BASE,
    CHI,
    COUNTING,
    FIT,
    GRADIENT,
    LLC,
    LOW_LOSS,
    N_GRAMS,
    NESTED,
    NO_LOSS,
    Part,
    Settings,
)
from .strings import kinds_of
from .weights import all_weights, fit_of, on_strings, weights_at_random

FIRST_EARLY, FIRST_SOURCE, FIRST_ADJOINT, FIRST_AT_RANDOM = 2000, 2500, 3000, 7000
"""Seeds of the first of the runs that scores come from, and of those they are held to: none of them is compared."""

SIDE_BY_SIDE = 24
"""Runs in one part."""


def run(settings: Settings, pieces: Pieces) -> Findings:
    """Runs to make scores of, the scores, their yardstick, and runs on weights and on controls."""
    task = drawn(settings)
    kinds, labels = kinds_of(task), task.training[1].numpy()
    until = replace(settings, steps=settings.early_step)
    early, sources = pieces.map("runs to make scores of", trained, {
        "early": (until, range(FIRST_EARLY, FIRST_EARLY + settings.early_runs), None),
        "sources": (settings, range(FIRST_SOURCE, FIRST_SOURCE + settings.source_seeds), None),
    }).values()  # fmt: skip
    at_random = weights_at_random(settings, kinds)
    on_random = torch.from_numpy(on_strings(at_random, kinds)).split(SIDE_BY_SIDE)
    whole = pieces.map("runs on random weights", trained, {
        f"at random, {first}": (settings, range(FIRST_AT_RANDOM + first, FIRST_AT_RANDOM + first + len(some)), some)
        for first, some in zip(range(0, settings.fit_runs, SIDE_BY_SIDE), on_random, strict=True)
    })  # fmt: skip
    by_model = pieces.map("scores after the early step", early_scores, {
        f"scores of run {number}": (settings, each) for number, each in enumerate(early["parameters"])
    })  # fmt: skip
    chosen = solutions(sources, settings.solutions)
    coefficients = pieces.map("λ̂", learning_coefficient, {
        f"λ̂ of {name}, run {at}": (settings, sources["parameters"][at]) for name, runs in chosen.items() for at in runs
    })  # fmt: skip
    quadratic = pieces.of("λ of second order", partial(of_second_order, settings, sources["parameters"], chosen))
    coefficients = {name: each | quadratic[name] for name, each in coefficients.items()}
    contributions = {
        name: np.stack([coefficients[f"λ̂ of {name}, run {at}"]["contribution"].numpy() for at in runs])
        for name, runs in chosen.items()
    }
    gone_back = pieces.of("adjoint", partial(kept_adjoint, settings))
    scores = {
        ADJOINT: averaged(settings, gone_back["chi"].numpy(), 1.0),
        **{
            way: averaged(settings, np.stack([each[way].numpy() for each in by_model.values()]), settings.n_beta)
            for way in (CHI, LOW_LOSS, NO_LOSS, GRADIENT)
        },
        FIT: fit_of(at_random, list(whole.values()), kinds),
        LLC: averaged(settings, contributions[COUNTING] - contributions[NESTED], settings.llc_n_beta),
        N_GRAMS: averaged(settings, by_n_grams(settings)[None], 1.0),
    }
    retrained = {way: each for way, each in scores.items() if way not in (GRADIENT, N_GRAMS)}
    weights, refused = all_weights(settings, retrained, kinds, labels)
    wanted = {BASE: None} | {name: torch.from_numpy(each) for name, each in weights.items()}
    runs = pieces.map("training on weights", trained, {
        f"on {name}": (settings, range(settings.seeds), each) for name, each in wanted.items()
    })  # fmt: skip
    compared = pieces.of("covariances against responses", partial(responses, settings, early["parameters"][0]))
    return findings(
        settings, kinds, scores, weights, refused, dict(zip(wanted, runs.values(), strict=True)), sources, chosen,
        coefficients, {"growth": gone_back["growth"], "agreement": gone_back["agreement"]}, compared["rows"],
        {name: sum(pieces.core_seconds[part] for part in parts) for name, parts in {
            ADJOINT: ["adjoint"], FIT: whole, CHI: by_model,
        }.items()},
    )  # fmt: skip


def kept_adjoint(settings: Settings) -> dict[str, torch.Tensor]:
    """The adjoint of training by string, run by run, how chaotic the runs are, and whether halves of a change agree."""
    found = adjoint(settings, range(FIRST_ADJOINT, FIRST_ADJOINT + settings.adjoint_runs))
    return {name: torch.from_numpy(np.array(each)) for name, each in found.items()}


def of_second_order(settings: Settings, parameters: torch.Tensor, chosen: dict[str, list[int]]) -> dict[str, Part]:
    """λ of the chosen solutions as if the loss were quadratic."""
    return {
        f"λ̂ of {name}, run {at}": second_order(settings, parameters[at]) for name, runs in chosen.items() for at in runs
    }
