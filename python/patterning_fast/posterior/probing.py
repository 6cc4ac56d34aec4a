"""One look at a model and its loss before anything relies on them: is a loss what an estimate takes it for?

Estimates suppose that the loss of a sample is a function of that sample and the parameters, that it has a gradient by
all it depends on, and that evaluating it changes nothing. A loss that is not so gives numbers all the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patterning_fast.posterior.data import evaluated, sample_count, take
from patterning_fast.posterior.losses import Batch, Data, Loss
from patterning_fast.posterior.weights import shown

PROBED = 4
"""Samples looked at, spread over the data."""

ROUNDING = 1e-4
"""Largest difference of losses, relative to 1 + the largest, that is put down to rounding in another order."""

REPEATED = 1e-6
"""The same of a computation that is only done again."""

SMALLEST_MOVE, LARGER, MOVES = 0.05, 4.0, 8
"""A parameter is moved by that much of its root mean square, or of 1 where it is 0; where losses do not feel it, by a
larger move, up to that many times."""

CHECKPOINTED = (
    "the model uses gradient checkpointing (torch.utils.checkpoint), or other hooks on what autograd saves: a backward "
    "pass would compute again at w* what the forward pass computed where a chain is; turn that off in eval mode"
)

FELT = 10.0
"""A move is felt where losses change by this many times what is put down to rounding."""


@dataclass
class Probe:
    """A model in eval mode, its loss, and a few samples."""

    model: nn.Module
    loss: Loss
    batch: Batch

    def check(self, parameters: list[str], random_loss: bool) -> None:
        """Raise ValueError unless the loss is deterministic, of each sample alone, and differentiable by whatever
        of the named parameters it depends on. With `random_loss` only a missing gradient is told."""
        self.losses()  # what is made at the first call may be kept
        with left_alone(self.model, "the loss"):
            losses = self.losses()
        if not random_loss:
            self.check_deterministic(losses)
            self.check_each_sample_alone(losses)
        self.check_gradient(parameters, random_loss)

    def losses(self, model: nn.Module | None = None, batch: Batch | None = None) -> Tensor:
        with torch.no_grad():
            return evaluated(self.loss, model or self.model, self.batch if batch is None else batch)

    def check_deterministic(self, losses: Tensor) -> None:
        again = self.losses()
        if differ(losses, again, REPEATED):
            raise ValueError(
                "the loss is random: two calls on the same samples differ by up to "
                f"{largest_difference(losses, again):.2g}; take the random numbers out of it (dropout that stays on in "
                "eval mode, noise, a state that it keeps), or pass random_loss=True and have that noise in every "
                "estimate"
            )

    def check_each_sample_alone(self, losses: Tensor) -> None:
        """A permuted batch and half of it must give the same losses."""
        count = sample_count(self.batch)
        turned = torch.arange(count).roll(1)
        for which, what in ((turned, "in another order"), (torch.arange((count + 1) // 2), "with half of the others")):
            found, expected = self.losses(batch=take(self.batch, which)), losses[which.to(losses.device)]
            if found.shape != expected.shape:
                raise ValueError(
                    f"the loss returned shape {list(found.shape)} for {len(which)} samples, and {list(losses.shape)} "
                    f"for {count}; it must return one loss a sample, or a token, whatever the batch"
                )
            if differ(found, expected, ROUNDING):
                raise ValueError(
                    f"the loss of a sample depends on the others in its batch: {what} it differs by up to "
                    f"{largest_difference(found, expected):.2g}; susceptibilities are of single samples, so take out "
                    "what mixes them (batch norm on the batch's own statistics, a contrastive loss, a mean over the "
                    "batch)"
                )

    def check_gradient(self, names: list[str], random_loss: bool) -> None:
        cut_off = self.without_gradient(names)
        if cut_off == names:
            raise ValueError(
                "the loss has no gradient by any parameter that is to move: it is computed under torch.no_grad(), or "
                "detached; chains would follow noise alone"
            )
        felt = [] if random_loss else [name for name in cut_off if self.feels(name)]
        if felt:
            raise ValueError(
                f"the loss depends on {shown(felt)} but has no gradient by it: something between is detached, "
                "rounded, under torch.no_grad() or checkpointed with use_reentrant=True; mend that, or set "
                "requires_grad_(False) on what is not to move"
            )

    def without_gradient(self, names: list[str]) -> list[str]:
        """Parameters that no gradient of the losses reaches."""
        twin = Twin(self.model, requires_grad=True)
        try:
            with torch.enable_grad(), torch.autograd.graph.disable_saved_tensors_hooks(CHECKPOINTED):
                total = evaluated(self.loss, twin.model, self.batch).sum()
            if not total.requires_grad:
                return names
            grads = torch.autograd.grad(total, [twin.parameters[name] for name in names], allow_unused=True)
        except RuntimeError as error:
            if CHECKPOINTED in str(error) or "use_reentrant=True" in str(error):
                raise ValueError(CHECKPOINTED) from None
            raise
        return [name for name, grad in zip(names, grads, strict=True) if grad is None]

    def feels(self, name: str) -> bool:
        """Whether losses change with a parameter."""
        twin = Twin(self.model)

        def losses(moved: dict[str, Tensor]) -> Tensor:
            with twin.at(moved) as model:
                return self.losses(model)

        return felt_move(self.losses(), {name: twin.parameters[name].data}, losses) is not None


@contextmanager
def left_alone(model: nn.Module, what: str) -> Iterator[None]:
    """Raise ValueError where `what` is done within changes parameters or buffers, which are put back."""
    before = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
    yield
    after = named_tensors(model)
    changed = [name for name, tensor in after.items() if name in before and not same(before[name], tensor)]
    if changed:
        with torch.no_grad():
            for name in changed:
                after[name].copy_(before[name])
        raise ValueError(
            f"{what} changes {shown(changed)} of the model when it is evaluated, so that results would depend on how "
            "often that was; leave parameters and buffers alone in eval mode"
        )


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def felt_move(
    center: Tensor, values: Mapping[str, Tensor], losses: Callable[[dict[str, Tensor]], Tensor]
) -> tuple[dict[str, Tensor], Tensor] | None:
    """A random move of `values` that changes the losses well beyond rounding, and the losses there.

    Larger moves are tried until one does; None where none does, or losses stop being finite.
    """
    size = SMALLEST_MOVE
    for _ in range(MOVES):
        moved = moved_by(size, values)
        there = losses(moved)
        if not bool(there.isfinite().all()):
            return None
        if differ(there, center, FELT * ROUNDING):
            return moved, there
        size *= LARGER
    return None


def moved_by(size: float, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values after a random move, by `size` of the root mean square of each tensor, or of 1 where that is 0."""
    generator, moved = torch.Generator().manual_seed(0), {}
    for name, value in values.items():
        scale = float(value.square().mean().sqrt()) or 1.0
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.device)
        moved[name] = value + size * scale * direction
    return moved


class Twin:
    """A copy of a model with parameters of its own, at w* until they are moved; the rest is shared."""

    def __init__(self, model: nn.Module, requires_grad: bool = False) -> None:
        base = dict(model.named_parameters())
        self.parameters = {name: nn.Parameter(each.detach(), requires_grad) for name, each in base.items()}
        shared = {id(each): each for each in model.buffers()}
        own = {id(base[name]): each for name, each in self.parameters.items()}
        self.model = copy.deepcopy(model, shared | own)

    @contextmanager
    def at(self, values: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """The model with other values of some parameters."""
        center = {name: self.parameters[name].data for name in values}
        try:
            for name, value in values.items():
                self.parameters[name].data = value
            yield self.model
        finally:
            for name, value in center.items():
                self.parameters[name].data = value


def few_samples(data: Data) -> Batch:
    """Copies of some samples, spread over the data."""
    count = sample_count(data)
    return take(data, torch.linspace(0, count - 1, min(count, PROBED), dtype=torch.float64).long())


def differ(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether losses differ by more than that, relative to 1 + the largest; infinite in both is alike."""
    finite = expected.isfinite()
    if found.shape != expected.shape or not torch.equal(found.isfinite(), finite):
        return True
    return largest_difference(found, expected) > tolerance * (1 + largest_difference(expected, expected.new_zeros(())))


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Between losses that are finite in both."""
    return float((found - expected).nan_to_num(0.0, 0.0, 0.0).abs().max())


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(((one == other) | (one != one)).all())
