"""What weights of contexts are made of: χ in several ways, and what its mode must beat."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import patterning_fast as pf
from patterning_fast.models.attention_only import AttentionOnlyLM
from patterning_fast.recipes.continued import continued
from patterning_fast.recipes.controls import alike, dealt_out, non_negative
from patterning_fast.recipes.gradients import raised, raised_along
from patterning_fast.tasks.induction import RepeatedStrings, Score, predictable_by_induction

from .settings import MODE, Settings
from .text import Text

AT_ONCE = 256
"""Contexts."""

DAMPING = 0.1
"""Of the Fisher information, in units of its mean eigenvalue."""

COLDER = 10.0
"""Times nβ."""

SPREAD_LOCALIZATION = 20.0
"""At which chains of the sampler's length are still on their way out from w*."""

Values = Tensor
"""How much weights should favour each context, float `[contexts]`."""


@dataclass(frozen=True)
class Scene:
    """A seed's text and its base run, at the end and before the circuit."""

    settings: Settings
    seed: int
    text: Text
    model: AttentionOnlyLM
    early: AttentionOnlyLM

    @property
    def known(self) -> Tensor:
        """The contexts that χ of heads is of."""
        return self.text.tokens[: self.settings.chi_contexts]

    @cached_property
    def predictable(self) -> np.ndarray:
        """The share of tokens of a known context that induction can predict, by its text alone `[contexts]`."""
        return predictable_by_induction(self.known, match=2).float().mean(1).cpu().numpy()

    @cached_property
    def chi(self) -> xr.Dataset:
        return self.chi_at(
            self.settings.n_beta, reliability=self.settings.reliability, max_chains=self.settings.max_chains
        )

    def chi_at(self, n_beta: float, **until: Any) -> xr.Dataset:
        """χ of the heads at the end, by responses of settled chains."""
        settings = self.settings
        return pf.linear_response(
            posterior(self.model, self.known, n_beta, settings.localization), pf.SGLD(settings.lr),
            components=pf.attention_heads(self.model), **until, **sampling(settings, self.seed),
        )  # fmt: skip

    @cached_property
    def mode(self) -> Named:
        """The mode of that χ which is induction."""
        return most_inductive(self, self.chi)

    @cached_property
    def losses(self) -> Tensor:
        """Mean loss of each context at the end."""
        return context_losses(self.model, self.text.tokens)


def posterior(model: AttentionOnlyLM, tokens: Tensor, n_beta: float, localization: float) -> pf.LocalPosterior:
    return pf.LocalPosterior(model, pf.losses.next_token, tokens, n_beta=n_beta, localization=localization)


def sampling(settings: Settings, seed: int) -> dict[str, Any]:
    return {
        "chains": settings.chains,
        "draws": settings.draws,
        "burn_in": settings.burn_in,
        "steps_between_draws": settings.steps_between_draws,
        "batch_size": settings.sampler_batch,
        "seed": seed,
        "progress": False,
    }


@dataclass(frozen=True)
class Named:
    """A mode of χ by context, and which one it is."""

    modes: pf.Modes
    chosen: int
    similarity: list[float]
    """Of each mode's loadings with what induction can predict, signed to be positive."""
    loading: np.ndarray
    """Of the chosen mode, on the known contexts, of mean 0 and standard deviation 1."""


def most_inductive(scene: Scene, chi: xr.Dataset) -> Named:
    """The mode of χ by context whose loadings go most with what induction can predict, turned that way."""
    by_context = pf.aggregate(chi, np.arange(len(scene.known)), name="context")
    modes = pf.modes(by_context, centre_data=True, unsettled=True)
    loadings = modes.table["data_loading"].values
    signed = [np.corrcoef(loading, scene.predictable)[0, 1] for loading in loadings]
    chosen = int(np.argmax(np.abs(signed)))
    loading = np.sign(signed[chosen]) * loadings[chosen]
    return Named(modes, chosen, np.abs(signed).tolist(), (loading - loading.mean()) / loading.std())


def to_all(scene: Scene, model: AttentionOnlyLM, chi: xr.Dataset, wanted: np.ndarray) -> Values:
    """Values of known contexts, continued to all others by what the model makes of their tokens.

    The values are a combination of the components' χ, which is known for each token, and so fitted by token.
    """
    count = len(wanted)
    by_token = chi["chi"].values.reshape(chi.sizes["component"], count, -1)
    by_context = by_token.mean(2)
    rows = by_context - by_context.mean(1, keepdims=True)
    combination = np.linalg.lstsq(rows.T, wanted - wanted.mean(), rcond=None)[0]
    of_tokens = torch.from_numpy(np.einsum("c,cnt->nt", combination, by_token)).float()
    if count == len(scene.text.tokens):
        return of_tokens.mean(1)
    return continued(model, scene.text.tokens, of_tokens).values.mean(1).cpu()


def by_mode(scene: Scene) -> Values:
    return to_all(scene, scene.model, scene.chi, scene.mode.loading)


def by_colder_mode(scene: Scene) -> Values:
    chi = scene.chi_at(COLDER * scene.settings.n_beta)
    return to_all(scene, scene.model, chi, most_inductive(scene, chi).loading)


def covariances(scene: Scene, n_beta: float, localization: float) -> Values:
    """The same of covariances of chains at other settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pf.UnsettledWarning)  # they are taken for what they are
        statistics = pf.sample(
            posterior(scene.model, scene.known, n_beta, localization), pf.SGLD(scene.settings.lr),
            components=pf.attention_heads(scene.model), probes={"known": scene.known}, antithetic=True,
            **sampling(scene.settings, scene.seed) | {"burn_in": 0},
        )  # fmt: skip
        chi = statistics.susceptibilities()
    chi = chi.assign_attrs(n_beta=scene.settings.n_beta)
    return to_all(scene, scene.model, chi, most_inductive(scene, chi).loading)


def responses_of(scene: Scene, early: bool, **observables: Callable[[Any], Tensor]) -> xr.Dataset:
    """χ of functions of the model, by responses of chains of the whole model."""
    settings, model = scene.settings, scene.early if early else scene.model
    few = scene.text.tokens[: settings.score_contexts]
    where = posterior(model, few, settings.score_n_beta, settings.score_localization)
    sampler = pf.SGLD(settings.score_lr)
    found = [
        pf.linear_response(where, sampler, observable={name: function}, **sampling(settings, scene.seed)).assign_coords(
            component=[name]
        )
        for name, function in observables.items()
    ]
    return xr.concat(found, "component", data_vars="minimal", coords="minimal", compat="override")


def by_score(scene: Scene, score: Score, early: bool) -> Values:
    """Contexts that raise a score of all heads."""
    chi = responses_of(scene, early, **{score: scene.text.strings.observable(score)})
    by_context = chi["chi"].values[0].reshape(scene.settings.score_contexts, -1).mean(1)
    return to_all(scene, scene.early if early else scene.model, chi, by_context)


def loss_said_again(strings: RepeatedStrings) -> Callable[[torch.nn.Module], Tensor]:
    """The mean loss on random strings where they are said again, as a function of the model."""
    return lambda model: pf.losses.next_token(model, strings.tokens)[strings.repeats()].mean()


def by_contrast(scene: Scene) -> Values:
    """Contexts that lower the loss on strings said again, and leave that on held-out text and backwards strings."""
    strings = scene.text.strings
    half = strings.tokens[:, : scene.settings.length // 2]
    backwards = torch.cat((half, half.flip(1)), 1)

    def reverse(model: AttentionOnlyLM) -> Tensor:
        return pf.losses.next_token(model, backwards)[:, half.shape[1] :].mean()

    def text(model: AttentionOnlyLM) -> Tensor:
        return pf.losses.next_token(model, scene.text.held_out).mean()

    chi = responses_of(scene, False, again=loss_said_again(strings), backwards=reverse, text=text)
    by_context = pf.aggregate(chi, np.arange(scene.settings.score_contexts), name="context")
    plan = pf.invert(
        by_context, {"again": -1.0}, strength=scene.settings.strength, negative_weights="allow", unsettled=True
    )
    return to_all(scene, scene.model, chi, plan.weights.values)


def context_losses(model: AttentionOnlyLM, tokens: Tensor) -> Tensor:
    """Mean loss of each context, in main memory."""
    with torch.no_grad():
        return torch.cat([pf.losses.next_token(model, some).mean(1) for some in tokens.split(AT_ONCE)]).cpu()


def by_gradient(scene: Scene, early: bool) -> Values:
    """How a context's loss goes down along the gradient of the loss on strings said again."""
    return raised_along(
        scene.early if early else scene.model,
        loss_said_again(scene.text.strings),
        lambda model: context_losses(model, scene.text.tokens),
    )


def by_influence(scene: Scene) -> Values:
    """How a context's loss goes down along the influence direction of the best head's induction score, within the head.

    That direction is the score's gradient over the damped Fisher information of known contexts, which EK-FAC
    approximates where it is too large to be inverted (Mechanistic Data Attribution, arXiv:2601.21996).
    """
    model, strings = scene.model, scene.text.strings
    scores = strings.head_scores(model)
    head = max(scores, key=lambda name: scores[name]["induction"])
    owned = model.attention_head_parameters()[head]
    parameters = [model.get_parameter(name) for name in owned]

    def gradient(value: Tensor) -> Tensor:
        found = torch.autograd.grad(value, parameters, materialize_grads=True)  # a score knows no output
        return torch.cat([each.flatten()[at] for each, at in zip(found, owned.values(), strict=True)]).double()

    wanted = gradient(strings.observable("induction", head)(model))
    seen = torch.stack([gradient(pf.losses.next_token(model, each[None]).mean()) for each in scene.known])
    damping = DAMPING * seen.square().mean() * len(seen)
    within = torch.linalg.solve(
        seen @ seen.T + damping * torch.eye(len(seen), dtype=seen.dtype, device=seen.device), seen @ wanted
    )
    step = (wanted - seen.T @ within).split([len(at) for at in owned.values()])
    direction = {name: torch.zeros_like(each) for name, each in model.named_parameters()}
    for (name, at), values in zip(owned.items(), step, strict=True):
        direction[name].view(-1)[at] = values.float()
    return -raised(model, list(direction.values()), lambda model: context_losses(model, scene.text.tokens))


def by_compression(scene: Scene) -> Values:
    """How few bytes a context has when it is compressed."""
    tokens = scene.text.tokens.cpu().numpy().astype(np.uint16)
    return torch.tensor([-len(zlib.compress(each.tobytes())) for each in tokens], dtype=torch.float64)


SOURCE_OF: dict[str, Callable[[Scene], Values]] = {
    MODE: by_mode,
    "induction score": partial(by_score, score="induction", early=False),
    "contrast": by_contrast,
    "early score": partial(by_score, score="induction", early=True),
    "spread": lambda scene: covariances(scene, scene.settings.n_beta, SPREAD_LOCALIZATION),
    "no loss": lambda scene: covariances(scene, 0.0, scene.settings.localization),
    "gradient": partial(by_gradient, early=False),
    "early gradient": partial(by_gradient, early=True),
    "colder": by_colder_mode,
    "loss alone": lambda scene: -scene.losses,
    "compression": by_compression,
    "influence": by_influence,
    "labels": lambda scene: scene.text.repeat.double().mean(1),
}

DEALT_OUT: dict[str, Callable[[Scene], Tensor | None]] = {
    "random": lambda scene: None,
    "loss-matched": lambda scene: alike(scene.losses),
    "matched early": lambda scene: alike(context_losses(scene.early, scene.text.tokens)),
}
"""Controls that keep the weights by the mode and change their places: the classes within which they do."""


def weights_of(scene: Scene) -> dict[str, Tensor]:
    """Weights of all contexts `[contexts]` by name: of the mode, either way, and of what the settings name."""
    strength = scene.settings.strength
    wanted = {MODE, *scene.settings.retrained, *scene.settings.judged}
    values = {name: source(scene).double() for name, source in SOURCE_OF.items() if name in wanted}
    weights = {name: non_negative(each - each.mean(), strength).float() for name, each in values.items()}
    amplified = weights.pop(MODE)
    suppressed = non_negative(values[MODE].mean() - values[MODE], strength).float()
    dealt = {
        name: dealt_out(amplified, scene.seed, classes(scene)) for name, classes in DEALT_OUT.items() if name in wanted
    }
    return {"amplified": amplified, "suppressed": suppressed, **dealt, **weights}
