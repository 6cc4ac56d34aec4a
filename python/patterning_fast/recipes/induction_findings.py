"""What the induction recipe's runs say: tables, sentences and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.stats
import xarray as xr
from matplotlib.figure import Figure

from patterning_fast.recipes.findings import Findings, Picture, Rows
from patterning_fast.report import figures

if TYPE_CHECKING:
    from patterning_fast.recipes.induction import Settings

GOALS = {"amplified": 1.4, "suppressed": 2.0, "control": 0.1}
"""Amplified runs this many times earlier, suppressed ones later; controls within this share of the base run."""


def findings(
    settings: Settings,
    runs: Mapping[str, Mapping[str, Any]],
    found: Mapping[int, Mapping[str, Any]],
    verified: Mapping[str, Any] | None,
) -> Findings:
    """All that is to be said of the runs, by `NAME, seed SEED`."""
    seeds = list(settings.seeds)
    names = ["base", *found[seeds[0]]["weights"]]
    formed = {name: [formed_at(runs, name, seed) for seed in seeds] for name in names}
    end = {name: [runs[f"{name}, seed {seed}"]["history"][-1] for seed in seeds] for name in names}
    tables: dict[str, Rows] = {
        "Runs": outcomes(names, formed, end),
        "Weights": weights_table(settings, found[seeds[0]], names[1:]),
        "Mean weight by domain": domain_table(found[seeds[0]], names[1:]),
        f"Modes of χ over heads, seed {seeds[0]}": modes_table(found[seeds[0]]),
        f"Components, seed {seeds[0]}": components_table(found[seeds[0]]),
        "Tokens the mode loads on most": extremes_table(found[seeds[0]]),
    }
    if len(seeds) > 1:
        tables["Circuit formed at step, by seed"] = [
            {"seed": seed} | {name: formed[name][at] for name in names} for at, seed in enumerate(seeds)
        ]
    pictures = {
        "curves": Picture(
            curves(runs, names, seeds), "Induction score of the best head over training; thin lines are single seeds."
        ),
        "chi": Picture(
            figures.chi_heat_map(*heat_map(found[seeds[0]])),
            "χ of tokens in some contexts. Red: up-weighting the token raises the component's mean loss shift; blue: "
            "it lowers it, as for tokens that the component serves.",
        ),
        "mode": Picture(
            mode_picture(found[seeds[0]]),
            "The mode taken as induction: its size, its heads beside scores measured apart from χ, its tokens.",
        ),
    }
    if len(names) > 4:
        pictures["ratios"] = Picture(
            ratios_picture(names[1:], formed, settings.train_steps),
            "When the circuit formed, over the base run of the same seed (log scale); triangles never formed it within "
            "the run. Dashed: the goals; shaded: within 10 %.",
        )
    llc = [
        {"run": name, "seed": seed, **row}
        for name in names
        for seed in seeds
        for row in runs[f"{name}, seed {seed}"]["llc"]
    ]
    if llc:
        pictures["llc"] = Picture(llc_picture(llc), "λ̂ of the whole model along training, mean and range over seeds.")
    if verified is not None:
        checked = verification_dataset(verified)
        pictures["verification"] = Picture(
            figures.verification(checked),
            "Predicted against realised change of each head's mean loss shift, sampled again under amplifying weights.",
        )
        tables["Predicted against realised dμ"] = [
            {
                "strength": strength,
                "verdict": verdict,
                **{f"realised / predicted, {name}": float(real / told) for name, real, told in each},
            }
            for strength, verdict, each in zip(
                verified["strength"],
                verified["verdict"],
                [
                    list(zip(verified["component"], real, told, strict=True))
                    for real, told in zip(verified["realised"].numpy(), verified["predicted"].numpy(), strict=True)
                ],
                strict=True,
            )
        ]
    return Findings(
        title="Patterning an induction circuit",
        claim="Re-weighting the data along the susceptibility mode that pairs induction tokens with induction heads "
        "makes the induction circuit form earlier or later (arXiv:2601.13548, §4).",
        goal="Amplified runs form the circuit at least 1.4 times as early, suppressed ones at least twice as late or "
        "not within the run, controls within 10 % of the base run.",
        said=in_words(settings, formed, found, verified),
        seeds=seeds,
        tables=tables,
        pictures=pictures,
        data={
            "curves": history_rows(runs, names, seeds),
            "weights": weight_columns(found[seeds[0]]),
            **({"llc": llc} if llc else {}),
        },
    )


def formed_at(runs: Mapping[str, Mapping[str, Any]], name: str, seed: int) -> float:
    """Step at which a run's induction score crosses half of the base run's last."""
    threshold = runs[f"base, seed {seed}"]["history"][-1]["induction_score"] / 2
    return crossing(runs[f"{name}, seed {seed}"]["history"], threshold)


def crossing(history: Sequence[Mapping[str, float]], threshold: float) -> float:
    """Step at which the induction score first reaches `threshold`, between the steps measured; NaN if it never does."""
    for before, after in pairwise(history):
        low, high = before["induction_score"], after["induction_score"]
        if low < threshold <= high:
            return before["step"] + (threshold - low) / (high - low) * (after["step"] - before["step"])
    return float("nan")


def outcomes(names: Sequence[str], formed: Mapping[str, list[float]], end: Mapping[str, list[Any]]) -> Rows:
    """One row a run: when the circuit formed and how the run ended, means over seeds."""
    rows: Rows = []
    for name in names:
        ratio = np.array(formed[name]) / np.array(formed["base"])
        there = ratio[np.isfinite(ratio)]
        rows.append(
            {
                "run": name,
                "formed": f"{int(np.isfinite(formed[name]).sum())} of {len(formed[name])}",
                "at step (median)": float(np.median(np.nan_to_num(formed[name], nan=np.inf))),
                "over base (median)": float(np.median(np.nan_to_num(ratio, nan=np.inf))),
                "over base (range)": f"{there.min():.2f}–{there.max():.2f}" if len(there) else "–",
                **{
                    f"final {label}": interval([row[key] for row in end[name]])
                    for key, label in (
                        ("induction_score", "induction score"),
                        ("in_context", "in-context score"),
                        ("loss_on_repeats", "loss on repeats"),
                        ("loss", "training loss"),
                    )
                },
            }
        )
    return rows


def interval(values: Sequence[float]) -> str:
    """Mean over seeds, with its 95 % interval where there are several."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def in_words(
    settings: Settings,
    formed: Mapping[str, list[float]],
    found: Mapping[int, Mapping[str, Any]],
    verified: Mapping[str, Any] | None,
) -> list[str]:
    """What came out, the goals first, sentence by sentence."""
    base = np.array(formed["base"])
    if not np.isfinite(base).all():
        return ["Not every base run formed the circuit, so nothing can be said of the others."]
    count = len(base)
    said = [
        f"The base runs formed the circuit at step {', '.join(f'{each:.0f}' for each in base)} "
        f"of {settings.train_steps}."
    ]
    for strength in settings.strengths:
        earlier = base / np.array(formed[f"amplified {strength:g}"])
        later = np.nan_to_num(np.array(formed[f"suppressed {strength:g}"]) / base, nan=np.inf)
        never = int(np.isinf(later).sum())
        good = int((np.nan_to_num(earlier) >= GOALS["amplified"]).sum()), int((later >= GOALS["suppressed"]).sum())
        slowest = "never" if np.isinf(later).all() else f"{later[np.isfinite(later)].min():.2f} times as late at least"
        said.append(
            f"At strength {strength:g} amplified runs formed it {np.nanmin(earlier):.2f} to {np.nanmax(earlier):.2f} "
            f"times as early (goal {GOALS['amplified']:g}: {good[0]} of {count} seeds), suppressed ones "
            + ("never within the run" if never == count else f"{slowest}, {never} of {count} never within the run")
            + f" (goal {GOALS['suppressed']:g}: {good[1]} of {count})."
        )
    for control in settings.controls:
        ratio = np.array(formed[control]) / base
        close = int((np.abs(ratio - 1) <= GOALS["control"]).sum())
        there = ratio[np.isfinite(ratio)]
        span = f"{there.min():.2f} to {there.max():.2f} times the base run's step" if len(there) else "never"
        said.append(f"Control {control}: {span}; within 10 % in {close} of {count} seeds.")
    for seed, each in found.items():
        by_tokens = each["similarity"][each["chosen"]]
        said.append(
            f"Seed {seed}: mode {each['chosen']} is taken as induction by its tokens (correlation {by_tokens:.2f} with "
            f"what induction can predict); its loadings on heads correlate {by_heads(each):.2f} with attention scores."
        )
    for seed, each in found.items():
        if each["continued"] is not None:
            said.append(
                f"Seed {seed}: weights are of the mode continued from {len(each['predictable'])} to all "
                f"{settings.contexts} contexts; on known contexts that were left out of the fit it correlates "
                f"{each['continued']:.2f} with the mode itself."
            )
    if verified is not None:
        said.append(
            f"Sampled again under the weights, the prediction is kept up to a strength of {verified['radius']:.2g}; "
            "the weights are used for their direction, not for the size that linear response predicts."
        )
    said += [f"SHA-256 of the text: {text}." for text in sorted({each["text_sha256"] for each in found.values()})]
    return said


def by_heads(found: Mapping[str, Any]) -> float:
    """Correlation of the chosen mode's loadings with the better attention score of each head."""
    circuit = [max(found["scores"][name].values()) for name in found["heads"]]
    return float(np.corrcoef(found["modes"]["component_loading"][found["chosen"]].numpy(), circuit)[0, 1])


def weights_table(settings: Settings, found: Mapping[str, Any], names: Sequence[str]) -> Rows:
    """The weights of each run: their spread, and their mean on each class of tokens."""
    rows: Rows = []
    items = found["predictable"].numel()
    classes = token_classes(found)
    for name in names:
        rho = found["weights"][name].double()
        shown = rho[: len(found["predictable"])].numpy()
        rows.append(
            {
                "run": name,
                "mean ρ": float(rho.mean()),
                "strength α": float((rho - 1).square().mean().sqrt()),
                "αβ": float((rho - 1).square().mean().sqrt()) * settings.n_beta / items,
                "negative before policy": found["negative before policy"].get(name, float("nan")),
                "at zero": float((rho == 0).double().mean()),
                "effective tokens": float(rho.sum() ** 2 / rho.square().sum()),
            }
            | {
                f"ρ: {label}": float(shown[mask].mean()) if mask.any() else float("nan")
                for label, mask in classes.items()
            }
        )
    return rows


def domain_table(found: Mapping[str, Any], names: Sequence[str]) -> Rows:
    """Mean weights of each run on the contexts that χ is of, by domain."""
    domains = np.array(found["domain"])
    by_context = {name: found["weights"][name][: len(domains)].double().mean(1).numpy() for name in names}
    return [
        {"domain": str(domain), "contexts": int((domains == domain).sum())}
        | {name: float(each[domains == domain].mean()) for name, each in by_context.items()}
        for domain in np.unique(domains)
    ]


def token_classes(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Masks over tokens `[contexts, T]` that χ is of: predictable by induction or not, and in the quoted domain or
    not where there is one."""
    predictable = found["predictable"].numpy()
    seen = {"seen before": predictable, "first time": ~predictable}
    quoted = np.broadcast_to(np.array(found["domain"])[:, None] == "quoted", predictable.shape)
    if not quoted.any():
        return seen
    where = {"quoted": quoted, "other text": ~quoted}
    return {f"{place}, {when}": here & then for place, here in where.items() for when, then in seen.items()}


def modes_table(found: Mapping[str, Any]) -> Rows:
    """Each mode's size, loadings on heads, and likeness to induction by its tokens."""
    modes = found["modes"]
    return [
        {
            "mode": index,
            "singular value": float(modes["singular_value"][index]),
            "error": float(modes["singular_value_error"][index]),
            "noise floor": found["noise_floor"],
        }
        | dict(zip(found["heads"], modes["component_loading"][index].tolist(), strict=True))
        | {"r with predictable tokens": found["similarity"][index]}
        for index in range(len(modes["singular_value"]))
    ]


def components_table(found: Mapping[str, Any]) -> Rows:
    """λ̂ with its error, R̂, and attention scores by component."""
    return [
        row
        | {
            f"{kind.replace('_', ' ')} score": found["scores"].get(row["component"], {}).get(kind, float("nan"))
            for kind in ("induction", "previous_token")
        }
        for row in found["components"]
    ]


def extremes_table(found: Mapping[str, Any]) -> Rows:
    return [row | {"text so far": row["text so far"][-40:]} for row in found["extremes"]]


def heat_map(found: Mapping[str, Any]) -> tuple[xr.Dataset, list[int], list[str]]:
    """χ of the contexts kept for showing, their numbers and domains."""
    chi = found["chi"].double()
    heads, contexts, length = chi.shape
    table = xr.Dataset(
        {"chi": (("component", "token"), chi.reshape(heads, -1).numpy())},
        coords={"component": found["heads"], "sample": ("token", np.repeat(np.arange(contexts), length))},
    )
    return table, list(range(contexts)), found["shown"]


def mode_picture(found: Mapping[str, Any]) -> Figure:
    modes = found["modes"]
    loadings = np.zeros((len(modes["singular_value"]), found["data_loading"].numel()), np.float32)
    loadings[found["chosen"]] = found["data_loading"].numpy()
    table = xr.Dataset(
        {
            "singular_value": ("mode", modes["singular_value"].numpy()),
            "singular_value_error": ("mode", modes["singular_value_error"].numpy()),
            "component_loading": (("mode", "component"), modes["component_loading"].numpy()),
            "data_loading": (("mode", "token"), loadings),
        },
        coords={"component": found["heads"]},
        attrs={"noise_floor": found["noise_floor"]},
    )
    classes = {name: mask.flatten() for name, mask in token_classes(found).items()}
    return figures.mode_loadings(table, found["chosen"], found["scores"], classes)


def curves(runs: Mapping[str, Mapping[str, Any]], names: Sequence[str], seeds: Sequence[int]) -> Figure:
    """Induction scores over training: a thin line a run, their mean thick; controls in grey."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in names:
        colour, line = style(name)
        found = [runs[f"{name}, seed {seed}"]["history"] for seed in seeds]
        steps = [row["step"] for row in found[0]]
        scores = np.array([[row["induction_score"] for row in each] for each in found])
        if len(seeds) > 1:
            axes.plot(steps, scores.T, color=colour, linewidth=0.5, alpha=0.4)
        axes.plot(steps, scores.mean(0), color=colour, linestyle=line, linewidth=2, label=name)
    threshold = np.mean([runs[f"base, seed {seed}"]["history"][-1]["induction_score"] for seed in seeds]) / 2
    axes.axhline(threshold, color="#888888", linewidth=0.8)
    axes.annotate(
        "half of the base run's final score", (0, threshold), xytext=(2, 3), textcoords="offset points", fontsize=8
    )
    axes.set(xlabel="training step", ylabel="induction score (best head)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def style(name: str) -> tuple[str, Any]:
    """Colour and line of a run: one colour a kind; weaker plans and controls are broken lines."""
    kind, _, strength = name.partition(" ")
    if kind in ("amplified", "suppressed"):
        lines = {True: "-", False: (0, (1 + 10 * float(strength), 1.5))}
        return figures.COLOURS[1 if kind == "amplified" else 2], lines[float(strength) >= 0.5]
    of_controls = {
        "random": (3, "--"),
        "loss-matched": (5, "-."),
        "matched early": (4, "-."),
        "loss alone": (4, ":"),
        "length-matched": (3, "-."),
        "gradient": (4, "--"),
        "no loss": (5, ":"),
    }
    colour, line = of_controls.get(name, (0, "-"))
    return figures.COLOURS[colour], line


def ratios_picture(names: Sequence[str], formed: Mapping[str, list[float]], steps: int) -> Figure:
    """When each run formed the circuit over its base run, a point a seed."""
    figure = Figure(figsize=(8, 0.8 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    base = np.array(formed["base"])
    axes.axvspan(1 - GOALS["control"], 1 + GOALS["control"], color="#eeeeee", linewidth=0)
    for goal in (1 / GOALS["amplified"], GOALS["suppressed"]):
        axes.axvline(goal, color="#888888", linewidth=0.8, linestyle="--")
    for row, name in enumerate(names):
        ratio = np.array(formed[name]) / base
        never = ~np.isfinite(ratio)
        colour = style(name)[0]
        axes.plot(ratio[~never], np.full((~never).sum(), row), "o", color=colour)
        axes.plot((steps / base)[never], np.full(never.sum(), row), ">", color=colour, fillstyle="none")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="step at which the circuit formed, over that of the base run")
    ticks = [0.4, 0.5, 0.7, 1.0, 1.4, 2.0]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def llc_picture(llc: Rows) -> Figure:
    """λ̂ along training of the runs that were followed."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["run"] for row in llc):
        rows = [row for row in llc if row["run"] == name]
        steps = sorted({row["step"] for row in rows})
        values = [[row["llc"] for row in rows if row["step"] == step] for step in steps]
        means = np.array([np.mean(each) for each in values])
        spread = np.array([(np.mean(each) - min(each), max(each) - np.mean(each)) for each in values]).T
        colour, line = style(name)
        axes.errorbar(steps, means, spread, color=colour, linestyle=line, marker="o", capsize=3, label=name)
    axes.set(xlabel="training step", ylabel="λ̂ of the whole model")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def verification_dataset(verified: Mapping[str, Any]) -> xr.Dataset:
    """What `figures.verification` draws."""
    both = ("strength", "component")
    return xr.Dataset(
        {
            name: (both, verified[name].numpy())
            for name in ("predicted", "predicted_error", "realised", "realised_error")
        }
        | {"verdict": ("strength", np.array(verified["verdict"]))},
        coords={"strength": verified["strength"], "component": verified["component"]},
        attrs={"radius": verified["radius"]},
    )


def history_rows(runs: Mapping[str, Mapping[str, Any]], names: Sequence[str], seeds: Sequence[int]) -> Rows:
    """Every measured step of every run."""
    return [
        {"run": name, "seed": seed, **row}
        for name in names
        for seed in seeds
        for row in runs[f"{name}, seed {seed}"]["history"]
    ]


def weight_columns(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of the first seed's runs, by token of the contexts that χ is of."""
    samples, positions = np.indices(found["predictable"].shape).astype(np.int32)
    places = {"sample": samples.flatten(), "position": positions.flatten()}
    weights = {name: each[: len(samples)].numpy() for name, each in found["weights"].items()}
    return places | {name: each.astype(np.float32).flatten() for name, each in weights.items()}
