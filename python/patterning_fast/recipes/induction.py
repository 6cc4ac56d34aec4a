"""The induction recipe: find the data that an induction circuit answers to, and retrain with more or less of it.

After arXiv:2601.13548, §4: susceptibilities of every attention head on every training token, their modes, the mode that
is induction, and retraining from the same start with that mode amplified, suppressed, and at random.
"""

from __future__ import annotations

import copy
import json
import platform
import string
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure

import patterning_fast as pf
from patterning_fast.engine.workers import one_thread_each
from patterning_fast.models.attention_only import AttentionOnlyLM
from patterning_fast.report import figures, html
from patterning_fast.report.output import RESULTS, output_folder
from patterning_fast.tasks.found_text import CHARACTERS, Contexts, decode, encode, found_text_contexts
from patterning_fast.tasks.induction import RepeatedStrings, predictable_by_induction, repeated_strings

RUNS = ("base", "amplified", "suppressed", "random")


@dataclass(frozen=True)
class InductionRecipe:
    """Sizes and settings of one run of the recipe."""

    contexts: int
    length: int
    shares: dict[str, float] = field(
        default_factory=lambda: {"code": 1 / 6, "reference": 1 / 6, "metadata": 1 / 6, "quoted": 1 / 2}
    )
    width: int = 64
    heads: int = 2
    head_width: int = 32
    train_steps: int = 1500
    train_batch: int = 64
    train_lr: float = 3e-3
    weight_decay: float = 0.01
    metrics_every: int = 25
    n_beta: float = 30.0
    localization: float = 20.0
    lr: float = 1e-3
    chains: int = 8
    draws: int = 12
    steps_between_draws: int = 3
    strength: float = 0.3


DEMO = InductionRecipe(contexts=2048, length=65)
QUICK = InductionRecipe(
    contexts=128, length=33, train_steps=40, train_batch=32, metrics_every=10, chains=4, draws=3, steps_between_draws=2
)

History = list[dict[str, float]]
Rows = list[dict[str, Any]]
Findings = dict[str, Any]
"""Everything the recipe found, as it goes into results.json."""


class Stopped(Exception):
    """Raised in a training thread once another has failed or Ctrl-C was pressed."""


def run(recipe: InductionRecipe, out: Path, seed: int) -> str:
    """Run the recipe, write its results into the folder `out` and return a summary for the terminal.

    Writes results.json, susceptibilities.nc, weights.nc, three pictures and report.html, all or none.
    Raises OSError where `out` cannot be written, before any work.
    """
    losses = recipe.contexts * (recipe.length - 1)
    with output_folder(out, expected_bytes=2**22 + 128 * losses) as folder:
        started = time.monotonic()
        contexts = found_text_contexts(recipe.contexts, recipe.length, recipe.shares, seed=seed + 1)
        letters = torch.from_numpy(encode(string.ascii_letters + string.digits + "-_"))
        test = repeated_strings(letters, 64, recipe.length, seed=seed + 2)
        seconds = {"text": time.monotonic() - started}

        started = time.monotonic()
        start = initial_model(recipe, seed)
        trained = train_side_by_side(recipe, start, contexts, test, {"base": None}, seed)
        seconds["base run"] = time.monotonic() - started

        base, _ = trained["base"]
        posterior = pf.LocalPosterior(
            base, pf.losses.next_token, contexts.tokens, n_beta=recipe.n_beta, localization=recipe.localization
        )
        statistics = pf.sample(
            posterior,
            pf.SGLD(recipe.lr),
            components=pf.attention_heads(base),
            probes={"training": posterior.data},
            chains=recipe.chains,
            draws=recipe.draws,
            steps_between_draws=recipe.steps_between_draws,
            antithetic=True,
            seed=seed,
        )
        seconds["chains"] = statistics.attrs["seconds"]
        chi = statistics.susceptibilities()
        on_heads = chi.sel(component=[name for name in chi["component"].values if name != "full"])
        predictable = predictable_by_induction(contexts.tokens).flatten().numpy()
        scores = test.head_scores(base)
        # With four heads, three of which make the circuit, the mean over heads is the circuit: keep it.
        modes, similarity = towards_induction(pf.modes(on_heads, centre_data=False), predictable)
        chosen = int(np.argmax(similarity))
        mode = modes[chosen]
        plans = {
            "amplified": pf.invert(on_heads, mode, strength=recipe.strength),
            "suppressed": pf.invert(on_heads, -mode, strength=recipe.strength),
        }
        weights = {name: plan.weights for name, plan in plans.items()}
        # The amplifying weights dealt out at random: the same norm and spread, in a random direction.
        shuffled = np.random.default_rng(seed).permutation(weights["amplified"].values)
        weights["random"] = weights["amplified"].copy(data=shuffled)

        started = time.monotonic()
        trained |= train_side_by_side(recipe, start, contexts, test, weights, seed)
        seconds["three retrained runs"] = time.monotonic() - started

        histories = {name: history for name, (_, history) in trained.items()}
        rows = outcome_table(histories)
        classes = token_classes(contexts, predictable)
        pictures = {
            "curves": figures.curves(
                {
                    name: ([row["step"] for row in each], [row["induction_score"] for row in each])
                    for name, each in histories.items()
                },
                histories["base"][-1]["induction_score"] / 2,
                "induction score (best head)",
            ),
            "chi": heat_map(chi, contexts),
            "mode": figures.mode_loadings(modes.table, chosen, scores, classes),
        }
        findings: Findings = {
            "recipe": asdict(recipe) | {"seed": seed},
            "machine": {
                "processor": platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
            "text_sha256": contexts.text_sha256,
            "seconds": seconds,
            "runs": rows,
            "histories": histories,
            "component_estimates": component_rows(statistics, chi, scores),
            "modes": mode_rows(modes, similarity, scores),
            "induction_mode": chosen,
            "plans": plan_rows(plans, weights, classes),
        }
        extreme = extreme_tokens(mode, contexts)
        write(folder, findings, chi, weights, pictures, extreme)
        return summary(findings, extreme) + f"\n\nreport: {out / 'report.html'}"


def initial_model(recipe: InductionRecipe, seed: int) -> AttentionOnlyLM:
    """The start of every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AttentionOnlyLM(
            len(CHARACTERS), recipe.length - 1, width=recipe.width, heads=recipe.heads, head_width=recipe.head_width
        )


def train_side_by_side(
    recipe: InductionRecipe,
    start: AttentionOnlyLM,
    contexts: Contexts,
    test: RepeatedStrings,
    weights: Mapping[str, xr.DataArray | None],
    seed: int,
) -> dict[str, tuple[AttentionOnlyLM, History]]:
    """Models trained from `start` on each of the weights, with their induction scores on the way.

    Each on one thread: every run rounds alike, side by side or alone.
    """
    stop = threading.Event()

    def metrics(model: torch.nn.Module) -> dict[str, float]:
        if stop.is_set():
            raise Stopped
        assert isinstance(model, AttentionOnlyLM)
        best = max(score["induction"] for score in test.head_scores(model).values())
        return {"induction_score": best, "loss_on_repeats": test.loss_on_repeats(model)}

    def train(position: int, name: str, rho: xr.DataArray | None) -> tuple[AttentionOnlyLM, History]:
        model = copy.deepcopy(start)
        history = pf.train(
            model,
            contexts.tokens,
            pf.losses.next_token,
            steps=recipe.train_steps,
            batch_size=recipe.train_batch,
            lr=recipe.train_lr,
            weight_decay=recipe.weight_decay,
            weights=rho,
            seed=seed,
            metrics=metrics,
            metrics_every=recipe.metrics_every,
            description=f"training the {name} run",
            position=position,
        )
        return model, history

    with one_thread_each(len(weights)) as pool:
        futures = {name: pool.submit(train, at, name, rho) for at, (name, rho) in enumerate(weights.items())}
        try:
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            stop.set()
            raise


def towards_induction(modes: pf.Modes, predictable: np.ndarray) -> tuple[pf.Modes, list[float]]:
    """The modes, each signed to load more on tokens that induction can predict, and its correlation with these."""
    similarity = np.nan_to_num(
        [np.corrcoef(loading, predictable)[0, 1] for loading in modes.table["data_loading"].values]
    )
    sign = xr.DataArray(np.where(similarity < 0, -1.0, 1.0), dims="mode")
    table = modes.table.assign({name: sign * modes.table[name] for name in ("component_loading", "data_loading")})
    return pf.Modes(table.transpose("mode", ...)), np.abs(similarity).tolist()


def crossing(history: History, threshold: float) -> float:
    """Step at which the induction score first reaches `threshold`, between the steps measured; NaN if it never does."""
    for before, after in pairwise(history):
        low, high = before["induction_score"], after["induction_score"]
        if low < threshold <= high:
            return before["step"] + (threshold - low) / (high - low) * (after["step"] - before["step"])
    return float("nan")


def outcome_table(histories: Mapping[str, History]) -> Rows:
    """One row a run: when the circuit formed, and how the run ended."""
    threshold = histories["base"][-1]["induction_score"] / 2
    base = crossing(histories["base"], threshold)
    rows: Rows = []
    for name in RUNS:
        step = crossing(histories[name], threshold)
        rows.append(
            {
                "run": name,
                "circuit formed at step": step,
                "relative to base": step / base,
                "final induction score": histories[name][-1]["induction_score"],
                "final loss on repeats": histories[name][-1]["loss_on_repeats"],
                "final training loss": histories[name][-1]["loss"],
            }
        )
    return rows


def in_words(rows: Rows, steps: int) -> list[str]:
    """What the table says, sentence by sentence."""
    formed = {row["run"]: row["circuit formed at step"] for row in rows}
    base = formed["base"]
    if np.isnan(base):
        return ["The base run did not form the circuit, so nothing can be said of the others."]
    said = [f"The base run formed the circuit at step {base:.0f} of {steps}."]
    for name in RUNS[1:]:
        step = formed[name]
        if np.isnan(step):
            said.append(f"The {name} run did not form it within {steps} steps.")
        elif abs(step / base - 1) <= 0.1:
            said.append(f"The {name} run formed it at step {step:.0f}, within 10 % of the base run.")
        else:
            said.append(
                f"The {name} run formed it at step {step:.0f}, "
                f"{max(step / base, base / step):.2f} times as {'late' if step > base else 'early'}."
            )
    return said


def on_identity(findings: Findings) -> str:
    """How well the chosen mode is told to be induction, by its tokens and by its heads."""
    chosen, heads = findings["induction_mode"], len(findings["component_estimates"]) - 1
    row = findings["modes"][chosen]
    by_tokens, by_heads = row["r with predictable tokens"], row["r with head scores"]
    verdict = "tell the same" if abs(by_heads) > 0.5 else "do not tell: it loads on heads with and without a part in it"
    return (
        f"Mode {chosen} is taken as induction by its tokens: its loadings correlate {by_tokens:.2f} with what "
        f"induction can predict. Its heads {verdict} (correlation {by_heads:.2f} of loadings and attention "
        f"scores, over {heads} heads)."
    )


def token_classes(contexts: Contexts, predictable: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over tokens: in the quoted domain or not, predictable by induction or not."""
    quoted = np.repeat(contexts.domain == "quoted", len(predictable) // len(contexts.domain))
    return {
        "quoted, seen before": quoted & predictable,
        "quoted, first time": quoted & ~predictable,
        "other text, seen before": ~quoted & predictable,
        "other text": ~quoted & ~predictable,
    }


def component_rows(statistics: pf.Statistics, chi: xr.Dataset, scores: Mapping[str, Mapping[str, float]]) -> Rows:
    """λ̂ with its error, R̂, and how much of χ's variance over tokens is more than its error, by component."""
    llc, diagnostics = statistics.llc(), statistics.diagnostics()
    rows: Rows = []
    for name in statistics.component_names:
        own = chi.sel(component=name)
        noise = float((own["chi_error"] ** 2).mean() / own["chi"].var())
        rows.append(
            {
                "component": name,
                "llc": float(llc["llc"].sel(component=name)),
                "llc error": float(llc["llc_error"].sel(component=name)),
                "mean loss shift": float(llc["mu"].sel(component=name)),
                "r_hat": float(diagnostics["r_hat"].sel(component=name)),
                "reliability of chi": max(0.0, 1.0 - noise),
            }
            | {
                f"{kind.replace('_', ' ')} score": scores.get(name, {}).get(kind, float("nan"))
                for kind in ("induction", "previous_token")
            }
        )
    return rows


def mode_rows(modes: pf.Modes, similarity: list[float], scores: Mapping[str, Mapping[str, float]]) -> Rows:
    """Each mode's size, loadings on heads, and likeness to induction by tokens and by heads."""
    names = [str(name) for name in modes.table["component"].values]
    circuit = [max(scores[name].values()) for name in names]
    return [
        {
            "mode": index,
            "singular value": modes[index].singular_value,
            "error": modes[index].singular_value_error,
            "noise floor": float(modes.table.attrs["noise_floor"]),
            "share": float(modes.table["share"][index]),
        }
        | dict(zip(names, modes[index].components.values.tolist(), strict=True))
        | {
            "r with predictable tokens": similarity[index],
            "r with head scores": float(np.corrcoef(modes[index].components.values, circuit)[0, 1]),
        }
        for index in range(len(modes))
    ]


def plan_rows(
    plans: Mapping[str, pf.Plan], weights: Mapping[str, xr.DataArray], classes: Mapping[str, np.ndarray]
) -> Rows:
    """The weights of each retrained run: their spread, and their mean on each class of tokens."""
    rows: Rows = []
    for name, each in weights.items():
        attrs = plans[name if name in plans else "amplified"].attrs
        rows.append(
            {
                "run": name,
                "negative before policy": attrs["share_negative_before_policy"],
                "at zero": attrs["share_zero"],
            }
            | {"effective tokens": float(each.values.sum() ** 2 / (each.values**2).sum())}
            | {
                f"ρ: {label}": float(each.values[mask].mean()) if mask.any() else float("nan")
                for label, mask in classes.items()
            }
        )
    return rows


def extreme_tokens(mode: pf.Mode, contexts: Contexts) -> Rows:
    """The tokens the mode loads on most, either way, each with its domain and behind the text it follows."""
    return [
        {
            "loading (rms 1)": row["loading"],
            "domain": str(contexts.domain[row["sample"]]),
            "text so far": row["text so far"],
            "token": row["token"],
        }
        for row in pf.extreme_data(mode, contexts.tokens, decode)
    ]


def heat_map(chi: xr.Dataset, contexts: Contexts) -> Figure:
    """χ on a context of each domain, two of the quoted."""
    domains = sorted(set(contexts.domain))
    samples = [
        int(sample)
        for domain in domains
        for sample in np.flatnonzero(contexts.domain == domain)[: 2 if domain == "quoted" else 1]
    ]
    return figures.chi_heat_map(chi, samples, [str(contexts.domain[sample]) for sample in samples])


def summary(findings: Findings, extreme: Rows) -> str:
    """The findings as text."""
    return "\n\n".join(
        [
            "components\n" + html.text_table(findings["component_estimates"]),
            f"modes of χ over heads (mode {findings['induction_mode']} is taken as induction)\n"
            + html.text_table(findings["modes"]),
            "tokens that mode loads on most\n"
            + html.text_table([row | {"text so far": str(row["text so far"])[-40:]} for row in extreme]),
            "weights\n" + html.text_table(findings["plans"]),
            "runs\n" + html.text_table(findings["runs"]),
            "\n".join(
                [
                    on_identity(findings),
                    *in_words(findings["runs"], findings["recipe"]["train_steps"]),
                ]
            ),
            "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in findings["seconds"].items()),
        ]
    )


def write(
    folder: Path,
    findings: Findings,
    chi: xr.Dataset,
    weights: Mapping[str, xr.DataArray],
    pictures: Mapping[str, Figure],
    extreme: Rows,
) -> None:
    """All results as files in `folder`."""
    (folder / RESULTS).write_text(json.dumps(without_nan(findings), indent=1, allow_nan=False))
    chi.to_netcdf(folder / "susceptibilities.nc", engine="scipy")
    xr.Dataset(dict(weights)).to_netcdf(folder / "weights.nc", engine="scipy")
    images = {name: figures.png(figure) for name, figure in pictures.items()}
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    (folder / "report.html").write_text(report(findings, images, extreme))


def without_nan(value: object) -> object:
    """The same value with None for NaN, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def report(findings: Findings, images: Mapping[str, bytes], extreme: Rows) -> str:
    """The HTML report."""
    parts = [
        html.paragraph(
            "A two-layer attention-only language model learns characters from four domains of text found on this "
            "machine; "
            "in one of them passages are quoted again. Chains on every head give the susceptibility of each head to "
            "each "
            "training token. The mode that goes with induction is turned into weights, and the model is trained again "
            "from the same start. One seed: how far runs differ between seeds is not shown here."
        ),
        html.heading("What happened"),
        *[html.paragraph(sentence) for sentence in in_words(findings["runs"], findings["recipe"]["train_steps"])],
        html.table(findings["runs"]),
        html.picture(images["curves"], "Induction score of the best head over training, for the four runs."),
        html.heading("Susceptibilities"),
        html.picture(
            images["chi"],
            "χ of tokens in a context of each domain, two of the quoted. Red: up-weighting the token raises the "
            "component's mean loss "
            "shift; blue: it lowers it, as for tokens that the component serves.",
        ),
    ]
    for title, name in (("Components", "component_estimates"), ("Modes", "modes"), ("Weights", "plans")):
        parts += [html.heading(title), html.table(findings[name])]
        if name == "modes":
            parts += [
                html.paragraph(on_identity(findings)),
                html.picture(
                    images["mode"],
                    "The mode taken as induction: its size, its heads beside scores measured apart from χ, its tokens.",
                ),
                html.table(extreme),
            ]
    parts += [
        html.paragraph(
            "R̂ far above 1 says that the chains are still on their way out from w* when their draws are taken: χ here "
            "describes growing perturbations of each head, as in the published runs, not the stationary posterior. "
            "The weights are used for their direction; at this strength linear response predicts no sizes."
        ),
        html.heading("How it was run"),
        html.paragraph(json.dumps({name: findings[name] for name in ("recipe", "machine", "seconds", "text_sha256")})),
    ]
    return html.page("Patterning an induction circuit", parts)
