"""Runs of the induction recipe: a language model trained on weighted tokens, and what is measured on the way."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.models.attention_only import AttentionOnlyLM
from patterning_fast.recipes.pieces import shows_progress

from .settings import Settings
from .text import Text, text_of


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


def sampling(settings: Settings, seed: int) -> dict[str, Any]:
    return {
        "chains": settings.chains,
        "draws": settings.draws,
        "steps_between_draws": settings.steps_between_draws,
        "batch_size": settings.sampler_batch,
        "antithetic": True,
        "seed": seed,
    }
