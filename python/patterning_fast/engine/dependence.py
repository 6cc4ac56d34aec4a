"""What each layer's output depends on, found by watching every operation of one forward pass.

Not by names, nor by trying: a tensor depends on a parameter where any operation has taken it there, views, tied and
twice-registered parameters, detached values and buffers written on the way included. Where a value leaves for Python,
all that comes after may depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Marks = int
"""A set, one bit an element."""

LEAVES_TORCH = (Tensor.numpy, Tensor.tolist, Tensor.__array__)
"""Ways out of a tensor that are no operations."""


class Watch(TorchDispatchMode):
    """Carries marks from operands to results; marks belong to storages, so views share them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.marked: dict[int, tuple[torch.UntypedStorage, Marks]] = {}
        """By address; the storage is held, so that no other takes its address."""
        self.within: Marks = 0
        """Marks that every result gets now."""
        self.escaped: Marks = 0
        """Marks of values that Python has seen."""

    def marks(self, *tensors: Tensor) -> Marks:
        found: Marks = 0
        for tensor in tensors:
            found |= self.marked.get(tensor.untyped_storage()._cdata, (None, 0))[1]
        return found

    def mark(self, tensor: Tensor, marks: Marks) -> None:
        self.set_marks(tensor, self.marks(tensor) | marks)

    def set_marks(self, tensor: Tensor, marks: Marks) -> None:
        """Give a tensor that shares its storage with no other these marks and no more."""
        storage = tensor.untyped_storage()
        self.marked[storage._cdata] = storage, marks

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        operands = [each for each in tree_leaves((arguments, keywords)) if isinstance(each, Tensor)]
        marks = self.marks(*operands) | self.within
        result = operation(*arguments, **keywords)
        if marks:
            read = {each.untyped_storage()._cdata for each in operands}
            for each in tree_leaves(result):
                if isinstance(each, Tensor):
                    if each.untyped_storage()._cdata not in read:  # else a view, in which nothing is new
                        self.mark(each, marks)
                elif each is not None:
                    self.escaped |= marks
            for each in written_to(operation, arguments, keywords):
                self.mark(each, marks)
        return result


class WatchForPython(TorchFunctionMode):
    """Notes what leaves by other ways than operations."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        if function in LEAVES_TORCH:
            self.watch.escaped |= self.watch.marks(arguments[0])
        return function(*arguments, **(keywords or {}))


def written_to(operation: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation writes to."""
    for at, described in enumerate(operation._schema.arguments):
        if described.alias_info is not None and described.alias_info.is_write:
            value = arguments[at] if at < len(arguments) else keywords.get(described.name)
            yield from (each for each in tree_leaves(value) if isinstance(each, Tensor))


@dataclass(frozen=True)
class LayerDependence:
    """What is known of one layer of a stack."""

    parameters: Marks
    """Those that its output depends on, by their place in `Dependence.names`."""
    before: Marks
    """The layers whose outputs it takes, past no other layer."""
    recallable: bool
    """It runs once, its output is one tensor, samples first, that nobody changes, and nothing else leaves it."""


@dataclass(frozen=True)
class Dependence:
    """What the outputs of a stack's layers depend on, and what the losses take of them."""

    names: Mapping[str, Marks]
    """Parameters, each with a mark of its own."""
    layers: Sequence[LayerDependence]
    of_losses: Marks
    """The layers whose outputs the losses take, past no other layer."""
    escaped: Marks
    """Parameters whose values Python has seen."""

    def unmoved(self, parameters: Sequence[str]) -> int:
        """How many layers, counted from the first, can be recalled while these parameters move."""
        moving: Marks = 0
        for name in parameters:
            moving |= self.names[name]
        if moving & self.escaped:
            return 0
        for number, layer in enumerate(self.layers):
            if layer.parameters & moving or not layer.recallable:
                return number
        return len(self.layers)

    def last_is_enough(self, number: int) -> bool:
        """Whether of the first `number` layers all that is taken is the last one's output."""
        others = (1 << (number - 1)) - 1
        return not any(taken & others for taken in (self.of_losses, *(each.before for each in self.layers[number:])))


def dependence(
    model: nn.Module, layers: Sequence[str], losses: Callable[[nn.Module], Tensor], samples: int
) -> Dependence:
    """Watch `losses(model)` on that many samples; `layers` are the names of a stack's modules, in order.

    Raises whatever the model raises where it cannot be watched.
    """
    watch, names = Watch(), dict[str, Marks]()
    for at, (name, parameter) in enumerate(model.named_parameters()):
        names[name] = 1 << at
        watch.mark(parameter, names[name])
    own = len(names)  # then come the layers' outputs, and after them what is made within each
    output = [1 << (own + at) for at in range(len(layers))]
    inside = [1 << (own + len(layers) + at) for at in range(len(layers))]
    every_parameter, every_output = (1 << own) - 1, sum(output)
    calls, found, kept = [0] * len(layers), [0] * len(layers), dict[int, Tensor]()
    sound = [True] * len(layers)

    def enter(at: int) -> None:
        calls[at] += 1
        watch.within |= inside[at]

    def leave(at: int, put_out: Any) -> Any:
        watch.within &= ~inside[at]
        tensors = [each for each in tree_leaves(put_out) if isinstance(each, Tensor)]
        found[at] |= watch.marks(*tensors)
        if not isinstance(put_out, Tensor) or not put_out.dim() or len(put_out) != samples:
            sound[at] = False
            return put_out
        kept[at] = put_out.clone()  # what is done to it from here on is not done to its other names
        watch.set_marks(kept[at], found[at] & every_parameter | output[at])
        return kept[at]

    with ExitStack() as stack:
        for at, name in enumerate(layers):
            module = model.get_submodule(name)
            for handle in (
                module.register_forward_pre_hook(lambda *call, at=at: enter(at)),
                module.register_forward_hook(lambda *call, at=at: leave(at, call[-1])),
            ):
                stack.callback(handle.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(watch)
        stack.enter_context(WatchForPython(watch))
        of_losses = watch.marks(losses(model))
    of_losses |= watch.escaped
    described = []
    for at in range(len(layers)):
        elsewhere = of_losses
        for other in range(len(layers)):
            elsewhere |= found[other] if other != at else 0
        untouched = at in kept and kept[at]._version == 0
        recallable = sound[at] and calls[at] == 1 and untouched and not elsewhere & inside[at]
        described.append(LayerDependence(found[at] & every_parameter, (found[at] & every_output) >> own, recallable))
    return Dependence(names, described, (of_losses & every_output) >> own, watch.escaped & every_parameter)
