"""The parentheses recipe: weights on data that choose between two algorithms which fit the data alike.

After arXiv:2601.13548, §5: of runs from many seeds some learn to follow how parentheses nest and some to count them.
Weights that favour either are made in three ways: from what each kind of string contributes to the learning
coefficients of solutions of both; from how a measure of behaviour out of distribution answers to each, early in
training; and from how accuracy out of distribution, at the end of training, answers to each over whole runs, alone or
with what the task needs held where it is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from patterning_fast.recipes.findings import Findings
from patterning_fast.recipes.pieces import Pieces
from patterning_fast.recipes.responses import with_comparison

from .estimates import averaged, contributions, responses, susceptibilities
from .findings import findings
from .runs import drawn, solutions, trained
from .settings import BASE, LLC, Settings, early
from .strings import kinds_of
from .weights import all_weights, on_strings, response_of, verified_plan, weights_at_random

FIRST_SOURCE = 1000
"""Seed of the first of the runs that weights come from: none of them is compared."""

FIRST_AT_RANDOM = 5000
"""Seed of the first of the runs on weights drawn at random, which the response of training comes from."""

SIDE_BY_SIDE = 24
"""Runs in one part."""


def run(settings: Settings, pieces: Pieces) -> Findings:
    """Runs to make weights of, chains on them, and runs on the weights and on controls."""
    task = drawn(settings)
    kinds, labels = kinds_of(task), task.training[1].numpy()
    more = range(FIRST_SOURCE, FIRST_SOURCE + settings.early_runs)
    sources, *begun = pieces.map(
        "runs to make weights of",
        trained,
        {"sources": (settings, more[: settings.source_seeds], None)}
        | {f"until step {step}": (replace(settings, steps=step), more, None) for step in settings.early_steps},
    ).values()
    chosen = solutions(sources, settings.solutions)
    chains = {
        f"{name}, solution {seed}": (settings, sources["parameters"][seed])
        for name, seeds in chosen.items()
        for seed in seeds
    }
    at_solutions = pieces.map("chains on solutions", contributions, chains)
    estimates = {
        name: averaged([at_solutions[f"{name}, solution {seed}"] for seed in seeds]) for name, seeds in chosen.items()
    }
    beginnings = {
        f"step {step}, run {run}": (settings, each)
        for step, part in zip(settings.early_steps, begun, strict=True)
        for run, each in enumerate(part["parameters"])
    }
    at_beginnings = pieces.map("chains early on", susceptibilities, beginnings)
    answers = {
        early(step): averaged([at_beginnings[f"step {step}, run {run}"] for run in range(settings.early_runs)])
        for step in settings.early_steps
    }
    at_random = weights_at_random(settings, kinds)
    parts = range(0, settings.response_runs, SIDE_BY_SIDE)
    ended = pieces.map("runs on random weights", trained, {
        f"at random, {first} to {first + len(some)}": (
            settings, range(FIRST_AT_RANDOM + first, FIRST_AT_RANDOM + first + len(some)), some,
        )
        for first, some in zip(parts, torch.from_numpy(on_strings(at_random, kinds)).split(SIDE_BY_SIDE), strict=True)
    })  # fmt: skip
    response = response_of(settings, at_random, list(ended.values()), kinds)
    weights, refused = all_weights(settings, estimates, answers, response, kinds, labels)
    wanted = {BASE: None} | {name: torch.from_numpy(each) for name, each in weights.items()}
    compared = range(settings.seeds)
    runs = pieces.map(
        "training on weights", trained, {f"on {name}": (settings, compared, each) for name, each in wanted.items()}
    )
    verified = {
        name: pieces.of(
            f"verification at {name}",
            partial(verified_plan, settings, sources["parameters"][seeds[0]], estimates, name),
        )
        for name, seeds in chosen.items()
        if LLC not in refused
    }
    by_name = dict(zip(wanted, runs.values(), strict=True))
    found = findings(
        settings, kinds, chosen, sources, estimates, answers, response, weights, refused, by_name, verified
    )
    (solution, *_), *_ = chosen.values()
    held = pieces.of("covariances against responses", partial(responses, settings, sources["parameters"][solution]))
    return with_comparison(found, held["rows"], "at the first solution")
