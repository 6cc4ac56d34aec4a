"""What the parentheses recipe's runs say: tables, sentences and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.stats
import xarray as xr
from matplotlib.figure import Figure

from patterning_fast.recipes.findings import Findings, Picture, Rows
from patterning_fast.report.figures import COLOURS

if TYPE_CHECKING:
    from patterning_fast.recipes.parentheses import Settings

LEARNED = 0.99
"""Test accuracy from which a run has learned the task: only then do its answers out of distribution show a rule."""

BASE, NESTED, COUNTING = "base", "Nested", "Equal-Count"
LLC, CHI, RESPONSE, BY_HAND = "by λ̂", "by χ ", "by response of training", "by hand"
HELD = f"{RESPONSE}, task held"
OOD, FAILING = "OOD accuracy", "log test error"
SHUFFLED, BALANCE = "shuffled", "labels alone"
AT_LEAST, AT_MOST = 0.9, 0.1

Part = dict[str, Any]


def named(way: str, favoured: str, strength: float | None = None) -> str:
    """The name of the weights that favour a solution, made in a way."""
    return f"{favoured}, {way}" + ("" if strength is None else f", {strength:g}")


def early(step: int) -> str:
    """The way that answers to data after so many steps make."""
    return f"{CHI}at step {step}"


def findings(
    settings: Settings,
    kinds: np.ndarray,
    chosen: Mapping[str, list[int]],
    sources: Part,
    estimates: Mapping[str, xr.Dataset],
    answers: Mapping[str, xr.Dataset],
    response: xr.Dataset,
    weights: Mapping[str, np.ndarray],
    refused: Mapping[str, str],
    runs: Mapping[str, Part],
    verified: Mapping[str, Mapping[str, Any]],
) -> Findings:
    """What came out, in tables, sentences and pictures."""
    outcomes = [outcome(name, each, runs[BASE]) for name, each in runs.items()]
    expected = expected_rows(response, kinds, weights, runs)
    everywhere = {**answers, **{name: response.sel(component=[name]) for name in (OOD, FAILING)}}
    return Findings(
        title="Choosing between two algorithms for parentheses",
        claim="Data weighted by what they contribute to the learning coefficients of two solutions that fit the "
        "training data alike decide which of them training finds (arXiv:2601.13548, §5).",
        goal="Of runs on weights for Nested at least 90 % have an accuracy out of distribution above 0.5, of runs on "
        "weights for Equal-Count at most 10 %; controls are as the base runs.",
        said=[*in_words(settings, outcomes, runs, estimates, refused, verified), in_agreement(expected)],
        seeds=list(range(settings.seeds)),
        tables={
            "Accuracy out of distribution": outcomes,
            "The solutions that weights are made of": [
                solution(name, seed, at, each, sources)
                for name, each in estimates.items()
                for at, seed in enumerate(chosen[name])
            ],
            "Contributions and χ by kind of string": kind_rows(kinds, estimates, everywhere),
            "Directions of weights, as cosines": cosine_rows(kinds, estimates, everywhere),
            "Weights by kind of string": weight_rows(kinds, weights),
            "What the response of training says of all weights": expected,
        }
        | verification_table(verified),
        pictures={
            "outcomes": Picture(
                outcome_figure(runs),
                "Accuracy out of distribution of every run, by the weights it was trained on: 1 is Nested, 0 "
                "Equal-Count. Bars are medians; hollow points have not learned the task (test accuracy below "
                f"{LEARNED}).",
            ),
            "contributions": Picture(
                contribution_figure(settings, estimates, everywhere, kinds, weights),
                "What a kind of string contributes to λ̂ of solutions of either kind, with 95 % errors of chains; how "
                "nestedness early in training, and accuracy out of distribution and the logarithm of the error on the "
                "task at its end, answer to more of it, beyond the mean over unbalanced strings, with 95 % errors of "
                "how runs differ; the weights.",
            ),
            "response": Picture(
                expected_figure(expected),
                "Mean accuracy out of distribution of the runs on each weighting, less that of the base runs: what the "
                "response of training, fitted to other runs on weights drawn at random, predicts to first order, and "
                "what came out, with 95 % errors. For weights made of that response the prediction is too large by the "
                "square of its noise.",
            ),
        }
        | verification_picture(verified),
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
            "response_runs": [
                {"run": int(run), **dict(zip(map(str, response["kind"].values), rho, strict=True)),
                 **dict(zip(map(str, response["component"].values), ended, strict=True))}
                for run, (rho, ended) in enumerate(
                    zip(response["weights"].values.tolist(), response["outcomes"].values.T.tolist(), strict=True)
                )
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
        "have learned": int(learned.sum()),
        "of these above 0.5": float((ood[learned] > 0.5).mean()) if learned.any() else float("nan"),
        "median": float(np.median(ood)),
        "least": float(ood.min()),
        "most": float(ood.max()),
        "p Mann–Whitney": float("nan") if same else float(scipy.stats.mannwhitneyu(ood, base_ood).pvalue),
        "p Fisher": float("nan") if same else float(scipy.stats.fisher_exact(counts).pvalue),
    }


def solution(name: str, seed: int, at: int, estimates: xr.Dataset, sources: Part) -> dict[str, Any]:
    """A solution's learning coefficient and its errors."""
    return {
        "solution": name,
        "run": seed,
        "OOD accuracy": float(sources["OOD accuracy"][seed, -1]),
        "test accuracy": float(sources["test accuracy"][seed, -1]),
        "llc": float(estimates["llc"][at]),
        "llc error": float(estimates["llc_error"][at]),
        "mean loss above w*": float(estimates["mu"][at]),
        "r_hat": float(estimates["r_hat"][at]),
    }


def kind_rows(kinds: np.ndarray, estimates: Mapping[str, xr.Dataset], answers: Mapping[str, xr.Dataset]) -> Rows:
    """Each kind of string: how many, what one contributes, and how nestedness answers to it, in thousandths."""
    columns = {
        f"1000 · contribution, {name}": (each["contribution"].values[0], each["contribution_error"].values[0])
        for name, each in estimates.items()
    }
    columns |= {f"1000 · {answering(name)}": relative(each) for name, each in answers.items()}
    return [
        {"kind": str(kind), "strings": int((kinds == kind).sum())}
        | {label: f"{1000 * mean[at]:.3g} ± {1000 * error[at]:.2g}" for label, (mean, error) in columns.items()}
        for at, kind in enumerate(estimates[NESTED]["kind"].values)
    ]


def answering(way: str) -> str:
    """What answers to data in the estimate that a way is made of."""
    return f"χ of nestedness {way.removeprefix(CHI)}" if way.startswith(CHI) else f"response of {way}"


def relative(answers: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """χ `[kinds]` beyond its mean over unbalanced strings, which is what weights are made of, and its error."""
    chi = answers["chi_group"].values[0]
    counts = np.where(answers["kind"].values == "balanced", 0, answers["count"].values)
    beyond = chi - (chi @ counts / counts.sum())[:, None]
    return beyond.mean(0), beyond.std(0, ddof=1) / np.sqrt(len(chi))


def cosine_rows(kinds: np.ndarray, estimates: Mapping[str, xr.Dataset], answers: Mapping[str, xr.Dataset]) -> Rows:
    """How alike the directions for Nested are that ways give over the strings, balanced ones left out."""
    unbalanced = estimates[NESTED]["kind"].values != "balanced"
    count = np.array([(kinds == kind).sum() for kind in estimates[NESTED]["kind"].values])[unbalanced]
    less = estimates[COUNTING]["contribution"].values[0] - estimates[NESTED]["contribution"].values[0]
    directions = {LLC: less[unbalanced]} | {name: relative(each)[0][unbalanced] for name, each in answers.items()}
    unit = {}
    for name, each in directions.items():
        centred = np.sqrt(count) * (each - each @ count / count.sum())
        unit[name] = centred / np.linalg.norm(centred)
    return [{"way": name} | {other: float(each @ unit[other]) for other in unit} for name, each in unit.items()]


def expected_rows(
    response: xr.Dataset, kinds: np.ndarray, weights: Mapping[str, np.ndarray], runs: Mapping[str, Part]
) -> Rows:
    """Of each weighting, the change of mean accuracy out of distribution that the response predicts, and what came."""
    share = response["count"].values / response["count"].values.sum()
    base, _ = final(runs[BASE])
    rows: Rows = []
    for name, each in weights.items():
        mass = share * (np.array([each[kinds == kind].mean() for kind in response["kind"].values]) / each.mean() - 1.0)
        of_runs = response["chi_group"].values[0] @ mass
        ood, _ = final(runs[name])
        rows.append(
            {
                "weights": name,
                "predicted": float(of_runs.mean()),
                "predicted error": float(of_runs.std(ddof=1) / np.sqrt(len(of_runs))),
                "realised": float(ood.mean() - base.mean()),
                "realised error": float(np.sqrt(ood.var(ddof=1) / len(ood) + base.var(ddof=1) / len(base))),
            }
        )
    return rows


def in_agreement(expected: Rows) -> str:
    """How well the response of training tells what came of all weights that are not made of it."""
    others = [row for row in expected if RESPONSE not in row["weights"]]
    predicted, realised = ([row[name] for row in others] for name in ("predicted", "realised"))
    test = scipy.stats.spearmanr(predicted, realised)
    return (
        f"Over the {len(others)} weightings that are not made of it, what the response of training predicts and the "
        f"mean accuracy that came out have a rank correlation of {test.statistic:.2f} (p = {test.pvalue:.1g})."
    )


def weight_rows(kinds: np.ndarray, weights: Mapping[str, np.ndarray]) -> Rows:
    """Mean weights of each kind of string, where kinds tell weights."""
    own = {name: each for name, each in weights.items() if not is_control(name)}
    return [
        {"kind": str(kind)} | {name: float(each[kinds == kind].mean()) for name, each in own.items()}
        for kind in np.unique(kinds)
    ]


def in_words(
    settings: Settings,
    outcomes: Rows,
    runs: Mapping[str, Part],
    estimates: Mapping[str, xr.Dataset],
    refused: Mapping[str, str],
    verified: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """The outcome against the goal, then what else there is to say."""
    row = {each["weights"]: each for each in outcomes}
    base = row[BASE]
    said = [
        f"Without weights {base['above 0.5']:.0%} of {settings.seeds} runs end above 0.5 (median "
        f"{base['median']:.2f}, {base['have learned']} have learned the task)."
    ]
    for way in (LLC, *(early(step) for step in settings.early_steps), RESPONSE, HELD):
        if way in refused:
            said.append(f"Weights {way} were not made: {refused[way]}.")
            continue
        for strength in settings.strengths:
            up, down = (row[named(way, name, strength)] for name in (NESTED, COUNTING))
            said.append(against_goal(way, strength, up, down, runs))
        for control, what in ((SHUFFLED, "dealt out at random"), (BALANCE, "of their means by label")):
            if f"{named(way, NESTED, settings.strengths[-1])}, {control}" not in row:
                continue
            both = [row[f"{named(way, name, settings.strengths[-1])}, {control}"] for name in (NESTED, COUNTING)]
            said.append(
                f"The same {way}, {settings.strengths[-1]:g}, {what}: {both[0]['above 0.5']:.0%} (for Nested) and "
                f"{both[1]['above 0.5']:.0%} (for Equal-Count) end above 0.5; they differ from the base runs with p = "
                f"{both[0]['p Mann–Whitney']:.2g} and {both[1]['p Mann–Whitney']:.2g}."
            )
    hand = row[named(BY_HAND, COUNTING)]
    said.append(
        f"Weights by hand, few of the unbalanced strings that dip below 0: {hand['above 0.5']:.0%} end above 0.5, "
        f"{hand['have learned']} have learned. No estimate has a part in these; they show how far weights can go."
    )
    for name, each in estimates.items():
        values = ", ".join(f"{float(value):.3g}" for value in each["llc"])
        said.append(
            f"λ̂ of {name} solutions at nβ = {settings.n_beta:g} and localization {settings.localization:g}: {values}."
        )
    for name, found in verified.items():
        verdicts = ", ".join(
            f"{verdict} at {strength:.2g}"
            for verdict, strength in zip(found["verdict"], found["strength"], strict=True)
        )
        said.append(
            f"Sampled again at a solution of {name} on weights for it by λ̂, the prediction of dμ is {verdicts}."
        )
    return said


def against_goal(
    way: str, strength: float, up: Mapping[str, Any], down: Mapping[str, Any], runs: Mapping[str, Part]
) -> str:
    """What weights for Nested and for Equal-Count came to."""
    met = up["above 0.5"] >= AT_LEAST, down["above 0.5"] <= AT_MOST
    apart = float(scipy.stats.mannwhitneyu(*(final(runs[each["weights"]])[0] for each in (up, down))).pvalue)
    parts = [
        f"{each['above 0.5']:.0%} for {name} (goal {'met' if good else 'not met'}; median {each['median']:.2f}, "
        f"{each['have learned']} have learned)"
        for name, each, good in zip((NESTED, COUNTING), (up, down), met, strict=True)
    ]
    against = ", against their names" if apart < 0.05 and up["median"] < down["median"] else ""
    return (
        f"Weights {way}, strength {strength:g}: {parts[0]}, {parts[1]}; the two differ{against} with p = {apart:.2g} "
        "(Mann–Whitney, two-sided)."
    )


def colour_of(name: str) -> str:
    return COLOURS[2] if name.startswith(NESTED) else COLOURS[1] if name.startswith(COUNTING) else COLOURS[0]


def outcome_figure(runs: Mapping[str, Part]) -> Figure:
    """Every run's accuracy out of distribution, by weights."""
    figure = Figure(figsize=(9, 0.9 + 0.42 * len(runs)), layout="constrained")
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    for at, (name, each) in enumerate(runs.items()):
        ood, learned = final(each)
        down, colour = at + jitter.uniform(-0.2, 0.2, len(ood)), colour_of(name)
        for mask, face in ((learned, colour), (~learned, "none")):
            axes.scatter(ood[mask], down[mask], s=22, facecolors=face, edgecolors=colour, alpha=0.8)
        axes.vlines(np.median(ood), at - 0.32, at + 0.32, color=colour, linewidth=2)
    axes.axvline(0.5, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(runs)), list(runs))
    axes.set(xlabel="accuracy out of distribution", xlim=(-0.03, 1.03), ylim=(len(runs) - 0.5, -0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def contribution_figure(
    settings: Settings,
    estimates: Mapping[str, xr.Dataset],
    answers: Mapping[str, xr.Dataset],
    kinds: np.ndarray,
    weights: Mapping[str, np.ndarray],
) -> Figure:
    """Contributions and χ by kind of string beside the weights."""
    figure = Figure(figsize=(3 + 3 * (2 + len(answers)), 6.5), layout="constrained")
    widths = [1.0] * (1 + len(answers)) + [1.4]
    left, *middle, right = figure.subplots(1, 2 + len(answers), sharey=True, width_ratios=widths)
    names = [str(kind) for kind in estimates[NESTED]["kind"].values]
    places = np.arange(len(names))
    for shift, (solved, each) in zip((-0.19, 0.19), estimates.items(), strict=True):
        left.barh(
            places + shift, 1000 * each["contribution"].values[0], 0.36,
            xerr=1960 * each["contribution_error"].values[0], color=colour_of(solved), label=solved,
        )  # fmt: skip
    for axes, (name, each) in zip(middle, answers.items(), strict=True):
        mean, error = relative(each)
        axes.barh(places, 1000 * mean, 0.5, xerr=1960 * error, color="#888888")
        axes.set_xlabel(f"1000 · {answering(name)}")
    ways = (LLC, early(settings.early_steps[0]), HELD)
    shown = [named(way, name, settings.strengths[-1]) for way in ways for name in (NESTED, COUNTING)]
    shown = [name for name in shown if name in weights]
    for at, name in enumerate(shown):
        means = [float(weights[name][kinds == kind].mean()) for kind in names]
        hatch = ("", "///", "...")[at // 2]
        right.barh(
            places - 0.35 + 0.14 * at, means, 0.13, color=colour_of(name), label=name, hatch=hatch, edgecolor="white"
        )
    left.set_yticks(places, names)
    left.set_xlabel("1000 · contribution of a string to λ̂")
    right.set_xlabel("weight ρ")
    for axes in (left, *middle):
        axes.axvline(0, color="black", linewidth=0.8)
    right.axvline(1, color="black", linewidth=0.8, linestyle="--")
    for axes in (left, *middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False, fontsize=8)
    return figure


def expected_figure(expected: Rows) -> Figure:
    """Predicted against realised change of accuracy, a point a weighting."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.axline((0, 0), slope=1, color="#888888", linewidth=0.8)
    for label, marker, belongs in (
        ("by response of training", "o", lambda name: RESPONSE in name and HELD not in name and not is_control(name)),
        ("the same, task held", "^", lambda name: HELD in name and not is_control(name)),
        ("other ways, by hand", "s", lambda name: RESPONSE not in name and not is_control(name)),
        ("controls", "x", is_control),
    ):
        rows = [row for row in expected if belongs(row["weights"])]
        for favoured in (NESTED, COUNTING):
            own = [row for row in rows if row["weights"].startswith(favoured)]
            x, across, y, up = (
                np.array([row[name] for row in own])
                for name in ("predicted", "predicted error", "realised", "realised error")
            )
            axes.errorbar(
                x, y, 1.96 * up, 1.96 * across, fmt=marker, color=colour_of(favoured), elinewidth=0.6, markersize=5,
                label=f"{favoured}, {label}",
            )  # fmt: skip
    axes.set(xlabel="predicted change of mean OOD accuracy", ylabel="realised change")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def is_control(name: str) -> bool:
    return name.endswith((SHUFFLED, BALANCE))


def verification_table(verified: Mapping[str, Mapping[str, Any]]) -> dict[str, Rows]:
    columns = ("strength", "predicted", "predicted_error", "realised", "realised_error", "verdict")
    rows = [
        {"solution": name} | dict(zip(columns, values, strict=True))
        for name, each in verified.items()
        for values in zip(*(each[column] for column in columns), strict=True)
    ]
    return {"Predicted against realised dμ": rows} if rows else {}


def verification_picture(verified: Mapping[str, Mapping[str, Any]]) -> dict[str, Picture]:
    caption = (
        "Predicted against realised change of a solution's mean loss shift on the weights for it by λ̂, by strength."
    )
    return {"verification": Picture(verification_figure(verified), caption)} if verified else {}


def verification_figure(verified: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Predicted against realised dμ at a solution of either kind, a point a strength."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axline((0, 0), slope=1, color="#888888", linewidth=0.8)
    for (name, each), marker in zip(verified.items(), "os", strict=True):
        across, up = (1.96 * np.array(each[f"{side}_error"]) for side in ("predicted", "realised"))
        axes.errorbar(
            each["predicted"], each["realised"], up, across, fmt=marker, color=colour_of(name), capsize=2, label=name
        )
        for strength, x, y in zip(each["strength"], each["predicted"], each["realised"], strict=True):
            axes.annotate(f"{strength:.2g}", (x, y), xytext=(6, -9), textcoords="offset points", fontsize=8)
    axes.set(xlabel="predicted dμ [nats]", ylabel="realised dμ [nats]")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
