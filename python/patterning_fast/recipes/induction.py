"""The induction recipe: find the data that an induction circuit answers to, and retrain with more or less of it.

After arXiv:2601.13548, §4: susceptibilities of every attention head on every training token, their modes, the mode that
is induction, and retraining from the same start with that mode amplified and suppressed, beside controls.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import patterning_fast as pf
from patterning_fast.models.attention_only import AttentionOnlyLM
from patterning_fast.recipes.continued import continued
from patterning_fast.recipes.findings import Findings
from patterning_fast.recipes.induction_findings import findings
from patterning_fast.recipes.induction_text import MIXTURE, Text, text_of
from patterning_fast.recipes.pieces import Pieces, shows_progress
from patterning_fast.recipes.responses import comparison, with_comparison
from patterning_fast.tasks.induction import RepeatedStrings, predictable_by_induction

COMPARED = 64
"""Contexts on which covariances are held against responses."""

STEP = 1e-3
"""Relative length of the step of a directional derivative of the losses."""


@dataclass(frozen=True)
class Settings:
    """Sizes and settings of one run of the recipe."""

    seeds: tuple[int, ...] = (0,)
    """Of text, initialisation, minibatches and noise."""
    source: str = MIXTURE
    """"mixture", of characters; or what `tasks.domains.domains` takes, in tokens of a vocabulary of its own."""
    vocabulary: int = 5000
    """Of the tokenizer of a source; the mixture has 96 characters."""
    contexts: int = 2048
    length: int = 65
    quoted: float = 0.5
    """Share of the mixture's contexts whose passages come twice; its other three domains share the rest."""
    chi_contexts: int = 0
    """Contexts that χ is estimated on, from which the mode is continued to all others; 0 for all."""
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
    sampler_batch: int = 16
    strengths: tuple[float, ...] = (0.3,)
    """Root mean square of ρ − 1; controls have the last."""
    controls: tuple[str, ...] = ("random",)
    """Of `CONTROLS`."""
    early_step: int = 300
    """Of the base run, before the circuit: its losses there are what "matched early" goes by."""
    llc_steps: tuple[int, ...] = ()
    """Training steps at which λ̂ is estimated, in the base run and those of the last strength."""
    verify: bool = False
    """Sample again under the weights of the first seed."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.controls) - set(CONTROLS))
        if unknown or not self.seeds or not self.strengths:
            raise ValueError(
                f"controls must be among {', '.join(CONTROLS)}, with at least one seed and one strength; "
                f"got {self.controls}, {self.seeds} and {self.strengths}"
            )
        if self.chi_contexts > self.contexts:
            raise ValueError(f"chi_contexts must be at most all {self.contexts} contexts, got {self.chi_contexts}")


QUICK: dict[str, Any] = {
    "contexts": 128, "length": 33, "train_steps": 40, "train_batch": 32, "metrics_every": 10, "chains": 4, "draws": 3,
    "steps_between_draws": 2,
}  # fmt: skip
"""What `patterning-fast demo --quick` changes."""

CONTROLS = {
    "random": "the amplifying weights dealt out at random",
    "loss-matched": "the amplifying weights dealt out at random among tokens of like loss",
    "matched early": "the amplifying weights dealt out at random among tokens of like loss before the circuit",
    "loss alone": "the same as loss-matched, but for tokens that induction predicts, which have a weight of 1",
    "length-matched": "the amplifying weights dealt out at random among tokens after as many others",
    "gradient": "weights by how far a step down the loss on repeats lowers each token's loss",
    "no loss": "amplified, from chains that feel no loss (nβ = 0)",
}


def run(settings: Settings, pieces: Pieces) -> Findings:
    """Everything, seed by seed; a training or an estimate at a time is kept."""
    if settings.source != MIXTURE:  # tokenizer and tokens are made once, before several processes look for them
        text_of(settings, settings.seeds[0])
    unweighted = {f"base, seed {seed}": (settings, seed, None, True) for seed in settings.seeds}
    base = pieces.map("base runs", trained, unweighted)
    found = {
        seed: pieces.of(
            f"modes and weights, seed {seed}",
            partial(modes_and_weights, settings, seed, base[f"base, seed {seed}"]["parameters"]),
        )
        for seed in settings.seeds
    }
    wanted = {
        f"{name}, seed {seed}": (settings, seed, rho, name in (f"{way} {settings.strengths[-1]:g}" for way in WAYS))
        for seed in settings.seeds
        for name, rho in found[seed]["weights"].items()
    }
    runs = base | pieces.map("retraining", trained, wanted)
    verified = None
    if settings.verify:
        seed = settings.seeds[0]
        parameters = base[f"base, seed {seed}"]["parameters"]
        verified = pieces.of("verification", partial(verification, settings, seed, parameters, found[seed]))
    first = settings.seeds[0]
    compared = pieces.of(
        "covariances against responses", partial(responses, settings, first, base[f"base, seed {first}"]["parameters"])
    )
    return with_comparison(findings(settings, runs, found, verified), compared["rows"], "of the base run's heads")


WAYS = ("amplified", "suppressed")


def initial_model(settings: Settings, vocabulary: int, seed: int) -> AttentionOnlyLM:
    """The start of every run of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AttentionOnlyLM(
            vocabulary, settings.length - 1, width=settings.width, heads=settings.heads, head_width=settings.head_width
        ).to(settings.device)


def trained(settings: Settings, seed: int, rho: Tensor | None, follow: bool) -> dict[str, Any]:
    """A run from the seed's start on weighted data: its end, its history and, where it is followed, λ̂ on the way."""
    text = text_of(settings, seed)
    llc: list[dict[str, float]] = []

    def metrics(model: torch.nn.Module) -> dict[str, float]:
        assert isinstance(model, AttentionOnlyLM)
        steps = len(history) * settings.metrics_every
        history.append(steps)
        if follow and steps in settings.llc_steps:
            llc.append({"step": steps, **learning_coefficient(settings, model, text.training.tokens, seed)})
        best = max(score["induction"] for score in text.repeats.head_scores(model).values())
        return {
            "induction_score": best,
            "loss_on_repeats": text.repeats.loss_on_repeats(model),
            "in_context": in_context_score(model, text.held_out.tokens),
        }

    history: list[int] = []
    model = initial_model(settings, text.vocabulary, seed)
    rows = pf.train(
        model, text.training.tokens, pf.losses.next_token, steps=settings.train_steps, batch_size=settings.train_batch,
        lr=settings.train_lr, weight_decay=settings.weight_decay, weights=rho, seed=seed, metrics=metrics,
        metrics_every=settings.metrics_every, progress=shows_progress(),
    )  # fmt: skip
    return {
        "parameters": {name: each.cpu() for name, each in model.state_dict().items()},
        "history": rows,
        "llc": llc,
    }


def begun(settings: Settings, text: Text, seed: int) -> AttentionOnlyLM:
    """The base run's model at its early step."""
    model = initial_model(settings, text.vocabulary, seed)
    pf.train(
        model, text.training.tokens, pf.losses.next_token, steps=settings.early_step, batch_size=settings.train_batch,
        lr=settings.train_lr, weight_decay=settings.weight_decay, seed=seed, progress=False,
    )  # fmt: skip
    return model


def in_context_score(model: AttentionOnlyLM, tokens: Tensor) -> float:
    """Mean loss on the last eighth of a context less that on its second eighth [nats]: below 0 where context helps."""
    with torch.no_grad():
        losses = pf.losses.next_token(model, tokens).mean(0)
    eighth = len(losses) // 8
    return float(losses[-eighth:].mean() - losses[eighth : 2 * eighth].mean())


def learning_coefficient(settings: Settings, model: AttentionOnlyLM, tokens: Tensor, seed: int) -> dict[str, float]:
    """λ̂ of the whole model where it is now, with its error."""
    few = min(128, len(tokens))
    posterior = pf.LocalPosterior(
        copy.deepcopy(model), pf.losses.next_token, tokens, n_beta=settings.n_beta, localization=settings.localization
    )
    statistics = pf.sample(
        posterior, pf.SGLD(settings.lr), probes={"few": tokens[:2]}, loss_samples=few,
        progress=False, **sampling(settings, seed),
    )  # fmt: skip
    llc = statistics.llc().isel(component=0)
    return {"llc": float(llc["llc"]), "llc_error": float(llc["llc_error"])}


def at(settings: Settings, vocabulary: int, parameters: Mapping[str, Tensor]) -> AttentionOnlyLM:
    """The model with these parameters."""
    model = initial_model(settings, vocabulary, 0)
    model.load_state_dict(dict(parameters))
    return model.eval()


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


def sampling(settings: Settings, seed: int) -> dict[str, Any]:
    return {
        "chains": settings.chains,
        "draws": settings.draws,
        "steps_between_draws": settings.steps_between_draws,
        "batch_size": settings.sampler_batch,
        "antithetic": True,
        "seed": seed,
    }


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
            weights[name] = dealt_out(amplified, like(name, judge, text.training.tokens), seed)
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


def like(control: str, model: AttentionOnlyLM, tokens: Tensor) -> Tensor:
    """Numbers of classes of tokens `[contexts, T]` within which a control deals out weights."""
    contexts, length = tokens[:, 1:].shape
    if control == "length-matched":
        return torch.arange(length).expand(contexts, length)
    if control in ("loss-matched", "matched early", "loss alone"):
        with torch.no_grad():
            losses = torch.cat([pf.losses.next_token(model, some) for some in tokens.split(256)])
        losses = losses.cpu()
        edges = torch.quantile(
            losses.flatten()[:: max(1, losses.numel() // 2**20)], torch.linspace(0, 1, 51, dtype=torch.float32)[1:-1]
        )
        return torch.bucketize(losses, edges)
    return torch.zeros(contexts, length, dtype=torch.long)


def dealt_out(weights: Tensor, classes: Tensor, seed: int) -> Tensor:
    """The same weights in another order, each in a place of the same class."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(weights.numel(), generator=generator)
    to = places[classes.flatten()[places].sort(stable=True).indices]
    places = torch.arange(weights.numel())[classes.flatten().sort(stable=True).indices]
    found = torch.empty_like(weights).flatten()
    found[to] = weights.flatten()[places]
    return found.view(weights.shape)


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


def non_negative(direction: Tensor, strength: float) -> Tensor:
    """Weights 1 + a·direction, cut at 0 and brought back to mean 1, with a such that rms(ρ − 1) is the strength."""

    def weights(length: float) -> Tensor:
        cut = (1 + length * direction / direction.square().mean().sqrt()).clamp(min=0)
        return cut / cut.mean()

    low, high = 0.0, 1.0
    while float((weights(high) - 1).square().mean().sqrt()) < strength and high < 1e3:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float((weights(middle) - 1).square().mean().sqrt()) < strength else (low, middle)
    return weights(high)


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


def verification(
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
    checked = pf.verify(
        plan, posterior, pf.SGLD(settings.lr), fractions=(0.1, 0.3, 1.0), components=pf.attention_heads(model),
        **sampling(settings, seed + 1) | {"probes": {"few": tokens[:2]}, "loss_samples": few["loss_samples"]},
    )  # fmt: skip
    kept = ("predicted", "predicted_error", "realised", "realised_error")
    return {
        **{name: torch.from_numpy(checked[name].values) for name in kept},
        "component": [str(name) for name in checked["component"].values],
        "strength": checked["strength"].values.tolist(),
        "verdict": checked["verdict"].values.tolist(),
        "radius": float(checked.attrs["radius"]),
    }


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
