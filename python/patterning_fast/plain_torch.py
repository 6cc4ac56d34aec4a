"""The state of torch that the library computes in, whatever the caller has set: so that results are the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from patterning_fast.engine.workers import threads_here

CPU = torch.device("cpu")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Gradients are recorded, products are float32, and new tensors are on the CPU unless a device is named.

    Undoes `inference_mode`, `no_grad`, `autocast` and `set_default_device` of the calling thread until the end; also
    for use as a decorator. The default dtype is the whole process's and stays: name the dtype of every new tensor.
    """
    threads_here()  # before anything else of torch is asked for in this thread
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device() != CPU:  # torch calls Python at every operator within, so not for nothing
            stack.enter_context(CPU)
        yield


def without_inference(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one made under `inference_mode`, of which autograd can save nothing."""
    return tensor.clone() if tensor.is_inference() else tensor


def check_trainable(model: nn.Module) -> None:
    """Raise ValueError for parameters or buffers made under `inference_mode`, which cannot change outside of it."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    made = [name for name, tensor in tensors if tensor.is_inference()]
    if made:
        raise ValueError(
            f"{made[0]} and perhaps more of the model was made under torch.inference_mode(), and cannot be trained: "
            "make the model, or copy.deepcopy(model), outside of it"
        )
