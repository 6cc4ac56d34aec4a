"""Runs of the parentheses recipe: models trained side by side, and which of them are solutions of either kind."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

import patterning_fast as pf
from patterning_fast.models.sequence_classifier import SequenceClassifier
from patterning_fast.training.side_by_side import train_side_by_side

from .settings import COUNTING, LEARNED, NESTED, Part, Settings
from .strings import VOCABULARY, Parentheses, parentheses


def new_model(settings: Settings, seed: int) -> SequenceClassifier:
    """A model before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SequenceClassifier(
            VOCABULARY, settings.longest + 2, width=settings.width, heads=settings.heads, layers=settings.layers
        ).to(settings.device)


@cache
def drawn(settings: Settings) -> Parentheses:
    """The strings, in main memory."""
    return parentheses(settings.strings, settings.test_strings, settings.longest, seed=0)


def task_of(settings: Settings) -> Parentheses:
    """The same on the settings' device."""
    return drawn(settings).to(settings.device)


def trained(settings: Settings, seeds: range, weights: Tensor | None) -> Part:
    """Runs from seeds on weights of the strings `[strings]`, or of each run `[seeds, strings]`: parameters
    `[seeds, params]`, accuracies `[seeds, times]`."""
    task = task_of(settings)
    models = [new_model(settings, seed) for seed in seeds]
    steps, rows = [], []

    def measure(step: int) -> None:
        steps.append(step)
        rows.append([list(task.accuracies(model).values()) for model in models])

    train_side_by_side(
        models, task.training, pf.losses.cross_entropy, steps=settings.steps, batch_size=settings.batch,
        lr=settings.lr, weight_decay=settings.weight_decay, seeds=seeds, weights=weights,
        measure=measure, measure_every=max(1, settings.steps // 4),
    )  # fmt: skip
    accuracies = torch.tensor(rows, dtype=torch.float32).permute(2, 1, 0)
    return {
        "parameters": torch.stack([parameters_to_vector(model.parameters()).detach().cpu() for model in models]),
        "steps": steps,
        "test accuracy": accuracies[0],
        "OOD accuracy": accuracies[1],
    }


def solutions(sources: Part, count: int) -> dict[str, list[int]]:
    """Which runs have the highest and which the lowest accuracies out of distribution, among those that learned."""
    accuracy = sources["OOD accuracy"][:, -1].numpy()
    learned = np.flatnonzero(sources["test accuracy"][:, -1].numpy() >= LEARNED)
    among = learned if len(learned) >= 2 * count else np.arange(len(accuracy))
    order = among[np.argsort(accuracy[among])].tolist()
    return {NESTED: order[::-1][:count], COUNTING: order[:count]}
