"""Suffix evaluation: a component's chains run only the part of the model that its coordinates can change.

All before it, and all beside it, is the same for every chain and draw. It is computed once for a set of samples,
recorded, and recalled: exact, not an approximation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

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


class WithModel(nn.Module):
    """Computes something with the model as a forward pass, so that parameters can be swapped for its duration."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Compute) -> Tensor:
        return compute(self.model)


class Modules:
    """A worker's copies of a model's modules, over the model's tensors; made when first needed."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.base = dict(model.named_parameters())
        self.made: dict[tuple[str, ...], tuple[WithModel, list[Recall]]] = {}

    def copy(self) -> WithModel:
        tensors = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return WithModel(copy.deepcopy(self.model, tensors))

    def whole(self) -> WithModel:
        """All modules."""
        if () not in self.made:
            self.made[()] = self.copy(), []
        return self.made[()][0]

    def from_layer(self, suffix: FromLayer) -> tuple[WithModel, list[Recall]]:
        """All modules but the layers before the first; what recalls in their place, one for each key."""
        key = (suffix.layer(suffix.first - 1), *suffix.keys)
        if key not in self.made:
            with_model = self.copy()
            layers = with_model.model.get_submodule(suffix.stack)
            names = suffix.layers[: suffix.first]
            last = Recall(layers.get_submodule(names[-1]))
            recalls = [Recall(layers.get_submodule(name)) if suffix.every else last for name in names]
            for name, recall in zip(names, recalls, strict=True):
                setattr(layers, name, recall)
            self.made[key] = with_model, recalls if suffix.every else [last]
        return self.made[key]


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

    def __init__(self, with_model: WithModel, base: Mapping[str, Tensor], component: Component) -> None:
        self.with_model = with_model
        self.base = {name: base[name].detach() for name in component.coordinates}
        self.indices = {
            name: None if index is None else index.to(base[name].device)
            for name, index in component.coordinates.items()
        }

    def record(self, compute: Compute) -> dict[str, Tensor]:
        return {}

    def run(self, compute: Compute, moved: Mapping[str, Tensor], recorded: Recorded) -> Tensor:
        parameters = {}
        for name, index in self.indices.items():
            whole, base = moved[name], self.base[name]
            if index is not None:
                whole = base.flatten().index_copy(0, index, whole).view(base.shape)
            parameters[f"model.{name}"] = whole
        return functional_call(self.with_model, parameters, (compute,))


@dataclass(frozen=True)
class FromLayer:
    """The layers of a stack from `first` on, and all that comes after the stack.

    Where each layer's output is the next one's whole input, that of the last layer before the first is all there is to
    recall; where outputs are added up or skip layers, those of `every` one before it are.
    """

    component: Component
    stack: str
    layers: tuple[str, ...]
    """Names of all layers of the stack, in order."""
    first: int
    every: bool

    @property
    def name(self) -> str:
        return f"from {self.layer(self.first)}" if self.first < len(self.layers) else f"after {self.stack}"

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.layer(index) for index in range(0 if self.every else self.first - 1, self.first))

    def layer(self, index: int) -> str:
        return f"{self.stack}.{self.layers[index]}".removeprefix(".")

    def runner(self, modules: Modules) -> FromLayerRunner:
        return FromLayerRunner(modules, self)


class FromLayerRunner(WholeModelRunner):
    """The whole model's forward pass, in which the layers before the first put out what is recalled of them."""

    def __init__(self, modules: Modules, suffix: FromLayer) -> None:
        with_model, self.recalls = modules.from_layer(suffix)
        super().__init__(with_model, modules.base, suffix.component)
        self.whole, self.keys = modules.whole().model, suffix.keys

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
        for recall, key in zip(self.recalls, self.keys, strict=True):
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


def from_layer(model: nn.Module, component: Component) -> list[FromLayer]:
    """The suffixes from the first layer that a component touches, in the stack that holds most of the model."""
    stacks = {name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList | nn.Sequential)}
    if not stacks:
        return []
    stack = max(stacks, key=lambda name: sum(parameter.numel() for parameter in stacks[name].parameters()))
    names = tuple(name for name, _ in stacks[stack].named_children())
    prefix = f"{stack}." if stack else ""
    touched = [
        names.index(parameter.removeprefix(prefix).split(".")[0])
        for parameter in component.coordinates
        if parameter.startswith(prefix)
    ]
    first = min(touched, default=len(names))
    return [FromLayer(component, stack, names, first, every) for every in (False, True)[: min(first, 2)]]


def suffixes_for(model: nn.Module, component: Component) -> list[Suffix]:
    """Ways to evaluate a component's chains, the best first; the last always works.

    A model that knows better ways than layers gives them by a method `head_suffixes(component)`.
    """
    own = model.head_suffixes(component) if hasattr(model, "head_suffixes") else []  # type: ignore[operator]
    return [*own, *from_layer(model, component), WholeModel(component)]
