"""Suffix evaluation: a component's chains run only the part of the model that its coordinates can change.

All before it, and all beside it, is the same for every chain and draw. It is computed once for a set of samples,
recorded, and recalled: exact, not an approximation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from patterning_fast.engine.dependence import Dependence, dependence
from patterning_fast.posterior.components import Component

Compute = Callable[[nn.Module], Tensor]
"""Anything to be computed with the model: it is called with one that has a chain's parameters."""

Recorded = Mapping[str, Tensor]
"""What does not change, by key, samples along the first dimension."""


class SuffixError(RuntimeError):
    """A model does not run in the way that a suffix supposes."""


class AllRecorded(Exception):
    """Raised within an evaluation of the model once all that is wanted of it has been seen."""


class Runner(Protocol):
    """Runs a suffix; not to be used by two threads at once."""

    def record(self, compute: Compute) -> dict[str, Tensor]:
        """What `compute` needs of the model at w*, to be recalled when it is computed on the same samples."""

    def run(self, compute: Compute, moved: Mapping[str, Tensor], recorded: Recorded) -> Tensor:
        """`compute` with a model whose moving coordinates are `moved`: by parameter, as the bank's leaves hold them."""


class Suffix(Protocol):
    """The part of the model that some component's chains must run."""

    @property
    def name(self) -> str: ...

    @property
    def keys(self) -> tuple[str, ...]:
        """Of what it records; equal keys hold equal values, whichever suffix recorded them."""

    def runner(self, modules: Modules) -> Runner:
        """A runner on a worker's modules."""


class Modules:
    """A worker's copies of a model's modules, over the model's tensors; made when first needed."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.base = dict(model.named_parameters())
        self.made: dict[tuple[str, ...], tuple[nn.Module, list[Recall]]] = {}

    def copy(self) -> nn.Module:
        tensors = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return copy.deepcopy(self.model, tensors)

    def whole(self) -> nn.Module:
        """All modules."""
        if () not in self.made:
            self.made[()] = self.copy(), []
        return self.made[()][0]

    def from_layer(self, suffix: FromLayer) -> tuple[nn.Module, list[Recall]]:
        """All modules but the layers before the first; what recalls in the place of each."""
        key = suffix.stack.paths[: suffix.first]
        if tuple(key) not in self.made:
            model = self.copy()
            layers = model.get_submodule(suffix.stack.name)
            recalls = [Recall(model.get_submodule(path)) for path in key]
            for name, recall in zip(suffix.stack.layers, recalls, strict=False):
                setattr(layers, name, recall)
            self.made[tuple(key)] = model, recalls
        return self.made[tuple(key)]


@dataclass(frozen=True)
class WholeModel:
    """All of it."""

    component: Component

    @property
    def name(self) -> str:
        return "whole model"

    @property
    def keys(self) -> tuple[str, ...]:
        return ()

    def runner(self, modules: Modules) -> WholeModelRunner:
        return WholeModelRunner(modules.whole(), modules.base, self.component)


class WholeModelRunner:
    """A forward pass on parameters set into w*."""

    def __init__(self, model: nn.Module, base: Mapping[str, Tensor], component: Component) -> None:
        self.model = model
        self.base = {name: base[name].detach() for name in component.coordinates}
        self.indices = {
            name: None if index is None else index.to(base[name].device)
            for name, index in component.coordinates.items()
        }
        name_of = {id(base[name]): name for name in component.coordinates}
        self.places = [
            (module._parameters, attribute, name_of[id(parameter)])
            for module in self.modules()
            for attribute, parameter in module._parameters.items()
            if id(parameter) in name_of
        ]
        """Wherever a moving parameter stands, tied ones and modules under several names included, each place once."""

    def modules(self) -> Iterator[nn.Module]:
        """All that may be asked for a parameter, each once."""
        return self.model.modules()

    def record(self, compute: Compute) -> dict[str, Tensor]:
        return {}

    def run(self, compute: Compute, moved: Mapping[str, Tensor], recorded: Recorded) -> Tensor:
        parameters = {}
        for name, index in self.indices.items():
            whole, base = moved[name], self.base[name]
            if index is not None:
                whole = base.flatten().index_copy(0, index, whole).view(base.shape)
            parameters[name] = whole
        at_center = [owner[attribute] for owner, attribute, _ in self.places]
        try:
            for owner, attribute, name in self.places:
                owner[attribute] = parameters[name]  # type: ignore[assignment]  # a tensor in a parameter's place
            return compute(self.model)
        finally:
            for (owner, attribute, _), parameter in zip(self.places, at_center, strict=True):
                owner[attribute] = parameter


@dataclass(frozen=True)
class Stack:
    """A module list or sequence, with the modules in it."""

    name: str
    layers: tuple[str, ...]
    """Names within the stack, in order; a module that comes twice has its first."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Names of the layers within the model."""
        return tuple(f"{self.name}.{layer}".removeprefix(".") for layer in self.layers)


def stack_of(model: nn.Module) -> Stack | None:
    """The stack that holds most of the model; None where there is none."""
    stacks = {name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList | nn.Sequential)}
    if not stacks:
        return None
    name = max(stacks, key=lambda name: sum(parameter.numel() for parameter in stacks[name].parameters()))
    return Stack(name, tuple(layer for layer, _ in stacks[name].named_children()))


@dataclass(frozen=True)
class FromLayer:
    """The layers of a stack from `first` on, and all that comes after the stack.

    Where each layer's output is the next one's whole input, that of the last layer before the first is all there is to
    recall; where outputs are added up or skip layers, those of `every` one before it are.
    """

    component: Component
    stack: Stack
    first: int
    every: bool

    @property
    def name(self) -> str:
        paths = self.stack.paths
        return f"from {paths[self.first]}" if self.first < len(paths) else f"after {self.stack.name}"

    @property
    def keys(self) -> tuple[str, ...]:
        return self.stack.paths[0 if self.every else self.first - 1 : self.first]

    def runner(self, modules: Modules) -> FromLayerRunner:
        return FromLayerRunner(modules, self)


class FromLayerRunner(WholeModelRunner):
    """The whole model's forward pass, in which the layers before the first put out what is recalled of them."""

    def __init__(self, modules: Modules, suffix: FromLayer) -> None:
        model, self.recalls = modules.from_layer(suffix)
        super().__init__(model, modules.base, suffix.component)
        self.whole, self.keys = modules.whole(), suffix.keys
        self.recalled = suffix.keys if suffix.every else suffix.keys * suffix.first
        """The key of what each layer puts out; where the last is enough, what the others do is not looked at."""

    def modules(self) -> Iterator[nn.Module]:
        return chain(self.model.modules(), *(recall.layer[0].modules() for recall in self.recalls))

    def record(self, compute: Compute) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def note(key: str, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise SuffixError(f"{key} puts out {type(output).__name__}, not a tensor")
            seen[key] = output
            if len(seen) == len(self.keys):
                raise AllRecorded

        handles = [
            self.whole.get_submodule(key).register_forward_hook(lambda *call, key=key: note(key, call[-1]))
            for key in self.keys
        ]
        try:
            with torch.no_grad():
                compute(self.whole)
        except AllRecorded:
            return seen
        finally:
            for handle in handles:
                handle.remove()
        raise SuffixError(f"not all of {self.keys} run in an evaluation of the loss")

    def run(self, compute: Compute, moved: Mapping[str, Tensor], recorded: Recorded) -> Tensor:
        for recall, key in zip(self.recalls, self.recalled, strict=True):
            recall.output = recorded[key]
        return super().run(compute, moved, recorded)


class Recall(nn.Module):
    """Stands in for a layer: puts out what is known of it; its other attributes are the layer's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = (layer,)  # within a tuple it is no submodule, and its parameters are not this one's
        self.output: Tensor | None = None

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor | None:
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"][0], name)


@dataclass(frozen=True)
class Layers:
    """The stack that holds most of a model, and what its layers depend on."""

    stack: Stack
    found: Dependence

    def suffix(self, component: Component) -> list[FromLayer]:
        """The suffix from the first layer on that a component's chains change, if there is one before it to recall."""
        first = self.found.unmoved(list(component.coordinates))
        if first == 0:
            return []
        return [FromLayer(component, self.stack, first, every=not self.found.last_is_enough(first))]


def layers_of(model: nn.Module, losses: Compute, samples: int) -> Layers | None:
    """The layers of a model that gives `losses` of that many samples; None for one without a stack of them.

    Raises whatever a model raises that cannot be watched.
    """
    stack = stack_of(model)
    return Layers(stack, dependence(model, stack.paths, losses, samples)) if stack else None


def suffixes_for(model: nn.Module, component: Component, layers: Layers | None) -> list[Suffix]:
    """Ways to evaluate a component's chains, the best first; the last always works.

    A model that knows better ways than layers gives them by a method `head_suffixes(component)`.
    """
    own = model.head_suffixes(component) if hasattr(model, "head_suffixes") else []  # type: ignore[operator]
    return [*own, *(layers.suffix(component) if layers else []), WholeModel(component)]
