"""Weights of tokens: along the mode of χ that is induction, and by every control."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import patterning_fast as pf
from patterning_fast.models.attention_only import AttentionOnlyLM
from patterning_fast.recipes.continued import continued
from patterning_fast.recipes.controls import alike, dealt_out, non_negative
from patterning_fast.recipes.responses import comparison
from patterning_fast.recipes.verification import verification
from patterning_fast.tasks.induction import RepeatedStrings, predictable_by_induction

from .runs import at, begun, sampling
from .settings import WAYS, Settings
from .text import Text, text_of

COMPARED = 64
"""Contexts on which covariances are held against responses."""

STEP = 1e-3
"""Relative length of the step of a directional derivative of the losses."""


def chains(
    settings: Settings, model: AttentionOnlyLM, tokens: Tensor, n_beta: float, seed: int, **more: Any
) -> pf.Statistics:
    """The chains of every head that χ comes from."""
    posterior = pf.LocalPosterior(
        model, pf.losses.next_token, tokens, n_beta=n_beta, localization=settings.localization
    )
    return pf.sample(
        posterior, pf.SGLD(settings.lr), components=pf.attention_heads(model),
        **{"probes": {"training": posterior.data}} | sampling(settings, seed) | more,
    )  # fmt: skip


def modes_and_weights(settings: Settings, seed: int, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """χ of the base run's heads, its modes, and the weights of every other run."""
    text = text_of(settings, seed)
    model = at(settings, text.vocabulary, parameters)
    known = text.training.tokens[: settings.chi_contexts or settings.contexts]
    scores = text.repeats.head_scores(model)
    predictable = predictable_by_induction(known).cpu()
    statistics = chains(settings, model, known, settings.n_beta, seed)
    found = induction_weights(settings, model, text, of_heads(statistics), predictable)
    weights = found.pop("weights")
    amplified = weights[f"amplified {settings.strengths[-1]:g}"]
    for name in settings.controls:
        if name == "no loss":
            blind = of_heads(chains(settings, model, known, 0.0, seed)).assign_attrs(n_beta=settings.n_beta)
            strongest = replace(settings, strengths=settings.strengths[-1:])
            without_loss = induction_weights(strongest, model, text, blind, predictable)
            weights[name] = without_loss["weights"][f"amplified {settings.strengths[-1]:g}"]
        elif name == "gradient":
            weights[name] = by_gradient(model, text.training.tokens, text.repeats, settings.strengths[-1]).cpu()
        else:
            judge = begun(settings, text, seed) if name == "matched early" else model
            weights[name] = dealt_out(amplified, seed, like(name, judge, text.training.tokens))
        if name == "loss alone":
            spared = torch.where(predictable_by_induction(text.training.tokens).cpu(), 1.0, weights[name])
            weights[name] = spared / spared.mean()
    llc = statistics.llc()
    domain = text.training.domain[: len(known)]
    first = [*range(2), *np.flatnonzero(domain == "quoted")[:2].tolist()]
    return found | {
        "weights": weights,
        "scores": scores,
        "components": [
            {
                "component": name,
                "llc": float(llc["llc"][index]),
                "llc error": float(llc["llc_error"][index]),
                "r_hat": float(llc["r_hat"][index]),
            }
            for index, name in enumerate(statistics.component_names)
        ],
        "chi": found["chi"][:, first],
        "shown": [str(name) for name in domain[first]],
        "predictable": predictable,
        "domain": [str(name) for name in domain],
        "text_sha256": text.training.text_sha256,
    }


def induction_weights(
    settings: Settings, model: AttentionOnlyLM, text: Text, chi: xr.Dataset, predictable: Tensor
) -> dict[str, Any]:
    """The mode of χ most like induction, and weights of all tokens along it, each way and at each strength."""
    every = pf.modes(chi, centre_data=False, unsettled=True)
    modes, similarity = towards_induction(every, predictable.flatten().numpy())
    chosen = int(np.argmax(similarity))
    table = modes.table
    loading = torch.from_numpy(table["data_loading"].values[chosen]).float().view(predictable.shape)
    everywhere = continued(model, text.training.tokens, loading) if len(loading) < settings.contexts else None
    weights: dict[str, Tensor] = {}
    negative: dict[str, float] = {}
    for sign, way in zip((1, -1), WAYS, strict=True):
        for strength in settings.strengths:
            name = f"{way} {strength:g}"
            along = modes[chosen] if sign > 0 else -modes[chosen]
            plan = pf.invert(chi, along, strength=strength, unsettled=True)
            negative[name] = plan.attrs["share_negative_before_policy"]
            weights[name] = (
                torch.from_numpy(plan.weights.values).view(loading.shape)
                if everywhere is None
                else non_negative(sign * everywhere.values, strength).cpu()
            )
    return {
        "weights": weights,
        "negative before policy": negative,
        "continued": None if everywhere is None else everywhere.correlation,
        "chosen": chosen,
        "similarity": similarity,
        "heads": [str(name) for name in table["component"].values],
        "modes": {
            name: torch.from_numpy(np.asarray(table[name].values, dtype=np.float64))
            for name in ("singular_value", "singular_value_error", "component_loading")
        },
        "noise_floor": float(table.attrs["noise_floor"]),
        "data_loading": loading.flatten(),
        "extremes": extreme_tokens(modes[chosen], text, len(loading)),
        "chi": torch.from_numpy(chi["chi"].values.reshape(-1, *loading.shape)).float(),
    }


def of_heads(statistics: pf.Statistics) -> xr.Dataset:
    """χ of the heads alone."""
    chi = statistics.susceptibilities()
    return chi.sel(component=[name for name in chi["component"].values if name != "full"])


def towards_induction(modes: pf.Modes, predictable: np.ndarray) -> tuple[pf.Modes, list[float]]:
    """The modes, each signed to load more on tokens that induction can predict, and its correlation with these."""
    similarity = np.nan_to_num(
        [np.corrcoef(loading, predictable)[0, 1] for loading in modes.table["data_loading"].values]
    )
    sign = xr.DataArray(np.where(similarity < 0, -1.0, 1.0), dims="mode")
    table = modes.table.assign({name: sign * modes.table[name] for name in ("component_loading", "data_loading")})
    return pf.Modes(table.transpose("mode", ...)), np.abs(similarity).tolist()


def like(control: str, model: AttentionOnlyLM, tokens: Tensor) -> Tensor | None:
    """Numbers of classes of tokens `[contexts, T]` within which a control deals out weights; None for any."""
    if control == "length-matched":
        contexts, length = tokens[:, 1:].shape
        return torch.arange(length).expand(contexts, length)
    if control in ("loss-matched", "matched early", "loss alone"):
        with torch.no_grad():
            losses = torch.cat([pf.losses.next_token(model, some) for some in tokens.split(256)])
        return alike(losses.cpu())
    return None


def by_gradient(model: AttentionOnlyLM, tokens: Tensor, repeats: RepeatedStrings, strength: float) -> Tensor:
    """Weights of that strength by how each token's loss goes down along the gradient of the loss on repeats."""
    model = copy.deepcopy(model)
    wanted = pf.losses.next_token(model, repeats.tokens)[repeats.repeats()].mean()
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(wanted, parameters)
    step = STEP / float(torch.cat([each.flatten() for each in gradient]).norm())

    def losses(length: float) -> Tensor:
        with torch.no_grad():
            for parameter, slope in zip(parameters, gradient, strict=True):
                parameter.add_(slope, alpha=length)
            found = torch.cat([pf.losses.next_token(model, some) for some in tokens.split(256)]).double()
            for parameter, slope in zip(parameters, gradient, strict=True):
                parameter.sub_(slope, alpha=length)
        return found

    aligned = losses(step) - losses(-step)
    return non_negative(aligned - aligned.mean(), strength)


def responses(settings: Settings, seed: int, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """χ of some contexts by covariances against that by responses."""
    text = text_of(settings, seed)
    tokens, model = text.training.tokens, at(settings, text.vocabulary, parameters)
    posterior = pf.LocalPosterior(
        model, pf.losses.next_token, tokens, n_beta=settings.n_beta, localization=settings.localization
    )
    return comparison(
        posterior, pf.SGLD(settings.lr), pf.attention_heads(model), probes={"some": tokens[:COMPARED]},
        loss_samples=min(256, len(tokens)), **sampling(settings, seed),
    )  # fmt: skip


def verified_plan(
    settings: Settings, seed: int, parameters: Mapping[str, Tensor], found: Mapping[str, Any]
) -> dict[str, Any]:
    """Predicted against realised dμ of the heads, under amplifying weights at three strengths."""
    text = text_of(settings, seed)
    tokens = text.training.tokens[: settings.chi_contexts or settings.contexts]
    model = at(settings, text.vocabulary, parameters)
    few = {"probes": {"training": tokens}, "loss_samples": min(256, len(tokens))}
    chi = of_heads(chains(settings, model, tokens, settings.n_beta, seed, **few))
    direction = chi["chi"][0].copy(data=found["data_loading"].double().numpy())
    plan = pf.invert(chi, direction, strength=settings.strengths[-1], unsettled=True)
    posterior = pf.LocalPosterior(
        model, pf.losses.next_token, tokens, n_beta=settings.n_beta, localization=settings.localization
    )
    return verification(
        plan, posterior, pf.SGLD(settings.lr), fractions=(0.1, 0.3, 1.0), components=pf.attention_heads(model),
        **sampling(settings, seed + 1) | {"probes": {"few": tokens[:2]}, "loss_samples": few["loss_samples"]},
    )  # fmt: skip


def extreme_tokens(mode: pf.Mode, text: Text, contexts: int) -> list[dict[str, Any]]:
    """The tokens the mode loads on most, either way, each with its domain and behind the text it follows."""
    return [
        {
            "loading (rms 1)": float(row["loading"]),
            "domain": str(text.training.domain[row["sample"]]),
            "text so far": str(row["text so far"]),
            "token": str(row["token"]),
        }
        for row in pf.extreme_data(mode, text.training.tokens[:contexts].cpu(), text.decode)
    ]
