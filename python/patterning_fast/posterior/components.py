"""Components: which coordinates of the parameters move in a restricted chain (arXiv:2504.18274, §2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from patterning_fast.arguments import Name, checked
from patterning_fast.domains import Holds, Mend
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior import families
from patterning_fast.posterior.weights import shown
from patterning_fast.posterior.wrapped import Model

Masks = Mapping[str, Tensor | None] | Iterable[str]

FULL = "full"
"""The component of all parameters."""


@dataclass(frozen=True)
@checked
class Component:
    """A named set of coordinates: parameter name to the flat indices that move, or None for the whole parameter.

    Raises TypeError or ValueError unless indices are int64 `[n]`, n > 0, and rise from 0 or more.
    """

    name: Name
    coordinates: Annotated[Mapping[str, Tensor | None], Holds(1)]

    def __post_init__(self) -> None:
        for parameter, index in self.coordinates.items():
            if index is not None:
                check_index(self.name, parameter, index)

    def size(self, parameters: Mapping[str, Tensor]) -> int:
        """Number of coordinates that move."""
        return sum(
            parameters[name].numel() if index is None else index.numel() for name, index in self.coordinates.items()
        )


Components = Annotated[
    Mapping[str, Component],
    Mend(
        'pass pf.components(model, "l0h1", "l1 mlp", ...), pf.attention_heads(model), or '
        "{name: pf.component(model, name, parameters)}"
    ),
]
"""Components by name."""


@checked
@plain_torch()
def component(model: Model, name: Name, masks: Masks) -> Component:
    """A component from parameter names, or from what moves of each parameter: a boolean mask of its shape, flat
    indices (int64, rising), or None for the whole.

    A parameter that modules share may be named by any of its names.

    Raises ValueError for parameters the model lacks or that are named twice, masks of another shape or kind, or nothing
    that moves.
    """
    own, wanted = own_names(model), dict(masks) if isinstance(masks, Mapping) else dict.fromkeys(masks)
    renamed: dict[str, str] = {}
    for each in wanted:
        first = renamed.setdefault(own.get(each, each), each)
        if first != each:
            raise ValueError(f"component {name!r} names {first} and {each}, which are one parameter: leave one out")
    return component_of(dict(model.named_parameters()), name, {own.get(each, each): wanted[each] for each in wanted})


def own_names(model: nn.Module) -> dict[str, str]:
    """The one name that a parameter goes by, of every name it has: several where modules share it."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def component_of(parameters: Mapping[str, Tensor], name: str, masks: Masks) -> Component:
    """`component` for a model with these parameters, which many components then need not look up again."""
    wanted = dict(masks) if isinstance(masks, Mapping) else dict.fromkeys(masks)
    coordinates: dict[str, Tensor | None] = {}
    for parameter, mask in wanted.items():
        if parameter not in parameters:
            raise ValueError(
                f"component {name!r} names {parameter!r}, which the model lacks; it has {shown(parameters)}"
            )
        if mask is None:
            coordinates[parameter] = None
            continue
        index = flat_index(name, parameter, mask, parameters[parameter].shape)
        if index.numel():
            coordinates[parameter] = None if index.numel() == parameters[parameter].numel() else index
    if not coordinates:
        raise ValueError(f"component {name!r} is empty: nothing in it would move")
    return Component(name, coordinates)


def flat_index(component: str, parameter: str, mask: Tensor, shape: torch.Size) -> Tensor:
    """The flat indices of a mask or of indices, checked."""
    if mask.dtype == torch.bool and mask.shape == shape:
        return mask.flatten().nonzero().squeeze(1).cpu()
    if mask.dtype != torch.int64 or mask.dim() != 1:
        raise ValueError(
            f"component {component!r}: the mask of {parameter!r} must be bool of shape {list(shape)}, "
            f"got {mask.dtype} of shape {list(mask.shape)}; flat indices in its place must be int64 of shape [n]"
        )
    index = mask.cpu()
    if index.numel():
        check_index(component, parameter, index)
        if int(index[-1]) >= shape.numel():
            raise ValueError(
                f"component {component!r}: the indices of {parameter!r} must be below {shape.numel()}, its size, "
                f"got {int(index[-1])}; was it built for another model?"
            )
    return index


def check_index(component: str, parameter: str, index: Tensor) -> None:
    """Raise TypeError or ValueError unless flat indices are int64 `[n]`, n > 0, on the CPU, and rise from 0 or more."""
    of = f"component {component!r}: the indices of {parameter!r}"
    if index.dtype != torch.int64 or index.device.type != "cpu":
        raise TypeError(
            f"{of} must be int64 on the CPU, got {index.dtype} on {index.device}; pass indices.long().cpu(), "
            "or a boolean mask to pf.component"
        )
    if index.dim() != 1 or not index.numel():
        raise ValueError(
            f"{of} must have shape [n] with n > 0, got {list(index.shape)}; leave the parameter out if nothing moves"
        )
    if int(index[0]) < 0 or not bool((index[1:] > index[:-1]).all()):
        raise ValueError(
            f"{of} must rise, each once and none below 0, got values from {int(index.min())} to {int(index.max())} "
            "out of order or repeated; pass indices.unique()"
        )


def coordinates(component: Component, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of the parameters is a component's, by parameter."""
    return {
        name: parameters[name] if index is None else parameters[name].flatten()[index.to(parameters[name].device)]
        for name, index in component.coordinates.items()
    }


def may_move(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient; all, where none does."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    return {name: each for name, each in parameters.items() if each.requires_grad} or parameters


@checked
@plain_torch()
def layers(model: Model) -> dict[str, Component]:
    """One component for each element of each `nn.ModuleList` or `nn.Sequential` in `model` that has parameters.

    A stack within another is part of it, so that layers are apart. Parameters with `requires_grad=False` are left out,
    unless no parameter of the model requires a gradient.

    Raises ValueError for a model without such stacks; build components by `component` there.
    """
    parameters = may_move(model)
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    found = {}
    for stack_name, stack in outer_stacks(model).items():
        for index, layer in stack.named_children():
            name = f"{stack_name}.{index}" if stack_name else index
            inside = [name_of[id(each)] for each in layer.parameters() if id(each) in name_of]
            if inside:
                found[name] = component_of(parameters, name, inside)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no nn.ModuleList or nn.Sequential of layers; "
            "name what moves with pf.component(model, name, parameters)"
        )
    return found


def outer_stacks(model: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    """The stacks of layers by name, without those that lie in another."""
    found: dict[str, nn.ModuleList | nn.Sequential] = {}
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList | nn.Sequential) and not inside:
            found[name] = module
    return found


@checked
@plain_torch()
def attention_heads(model: Model) -> dict[str, Component]:
    """One component for each attention head, by name ("l0h1": layer 0, head 1).

    A head is its queries, keys, values and output weights, without what all heads share. With grouped-query attention
    heads share keys and values too: these move in each head of their group, so such heads overlap. Parameters with
    `requires_grad=False` are left out, unless no parameter of the model requires a gradient.

    Known are the families of Hugging Face in `posterior/families.py`, models made of nn.MultiheadAttention, and those
    with a method `attention_head_parameters()`: head name to the flat indices it owns in each parameter, int64 and
    rising, as the built-in models have it. Raises ValueError for others.
    """
    describe = getattr(model, "attention_head_parameters", None)
    heads = families.attention_head_parameters(model) if describe is None else describe()
    if heads is None:
        raise ValueError(
            f"{type(model).__name__} does not say where its heads lie: give it a method attention_head_parameters() "
            "(see AttentionOnlyLM), or build the heads with pf.component(model, name, masks)"
        )
    parameters = may_move(model)
    frozen = {name for name, _ in model.named_parameters()} - parameters.keys()
    free = {head: {name: index for name, index in owned.items() if name not in frozen} for head, owned in heads.items()}
    found = {head: component_of(parameters, head, owned) for head, owned in free.items() if owned}
    if not found:
        raise ValueError(
            f"no head of {type(model).__name__} has a parameter that requires a gradient: call requires_grad_() on "
            "what is to move"
        )
    return found


def check_fits(name: str, component: Component, parameters: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a component moves what a model with these parameters lacks."""
    for parameter, index in component.coordinates.items():
        if parameter not in parameters:
            raise ValueError(
                f"component {name!r} moves the parameter {parameter!r}, which the model lacks; "
                f"it has {shown(parameters)}: was the component built for another model?"
            )
        if index is not None and int(index[-1]) >= parameters[parameter].numel():
            raise ValueError(
                f"component {name!r} moves coordinate {int(index[-1])} of {parameter!r}, which has only "
                f"{parameters[parameter].numel()}: was the component built for another model?"
            )


def resolve_components(
    model: nn.Module, components: Mapping[str, Component] | None, moving: Sequence[str] | None = None
) -> list[Component]:
    """The components to sample; "full", or none, stands for all parameters that may be `moving` (None for all).

    Raises ValueError where one does not fit `model`, or moves what may not.
    """
    parameters = dict(model.named_parameters())
    moving = list(parameters) if moving is None else moving
    if not components:
        return [component_of(parameters, FULL, moving)]
    resolved = []
    for name, each in components.items():
        if name == FULL:
            resolved.append(component_of(parameters, FULL, moving))
            continue
        check_fits(name, each, parameters)
        for parameter in each.coordinates:
            if parameter not in moving:
                raise ValueError(
                    f"component {name!r} moves the parameter {parameter!r}, which has requires_grad=False: leave it "
                    "out, or call requires_grad_() on it before LocalPosterior(model, ...)"
                )
        resolved.append(each if each.name == name else Component(name, each.coordinates))
    return resolved
