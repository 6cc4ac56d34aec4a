"""Which suffix evaluates each component, and what is recorded for it of every set of samples."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from patterning_fast.engine.suffix import Modules, Recorded, Runner, Suffix, SuffixError, WholeModel, suffixes_for
from patterning_fast.engine.workers import Workers
from patterning_fast.posterior.components import Component
from patterning_fast.posterior.data import sample_count, take
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Data

RECORDING_BATCH = 16
"""Samples recorded at a time."""

PERTURBATION = 0.05
"""Size of the move from w*, relative to the parameters, on which a suffix must agree with the whole model."""

ROUNDING = 1e-4
"""Largest difference of losses, relative to 1 + the largest loss, that is put down to rounding."""


class Runners:
    """A worker's runners, made when first used."""

    def __init__(self, posterior: LocalPosterior) -> None:
        self.modules, self.made = Modules(posterior.model), dict[int, Runner]()

    def __getitem__(self, suffix: Suffix) -> Runner:
        if id(suffix) not in self.made:
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
    """Choose the best suffix of each component that agrees with the whole model; record the sets, in `budget` bytes.

    What does not fit of the posterior's data is recorded at every step for minibatches instead.

    Warns where none does but the whole model.
    """
    samples, size_of = sum(map(sample_count, sets)), dict[str, int]()
    sizes: dict[tuple[str, ...], dict[str, int] | str] = {}
    wanted: dict[str, Suffix] = {}
    chosen: list[Suffix] = []
    left, modules = budget, Modules(posterior.model)
    for component in components:
        refused: list[str] = []
        for suffix in suffixes_for(posterior.model, component):
            if suffix.keys not in sizes:
                sizes[suffix.keys] = sizes_or_disagreement(posterior, component, suffix, modules)
            found = sizes[suffix.keys]
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
            warnings.warn(f"{component.name} runs the whole model, not {'; nor '.join(refused)}", stacklevel=4)
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


def sizes_or_disagreement(
    posterior: LocalPosterior, component: Component, suffix: Suffix, modules: Modules
) -> dict[str, int] | str:
    """Bytes that a sample takes, by key, if a suffix gives the whole model's losses near w*; else what is wrong."""
    batch = take(posterior.data, slice(0, 2))
    generator = torch.Generator().manual_seed(0)
    parameters, moved = dict(posterior.model.named_parameters()), {}
    for name, index in component.coordinates.items():
        values = parameters[name].detach()
        values = values if index is None else values.flatten()[index.to(values.device)]
        size = PERTURBATION * values.square().mean().sqrt()
        moved[name] = values + size * torch.randn(values.shape, generator=generator).to(values.device)

    def losses(model: nn.Module) -> Tensor:
        return posterior.loss(model, batch)

    with torch.no_grad():
        expected = WholeModel(component).runner(modules).run(losses, moved, {})
        try:
            runner = suffix.runner(modules)
            recorded = runner.record(losses)
            if any(len(each) != sample_count(batch) for each in recorded.values()):
                return "what it puts out has no dimension of samples"
            found = runner.run(losses, moved, recorded)
        except (SuffixError, RuntimeError, TypeError, AttributeError, ValueError) as error:
            return str(error)
    difference = float((found - expected).abs().max())
    if not difference <= ROUNDING * (1 + float(expected.abs().max())):
        return f"its losses differ by {difference:.2g}"
    return {key: each.element_size() * each[0].numel() for key, each in recorded.items()}


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
