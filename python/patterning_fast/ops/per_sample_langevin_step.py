"""`per_sample_langevin_step`: an SGLD step from per-sample gradients, corrected for their own noise."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from patterning_fast import _C
from patterning_fast.arguments import Seed, Whole, explained
from patterning_fast.domains import Within
from patterning_fast.ops import library
from patterning_fast.ops.checks import (
    address,
    chain_numbers,
    check_dimensions,
    check_same_device,
    check_tensor,
    noise_place,
)
from patterning_fast.ops.cuda import arrivals, kernels, launch, workspace
from patterning_fast.ops.reference.per_sample_langevin_step import per_sample_langevin_step as reference


def fields(
    params: Tensor,
    grads: Tensor,
    sample_weights: Tensor | None,
    center: Tensor,
    lr: Tensor,
    n_beta: Tensor,
    localization: Tensor,
    noise_scale: Tensor,
    chain_ids: Tensor,
    seed: Tensor,
    step: Tensor,
    sampled_fraction: float,
    gradient_noise_scale: Tensor,
) -> tuple[int | float, ...]:
    """The fields of csrc's PerSampleLangevinStep, in order."""
    tensors = (
        params, grads, sample_weights, center, lr, n_beta, localization, noise_scale, chain_ids, seed, step,
        gradient_noise_scale,
    )  # fmt: skip
    sizes = (grads.dtype == torch.bfloat16, *grads.shape, center.shape[0])
    return (*map(address, tensors), sampled_fraction, *map(int, sizes))


def cpp(*arguments: Tensor) -> None:
    _C.per_sample_langevin_step(fields(*arguments), torch.get_num_threads())  # type: ignore[arg-type]


def cuda(*arguments: Tensor) -> None:
    numbers, device = fields(*arguments), arguments[0].device  # type: ignore[arg-type]
    sums = workspace(kernels().per_sample_sums(numbers), torch.float64, device)
    count = arrivals(len(arguments[0]), device)
    launch(kernels().per_sample_langevin_step, device, numbers, sums.data_ptr(), count.data_ptr())


SCHEMA = (
    "Tensor(a!) params, Tensor grads, Tensor? sample_weights, Tensor center, Tensor lr, Tensor n_beta, "
    "Tensor localization, Tensor noise_scale, Tensor chain_ids, Tensor seed, Tensor step, float sampled_fraction, "
    "Tensor(b!) gradient_noise_scale"
)

library.register(
    f"per_sample_langevin_step({SCHEMA}) -> ()",
    reference=reference,
    cpp=cpp,
    triton="patterning_fast.ops.triton.per_sample_langevin_step:per_sample_langevin_step",
    cuda=cuda,
)


@explained
def per_sample_langevin_step(
    params: Tensor,
    grads: Tensor,
    center: Tensor,
    *,
    lr: float | Tensor,
    n_beta: float | Tensor,
    localization: float | Tensor,
    seed: Seed | Tensor,
    step: Whole | Tensor,
    noise_scale: float | Tensor = 1.0,
    chain_ids: Tensor | None = None,
    sample_weights: Tensor | None = None,
    sampled_fraction: Annotated[float, Within(least=0, most=1)] = 0.0,
) -> Tensor:
    """One SGLD step in place that injects only the noise which the minibatch has not: max(0, lr − c) for lr.

    With ḡ and s² the mean and unbiased variance of ρ_j·g_j over the m samples of a chain,
    w ← w − (lr/2)[n_beta·ḡ + localization·(w − w*)] + noise_scale·√max(0, lr − c)·ξ,
    c = (lr/2)²·n_beta²·(1 − sampled_fraction)·s²/m, per coordinate.
    Source: Welling & Teh 2011, §4; Ahn et al. 2012; Vollmer et al. 2016.

    Args:
        params: float32 `[chains, params]`; float64 runs on the reference. center: w*, `[params]` or `[chains, params]`.
        grads: per-sample gradients `[chains, batch, params]`, of params' dtype or bfloat16; at least 2 samples.
        lr, n_beta, localization, noise_scale, seed, step, chain_ids: as for `langevin_step`.
        sample_weights: ρ, float32 `[chains, batch]`; None for 1.
        sampled_fraction: m/n where samples are drawn without replacement from n, 0 with replacement.

    Returns:
        The gradient noise scale of each chain, Σs²/(|ḡ|² − Σs²/m) in samples, float64 `[chains]`; infinite where no
        gradient stands above the noise. Source: McCandlish et al. 2018, appendix A.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, layout or device; fewer than 2 samples.
    """
    arguments = checked(
        "per_sample_langevin_step", params, grads, center, lr, n_beta, localization, seed, step, noise_scale, chain_ids,
        sample_weights, sampled_fraction,
    )  # fmt: skip
    torch.ops.patterning_fast.per_sample_langevin_step(*arguments)
    return arguments[-1]  # type: ignore[return-value]


def checked(
    op: str,
    params: Tensor,
    grads: Tensor,
    center: Tensor,
    lr: float | Tensor,
    n_beta: float | Tensor,
    localization: float | Tensor,
    seed: int | Tensor,
    step: int | Tensor,
    noise_scale: float | Tensor,
    chain_ids: Tensor | None,
    sample_weights: Tensor | None,
    sampled_fraction: float,
) -> tuple[Tensor | float | None, ...]:
    """The op's arguments from those of its public face, or the error."""
    check_dimensions(op, "params", params, 2)
    check_dimensions(op, "grads", grads, 3)
    (chains, length), batch, device = params.shape, grads.shape[1], params.device
    if batch < 2:
        raise ValueError(f"{op}: a variance needs at least 2 samples, but grads has shape {list(grads.shape)}")
    if not 0 <= sampled_fraction <= 1:
        raise ValueError(f"{op}: sampled_fraction is m/n, between 0 and 1, got {sampled_fraction}")
    center = center[None] if center.dim() == 1 else center
    real = params.dtype if params.dtype == torch.float64 else torch.float32
    numbers = chain_numbers(
        op, chains, device, lr=lr, n_beta=n_beta, localization=localization, noise_scale=noise_scale
    )  # fmt: skip
    place = noise_place(op, chains, device, chain_ids, seed, step)
    check_tensor(op, "params", params, real, (chains, length))
    check_tensor(op, "grads", grads, (real, torch.bfloat16), (chains, batch, length))
    check_tensor(op, "center", center, real, (1 if center.shape[0] == 1 else chains, length))
    tensors = {"params": params, "grads": grads, "center": center, **numbers, **place}
    if sample_weights is not None:
        check_tensor(op, "sample_weights", sample_weights, torch.float32, (chains, batch))
        tensors["sample_weights"] = sample_weights
    check_same_device(op, tensors)
    scale = torch.empty(chains, dtype=torch.float64, device=device)
    return params, grads, sample_weights, center, *numbers.values(), *place.values(), sampled_fraction, scale
