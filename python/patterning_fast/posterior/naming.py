"""Components by the names that people say: "l0h1", "l0 attn", "embed", "*.bias"."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from patterning_fast.arguments import checked
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import (
    FULL,
    Component,
    attention_heads,
    component_of,
    may_move,
    outer_stacks,
    own_names,
)
from patterning_fast.posterior.families import attentions
from patterning_fast.posterior.wrapped import Model

HEADS, LAYERS = "heads", "layers"
"""Names of several components: every head, every layer."""

FORMS = (
    '"full", "heads", "layers", "l0", "l0h1", "l0g1" (heads that share keys), "l0e3" (an expert), "l0 attn", "l0 mlp", '
    '"embed", "unembed", a parameter\'s name, or a pattern of such names like "*.bias"'
)

Found = dict[str, Tensor | None]
"""What moves of each parameter: flat indices, or None for the whole."""


@checked
@plain_torch()
def components(model: Model, *names: str, **unions: Sequence[str]) -> dict[str, Component]:
    """Components by name, for any number of names; and by keyword, the union of several names.

    `pf.components(model, "l0h1", "l1 mlp", "heads", ends=["embed", "unembed"])`. Names are

    - "full": all that may move. "heads", "layers": every head, every layer, a component each.
    - "l0h1": a head, see `attention_heads`. "l0g1": the heads of a layer that share keys and values number 1.
    - "l0": a layer. "l0 attn", "l0 mlp": its attention, and the rest of it; norms belong to neither.
    - "l0e3": an expert of a layer.
    - "embed", "unembed": what the model itself calls its input and output embeddings.
    - a parameter's name, also that of a tied one; or a pattern in which * stands for anything.

    Parameters with `requires_grad=False` are left out, unless no parameter of the model requires a gradient.

    Raises ValueError for a name that is none of these or of which the model has none.
    """
    finder = Finder(model)
    found: dict[str, Component] = {}
    for name in names:
        found |= finder.components(name)
    for union, parts in unions.items():
        several = [each.coordinates for name in parts for each in finder.components(name).values()]
        if not several:
            raise ValueError(f"{union} is the union of no names; give it at least one, such as {union}=['l0h1']")
        found[union] = component_of(finder.parameters, union, joined(several))
    return found


class Finder:
    """Finds what names mean in a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = may_move(model)
        self.every = dict(model.named_parameters())
        self.own_names = own_names(model)
        self.modules = dict(model.named_modules())
        self.blocks = blocks(model)
        self.attention = {
            layer: attention_root(name, self.blocks.get(layer, "")) for layer, name in attentions(model).items()
        }

    @cached_property
    def heads(self) -> dict[str, Component]:
        """Every head, found once for all names."""
        return attention_heads(self.model)

    def components(self, name: str) -> dict[str, Component]:
        """The component of a name; several for "heads" and "layers"."""
        said = " ".join(name.split())
        if said == HEADS:
            return self.heads
        if said == LAYERS:
            self.known_layers(name)
            return {f"l{layer}": self.component(f"l{layer}") for layer in self.blocks}
        return {said: self.component(said)}

    def component(self, name: str) -> Component:
        """The component of a name; raises ValueError where there is none."""
        ways: tuple[tuple[str, Callable[..., Found]], ...] = (
            (FULL, lambda: dict.fromkeys(self.parameters)),
            (r"l(\d+) ?h(\d+)", self.head),
            (r"l(\d+) ?g(\d+)", self.group),
            (r"l(\d+) ?e(\d+)", self.expert),
            (r"l(\d+) attn", self.attention_of),
            (r"l(\d+) mlp", self.rest_of),
            (r"l(\d+)", lambda layer: dict.fromkeys(self.within(self.block(int(layer))))),
            ("embed", lambda: self.embedding("get_input_embeddings", "embedding")),
            ("unembed", lambda: self.embedding("get_output_embeddings", "unembedding")),
        )
        for pattern, find in ways:
            if match := re.fullmatch(pattern, name, re.IGNORECASE):
                found = find(*match.groups())
                break
        else:
            found = dict.fromkeys(self.parameters_named(name))
        free = {parameter: index for parameter, index in found.items() if parameter in self.parameters}
        if found and not free:
            raise ValueError(f"{name!r} has no parameter that requires a gradient; call requires_grad_() on it")
        return component_of(self.parameters, name, free)

    def head(self, layer: str, head: str) -> Found:
        heads = self.heads
        name = f"l{int(layer)}h{int(head)}"
        if name not in heads:
            raise ValueError(f"{type(self.model).__name__} has no head {name!r}; it has {span_of(list(heads))}")
        return dict(heads[name].coordinates)

    def group(self, layer: str, group: str) -> Found:
        """The heads whose keys and values are those of a number; each its own, where none are shared."""
        heads = {name: each for name, each in self.heads.items() if name.startswith(f"l{int(layer)}h")}
        groups = getattr(getattr(self.model, "config", None), "num_key_value_heads", None) or len(heads)
        if not heads or int(group) >= groups:
            raise ValueError(
                f"{type(self.model).__name__} has no group {int(group)} in layer {int(layer)}; its layers have {groups}"
            )
        each = len(heads) // groups
        own = list(heads.values())[int(group) * each : (int(group) + 1) * each]
        return joined([head.coordinates for head in own])

    def expert(self, layer: str, expert: str) -> Found:
        """An expert's part of what its layer's experts hold together; or an expert's own modules."""
        block, at = self.block(int(layer)), int(expert)
        within = [name for name in self.within(block) if ".experts." in name]
        own = [name for name in within if f".experts.{at}." in name]
        if own:
            return dict.fromkeys(own)
        together = [name for name in within if self.every[name].dim() > 1 and not re.search(r"\.experts\.\d", name)]
        if not together or at >= min(len(self.every[name]) for name in together):
            raise ValueError(f"layer {int(layer)} of {type(self.model).__name__} has no expert {at}")
        size = {name: self.every[name][0].numel() for name in within if name in together or self.every[name].dim() == 1}
        return {name: torch.arange(at * each, (at + 1) * each) for name, each in size.items()}

    def attention_of(self, layer: str) -> Found:
        found = self.attention_within(int(layer), self.block(int(layer)))
        if not found:
            raise ValueError(f"layer {int(layer)} of {type(self.model).__name__} has no attention that is known")
        return dict.fromkeys(found)

    def rest_of(self, layer: str) -> Found:
        block = self.block(int(layer))
        attention = set(self.attention_within(int(layer), block))
        rest = [name for name in self.without_norms(self.within(block)) if name not in attention]
        if not rest:
            raise ValueError(f"layer {int(layer)} of {type(self.model).__name__} has nothing beside its attention")
        return dict.fromkeys(rest)

    def attention_within(self, layer: int, block: str) -> list[str]:
        """The parameters of a layer's attention: by its module, or by what heads own of it."""
        if layer in self.attention:
            return self.without_norms(self.within(self.attention[layer]))
        describe = getattr(self.model, "attention_head_parameters", None)
        owned = {} if describe is None else {name for head in describe().values() for name in head}
        return [name for name in self.within(block) if name in owned]

    def embedding(self, method: str, attribute: str) -> Found:
        """What the model's own method returns, as those of Hugging Face do; or a parameter of a name."""
        if attribute in self.every:
            return {attribute: None}
        ask: Any = getattr(self.model, method, None)
        module = None if ask is None else ask()
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"{type(self.model).__name__} does not say which its {attribute} is, by a method {method}(); "
                f"give the parameter's name instead"
            )
        own = {id(each) for each in module.parameters()}
        return {name: None for name, each in self.every.items() if id(each) in own}

    def parameters_named(self, name: str) -> list[str]:
        """The parameters of a name or a pattern, by the one name that each goes by."""
        found = [own for each, own in self.own_names.items() if fnmatchcase(each, name) or each == name]
        if not found:
            raise ValueError(f"{name!r} is no component of {type(self.model).__name__}; names are {FORMS}")
        return list(dict.fromkeys(found))

    def block(self, layer: int) -> str:
        """The name of the module of a layer."""
        self.known_layers(f"l{layer}")
        if layer not in self.blocks:
            known = span_of([f"l{each}" for each in self.blocks])
            raise ValueError(f"{type(self.model).__name__} has no layer {layer}; it has {known}")
        return self.blocks[layer]

    def known_layers(self, name: str) -> None:
        if not self.blocks:
            raise ValueError(
                f"{name!r}: {type(self.model).__name__} has no stack of layers, or several of equal depth; name "
                "parameters, or a pattern of names, instead"
            )

    def within(self, module: str) -> list[str]:
        return [name for name in self.every if name.startswith(f"{module}.")]

    def without_norms(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if "norm" not in type(self.modules[name.rpartition(".")[0]]).__name__.lower()]


def blocks(model: nn.Module) -> dict[int, str]:
    """The names of a model's layers: those its attention lies in, else its deepest stack that lies in no other."""
    of_attention = {layer: re.match(r"(.*?\d+)\.", name) for layer, name in attentions(model).items()}
    if of_attention and all(of_attention.values()):
        stack = {match[1].rpartition(".")[0] for match in of_attention.values() if match}
        if len(stack) == 1:
            (name,) = stack
            return {int(at): f"{name}.{at}" if name else at for at, _ in model.get_submodule(name).named_children()}
    outer = {name: stack for name, stack in outer_stacks(model).items() if any(True for _ in stack.parameters())}
    deepest = max(map(len, outer.values()), default=0)
    found = [name for name, stack in outer.items() if len(stack) == deepest]
    if len(found) != 1:
        return {}
    return {at: f"{found[0]}.{at}" if found[0] else str(at) for at in range(deepest)}


def attention_root(attention: str, block: str) -> str:
    """The part of a layer that its attention module lies in, e.g. "h.0.attn" of "h.0.attn.attention"."""
    inside = attention.removeprefix(f"{block}.").partition(".")[0]
    return f"{block}.{inside}" if block else inside


def joined(several: Sequence[Mapping[str, Tensor | None]]) -> Found:
    """The union of coordinates."""
    found: Found = {}
    for coordinates in several:
        for name, index in coordinates.items():
            if name not in found:
                found[name] = index
            else:
                before = found[name]
                found[name] = None if before is None or index is None else torch.cat((before, index)).unique()
    return found


def span_of(names: Sequence[str]) -> str:
    """The first and the last of some names."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" if names else "none"
