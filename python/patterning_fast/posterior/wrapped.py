"""Models as they come from `torch.compile` and from wrappers for many devices, and the models within."""

from __future__ import annotations

import sys
from typing import Annotated

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

COMPILED = "_orig_mod"
"""Where what `torch.compile` returns has the model."""


class Unwrapped:
    """Of a model: the one within its wrappers, which names parameters; refused where its parameters are shards."""

    expected = "with whole parameters"
    mend = (
        "its parameters are shards: load what torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True)) gives into a model that is whole, and pass that"
    )

    def holds(self, model: nn.Module) -> bool:
        return not any(is_sharded(each) for each in model.modules())

    def read(self, model: nn.Module) -> nn.Module:
        while True:
            if COMPILED in model._modules:
                model = model.get_submodule(COMPILED)
            elif isinstance(model, DataParallel | DistributedDataParallel):
                model = model.module
            else:
                return model


Model = Annotated[nn.Module, Unwrapped()]
"""A model that a user passes. What runs it in the user's own loop, as losses do, takes it as it is."""


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's parameters are shards: by FSDP, by `fully_shard`, or as distributed tensors.

    Whoever has made such has loaded what makes them; to load it here would take as long as torch itself.
    """
    fsdp, tensor = (sys.modules.get(f"torch.distributed.{name}") for name in ("fsdp", "tensor"))
    if fsdp and isinstance(module, fsdp.FSDPModule | fsdp.FullyShardedDataParallel):
        return True
    return tensor is not None and any(isinstance(each, tensor.DTensor) for each in module.parameters(recurse=False))
