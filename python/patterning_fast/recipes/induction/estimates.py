"""What the induction recipe estimates at a seed's base run, and keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import patterning_fast as pf
from patterning_fast.recipes.responses import comparison
from patterning_fast.recipes.verification import verification

from .runs import at
from .settings import Settings
from .sources import Named, Scene, most_inductive, posterior, sampling, weights_of
from .text import text_of

PERMUTATIONS = 9999

MORE = 4
"""Times as many chains where a prediction is checked: its errors and those of what is realised add up."""


def scene_of(settings: Settings, seed: int, base: Mapping[str, Any]) -> Scene:
    """A seed's text and its base run."""
    text = text_of(settings, seed)
    model, early = (at(settings, text.vocabulary, base[name]) for name in ("parameters", "early"))
    return Scene(settings, seed, text, model, early)


def seen(settings: Settings, seed: int, base: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of contexts from every source, and what is to be said of χ, its mode and the weights."""
    scene = scene_of(settings, seed, base)
    weights = weights_of(scene)
    chi, named = scene.chi, scene.mode
    scores = scene.text.strings.head_scores(scene.model)
    table = named.modes.table
    heads = [str(name) for name in table["component"].values]
    numbers = ("chi_reliability", "settled", "blind", "chains_run", "llc", "llc_error", "r_hat", "relaxation_steps")
    return {
        "weights": weights,
        "heads": heads,
        "components": [
            {"component": head}
            | {name: float(chi[name][index]) for name in numbers if name in chi}
            | {f"{kind} score".replace("_", " "): score for kind, score in scores[head].items()}
            | {"loading": float(table["component_loading"].values[named.chosen, index])}
            for index, head in enumerate(heads)
        ],
        "modes": {
            name: torch.from_numpy(np.asarray(table[name].values, dtype=np.float64))
            for name in ("singular_value", "singular_value_error", "component_loading")
        },
        "noise_floor": float(table.attrs["noise_floor"]),
        "chosen": named.chosen,
        "similarity": named.similarity,
        "loading": torch.from_numpy(named.loading),
        "by tokens": with_permutations(named.loading, scene.predictable, seed),
        "by heads": by_heads(named, scores, seed),
        "classes": [str(name) for name in scene.text.classes],
        "on repeats": {
            name: float((rho[:, None] * scene.text.repeat).sum() / scene.text.repeat.sum())
            for name, rho in weights.items()
        },
        "losses": scene.losses,
        "extremes": extremes(scene, named),
        "text_sha256": scene.text.sha256,
    }


def by_heads(named: Named, scores: Mapping[str, Mapping[str, float]], seed: int) -> dict[str, float]:
    """Whether the heads that the mode sets apart are those of the circuit: by the better of a head's two scores."""
    table = named.modes.table
    loading = table["component_loading"].values[named.chosen]
    best = np.array([max(scores[str(head)].values()) for head in table["component"].values])
    return with_permutations(np.abs(loading - np.median(loading)), best, seed)


def with_permutations(one: np.ndarray, other: np.ndarray, seed: int) -> dict[str, float]:
    """The correlation of two, and its p-value by permutations, two-sided."""
    generator = np.random.default_rng(seed)
    seen = np.corrcoef(one, other)[0, 1]
    drawn = [np.corrcoef(generator.permutation(one), other)[0, 1] for _ in range(PERMUTATIONS)]
    return {"r": float(seen), "p": float((1 + (np.abs(drawn) >= abs(seen)).sum()) / (1 + PERMUTATIONS))}


def extremes(scene: Scene, named: Named) -> list[dict[str, Any]]:
    """The contexts that the mode loads on most, either way."""
    order = np.argsort(named.loading)
    return [
        {
            "loading (rms 1)": float(named.loading[at]),
            "class": str(scene.text.classes[at]),
            "text": scene.text.decode(scene.known[at].cpu()),
        }
        for at in (*order[::-1][:5], *order[:5])
    ]


def verified(settings: Settings, seed: int, base: Mapping[str, Any]) -> dict[str, Any]:
    """Predicted against realised dμ of the heads, under weights of the known contexts along the mode."""
    scene = scene_of(settings, seed, base)
    chi = scene.chi_at(
        settings.n_beta, reliability=settings.verified_reliability, max_chains=MORE * settings.max_chains
    )
    direction = chi["chi"][0].copy(data=np.repeat(most_inductive(scene, chi).loading, settings.length))
    plan = pf.invert(chi, direction, strength=settings.strength, negative_weights="clip", unit="sample", unsettled=True)
    where = posterior(scene.model, scene.known, settings.n_beta, settings.localization)
    more = sampling(settings, seed + 1) | {"chains": MORE * settings.chains, "probes": {"few": scene.known[:2]}}
    return verification(
        plan, where, pf.SGLD(settings.lr), fractions=(0.5, 1.0), components=pf.attention_heads(scene.model),
        antithetic=True, **more,
    )  # fmt: skip


def compared(settings: Settings, seed: int, base: Mapping[str, Any]) -> dict[str, Any]:
    """χ of some contexts by covariances against that by responses."""
    scene = scene_of(settings, seed, base)
    where = posterior(scene.model, scene.known, settings.n_beta, settings.localization)
    return comparison(
        where, pf.SGLD(settings.lr), pf.attention_heads(scene.model), probes={"some": scene.known[: settings.compared]},
        loss_samples=min(128, settings.chi_contexts), **sampling(settings, seed),
    )  # fmt: skip
