"""Runs of the induction recipe: a language model trained on weighted contexts, and what is measured on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.models.attention_only import AttentionOnlyLM
from patterning_fast.recipes.pieces import shows_progress
from patterning_fast.tasks.induction import RepeatedStrings

from .settings import Settings
from .text import text_of

ABLATED = 2
"""Heads of the highest induction scores that are taken out at the end, to see whether the circuit is at work."""


def initial_model(settings: Settings, vocabulary: int, seed: int) -> AttentionOnlyLM:
    """The start of every run of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AttentionOnlyLM(
            vocabulary, settings.length, width=settings.width, heads=settings.heads, head_width=settings.head_width
        ).to(settings.device)


def at(settings: Settings, vocabulary: int, parameters: Mapping[str, Tensor]) -> AttentionOnlyLM:
    """The model with these parameters."""
    model = initial_model(settings, vocabulary, 0)
    model.load_state_dict(dict(parameters))
    return model.eval()


def trained(settings: Settings, seed: int, rho: Tensor | None) -> dict[str, Any]:
    """A run from the seed's start on contexts drawn by weights `[contexts]`: see `measured`."""
    return measured(settings, seed, partial(pf.train, weights=rho))


def measured(settings: Settings, seed: int, train: Callable[..., list[dict[str, float]]]) -> dict[str, Any]:
    """A run from the seed's start by `pf.train` or the like: its end, what it was early on, and its history."""
    text = text_of(settings, seed)
    early: dict[str, Tensor] = {}
    steps: list[int] = []

    def metrics(model: torch.nn.Module) -> dict[str, float]:
        assert isinstance(model, AttentionOnlyLM)
        steps.append(len(steps) * settings.metrics_every)
        if steps[-1] == settings.early_step:
            early.update({name: each.cpu().clone() for name, each in model.state_dict().items()})
        return {
            "induction_score": max(each["induction"] for each in text.strings.head_scores(model).values()),
            "loss_on_repeats": text.strings.loss_on_repeats(model),
            "in_context": in_context_score(model, text.held_out),
        }

    model = initial_model(settings, text.vocabulary, seed)
    history = train(
        model, text.tokens, pf.losses.next_token, steps=settings.train_steps, batch_size=settings.train_batch,
        lr=settings.train_lr, weight_decay=settings.weight_decay, weighting="sampling", seed=seed,
        metrics=metrics, metrics_every=settings.metrics_every, progress=shows_progress(),
    )  # fmt: skip
    return {
        "parameters": {name: each.cpu() for name, each in model.state_dict().items()},
        "early": early,
        "history": history,
        "loss_on_repeats_ablated": text.strings.loss_on_repeats(without_best_heads(model, text.strings)),
    }


def in_context_score(model: AttentionOnlyLM, tokens: Tensor) -> float:
    """Mean loss on the last eighth of a context less that on its second eighth [nats]: below 0 where context helps."""
    with torch.no_grad():
        losses = pf.losses.next_token(model, tokens).mean(0)
    eighth = len(losses) // 8
    return float(losses[-eighth:].mean() - losses[eighth : 2 * eighth].mean())


def without_best_heads(model: AttentionOnlyLM, strings: RepeatedStrings) -> AttentionOnlyLM:
    """A copy in which the heads of the highest induction scores add nothing."""
    scores = strings.head_scores(model)
    best = sorted(scores, key=lambda head: -scores[head]["induction"])[:ABLATED]
    found = copy.deepcopy(model)
    heads = found.attention_head_parameters()
    with torch.no_grad():
        for head in best:
            for name, owned in heads[head].items():
                found.get_parameter(name).view(-1)[owned] = 0.0
    return found
