"""The parentheses recipe: weights on data that choose between two algorithms which fit the data alike.

After arXiv:2601.13548, §5: of runs from many seeds some learn to follow how parentheses nest and some to count them.
What each kind of string contributes to the learning coefficient of a solution of either kind says which strings are
simpler for which; training again with more of these is to favour that solution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import patterning_fast as pf
from patterning_fast.models.sequence_classifier import SequenceClassifier
from patterning_fast.recipes.findings import Findings, Picture, Rows
from patterning_fast.recipes.pieces import Pieces
from patterning_fast.report.figures import COLOURS
from patterning_fast.tasks.parentheses import VOCABULARY, Parentheses, elevations, parentheses, steps_of
from patterning_fast.training.side_by_side import train_side_by_side

LEARNED = 0.99
"""Test accuracy from which a run has learned the task: only then do its answers out of distribution show a rule."""

FARTHEST = 4
"""Final elevations from here on are one kind of string."""

BASE, NESTED, COUNTING = "base", "Nested", "Equal-Count"
SHUFFLED, BALANCE = "shuffled", "labels alone"


@dataclass(frozen=True)
class Settings:
    """Sizes and settings of one run of the recipe."""

    strings: int = 4000
    test_strings: int = 1000
    longest: int = 20
    width: int = 32
    heads: int = 4
    layers: int = 1
    seeds: int = 12
    steps: int = 2000
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.03
    n_beta: float = 2.0
    localization: float = 1500.0
    sampler_lr: float = 1e-4
    sampler_batch: int = 64
    chains: int = 16
    draws: int = 20
    burn_in: int = 4
    steps_between_draws: int = 8
    strength: float = 1.0
    device: str = "cpu"


Part = dict[str, Any]


def run(settings: Settings, pieces: Pieces) -> Findings:
    """Base runs, chains on one solution of either kind, weights from these, and runs on the weights and on controls."""
    task = parentheses(settings.strings, settings.test_strings, settings.longest, seed=0)
    base = pieces.map("training from many seeds", trained, {BASE: (settings, None)})[BASE]
    chosen = solutions(base)
    kinds = kinds_of(task)
    estimates = {
        name: by_kind(part, kinds, settings.n_beta)
        for name, part in pieces.map(
            "chains on two solutions",
            sampled,
            {name: (settings, base["parameters"][seed]) for name, seed in chosen.items()},
        ).items()
    }
    plans = {
        favoured: pf.invert(
            estimates[favoured],
            pf.between_solutions(estimates[favoured], estimates[other]),
            strength=settings.strength,
            negative_weights="clip",
        )
        for favoured, other in ((NESTED, COUNTING), (COUNTING, NESTED))
    }
    weights: dict[str, np.ndarray] = {}
    for name, plan in plans.items():
        own = pf.spread_weights(plan.weights, kinds).values
        weights |= {name: own} | controls(name, own, task.training[1].numpy())
    on_weights = {f"on {name}": (settings, torch.from_numpy(each)) for name, each in weights.items()}
    retrained = pieces.map("training on weights", trained, on_weights)
    runs = {BASE: base} | dict(zip(weights, retrained.values(), strict=True))
    return findings(settings, kinds, chosen, estimates, weights, runs)


def controls(name: str, weights: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The same weights dealt out at random, and their mean by label: what the balance of labels alone would do."""
    balance = np.array([weights[labels == label].mean() for label in (0, 1)])
    return {
        f"{name}, {SHUFFLED}": np.random.default_rng(0).permutation(weights),
        f"{name}, {BALANCE}": balance[labels],
    }


def new_model(settings: Settings, seed: int) -> SequenceClassifier:
    """A model before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SequenceClassifier(
            VOCABULARY, settings.longest + 2, width=settings.width, heads=settings.heads, layers=settings.layers
        ).to(settings.device)


def trained(settings: Settings, weights: Tensor | None) -> Part:
    """Runs from every seed on weights of the strings: parameters `[seeds, params]`, accuracies `[seeds, times]`."""
    task = parentheses(settings.strings, settings.test_strings, settings.longest, seed=0).to(settings.device)
    models = [new_model(settings, seed) for seed in range(settings.seeds)]
    steps, rows = [], []

    def measure(step: int) -> None:
        steps.append(step)
        rows.append([list(task.accuracies(model).values()) for model in models])

    train_side_by_side(
        models, task.training, pf.losses.cross_entropy, steps=settings.steps, batch_size=settings.batch,
        lr=settings.lr, weight_decay=settings.weight_decay, seeds=range(settings.seeds), weights=weights,
        measure=measure, measure_every=settings.steps // 4,
    )  # fmt: skip
    accuracies = torch.tensor(rows).permute(2, 1, 0)
    return {
        "parameters": torch.stack([parameters_to_vector(model.parameters()).detach().cpu() for model in models]),
        "steps": steps,
        "test accuracy": accuracies[0],
        "OOD accuracy": accuracies[1],
    }


def solutions(base: Part) -> dict[str, int]:
    """The seeds of the base runs with the highest and lowest accuracy out of distribution, among those that learned."""
    accuracy = torch.where(base["test accuracy"][:, -1] >= LEARNED, base["OOD accuracy"][:, -1], torch.nan).numpy()
    if np.isfinite(accuracy).sum() < 2:
        accuracy = base["OOD accuracy"][:, -1].numpy()
    return {NESTED: int(np.nanargmax(accuracy)), COUNTING: int(np.nanargmin(accuracy))}


def kinds_of(task: Parentheses) -> np.ndarray:
    """What a training string is to the two rules: whether it dips below 0, and how far from 0 it ends."""
    heights = elevations(steps_of(task.training[0]))
    end = np.minimum(np.abs(heights[:, -1]), FARTHEST)
    dips = np.where(
        heights.min(1) < 0, np.where(heights[:, -1] < 0, "ends below 0", "dips, ends above"), "never below 0"
    )
    names = np.array([f"{dip}, by {far}{'+' if far == FARTHEST else ''}" for dip, far in zip(dips, end, strict=True)])
    return np.where(task.training[1].numpy() == 1, "balanced", names)


def sampled(settings: Settings, parameters: Tensor) -> Part:
    """Contributions and susceptibilities of the training strings, at a trained model."""
    task = parentheses(settings.strings, settings.test_strings, settings.longest, seed=0).to(settings.device)
    model = new_model(settings, 0)
    vector_to_parameters(parameters.to(settings.device), model.parameters())
    posterior = pf.LocalPosterior(
        model, pf.losses.cross_entropy, task.training, n_beta=settings.n_beta, localization=settings.localization
    )
    statistics = pf.sample(
        posterior, pf.SGLD(settings.sampler_lr), chains=settings.chains, draws=settings.draws,
        burn_in=settings.burn_in, steps_between_draws=settings.steps_between_draws, batch_size=settings.sampler_batch,
        progress=False,
    )  # fmt: skip
    both = statistics.contributions().merge(statistics.susceptibilities()[["chi", "chi_error", "chi_group"]])
    both["r_hat"] = statistics.diagnostics()["r_hat"]
    return {str(name): (list(each.dims), torch.tensor(each.values)) for name, each in both.data_vars.items()}


def by_kind(part: Part, kinds: np.ndarray, n_beta: float) -> xr.Dataset:
    """Estimates by kind of string."""
    arrays = {str(name): (dims, each.numpy()) for name, (dims, each) in part.items()}
    coords = {"component": ["full"], "sample": np.arange(len(kinds))}
    return pf.aggregate(xr.Dataset(arrays, coords, {"n_beta": n_beta}), kinds, name="kind")


def findings(
    settings: Settings,
    kinds: np.ndarray,
    chosen: Mapping[str, int],
    estimates: Mapping[str, xr.Dataset],
    weights: Mapping[str, np.ndarray],
    runs: Mapping[str, Part],
) -> Findings:
    """What came out, in tables, sentences and pictures."""
    outcomes = [outcome(name, each, runs[BASE]) for name, each in runs.items()]
    return Findings(
        title="Choosing between two algorithms for parentheses",
        claim="Data weighted by what they contribute to the learning coefficients of two solutions that fit the "
        "training data alike decide which of them training finds (arXiv:2601.13548, §5).",
        goal="Of runs on weights for Nested at least 90 % have an accuracy out of distribution above 0.5, of runs on "
        "weights for Equal-Count at most 10 %; controls are as the base runs.",
        said=in_words(settings, outcomes, runs, chosen, estimates),
        seeds=list(range(settings.seeds)),
        tables={
            "Accuracy out of distribution": outcomes,
            "The two solutions": [
                solution(name, chosen[name], each, runs[BASE]) | foreseen(each, kinds, weights)
                for name, each in estimates.items()
            ],
            "Contributions and weights by kind of string": kind_rows(kinds, estimates, weights),
        },
        pictures={
            "outcomes": Picture(
                outcome_figure(runs, chosen),
                "Accuracy out of distribution of every run, by the weights it was trained on: 1 is Nested, 0 "
                "Equal-Count. Bars are medians; hollow points have not learned the task (test accuracy below "
                f"{LEARNED}). Circled are the base runs whose solutions the weights come from.",
            ),
            "contributions": Picture(
                contribution_figure(estimates, kinds, weights),
                "Left: what a kind of string contributes to λ̂ of either solution, with 95 % errors from independent "
                "chains. Right: the weights made of the difference.",
            ),
        },
        data={
            "runs": [
                {
                    "weights": name, "seed": seed, "step": step,
                    "test accuracy": float(each["test accuracy"][seed, at]),
                    "OOD accuracy": float(each["OOD accuracy"][seed, at]),
                }
                for name, each in runs.items()
                for seed in range(settings.seeds)
                for at, step in enumerate(each["steps"])
            ],
            "weights": [
                {"sample": sample, "kind": str(kinds[sample])}
                | {name: float(each[sample]) for name, each in weights.items()}
                for sample in range(len(kinds))
            ],
        },
    )  # fmt: skip


def final(run: Part) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy out of distribution at the end, and which runs have learned the task."""
    return run["OOD accuracy"][:, -1].numpy(), run["test accuracy"][:, -1].numpy() >= LEARNED


def share_of_learned(run: Part) -> str:
    """How many of the runs that have learned the task end above 0.5."""
    ood, learned = final(run)
    return f"{int((ood[learned] > 0.5).sum())} of {int(learned.sum())}"


def outcome(name: str, run: Part, base: Part) -> dict[str, Any]:
    """How the runs of a weighting ended, and whether that differs from the base runs."""
    (ood, learned), (base_ood, _) = final(run), final(base)
    above, base_above = int((ood > 0.5).sum()), int((base_ood > 0.5).sum())
    counts = [[above, len(ood) - above], [base_above, len(base_ood) - base_above]]
    same = name == BASE
    return {
        "weights": name,
        "runs": len(ood),
        "above 0.5": above / len(ood),
        "median": float(np.median(ood)),
        "least": float(ood.min()),
        "most": float(ood.max()),
        "have learned": int(learned.sum()),
        "p Mann–Whitney": float("nan") if same else float(scipy.stats.mannwhitneyu(ood, base_ood).pvalue),
        "p Fisher": float("nan") if same else float(scipy.stats.fisher_exact(counts).pvalue),
    }


def solution(name: str, seed: int, estimates: xr.Dataset, base: Part) -> dict[str, Any]:
    """A solution's learning coefficient and its errors."""
    return {
        "solution": name,
        "seed": seed,
        "OOD accuracy": float(base["OOD accuracy"][seed, -1]),
        "test accuracy": float(base["test accuracy"][seed, -1]),
        "llc": float(estimates["llc"][0]),
        "llc error": float(estimates["llc_error"][0]),
        "mean loss above w*": float(estimates["mu"][0]),
        "r_hat": float(estimates["r_hat"][0]),
    }


def foreseen(estimates: xr.Dataset, kinds: np.ndarray, weights: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How λ̂ of a solution is to change on the weights for either, at first order: Σ (ρ − 1)·contribution."""
    at = np.searchsorted(estimates["kind"].values, kinds)
    contributions = estimates["contribution"].values[0, at]
    return {f"change on ρ for {name}": float((weights[name] - 1) @ contributions) for name in (NESTED, COUNTING)}


def kind_rows(kinds: np.ndarray, estimates: Mapping[str, xr.Dataset], weights: Mapping[str, np.ndarray]) -> Rows:
    """Each kind of string: how many, what one contributes, in thousandths, and its weights."""
    rows: Rows = []
    for at, kind in enumerate(estimates[NESTED]["kind"].values):
        row: dict[str, Any] = {"kind": str(kind), "strings": int((kinds == kind).sum())}
        for name, each in estimates.items():
            row[f"{name}: 1000 · contribution"] = 1000 * float(each["contribution"][0, at])
            row[f"{name}: error"] = 1000 * float(each["contribution_error"][0, at])
        rows.append(row | {f"ρ for {name}": float(weights[name][kinds == kind].mean()) for name in estimates})
    return rows


def in_words(
    settings: Settings,
    outcomes: Rows,
    runs: Mapping[str, Part],
    chosen: Mapping[str, int],
    estimates: Mapping[str, xr.Dataset],
) -> list[str]:
    """The outcome against the goal, then what else there is to say."""
    row = {each["weights"]: each for each in outcomes}
    share = {name: each["above 0.5"] for name, each in row.items()}
    met = share[NESTED] >= 0.9 and share[COUNTING] <= 0.1
    (up, _), (down, _) = final(runs[NESTED]), final(runs[COUNTING])
    apart = float(scipy.stats.mannwhitneyu(up, down).pvalue)
    llc = {name: (float(each["llc"][0]), float(each["llc_error"][0])) for name, each in estimates.items()}
    said = [
        f"The goal is {'met' if met else 'not met'}: {share[NESTED]:.0%} of {settings.seeds} runs end above 0.5 on "
        f"weights for Nested, {share[COUNTING]:.0%} on weights for Equal-Count, {share[BASE]:.0%} without weights.",
        f"Medians are {row[NESTED]['median']:.2f}, {row[COUNTING]['median']:.2f} and {row[BASE]['median']:.2f}; "
        f"runs on the two weightings differ with p = {apart:.2g} (Mann–Whitney, two-sided).",
    ]
    if apart < 0.05 and row[NESTED]["median"] < row[COUNTING]["median"]:
        said.append(
            "The weights steer, but against their names: those that should favour Equal-Count give more of Nested. "
            "Data that cost a solution most when its parameters are perturbed are those that teach it."
        )
    for control, what in ((SHUFFLED, "the same weights dealt out at random"), (BALANCE, "their means by label")):
        shares = [f"{share[f'{name}, {control}']:.0%} (for {name})" for name in (NESTED, COUNTING)]
        ps = [f"{row[f'{name}, {control}']['p Mann–Whitney']:.2g}" for name in (NESTED, COUNTING)]
        said.append(
            f"On {what} {' and '.join(shares)} end above 0.5; they differ from the base runs with p = "
            f"{' and '.join(ps)}."
        )
    said.append(
        "λ̂ of the two solutions, at nβ = "
        f"{settings.n_beta:g} and localization {settings.localization:g}: "
        + ", ".join(f"{name} {value:.3g} ± {error:.2g} (seed {chosen[name]})" for name, (value, error) in llc.items())
        + "."
    )
    unlearned = {name: settings.seeds - each["have learned"] for name, each in row.items()}
    if any(unlearned.values()):
        said.append(
            f"Below a test accuracy of {LEARNED} stayed "
            + ", ".join(f"{count} of the runs on {name}" for name, count in unlearned.items() if count)
            + "; they are counted with the others. Of runs that learned it "
            + ", ".join(f"{share_of_learned(each)} on {name}" for name, each in runs.items())
            + " end above 0.5."
        )
    return said


def outcome_figure(runs: Mapping[str, Part], chosen: Mapping[str, int]) -> Figure:
    """Every run's accuracy out of distribution, by weights."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    for at, (name, each) in enumerate(runs.items()):
        ood, learned = final(each)
        across = at + jitter.uniform(-0.18, 0.18, len(ood))
        colour = COLOURS[2] if name.startswith(NESTED) else COLOURS[1] if name.startswith(COUNTING) else COLOURS[0]
        for mask, face in ((learned, colour), (~learned, "none")):
            axes.scatter(across[mask], ood[mask], s=26, facecolors=face, edgecolors=colour, alpha=0.8)
        if name == BASE:
            seeds = list(chosen.values())
            axes.scatter(across[seeds], ood[seeds], s=120, facecolors="none", edgecolors=COLOURS[5], linewidths=1.5)
        axes.hlines(np.median(ood), at - 0.3, at + 0.3, color=colour, linewidth=2)
    axes.axhline(0.5, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(runs)), [name.replace(", ", "\n") for name in runs])
    axes.set(ylabel="accuracy out of distribution", ylim=(-0.03, 1.03))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def contribution_figure(
    estimates: Mapping[str, xr.Dataset], kinds: np.ndarray, weights: Mapping[str, np.ndarray]
) -> Figure:
    """Contributions by kind of string beside the weights."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [str(kind) for kind in estimates[NESTED]["kind"].values]
    places = np.arange(len(names))
    for shift, colour, (solved, each) in zip((-0.19, 0.19), (COLOURS[2], COLOURS[1]), estimates.items(), strict=True):
        left.barh(
            places + shift, 1000 * each["contribution"].values[0], 0.36,
            xerr=1960 * each["contribution_error"].values[0], color=colour, label=solved,
        )  # fmt: skip
        means = [float(weights[solved][kinds == name].mean()) for name in names]
        right.barh(places + shift, means, 0.36, color=colour, label=f"for {solved}")
    left.set_yticks(places, names)
    left.axvline(0, color="black", linewidth=0.8)
    right.axvline(1, color="black", linewidth=0.8, linestyle="--")
    left.set_xlabel("1000 · contribution of a string to λ̂")
    right.set_xlabel("weight ρ")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
