"""Runs of the induction recipe whose weights are planned during the run, from χ around the model as it is then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.models.attention_only import AttentionOnlyLM
from patterning_fast.posterior.losses import Loss

from .runs import measured
from .settings import Settings
from .sources import Scene, loss_said_again, responses_of, to_all
from .text import text_of

AGAIN = "loss on strings said again"


def trained_on_the_way(settings: Settings, seed: int) -> dict[str, Any]:
    """A run that plans weights at several steps, to bring the loss on strings said again down; and its decisions."""
    decisions: list[xr.Dataset] = []

    def train(model: nn.Module, data: Tensor, loss: Loss, **training: Any) -> list[dict[str, float]]:
        run = pf.train_towards(
            model, data, loss, {0: {AGAIN: 0.0}}, replan=settings.replanned, estimate=estimator(settings, seed),
            strength=settings.strength, coordinate=AGAIN,
            inversion={"negative_weights": "clip", "unsettled": True}, **training,
        )  # fmt: skip
        decisions.append(run.decisions)
        return run.history

    found = measured(settings, seed, train)
    numbers = ("measured", "predicted", "realised")
    table = decisions[0].sel(component=AGAIN)
    rows = [
        {"step": int(table["step"][at]), "strength": float(table["strength"][at])}
        | {name: float(table[name][at]) for name in numbers}
        for at in range(len(settings.replanned))
    ]
    return found | {"decisions": rows}


def estimator(settings: Settings, seed: int) -> Callable[[nn.Module], tuple[xr.Dataset, xr.Dataset]]:
    """What `pf.train_towards` asks for a model: the loss on strings said again, and its χ for every context."""
    text = text_of(settings, seed)

    def estimate(model: nn.Module) -> tuple[xr.Dataset, xr.Dataset]:
        assert isinstance(model, AttentionOnlyLM)
        here = Scene(settings, seed, text, model, model)
        found = responses_of(here, True, **{AGAIN: loss_said_again(text.strings)})
        of_chains = []
        for group in range(found.sizes["group"]):
            chi = found.assign(chi=found["chi_group"].isel(group=group))
            known = chi["chi"].values.reshape(settings.score_contexts, -1).mean(1)
            of_chains.append(to_all(here, model, chi, known).numpy())
        by_chain = np.stack(of_chains)[None]
        value = [text.strings.loss_on_repeats(model)]
        names, both = {"component": [AGAIN]}, ("component", "sample")
        return (
            xr.Dataset({AGAIN: ("component", value), f"{AGAIN}_error": ("component", [0.0])}, coords=names),
            xr.Dataset(
                {
                    "chi": (both, by_chain.mean(1)),
                    "chi_error": (both, by_chain.std(1, ddof=1) / np.sqrt(by_chain.shape[1])),
                    "chi_group": (("component", "group", "sample"), by_chain),
                },
                coords=names, attrs=found.attrs,
            ),
        )  # fmt: skip

    return estimate
