"""Tables of the induction recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.stats

from patterning_fast.recipes.findings import Rows

Runs = Mapping[str, Mapping[str, Any]]
"""By `NAME, seed SEED`."""


def formed_at(runs: Runs, name: str, seed: int) -> float:
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


def run_table(runs: Runs, names: Sequence[str], seeds: Sequence[int], formed: Mapping[str, list[float]]) -> Rows:
    """One row a run: when the circuit formed and how the run ended, means over seeds."""
    rows: Rows = []
    for name in names:
        own = [runs[f"{name}, seed {seed}"] for seed in seeds]
        ratio = np.array(formed[name]) / np.array(formed["base"])
        there = ratio[np.isfinite(ratio)]
        ends = [each["history"][-1] for each in own]
        rows.append(
            {
                "run": name,
                "formed": f"{len(there)} of {len(ratio)}",
                "at step (median)": float(np.median(np.nan_to_num(formed[name], nan=np.inf))),
                "over base (median)": float(np.median(np.nan_to_num(ratio, nan=np.inf))),
                "over base (range)": f"{there.min():.2f}–{there.max():.2f}" if len(there) else "–",
                "final induction score": interval([each["induction_score"] for each in ends]),
                "final loss on repeats": interval([each["loss_on_repeats"] for each in ends]),
                "the same without its best heads": interval([each["loss_on_repeats_ablated"] for each in own]),
                "final in-context score": interval([each["in_context"] for each in ends]),
            }
        )
    return rows


def interval(values: Sequence[float]) -> str:
    """Mean over seeds, with its 95 % interval where there are several."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def source_table(found: Mapping[int, Mapping[str, Any]], formed: Mapping[str, list[float]]) -> Rows:
    """What each source of weights was told by: the weight of what induction predicts, and of each class; means."""
    seeds = list(found)
    classes = sorted(set(found[seeds[0]]["classes"]))
    rows: Rows = []
    for name in found[seeds[0]]["weights"]:
        weights = [found[seed]["weights"][name].double().numpy() for seed in seeds]
        labels = [np.array(found[seed]["classes"]) for seed in seeds]
        losses = [found[seed]["losses"].numpy() for seed in seeds]
        ratio = np.array(formed[name]) / np.array(formed["base"]) if name in formed else np.full(1, np.nan)
        rows.append(
            {
                "weights by": name,
                "ρ of what induction predicts": float(np.mean([found[seed]["on repeats"][name] for seed in seeds])),
                "r with loss": float(np.mean([r_of(w, loss) for w, loss in zip(weights, losses, strict=True)])),
                "strength": float(np.mean([np.sqrt(((w - 1) ** 2).mean()) for w in weights])),
                "effective contexts": float(np.mean([w.sum() ** 2 / (w**2).sum() for w in weights])),
                "circuit over base (median)": float(np.median(np.nan_to_num(ratio, nan=np.inf)))
                if name in formed
                else float("nan"),
            }
            | {
                f"ρ: {label}": float(np.mean([w[own == label].mean() for w, own in zip(weights, labels, strict=True)]))
                for label in classes
            }
        )
    return rows


def r_of(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def mode_table(found: Mapping[str, Any]) -> Rows:
    """Each mode's size, loadings on heads, and likeness to induction by its contexts."""
    modes = found["modes"]
    return [
        {
            "mode": index,
            "singular value": float(modes["singular_value"][index]),
            "error": float(modes["singular_value_error"][index]),
            "noise floor": found["noise_floor"],
            "r with what induction predicts": found["similarity"][index],
        }
        | dict(zip(found["heads"], modes["component_loading"][index].tolist(), strict=True))
        for index in range(len(modes["singular_value"]))
    ]


def history_rows(runs: Runs, names: Sequence[str], seeds: Sequence[int]) -> Rows:
    """Every measured step of every run."""
    return [
        {"run": name, "seed": seed, **row}
        for name in names
        for seed in seeds
        for row in runs[f"{name}, seed {seed}"]["history"]
    ]


def weight_columns(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of a seed's contexts."""
    weights = {name: each.numpy().astype(np.float32) for name, each in found["weights"].items()}
    places = {"context": np.arange(len(found["classes"]), dtype=np.int32), "class": np.array(found["classes"])}
    return places | weights
