"""`create_param_masks` and `preview_weight_restriction`: what moves, by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from patterning_fast.arguments import checked
from patterning_fast.interop.devinterp.sampling import ParamMasks
from patterning_fast.posterior.components import FULL, component
from patterning_fast.posterior.naming import components
from patterning_fast.posterior.preview import preview

RESTRICTION = "restriction"


@checked
def create_param_masks(model: nn.Module, restriction: str | Sequence[str]) -> dict[str, Tensor | None]:
    """The masks of a name, or of the union of several: bool, of each parameter's shape; None for all of it.

    Names are those of `patterning_fast.components`, devinterp's among them: "full", "l0", "l0h1", "l0g0", "l0 attn",
    "l0 mlp", "embed", "unembed", or a parameter's own. Raises ValueError for others, and for "full" beside others.
    """
    names = [restriction] if isinstance(restriction, str) else list(restriction)
    if FULL in names and len(names) > 1:
        raise ValueError(f'"full" is all there is: leave out {", ".join(each for each in names if each != FULL)}')
    found = components(model, **{RESTRICTION: names})[RESTRICTION]
    parameters = dict(model.named_parameters())

    def mask(name: str, index: Tensor) -> Tensor:
        moving = torch.zeros(parameters[name].numel(), dtype=torch.bool)
        moving[index] = True
        return moving.view(parameters[name].shape)

    return {
        name: None if found.coordinates[name] is None else mask(name, found.coordinates[name])  # type: ignore[arg-type]
        for name in parameters
        if name in found.coordinates
    }


@checked
def preview_weight_restriction(model: nn.Module, masks: ParamMasks, *, plain: bool = False) -> None:
    """Print a tree of what moves of each parameter; with `plain` the parameters' names, a line each.

    Raises ValueError for masks that do not fit the model, or move nothing.
    """
    moving = component(model, RESTRICTION, masks)
    print("\n".join(sorted(masks)) if plain else preview(model, moving))
