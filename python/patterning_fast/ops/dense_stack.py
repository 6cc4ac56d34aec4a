"""`dense_losses`, `dense_steps`, `dense_draws`: chains of small models, many steps and draws of each in one call.

Each chain's whole loop (minibatch, gradient, noise, update, losses, moments) runs on one core and in its cache, or in
one block of a GPU and in its shared memory. The model is described by data: a stack of dense layers, of any widths,
that may share weights.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from patterning_fast import _C
from patterning_fast.arguments import Count, Seed, Whole, checked, explained
from patterning_fast.domains import Within
from patterning_fast.ops import library
from patterning_fast.ops.checks import address, chain_numbers, check_same_device, check_tensor, noise_place
from patterning_fast.ops.comoments_update import GROUPS
from patterning_fast.ops.comoments_update import cuda as comoments_cuda
from patterning_fast.ops.cuda import kernels, launch, workspace
from patterning_fast.ops.langevin_step import SGHMC, SGNHT, STATUS, RMSProp, parts
from patterning_fast.ops.langevin_step import fields as step_fields
from patterning_fast.ops.reference import dense_stack as reference
from patterning_fast.ops.sparse_features import SparseFeatures


class DenseLayer(NamedTuple):
    """a ↦ activation(W a + b)."""

    inputs: Count
    outputs: Count
    weight: Whole
    """First of W's numbers among the model's parameters: W is `[outputs, inputs]`."""
    bias: Annotated[int, Within(least=-1)] = -1
    """First of b's numbers; −1 for no bias."""
    transposed: bool = False
    """W is stored as `[inputs, outputs]`, e.g. because another layer uses it as it is."""
    activation: str = "identity"
    """Or "relu", "tanh", "gelu" (the exact one)."""


@dataclass(frozen=True)
@checked
class DenseStack:
    """A model and samples for it, as kernels take them. Raises TypeError or ValueError where parts do not fit.

    `base` is float32 `[params]`, all parameters of the model at w*. Chain c holds in its row the `coordinates` from
    `coordinate_starts[c]` on, int64 places among them; where that is −1, all.
    `inputs` is float32 `[samples, inputs]`, with `targets` float32 `[samples, outputs]` for ½|output − target|² or
    `labels` int64 `[samples]` for cross entropy; or it is `SparseFeatures`, which are their own targets. `weights`, ρ,
    is float32 `[samples]`, None for all 1.
    """

    layers: list[DenseLayer]
    base: Tensor
    coordinate_starts: Tensor
    coordinates: Tensor
    inputs: Tensor | SparseFeatures
    targets: Tensor | None = None
    labels: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        op = "DenseStack"
        if not self.layers:
            raise ValueError(f"{op}: no layers; give at least one")
        for above, below in zip(self.layers[1:], self.layers, strict=False):
            if above.inputs != below.outputs:
                raise ValueError(f"{op}: a layer of {above.inputs} inputs follows one of {below.outputs} outputs")
        for layer in self.layers:
            if layer.activation not in reference.ACTIVATIONS:
                raise ValueError(
                    f"{op}: no activation is called {layer.activation!r}; there are {', '.join(reference.ACTIVATIONS)}"
                )
            ends = [
                (layer.weight, layer.inputs * layer.outputs),
                *([(layer.bias, layer.outputs)] if layer.bias >= 0 else []),
            ]
            if layer.weight < 0 or any(start + size > self.base.numel() for start, size in ends):
                raise ValueError(f"{op}: {layer} reaches outside the {self.base.numel()} parameters")
        made = isinstance(self.inputs, SparseFeatures)
        if (self.targets is not None) + (self.labels is not None) != (0 if made else 1):
            raise ValueError(f"{op}: give targets or labels, not both, and neither for sparse features")
        samples, outputs = len(self.inputs), self.layers[-1].outputs
        check_tensor(op, "base", self.base, torch.float32, (self.base.numel(),))
        check_tensor(op, "coordinate_starts", self.coordinate_starts, torch.int64, (self.coordinate_starts.numel(),))
        check_tensor(op, "coordinates", self.coordinates, torch.int64, (self.coordinates.numel(),))
        if isinstance(self.inputs, SparseFeatures):
            check_tensor(op, "presence", self.inputs.presence, torch.float32, (outputs,))
            check_tensor(op, "presence", self.inputs.presence, torch.float32, (self.layers[0].inputs,))
        else:
            check_tensor(op, "inputs", self.inputs, torch.float32, (samples, self.layers[0].inputs))
        if not samples:
            raise ValueError(f"{op}: there are no samples")
        if self.targets is not None:
            check_tensor(op, "targets", self.targets, torch.float32, (samples, outputs))
        if self.labels is not None:
            check_tensor(op, "labels", self.labels, torch.int64, (samples,))
            if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < outputs:
                raise ValueError(f"{op}: labels must lie in [0, {outputs})")
        if self.weights is not None:
            check_tensor(op, "weights", self.weights, torch.float32, (samples,))
        if (
            self.coordinates.numel()
            and not 0 <= int(self.coordinates.min()) <= int(self.coordinates.max()) < self.base.numel()
        ):
            raise ValueError(f"{op}: coordinates must lie in [0, {self.base.numel()})")
        check_same_device(op, {name: each for name, each in vars(self).items() if isinstance(each, Tensor)})

    def table(self) -> Tensor:
        """The layers, int64 `[depth, 6]`."""
        names = list(reference.ACTIVATIONS)
        return torch.tensor([[*layer[:5], names.index(layer.activation)] for layer in self.layers], dtype=torch.int64)

    def arguments(self) -> tuple[Tensor | int | None, ...]:
        """Those of the torch ops."""
        inputs, presence, seed = (
            (None, self.inputs.presence, self.inputs.seed)
            if isinstance(self.inputs, SparseFeatures)
            else (self.inputs, None, 0)
        )
        return (
            self.table(), self.base, self.coordinate_starts, self.coordinates, inputs, self.targets, self.labels,
            self.weights, presence, len(self.inputs), seed,
        )  # fmt: skip

    def check_rows(self, op: str, row_starts: Tensor, total: Whole) -> None:
        """Raise ValueError unless rows of `total` numbers follow one another, each as long as what it holds.

        On a GPU that cannot be told without a wait, and kernels leave bad rows alone.
        """
        starts = self.coordinate_starts
        check_tensor(op, "row_starts", row_starts, torch.int64, (starts.numel() + 1,))
        if row_starts.device.type == "cuda":
            return
        lengths, whole = row_starts.diff(), starts < 0
        if (
            [int(row_starts[0]), int(row_starts[-1])] != [0, total]
            or bool((lengths < 0).any())
            or bool((lengths[whole] != self.base.numel()).any())
            or bool((starts + lengths)[~whole].gt(self.coordinates.numel()).any())
        ):
            raise ValueError(
                f"{op}: rows must hold all {self.base.numel()} parameters, or the coordinates they are given, and "
                f"follow one another from 0 to {total}"
            )


Fields = tuple[int | float, ...]


def stack_fields(*arguments: Any) -> Fields:
    """The fields of csrc's DenseStack, in order."""
    tensors, (samples, seed) = arguments[:9], arguments[9:]
    layers, base, _, coordinates, *_ = tensors
    return (*map(address, tensors), len(layers), base.numel(), samples, seed, coordinates.numel())


def losses_fields(rows: Tensor, row_starts: Tensor, *rest: Tensor) -> tuple[Fields, Fields]:
    """Those of its DenseLosses."""
    losses = rest[-1]
    own = (rows.data_ptr(), row_starts.data_ptr(), losses.data_ptr(), losses.stride(0), len(losses), rows.numel())
    return stack_fields(*rest[:-1]), own


def steps_fields(*arguments: Any) -> tuple[Fields, Fields, Fields]:
    """Those of its DenseSteps."""
    replicas, batch, steps, corrects_noise = arguments[27:]
    own = (replicas.data_ptr(), batch, steps, int(corrects_noise))
    return stack_fields(*arguments[16:27]), step_fields(*[*arguments[:16], None, None, None]), own


def losses_cpp(*arguments: Any) -> None:
    _C.dense_losses(*losses_fields(*arguments), torch.get_num_threads())


def steps_cpp(*arguments: Any) -> None:
    _C.dense_steps(*steps_fields(*arguments), torch.get_num_threads())


def draws_cpp(*arguments: Any) -> None:
    stack, (inputs, targets, labels, reference), moments = arguments[16:20], arguments[31:35], arguments[35:42]
    phi, distance, losses, phi_begin, phi_end, limit = arguments[42:]
    _, groups, count, loss_sum, *_ = moments
    comoments = (
        0, 0, reference.data_ptr(), *map(address, moments), groups.numel(), loss_sum.shape[1], moments[0].numel(),
        count.numel(),
    )  # fmt: skip
    evaluated = stack_fields(*stack, inputs, targets, labels, None, None, len(inputs), 0)
    own = (*map(address, (reference, phi, distance, losses)), phi_begin, phi_end, len(phi), limit)
    _C.dense_draws(*steps_fields(*arguments[:31]), evaluated, comoments, own, torch.get_num_threads())


@functools.cache
def on_device(layers: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """A table of layers in a device's memory, brought there once."""
    return torch.tensor(layers, dtype=torch.int64, device=device)


def launch_dense(op: str, fields: tuple[Fields, ...], layers: Tensor, device: torch.device) -> None:
    """Launch a kernel on a stack of layers, whose table the host reads too."""
    module = kernels()
    floats = getattr(module, f"{op}_workspace")(*fields, device.index)
    table = on_device(tuple(map(tuple, layers.tolist())), device)
    own = workspace(floats, torch.float32, device)
    launch(getattr(module, op), device, *fields, table.data_ptr(), own.data_ptr())


def losses_cuda(*arguments: Any) -> None:
    launch_dense("dense_losses", losses_fields(*arguments), arguments[2], arguments[0].device)


def steps_cuda(*arguments: Any) -> None:
    launch_dense("dense_steps", steps_fields(*arguments), arguments[16], arguments[0].device)


def draws_cuda(*arguments: Any) -> None:
    """A launch a step of the draw: the device has them all before it is done with the first."""
    reference.draws_by(steps_cuda, losses_cuda, comoments_cuda, *arguments)


STACK = (
    "Tensor layers, Tensor base, Tensor coordinate_starts, Tensor coordinates, Tensor? inputs, Tensor? targets, "
    "Tensor? labels, Tensor? weights, Tensor? presence, int samples, int data_seed"
)
library.register(
    f"dense_losses(Tensor rows, Tensor row_starts, {STACK}, Tensor(a!) losses) -> ()",
    reference=reference.dense_losses,
    cpp=losses_cpp,
    cuda=losses_cuda,
)
STEPS = (
    "Tensor(a!) params, Tensor(b!) grads, Tensor center, Tensor row_starts, Tensor center_starts, "
    "Tensor lr, Tensor n_beta, Tensor localization, Tensor noise_scale, Tensor chain_ids, Tensor seed, Tensor step, "
    "str rule, float[] constants, Tensor(c!)? memory, Tensor(d!)? thermostat, "
    f"{STACK}, Tensor replicas, int batch, int steps, bool corrects_noise"
)
library.register(f"dense_steps({STEPS}) -> ()", reference=reference.dense_steps, cpp=steps_cpp, cuda=steps_cuda)
library.register(
    f"dense_draws({STEPS}, Tensor evaluated_inputs, Tensor? evaluated_targets, Tensor? evaluated_labels, "
    "Tensor center_losses, Tensor observable_shift, Tensor groups, Tensor(e!) count, Tensor(f!) loss_sum, "
    "Tensor(g!) observable_sum, Tensor(h!) cross, Tensor(i!) observable_square, Tensor(j!) phi, Tensor(k!) distance, "
    "Tensor(l!)? losses, int phi_begin, int phi_end, float limit) -> ()",
    reference=reference.dense_draws,
    cpp=draws_cpp,
    cuda=draws_cuda,
)


@explained
def dense_losses(stack: DenseStack, rows: Tensor, row_starts: Tensor, losses: Tensor) -> None:
    """Write the loss of every sample on every chain into `losses`, float32 `[chains, samples]`, rows of any stride.

    `rows` are float32 `[total]`, chain c's from `row_starts[c]`, int64 `[chains + 1]`, on.
    Raises TypeError or ValueError for tensors of the wrong dtype, shape, layout or device.
    """
    op = "dense_losses"
    check_tensor(op, "rows", rows, torch.float32, (rows.numel(),))
    stack.check_rows(op, row_starts, rows.numel())
    shape = (stack.coordinate_starts.numel(), len(stack.inputs))
    if losses.dtype != torch.float32 or tuple(losses.shape) != shape or losses.stride(1) != 1:
        raise ValueError(
            f"{op}: losses must be float32 {list(shape)} with samples side by side, got {losses.dtype} of "
            f"{list(losses.shape)}"
        )
    check_same_device(op, {"rows": rows, "row_starts": row_starts, "losses": losses, "base": stack.base})
    torch.ops.patterning_fast.dense_losses(rows, row_starts, *stack.arguments(), losses)


class Steps(TypedDict):
    """How chains move: as for `langevin_step`, and on which minibatches."""

    row_starts: Tensor
    center_starts: Tensor
    lr: float | Tensor
    n_beta: float | Tensor
    localization: float | Tensor
    seed: Seed | Tensor
    step: Whole | Tensor
    """Number of the first step."""
    replicas: Tensor
    """int64 `[chains]`; chains of one replica see the same minibatches."""
    batch_size: Count
    steps: Whole
    noise_scale: NotRequired[float | Tensor]
    chain_ids: NotRequired[Tensor | None]
    rule: NotRequired[RMSProp | SGHMC | SGNHT | None]
    gradient_noise_correction: NotRequired[bool]
    """Steps are `per_sample_langevin_step`'s, of SGLD without a rule; 2 samples or more."""


@explained
def dense_steps(stack: DenseStack, params: Tensor, grads: Tensor, center: Tensor, **steps: Unpack[Steps]) -> None:
    """`steps` steps of every chain in place, each on a minibatch of its own; chains of lr 0 stay as they are.

    A step is `langevin_step`'s, with the same noise, on the gradient of mean ρ·l over `batch_size` samples drawn with
    replacement, those that (seed, replica, step) choose. With 0 steps the gradients of the first minibatch are added
    to `grads`, and nothing else happens.

    Args:
        params, grads, center: as for `langevin_step`, params flat; grads must be 0, and are again.
        steps: see `Steps`.

    Raises:
        TypeError, ValueError: a tensor of the wrong dtype, shape, layout or device; rows that do not fit the stack.
    """
    torch.ops.patterning_fast.dense_steps(*checked_steps("dense_steps", stack, params, grads, center, **steps))


def checked_steps(
    op: str, stack: DenseStack, params: Tensor, grads: Tensor, center: Tensor, **given: Unpack[Steps]
) -> tuple[Any, ...]:
    """The arguments of the torch op; raises as `dense_steps` does."""
    device, rule, batch_size, steps = params.device, given.get("rule"), given["batch_size"], given["steps"]
    row_starts, center_starts, replicas = given["row_starts"], given["center_starts"], given["replicas"]
    corrects_noise, chains = given.get("gradient_noise_correction", False), center_starts.numel()
    stack.check_rows(op, row_starts, params.numel())
    if batch_size < 1 or steps < 0:
        raise ValueError(f"{op}: batch_size must be at least 1 and steps at least 0, got {batch_size} and {steps}")
    if corrects_noise and (rule is not None or batch_size < 2):
        raise ValueError(f"{op}: gradient_noise_correction goes with SGLD, without a rule, and batches of 2 or more")
    numbers = chain_numbers(
        op, chains, device, lr=given["lr"], n_beta=given["n_beta"], localization=given["localization"],
        noise_scale=given.get("noise_scale", 1.0),
    )  # fmt: skip
    place = noise_place(op, chains, device, given.get("chain_ids"), given["seed"], given["step"])
    name, constants, state = parts(rule)
    wanted = {"params": params, "grads": grads, **state}
    for key, tensor in wanted.items():
        check_tensor(op, key, tensor, torch.float32, (chains,) if key == "thermostat" else (params.numel(),))
    check_tensor(op, "center", center, torch.float32, (center.numel(),))
    check_tensor(op, "center_starts", center_starts, torch.int64, (stack.coordinate_starts.numel(),))
    if device.type != "cuda" and (
        bool((center_starts < 0).any()) or bool((center_starts + row_starts.diff() > center.numel()).any())
    ):
        raise ValueError(f"{op}: {STATUS[2]}")
    check_tensor(op, "replicas", replicas, torch.int64, (chains,))
    check_same_device(op, wanted | numbers | place | {"center": center, "replicas": replicas, "base": stack.base})
    return (
        params, grads, center, row_starts, center_starts, *numbers.values(), *place.values(), name, constants,
        state.get("second_moment", state.get("momentum")), state.get("thermostat"), *stack.arguments(), replicas,
        batch_size, steps, corrects_noise,
    )  # fmt: skip


class Draws(TypedDict):
    """What `dense_draws` makes of the losses, and where it puts it."""

    center_losses: Tensor
    """float32 `[samples]`, losses at w*; those tracked are taken about them."""
    observable_shift: Tensor
    """float32 `[observables]`: 1 for φ alone, or 1 + tracked losses for their shifts from `center_losses` too."""
    phi_samples: slice
    """The samples whose mean loss, less that at w*, is φ."""
    limit: float
    """A chain stops for good at a draw where |φ| is greater, or a loss is not finite."""
    groups: Tensor
    """int64 `[chains]`, the group each chain adds to."""
    totals: tuple[Tensor, ...]
    """float64: count, loss_sum, observable_sum, cross, observable_square, as for `comoments_update`."""
    phi: Tensor
    """float64 `[draws, chains]`, written; NaN from where a chain has stopped."""
    distance: Tensor
    """float32 `[draws, chains]`, written: |w − w*|."""
    losses: Tensor | None
    """float32 `[draws, chains, tracked]`, written where it is given; NaN from where a chain has stopped."""


@explained
def dense_draws(
    stack: DenseStack,
    evaluated: DenseStack,
    params: Tensor,
    grads: Tensor,
    center: Tensor,
    draws: Draws,
    **steps: Unpack[Steps],
) -> None:
    """Draws of every chain, each after `steps` steps: its losses on the samples of `evaluated`, and their moments.

    What `dense_steps`, `dense_losses` and `comoments_update` do one after another, in one call. Chains of lr 0 have
    stopped before: they stay where they are.

    Args:
        params, grads, center, steps: as for `dense_steps`, 1 step or more.
        draws: see `Draws`.

    Raises:
        TypeError, ValueError: as `dense_steps`; tensors of `draws` that do not fit each other; groups out of range.
    """
    op = "dense_draws"
    arguments = checked_steps(op, stack, params, grads, center, **steps)
    if steps["steps"] < 1:
        raise ValueError(f"{op}: steps must be at least 1, got {steps['steps']}")
    chains, samples = steps["center_starts"].numel(), len(evaluated.inputs)
    count, loss_sum, observable_sum, cross, square = draws["totals"]
    groups, tracked, observables = count.numel(), loss_sum.shape[-1], draws["observable_shift"].numel()
    if tracked > samples or observables not in (1, 1 + tracked):
        raise ValueError(
            f"{op}: {tracked} losses of {samples} samples can be tracked with 1 or {1 + tracked} observables, "
            f"got {observables}"
        )
    if not 0 <= draws["phi_samples"].start < draws["phi_samples"].stop <= samples:
        raise ValueError(f"{op}: phi_samples must be a slice of the {samples} samples, got {draws['phi_samples']}")
    number = len(draws["phi"])
    double = {
        "count": (count, (groups,)),
        "loss_sum": (loss_sum, (groups, tracked)),
        "observable_sum": (observable_sum, (groups, observables)),
        "cross": (cross, (groups, observables, tracked)),
        "observable_square": (square, (groups, observables, observables)),
        "phi": (draws["phi"], (number, chains)),
    }
    for name, (tensor, shape) in double.items():
        check_tensor(op, name, tensor, torch.float64, shape)
    single = {
        "center_losses": (draws["center_losses"], (samples,)),
        "observable_shift": (draws["observable_shift"], (observables,)),
        "distance": (draws["distance"], (number, chains)),
    }
    if draws["losses"] is not None:
        single["losses"] = (draws["losses"], (number, chains, tracked))
    for name, (tensor, shape) in single.items():
        check_tensor(op, name, tensor, torch.float32, shape)
    check_tensor(op, "groups", draws["groups"], torch.int64, (chains,))
    if not 0 <= int(draws["groups"].min()) <= int(draws["groups"].max()) < groups:
        raise ValueError(f"{op}: {GROUPS[1]}")
    check_same_device(op, {"params": params} | {name: each for name, (each, _) in (double | single).items()})
    torch.ops.patterning_fast.dense_draws(
        *arguments, evaluated.inputs, evaluated.targets, evaluated.labels, draws["center_losses"],
        draws["observable_shift"], draws["groups"], *draws["totals"], draws["phi"], draws["distance"], draws["losses"],
        draws["phi_samples"].start, draws["phi_samples"].stop, draws["limit"],
    )  # fmt: skip
