"""Replicas of the toy model: trained from random starts, and what they are along training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import patterning_fast as pf
from patterning_fast.models.superposition import TiedAutoencoder

from .polygons import Polygons, one_active, polygons
from .settings import Settings

Course = dict[str, Tensor]
"""Replicas: `sides`, `positive`, `loss` `[snapshots, replicas]`, `held` by feature as well; `final` parameters."""


def trained(settings: Settings, seed: int, weights: Tensor | None) -> dict[str, Tensor]:
    """Replicas from random starts: `parameters` `[snapshots, replicas, 3 · features]`, `loss`, and the `step`s."""
    found = training(settings, started(settings, seed), seed, settings.steps, weights, settings.snapshots)
    return {
        "parameters": torch.from_numpy(found["parameters"].values[:, 0]),
        "loss": torch.from_numpy(found["loss"].values[:, 0]),
        "step": torch.from_numpy(found["step"].values),
    }


def stepped(settings: Settings, parameters: Tensor | None, seed: int, steps: int, weights: Tensor | None) -> Tensor:
    """Parameters `[replicas, 3 · features]` after some steps from given ones, or from the seed's start if None."""
    start = started(settings, seed) if parameters is None else parameters
    return torch.from_numpy(training(settings, start, seed, steps, weights, 1)["parameters"].values[-1, 0])


def started(settings: Settings, seed: int) -> Tensor:
    """Random starts of replicas `[replicas, 3 · features]`."""
    generator, size = torch.Generator().manual_seed(seed), settings.features
    columns = torch.randn(settings.replicas, 2 * size, generator=generator, dtype=torch.float32)
    return torch.cat((settings.initial_scale * columns, columns.new_zeros(settings.replicas, size)), 1)


def training(
    settings: Settings, start: Tensor, seed: int, steps: int, weights: Tensor | None, snapshots: int
) -> xr.Dataset:
    x = one_active(settings.features, settings.magnitudes).x.to(settings.device)
    return pf.train_replicas(
        TiedAutoencoder(settings.features).to(settings.device), start.to(settings.device), (x, x),
        pf.losses.squared_error, steps=steps, batch_size=settings.batch_size,
        optimizer=lambda params: torch.optim.Adam(params, lr=settings.lr),
        weights=None if weights is None else weights[None], snapshots=snapshots, seed=seed, progress=False,
    )  # fmt: skip


def course_of(settings: Settings, found: Mapping[str, Tensor]) -> Course:
    """What the replicas were at each snapshot."""
    each = [polygons(parameters.numpy(), settings.features) for parameters in found["parameters"]]
    return {
        "sides": torch.from_numpy(np.stack([one.sides for one in each])).to(torch.int8),
        "positive": torch.from_numpy(np.stack([one.positive for one in each])).to(torch.int8),
        "held": torch.from_numpy(np.stack([one.held for one in each])),
        "loss": found["loss"],
        "final": found["parameters"][-1],
    }


def retrained(settings: Settings, seed: int, weights: Tensor | None) -> Course:
    """What replicas trained on weights become."""
    return course_of(settings, trained(settings, seed, weights))


def at_snapshot(course: Course, snapshot: int) -> Polygons:
    """What the replicas were at a snapshot."""
    return Polygons(*(course[name][snapshot].numpy() for name in ("sides", "positive", "held")))


def as_wanted(found: Polygons, sides: int) -> np.ndarray:
    """Which models are a polygon of the first `sides` features `[models]`."""
    first = np.arange(found.held.shape[-1]) < sides
    return (found.sides == sides) & (found.held == first).all(-1)


def wanted_shares(course: Course, sides: int) -> np.ndarray:
    """Share of replicas that are as wanted, by snapshot."""
    return np.array([as_wanted(at_snapshot(course, at), sides).mean() for at in range(len(course["sides"]))])


def representatives(course: Course) -> dict[str, int]:
    """A replica of each of the four kinds that most of the base run came to."""
    names = at_snapshot(course, -1).names.tolist()
    kinds = [kind for kind, _ in Counter(names).most_common() if kind != "other"][:4]
    return {kind: names.index(kind) for kind in kinds}


def stage_snapshots(settings: Settings) -> list[int]:
    """Snapshots, closer to each other early on."""
    spaced = np.geomspace(1, settings.snapshots, settings.stages).round().astype(int) - 1
    return sorted(set(spaced.tolist()))
