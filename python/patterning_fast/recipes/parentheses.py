"""The parentheses recipe: weights on data that choose between two algorithms which fit the data alike.

After arXiv:2601.13548, §5: of runs from many seeds some learn to follow how parentheses nest and some to count them.
Weights that favour either are made in three ways: from what each kind of string contributes to the learning
coefficients of solutions of both; from how a measure of behaviour out of distribution answers to each, early in
training; and from how accuracy out of distribution, at the end of training, answers to each over whole runs, alone or
with what the task needs held where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import patterning_fast as pf
from patterning_fast.models.sequence_classifier import SequenceClassifier
from patterning_fast.posterior.components import FULL
from patterning_fast.recipes.findings import Findings
from patterning_fast.recipes.parentheses_findings import (
    BALANCE,
    BASE,
    BY_HAND,
    COUNTING,
    FAILING,
    HELD,
    LEARNED,
    LLC,
    NESTED,
    OOD,
    RESPONSE,
    SHUFFLED,
    Part,
    early,
    findings,
    named,
)  # fmt: skip
from patterning_fast.recipes.pieces import Pieces
from patterning_fast.recipes.responses import comparison, with_comparison
from patterning_fast.tasks.parentheses import VOCABULARY, Parentheses, elevations, parentheses, steps_of
from patterning_fast.training.side_by_side import train_side_by_side

COMPARED = 64
"""Strings on which covariances are held against responses."""

FARTHEST = 4
"""Final elevations from here on are one kind of string."""

FIRST_SOURCE = 1000
"""Seed of the first of the runs that weights come from: none of them is compared."""

FIRST_AT_RANDOM = 5000
"""Seed of the first of the runs on weights drawn at random, which the response of training comes from."""

SIDE_BY_SIDE = 24
"""Runs in one part."""

NESTEDNESS = "nestedness"

BY_HAND_WEIGHT = 0.2
"""Of unbalanced strings that dip below 0, by hand; all others of them share what these lose."""


@dataclass(frozen=True)
class Settings:
    """Sizes and settings of one run of the recipe."""

    strings: int = 4000
    test_strings: int = 1000
    longest: int = 20
    width: int = 32
    heads: int = 4
    layers: int = 1
    seeds: int = 24
    """Runs on each weighting."""
    source_seeds: int = 12
    """Other runs, that weights come from."""
    solutions: int = 3
    """Of either kind, of whose contributions the median is taken."""
    early_steps: tuple[int, ...] = (60,)
    """After which behaviour's susceptibilities are estimated."""
    early_runs: int = 36
    """Runs that these are averaged over, the sources and more."""
    response_runs: int = 288
    """On weights drawn at random, whole trainings."""
    response_spread: float = 1.0
    """Standard deviation of the logarithms of these weights."""
    steps: int = 3000
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.03
    n_beta: float = 2.0
    localization: float = 1500.0
    early_n_beta: float = 10.0
    early_localization: float = 300.0
    early_chains: int = 8
    early_draws: int = 10
    sampler_lr: float = 1e-4
    sampler_batch: int = 64
    chains: int = 16
    draws: int = 20
    burn_in: int = 4
    steps_between_draws: int = 8
    strengths: tuple[float, ...] = (0.5, 1.0)
    """Root mean square of ρ − 1, but for the least weight; controls have the last."""
    least_weight: float = 0.1
    device: str = "cpu"


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
            partial(verification, settings, sources["parameters"][seeds[0]], estimates, name),
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


def all_weights(
    settings: Settings,
    estimates: Mapping[str, xr.Dataset],
    answers: Mapping[str, xr.Dataset],
    response: xr.Dataset,
    kinds: np.ndarray,
    labels: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Weights of the strings by name, controls' too; and why a way has none, where noise forbids it."""
    weights: dict[str, np.ndarray] = {}
    refused: dict[str, str] = {}
    ways = {LLC: partial(llc_plans, estimates)} | {name: partial(early_plans, each) for name, each in answers.items()}
    ways[RESPONSE] = partial(response_plans, response.sel(component=[OOD]))
    ways[HELD] = partial(response_plans, response)
    controlled = (LLC, next(iter(answers)), HELD)
    for way, plans in ways.items():
        try:
            made = {strength: plans(strength) for strength in settings.strengths}
        except pf.InfeasibleTargetError as why:
            refused[way] = str(why)
            continue
        for strength, both in made.items():
            for favoured, plan in both.items():
                weights[named(way, favoured, strength)] = spread(settings, plan, kinds)
        for favoured in (NESTED, COUNTING) if way in controlled else ():
            name = named(way, favoured, settings.strengths[-1])
            weights |= controls(name, weights[name], labels)
    return weights | {named(BY_HAND, COUNTING): by_hand(kinds)}, refused


def llc_plans(estimates: Mapping[str, xr.Dataset], strength: float) -> dict[str, pf.Plan]:
    """Weights by kind: more of what costs either solution less than the other."""
    return {
        favoured: pf.invert(
            estimates[favoured],
            pf.between_solutions(estimates[favoured], estimates[other]),
            strength=strength,
            negative_weights="clip",
        )
        for favoured, other in ((NESTED, COUNTING), (COUNTING, NESTED))
    }


def early_plans(answers: xr.Dataset, strength: float) -> dict[str, pf.Plan]:
    """Weights by kind of unbalanced strings: more of what raises nestedness early in training, or lowers it."""
    unbalanced = answers["kind"] != "balanced"
    chi = answers["chi"].sel(component=FULL, drop=True)
    mean = float((chi * answers["count"]).where(unbalanced).sum() / answers["count"].where(unbalanced).sum())
    direction = (chi - mean).where(unbalanced, 0.0)
    return {
        name: pf.invert(answers, sign * direction, strength=strength, negative_weights="clip")
        for name, sign in ((NESTED, 1.0), (COUNTING, -1.0))
    }


def response_plans(response: xr.Dataset, strength: float) -> dict[str, pf.Plan]:
    """Weights by kind: more of what raises accuracy out of distribution at the end of training, or lowers it, and
    leaves any other outcome where it is."""
    return {
        name: pf.invert(response, {OOD: sign}, strength=strength, negative_weights="clip")
        for name, sign in ((NESTED, 1.0), (COUNTING, -1.0))
    }


def weights_at_random(settings: Settings, kinds: np.ndarray) -> np.ndarray:
    """Weights of kinds `[runs, kinds]`, in pairs that are each other's inverse, so that only odd responses are left."""
    generator = np.random.default_rng(0)
    logs = settings.response_spread * generator.standard_normal((settings.response_runs // 2, len(np.unique(kinds))))
    return np.exp(np.concatenate((logs, -logs)))


def on_strings(weights: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Weights of strings `[runs, strings]`, of mean 1, from those of kinds."""
    rho = weights[:, np.unique(kinds, return_inverse=True)[1]]
    return np.asarray(rho / rho.mean(1, keepdims=True))


def response_of(settings: Settings, weights: np.ndarray, runs: list[Part], kinds: np.ndarray) -> xr.Dataset:
    """How accuracy out of distribution, and the error on the task, at the end of training answer to kinds of string."""
    ood, test = (torch.cat([each[name][:, -1] for each in runs]).double().numpy() for name in (OOD, "test accuracy"))
    names, counts = np.unique(kinds, return_counts=True)
    outcomes = {OOD: ood, FAILING: np.log(1.0 - test + 0.5 / settings.test_strings)}
    found = pf.training_response(outcomes, weights, names.tolist(), counts, name="kind")
    return found.assign(
        weights=(("run", "kind"), weights), outcomes=(("component", "run"), np.stack(list(outcomes.values())))
    )


def spread(settings: Settings, plan: pf.Plan, kinds: np.ndarray) -> np.ndarray:
    """The plan's weights of each string, mixed with weights of 1 so that none is below the least."""
    weights = pf.spread_weights(plan.weights, kinds).values
    return np.asarray(settings.least_weight + (1.0 - settings.least_weight) * weights)


def controls(name: str, weights: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The same weights dealt out at random, and their mean by label: what the balance of labels alone would do."""
    balance = np.array([weights[labels == label].mean() for label in (0, 1)])
    return {
        f"{name}, {SHUFFLED}": np.random.default_rng(0).permutation(weights),
        f"{name}, {BALANCE}": balance[labels],
    }


def by_hand(kinds: np.ndarray) -> np.ndarray:
    """Weights that no estimate has a part in: few of the strings that show more than the end that they are wrong."""
    dips = ~np.char.startswith(kinds, "never") & (kinds != "balanced")
    never = np.char.startswith(kinds, "never")
    if not never.any():
        return np.ones(len(kinds))
    more = 1.0 + (1.0 - BY_HAND_WEIGHT) * dips.sum() / never.sum()
    return np.where(dips, BY_HAND_WEIGHT, np.where(never, more, 1.0))


def new_model(settings: Settings, seed: int) -> SequenceClassifier:
    """A model before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SequenceClassifier(
            VOCABULARY, settings.longest + 2, width=settings.width, heads=settings.heads, layers=settings.layers
        ).to(settings.device)


def drawn(settings: Settings) -> Parentheses:
    """The strings, in main memory."""
    return parentheses(settings.strings, settings.test_strings, settings.longest, seed=0)


def task_of(settings: Settings) -> Parentheses:
    """The same on the settings' device."""
    return drawn(settings).to(settings.device)


def trained(settings: Settings, seeds: range, weights: Tensor | None) -> Part:
    """Runs from seeds on weights of the strings `[strings]`, or of each run `[seeds, strings]`: parameters
    `[seeds, params]`, accuracies `[seeds, times]`."""
    task = task_of(settings)
    models = [new_model(settings, seed) for seed in seeds]
    steps, rows = [], []

    def measure(step: int) -> None:
        steps.append(step)
        rows.append([list(task.accuracies(model).values()) for model in models])

    train_side_by_side(
        models, task.training, pf.losses.cross_entropy, steps=settings.steps, batch_size=settings.batch,
        lr=settings.lr, weight_decay=settings.weight_decay, seeds=seeds, weights=weights,
        measure=measure, measure_every=max(1, settings.steps // 4),
    )  # fmt: skip
    accuracies = torch.tensor(rows, dtype=torch.float32).permute(2, 1, 0)
    return {
        "parameters": torch.stack([parameters_to_vector(model.parameters()).detach().cpu() for model in models]),
        "steps": steps,
        "test accuracy": accuracies[0],
        "OOD accuracy": accuracies[1],
    }


def solutions(sources: Part, count: int) -> dict[str, list[int]]:
    """Which runs have the highest and which the lowest accuracies out of distribution, among those that learned."""
    accuracy = sources["OOD accuracy"][:, -1].numpy()
    learned = np.flatnonzero(sources["test accuracy"][:, -1].numpy() >= LEARNED)
    among = learned if len(learned) >= 2 * count else np.arange(len(accuracy))
    order = among[np.argsort(accuracy[among])].tolist()
    return {NESTED: order[::-1][:count], COUNTING: order[:count]}


def kinds_of(task: Parentheses) -> np.ndarray:
    """What a training string is to the rules: where it shows that it is wrong, and how far from 0 it ends."""
    steps = steps_of(task.training[0])
    heights = elevations(steps)
    last = np.take_along_axis(steps, (steps != 0).sum(1, keepdims=True) - 1, 1)[:, 0]
    begins, ends, dips = steps[:, 0] < 0, last > 0, heights.min(1) < 0
    where = np.select(
        [begins & ends, begins, ends & dips, dips],
        ["wrong at both ends", "begins wrong", "ends wrong and dips", "dips within"],
        "never below 0",
    )
    far = np.minimum(np.abs(heights[:, -1]), FARTHEST)
    names = np.array([f"{each}, by {by}{'+' if by == FARTHEST else ''}" for each, by in zip(where, far, strict=True)])
    return np.where(task.training[1].numpy() == 1, "balanced", names)


def posterior_at(settings: Settings, parameters: Tensor, n_beta: float, localization: float) -> pf.LocalPosterior:
    """The posterior around a model, on the training strings."""
    model = new_model(settings, 0)
    vector_to_parameters(parameters.to(settings.device), model.parameters())
    return pf.LocalPosterior(
        model, pf.losses.cross_entropy, task_of(settings).training, n_beta=n_beta, localization=localization
    )


def responses(settings: Settings, parameters: Tensor) -> dict[str, Any]:
    """χ of some strings by covariances against that by responses."""
    posterior = posterior_at(settings, parameters, settings.n_beta, settings.localization)
    inputs, labels = task_of(settings).training
    return comparison(
        posterior, pf.SGLD(settings.sampler_lr), None, probes={"some": (inputs[:COMPARED], labels[:COMPARED])},
        loss_samples=min(256, len(inputs)), **sampling(settings),
    )  # fmt: skip


def sampling(settings: Settings) -> dict[str, Any]:
    return {
        "chains": settings.chains,
        "draws": settings.draws,
        "burn_in": settings.burn_in,
        "steps_between_draws": settings.steps_between_draws,
        "batch_size": settings.sampler_batch,
        "progress": False,
    }


def contributions(settings: Settings, parameters: Tensor) -> Part:
    """λ̂ of a solution, what each kind of string contributes to it, and their χ."""
    posterior = posterior_at(settings, parameters, settings.n_beta, settings.localization)
    statistics = pf.sample(posterior, pf.SGLD(settings.sampler_lr), **sampling(settings))
    both = statistics.contributions().assign(statistics.susceptibilities()[["chi", "chi_error", "chi_group"]].data_vars)
    return by_kind(settings, both.assign_attrs(n_beta=settings.n_beta))


def susceptibilities(settings: Settings, parameters: Tensor) -> Part:
    """χ of nestedness by kind of string."""
    posterior = posterior_at(settings, parameters, settings.early_n_beta, settings.early_localization)
    (test, classes), others = task_of(settings).test, task_of(settings).equal_counts

    def nestedness(model: nn.Module) -> Tensor:
        """How far strings of equal counts that do not nest are from balanced ones, on the way to all others."""
        logits = model(torch.cat((test, others)))
        margin = logits[:, 0] - logits[:, 1]
        of_test = margin[: len(test)]
        balanced, unbalanced = of_test[classes == 1].mean(), of_test[classes == 0].mean()
        return (margin[len(test) :].mean() - balanced) / (unbalanced - balanced)

    fewer = {"chains": settings.early_chains, "draws": settings.early_draws, "observables": {NESTEDNESS: nestedness}}
    statistics = pf.sample(posterior, pf.SGLD(settings.sampler_lr), **sampling(settings) | fewer)
    return by_kind(settings, statistics.susceptibilities(observable=NESTEDNESS))


def by_kind(settings: Settings, estimates: xr.Dataset) -> Part:
    """Estimates by kind of string, as arrays; none by group of chains: see `averaged`."""
    kinds = kinds_of(drawn(settings))
    found = pf.aggregate(estimates, kinds, name="kind").sel(component=FULL)
    kept = {str(name): each for name, each in found.data_vars.items() if "group" not in each.dims}
    return {
        "kind": [str(name) for name in found["kind"].values],
        "count": torch.from_numpy(found["count"].values),
        "n_beta": float(found.attrs["n_beta"]),
        **{name: torch.from_numpy(each.values.copy()) for name, each in kept.items()},
    }


def averaged(parts: list[Part]) -> xr.Dataset:
    """Estimates by kind, over models: means of χ, with errors of how models differ, which are its independent groups;
    and the median contributions, each with its error from chains, as some solutions' are ten times those of others.
    """
    first = parts[0]
    kind = {"kind": first["kind"], "count": ("kind", first["count"].numpy())}
    dataset = xr.Dataset(coords={"component": [FULL]} | kind, attrs={"n_beta": first["n_beta"]})
    by_model = np.stack([part["chi"].double().numpy() for part in parts])[None]
    dataset["chi"] = (("component", "kind"), by_model.mean(1))
    dataset["chi_error"] = (("component", "kind"), by_model.std(1, ddof=1) / np.sqrt(len(parts)))
    dataset["chi_group"] = (("component", "group", "kind"), by_model)
    if "contribution" in first:
        values = np.stack([part["contribution"].double().numpy() for part in parts])
        middle = np.argsort(values, 0)[None, (len(parts) - 1) // 2]
        for name in ("contribution", "contribution_error"):
            of_models = np.stack([part[name].double().numpy() for part in parts])
            dataset[name] = (("component", "kind"), np.take_along_axis(of_models, middle, 0))
    for name in ("llc", "llc_error", "mu", "r_hat"):
        if name in first:
            dataset[name] = ("model", [float(part[name]) for part in parts])
    return dataset


def verification(
    settings: Settings, parameters: Tensor, estimates: Mapping[str, xr.Dataset], favoured: str
) -> dict[str, Any]:
    """Predicted against realised dμ of one solution, on the weights for it by learning coefficients."""
    kinds = kinds_of(drawn(settings))
    posterior = posterior_at(settings, parameters, settings.n_beta, settings.localization)
    sampler = pf.SGLD(settings.sampler_lr)
    chi = pf.sample(posterior, sampler, **sampling(settings)).susceptibilities().assign_coords(kind=("sample", kinds))
    plan = llc_plans(estimates, settings.strengths[-1])[favoured]
    direction = chi["chi"][0].copy(data=pf.spread_weights(plan.weights, kinds).values - 1.0)
    strength = float(direction.std())
    same = pf.invert(chi, direction, strength=strength, negative_weights="clip", unit="kind", unsettled=True)
    found = pf.verify(same, posterior, sampler, fractions=(0.1, 0.3, 1.0), seed=1, **sampling(settings))
    names = ("predicted", "predicted_error", "realised", "realised_error")
    return {name: found[name].sel(component=FULL).values.tolist() for name in names} | {
        "strength": found["strength"].values.tolist(),
        "verdict": found["verdict"].values.tolist(),
    }
