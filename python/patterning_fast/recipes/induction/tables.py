"""Tables of the induction recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.stats

from patterning_fast.recipes.findings import Rows

from .settings import Settings


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
