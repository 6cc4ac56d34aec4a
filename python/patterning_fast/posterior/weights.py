"""Weights and the data they belong to: a mismatch is an error, never a silent shift."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from torch import Tensor


def weights_for(weights: Tensor | xr.DataArray, samples: int, loss_shape: tuple[int, ...]) -> Tensor:
    """ρ as float32 `[samples]` or `[samples, tokens]`, shaped as the losses it multiplies.

    Raises ValueError for weights of another shape or of several probes, and for values that are not finite,
    negative in sum, or all zero.
    """
    if isinstance(weights, xr.DataArray):
        if "probe" in weights.coords and len(np.unique(weights["probe"].values)) > 1:
            names = np.unique(weights["probe"].values).tolist()
            raise ValueError(f"the weights belong to several probes {names}; select one of them first")
        tensor = torch.from_numpy(weights.values.astype(np.float32))
    else:
        tensor = weights.to(torch.float32)
    shape = (samples, *loss_shape)
    if tensor.numel() != int(np.prod(shape)) or (tensor.dim() > 1 and tuple(tensor.shape) != shape):
        raise ValueError(
            f"weights of shape {list(tensor.shape)} do not fit the data, whose losses have shape {list(shape)}: "
            "they must come from a plan on this very data"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{int((~torch.isfinite(tensor)).sum())} weights are not finite")
    if float(tensor.sum()) <= 0:
        raise ValueError(f"weights must have a positive sum, got {float(tensor.sum())}")
    return tensor.view(shape)
