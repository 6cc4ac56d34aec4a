"""Launching the CUDA kernels: the module where it is built, the memory they work in, the stream they run on."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor


def kernels() -> ModuleType:
    """`_C_cuda`, which is not built everywhere; raises ImportError there."""
    from patterning_fast import _C_cuda

    return _C_cuda


def launch(kernel: Callable[..., None], device: torch.device, *arguments: tuple[int | float, ...] | int) -> None:
    """Launch on the device's current stream, without waiting; raises RuntimeError where CUDA refuses."""
    kernel(*arguments, device.index, torch.cuda.current_stream(device).cuda_stream)


def workspace(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers that only one launch needs: the allocator gives their memory to later work of the same stream."""
    return torch.empty(count, dtype=dtype, device=device)


_arrivals: dict[tuple[int | None, int], Tensor] = {}


def arrivals(chains: int, device: torch.device) -> Tensor:
    """A counter per chain, 0 now and, as the kernels see to it, after every launch: so a stream needs them but once.

    Under capture they are new and the graph sets them to 0, as it may be replayed on any stream.
    """
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(chains, dtype=torch.int32, device=device)
    place = device.index, torch.cuda.current_stream(device).cuda_stream
    if place not in _arrivals or _arrivals[place].numel() < chains:
        _arrivals[place] = torch.zeros(chains, dtype=torch.int32, device=device)
    return _arrivals[place]
