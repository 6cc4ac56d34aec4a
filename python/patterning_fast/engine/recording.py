"""Which suffix evaluates each component, and what is recorded for it of every set of samples."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from patterning_fast.categories import WholeModelWarning
from patterning_fast.engine.suffix import Modules, Recorded, Runner, Suffix, WholeModel
from patterning_fast.engine.trial import Trial
from patterning_fast.engine.workers import Workers
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import Component
from patterning_fast.posterior.data import sample_count, take
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Data

RECORDING_BATCH = 16
"""Samples recorded at a time."""


class Runners:
    """A worker's runners, made when first used."""

    def __init__(self, posterior: LocalPosterior) -> None:
        self.modules, self.made = Modules(posterior.model), dict[int, Runner]()

    def __getitem__(self, suffix: Suffix) -> Runner:
        if id(suffix) not in self.made:
            with plain_torch():  # a runner may multiply weights, which is not to be in an evaluation's precision
                self.made[id(suffix)] = suffix.runner(self.modules)
        return self.made[id(suffix)]


@dataclass
class Recordings:
    """The suffix of each component, and what is recorded of the evaluation sets and of the posterior's data."""

    suffixes: list[Suffix]
    of_sets: list[dict[str, Tensor]]
    of_data: dict[str, Tensor] = field(default_factory=dict)

    def holds_data(self, suffix: Suffix) -> bool:
        """Whether all a suffix recalls is recorded for the posterior's data."""
        return all(key in self.of_data for key in suffix.keys)


def recordings(
    posterior: LocalPosterior, components: list[Component], sets: Sequence[Data], budget: int, pool: Workers[Runners]
) -> Recordings:
    """Choose the best suffix of each component that fits and stands its trial; record the sets, in `budget` bytes.

    What does not fit of the posterior's data is recorded at every step for minibatches instead.

    Warns where none does but the whole model.
    """
    samples, size_of = sum(map(sample_count, sets)), dict[str, int]()
    wanted: dict[str, Suffix] = {}
    chosen: list[Suffix] = []
    left, trial = budget, Trial(posterior)
    for component in components:
        refused: list[str] = []
        for suffix, found in trial.suffixes(component):
            if isinstance(found, str):
                refused.append(f"{suffix.name}: {found}")
                continue
            size_of |= found
            need = sum(size_of[key] for key in suffix.keys if key not in wanted) * samples
            if need > left:
                refused.append(f"{suffix.name}: what it recalls of the probes takes {need / 2**20:.0f} MiB")
                continue
            left -= need
            wanted |= {key: suffix for key in suffix.keys if key not in wanted}
            chosen.append(suffix)
            break
        if refused and isinstance(chosen[-1], WholeModel):
            said = f"{component.name} runs the whole model, not {'; nor '.join(refused)}"
            warnings.warn(said, WholeModelWarning, stacklevel=4)
    of_sets = [record(posterior, wanted, data, pool) for data in sets]
    own = [each for each, data in zip(of_sets, sets, strict=True) if data is posterior.data]
    result = Recordings(chosen, of_sets, own[0] if own else {})
    if not own:
        fits: dict[str, Suffix] = {}
        for suffix in sorted(chosen, key=lambda suffix: sum(size_of[key] for key in suffix.keys)):
            need = sum(size_of[key] for key in suffix.keys if key not in fits) * sample_count(posterior.data)
            if need <= left:
                left -= need
                fits |= {key: wanted[key] for key in suffix.keys}
        result.of_data = record(posterior, fits, posterior.data, pool)
    return result


def record(
    posterior: LocalPosterior, wanted: Mapping[str, Suffix], data: Data, pool: Workers[Runners]
) -> dict[str, Tensor]:
    """All that is wanted of a set, by key, samples along the first dimension."""
    recorded: dict[str, Tensor] = {}
    if not wanted:
        return recorded
    samples, suffixes = sample_count(data), {id(suffix): suffix for suffix in wanted.values()}.values()
    allocating = threading.Lock()

    def one(runners: Runners, start: int) -> None:
        batch = take(data, slice(start, start + RECORDING_BATCH))
        for suffix in suffixes:
            for key, values in runners[suffix].record(lambda model: posterior.loss(model, batch)).items():
                if wanted.get(key) is suffix:
                    with allocating:
                        if key not in recorded:
                            recorded[key] = values.new_empty(samples, *values.shape[1:])
                    recorded[key][start : start + len(values)] = values

    pool.each(one, range(0, samples, RECORDING_BATCH))
    return recorded


def recalled(recorded: Recorded, suffix: Suffix, samples: Tensor | slice) -> dict[str, Tensor]:
    """What a suffix recalls of some samples."""
    return {key: recorded[key][samples] for key in suffix.keys}
