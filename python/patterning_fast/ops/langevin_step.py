"""`langevin_step`: one step of SGLD, RMSProp-SGLD, SGHMC or SGNHT on every chain of a bank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from patterning_fast import _C
from patterning_fast.arguments import NonNegative, Positive, Seed, Share, Whole, checked, explained
from patterning_fast.domains import Within
from patterning_fast.ops import library
from patterning_fast.ops.checks import address, chain_numbers, check_same_device, check_tensor, noise_place
from patterning_fast.ops.cuda import kernels, launch, workspace
from patterning_fast.ops.reference.langevin_step import RULES
from patterning_fast.ops.reference.langevin_step import langevin_step as reference

STATUS = {
    1: "row_starts must begin at 0, never decrease and end at the number of params",
    2: "a chain's row in center, from its center_starts, reaches outside center",
}


@dataclass
@checked
class RMSProp:
    """v ← decay·v + (1 − decay)·g², lr_i = lr/(√v̂ + stability), then SGLD with lr_i.

    v̂ = v/(1 − decay^(step + 1)) with `bias_correction`, the form of arXiv:2609.00699; v without, that of devinterp.
    Source: Li et al. 2016 (arXiv:1512.07666).
    """

    second_moment: Tensor
    """v, of params' shape and dtype; 0 at step 0."""
    decay: Annotated[float, Within(least=0, below=1)] = 0.99
    stability: Positive = 0.1
    bias_correction: bool = True


@dataclass
@checked
class SGHMC:
    """p ← p − friction·p − lr·∇U + noise_scale·√(2·friction·lr)·ξ, w ← w + p. Source: Chen et al. 2014, eq. 15."""

    momentum: Tensor
    """p, of params' shape and dtype."""
    friction: Share = 0.1


@dataclass
@checked
class SGNHT:
    """p ← p − thermostat·lr·p − lr·∇U + noise_scale·√(2·diffusion·lr)·ξ, w ← w + lr·p, thermostat ← thermostat +
    lr·(|p|²/params − 1). Source: Ding et al. 2014, algorithm 2."""

    momentum: Tensor
    """p, of params' shape and dtype; standard normal at step 0."""
    thermostat: Tensor
    """float32 `[chains]`; `diffusion` at step 0."""
    diffusion: NonNegative = 0.01


class StepStatistics(NamedTuple):
    """Of each chain, float64 `[chains]`: of the gradient and the distance from w* before the step."""

    squared_gradient: Tensor
    """|g|²"""
    squared_distance: Tensor
    """|w − w*|²"""
    gradient_dot_distance: Tensor
    """⟨g, w − w*⟩"""
    finite: Tensor
    """bool `[chains]`: whether every parameter is finite after the step."""


def fields(
    params: Tensor,
    grads: Tensor,
    center: Tensor,
    row_starts: Tensor,
    center_starts: Tensor,
    lr: Tensor,
    n_beta: Tensor,
    localization: Tensor,
    noise_scale: Tensor,
    chain_ids: Tensor,
    seed: Tensor,
    step: Tensor,
    rule: str,
    constants: list[float],
    memory: Tensor | None,
    thermostat: Tensor | None,
    box: Tensor | None,
    shadow: Tensor | None,
    statistics: Tensor | None,
) -> tuple[int | float, ...]:
    """The fields of csrc's LangevinStep, in order."""
    tensors = (
        params, grads, center, row_starts, center_starts, lr, n_beta, localization, noise_scale, chain_ids, seed, step,
        memory, thermostat, box, shadow, statistics,
    )  # fmt: skip
    sizes = (grads.dtype == torch.bfloat16, center_starts.numel(), params.numel(), center.numel())
    return (*map(address, tensors), RULES.index(rule), *[*constants, 0.0, 0.0][:2], *map(int, sizes))


def cpp(*arguments: Tensor) -> None:
    status = _C.langevin_step(fields(*arguments), torch.get_num_threads())  # type: ignore[arg-type]
    if status:
        raise ValueError(f"langevin_step: {STATUS[status]}")


def cuda(*arguments: Tensor) -> None:
    numbers, device = fields(*arguments), arguments[0].device  # type: ignore[arg-type]
    sums = workspace(kernels().langevin_step_sums(numbers), torch.float64, device)
    launch(kernels().langevin_step, device, numbers, sums.data_ptr())


library.register(
    "langevin_step(Tensor(a!) params, Tensor(b!) grads, Tensor center, Tensor row_starts, Tensor center_starts, "
    "Tensor lr, Tensor n_beta, Tensor localization, Tensor noise_scale, Tensor chain_ids, Tensor seed, Tensor step, "
    "str rule, float[] constants, Tensor(c!)? memory, Tensor(d!)? thermostat, Tensor? box, Tensor(e!)? shadow, "
    "Tensor(f!)? statistics) -> ()",
    reference=reference,
    cpp=cpp,
    triton="patterning_fast.ops.triton.langevin_step:langevin_step",
    cuda=cuda,
)


@explained
def langevin_step(
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
    row_starts: Tensor | None = None,
    center_starts: Tensor | None = None,
    rule: RMSProp | SGHMC | SGNHT | None = None,
    box: float | Tensor | None = None,
    shadow: Tensor | None = None,
    statistics: bool = False,
) -> StepStatistics | None:
    """One step in place, with ∇U = n_beta·g + localization·(w − w*); then g ← 0.

    Without a `rule`, SGLD: w ← w − (lr/2)·∇U + noise_scale·√lr·ξ.
    Source: Welling & Teh 2011, with the localised tempered posterior of arXiv:2308.12108.

    Args:
        params: float32 `[chains, params]`, or flat `[total]` rows of any lengths with `row_starts`; float64 runs on
            the reference. grads: likewise, of the same dtype or bfloat16.
        center: w*, `[params]` or `[chains, params]`; flat with `center_starts` where params are flat.
        lr, n_beta, localization, noise_scale: a number, or float32 `[chains]`. The second chain of an antithetic pair
            has the first one's chain id and noise_scale −1.
        seed, step, chain_ids: the noise is a pure function of (seed, chain id, step, place in the row). Integers
            below 2^63 (seed) and 2^40; as int64 0-d tensors where they must change under a captured graph.
        row_starts: int64 `[chains + 1]`; center_starts: int64 `[chains]`.
        rule: another sampler, with its state.
        box: keep every w within this distance of w* in each coordinate; a number, or float32 `[chains]`.
        shadow: bfloat16 of params' shape, to be written with the new params.
        statistics: return sums that tell how each chain fares, made in the same pass.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, layout or device; rows out of range.
            On a GPU the last cannot be told without a wait: the chain stays where it is, not finite in the statistics.
    """
    op, device = "langevin_step", params.device
    if params.dim() == 2:
        if row_starts is not None or center_starts is not None:
            raise ValueError(f"{op}: row_starts and center_starts go with flat params, got {list(params.shape)}")
        chains, length = params.shape
        center_shape = (chains, length) if center.dim() == 2 else (length,)
        row_starts = torch.arange(chains + 1, device=device) * length
        center_starts = row_starts[:-1].clone() if center.dim() == 2 else torch.zeros_like(row_starts[:-1])
    elif row_starts is None or center_starts is None:
        raise ValueError(
            f"{op}: params of shape {list(params.shape)} need row_starts and center_starts, or 2 dimensions"
        )
    else:
        chains, center_shape = center_starts.numel(), (center.numel(),)
    name, constants, state = parts(rule)
    bank = {"params": params, "grads": grads, "center": center}
    rows = {"row_starts": row_starts, "center_starts": center_starts}
    numbers = chain_numbers(
        op, chains, device, lr=lr, n_beta=n_beta, localization=localization, noise_scale=noise_scale
    )  # fmt: skip
    place = noise_place(op, chains, device, chain_ids, seed, step)
    extras = state if box is None else state | chain_numbers(op, chains, device, box=box)
    if shadow is not None:
        extras = extras | {"shadow": shadow}
    real = params.dtype if params.dtype == torch.float64 else torch.float32
    shape = tuple(params.shape) if params.dim() == 2 else (params.numel(),)
    wanted: dict[str, tuple[torch.dtype | tuple[torch.dtype, ...], tuple[int, ...]]] = {
        "params": (real, shape),
        "grads": ((real, torch.bfloat16), shape),
        "center": (real, center_shape),
        "row_starts": (torch.int64, (chains + 1,)),
        "center_starts": (torch.int64, (chains,)),
        "second_moment": (real, shape),
        "momentum": (real, shape),
        "thermostat": (torch.float32, (chains,)),
        "shadow": (torch.bfloat16, shape),
    }
    tensors = bank | rows | numbers | place | extras
    for key in wanted.keys() & tensors.keys():
        check_tensor(op, key, tensors[key], *wanted[key])
    check_same_device(op, tensors)
    sums = torch.empty(4, chains, dtype=torch.float64, device=device) if statistics else None
    flat = {key: tensor.view(-1) for key, tensor in (bank | extras).items()}
    torch.ops.patterning_fast.langevin_step(
        *(flat[key] for key in bank), *rows.values(), *numbers.values(), *place.values(), name, constants,
        flat.get("second_moment", flat.get("momentum")), flat.get("thermostat"), flat.get("box"), flat.get("shadow"),
        sums,
    )  # fmt: skip
    return None if sums is None else StepStatistics(sums[0], sums[1], sums[2], sums[3] != 0)


def parts(rule: RMSProp | SGHMC | SGNHT | None) -> tuple[str, list[float], dict[str, Tensor]]:
    """The name of a rule, its constants and its state; raises ValueError for constants that cannot work."""
    if rule is None:
        return "sgld", [], {}
    if isinstance(rule, RMSProp):
        check_constant("decay", rule.decay, 0 <= rule.decay < 1, "lie in [0, 1)")
        check_constant("stability", rule.stability, rule.stability > 0, "be > 0")
        name = "rmsprop_bias_corrected" if rule.bias_correction else "rmsprop"
        return name, [rule.decay, rule.stability], {"second_moment": rule.second_moment}
    if isinstance(rule, SGHMC):
        check_constant("friction", rule.friction, 0 < rule.friction <= 1, "lie in (0, 1]")
        return "sghmc", [rule.friction], {"momentum": rule.momentum}
    check_constant("diffusion", rule.diffusion, rule.diffusion >= 0, "be >= 0")
    return "sgnht", [rule.diffusion], {"momentum": rule.momentum, "thermostat": rule.thermostat}


def check_constant(name: str, value: float, holds: bool, must: str) -> None:
    """Raise ValueError unless the condition holds."""
    if not holds:
        raise ValueError(f"langevin_step: {name} must {must}, got {value}")
