"""Which suffixes are right for a component: found from what layers depend on, and tried on a few samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from patterning_fast.categories import WholeModelWarning
from patterning_fast.engine.suffix import Modules, Suffix, SuffixError, WholeModel, layers_of, suffixes_for
from patterning_fast.posterior.components import Component, coordinates
from patterning_fast.posterior.data import sample_count, take
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Batch
from patterning_fast.posterior.probing import ROUNDING, Twin, differ, felt_move, largest_difference

CANNOT = (SuffixError, RuntimeError, TypeError, AttributeError, ValueError, IndexError)
"""What a model raises that does not run as a suffix supposes."""


class Truth:
    """The losses of a few samples on a model with parameters of its own, which alone are moved."""

    def __init__(self, posterior: LocalPosterior, batch: Batch, requires_grad: bool = False) -> None:
        self.posterior, self.batch, self.twin = posterior, batch, Twin(posterior.model, requires_grad)
        self.base = {name: each.detach() for name, each in posterior.model.named_parameters()}
        with torch.no_grad():
            self.center = self.losses(posterior.model)

    def losses(self, model: nn.Module) -> Tensor:
        return self.posterior.loss(model, self.batch)

    @torch.no_grad()
    def felt_move(self, component: Component) -> tuple[dict[str, Tensor], Tensor] | None:
        """Coordinates of a component, by parameter, where losses are well apart from those at w*; and these losses.

        None where the losses do not feel its moves.
        """

        def losses(moved: dict[str, Tensor]) -> Tensor:
            with self.twin.at(self.parameters(component, moved)) as model:
                return self.losses(model)

        return felt_move(self.center, coordinates(component, self.base), losses)

    def parameters(self, component: Component, moved: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole parameters with a component's coordinates set into them."""
        parameters = {}
        for name, index in component.coordinates.items():
            base = self.base[name]
            parameters[name] = moved[name]
            if index is not None:
                parameters[name] = base.flatten().index_copy(0, index.to(base.device), moved[name]).view(base.shape)
        return parameters


class Trial:
    """Holds suffixes, the whole model among them, to the truth where losses feel that their component has moved.

    That no layer is recalled which a component can change follows from what it depends on; the trial is a second guard.
    """

    def __init__(self, posterior: LocalPosterior) -> None:
        self.posterior, self.modules = posterior, Modules(posterior.model)
        # Unlike numbers of samples, so that no other dimension is taken for that of samples both times.
        count = sample_count(posterior.data)
        tried, watched = (take(posterior.data, slice(0, some)) for some in (1 if count == 2 else 3, 2))
        self.truth = Truth(posterior, tried)
        try:
            self.layers = layers_of(
                self.modules.whole(), lambda model: posterior.loss(model, watched), sample_count(watched)
            )
        except CANNOT as error:
            said = f"all layers run in every chain, as the model cannot be watched: {error}"
            warnings.warn(said, WholeModelWarning, stacklevel=5)
            self.layers = None

    def suffixes(self, component: Component) -> Iterator[tuple[Suffix, dict[str, int] | str]]:
        """The component's suffixes, the best first, each with the bytes that a sample takes, by key, or what is wrong.

        Raises ValueError where parameters set into the whole model do not do what parameters of its own do.
        """
        if self.posterior.random_loss:  # no two evaluations can be compared
            yield WholeModel(component), {}
            return
        move = self.truth.felt_move(component)
        for suffix in suffixes_for(self.posterior.model, component, self.layers):
            if move is None:  # there is nothing to compare
                yield suffix, {} if isinstance(suffix, WholeModel) else "no move of it changes the losses"
            else:
                yield suffix, self.sizes_or_disagreement(suffix, *move)

    @torch.no_grad()
    def sizes_or_disagreement(self, suffix: Suffix, moved: dict[str, Tensor], expected: Tensor) -> dict[str, int] | str:
        """Bytes that a sample takes, by key, of a suffix that gives the expected losses; of others, what is wrong."""
        try:
            runner = suffix.runner(self.modules)
            recorded = runner.record(self.truth.losses)
            if any(len(each) != sample_count(self.truth.batch) for each in recorded.values()):
                return "what it puts out has no dimension of samples"
            found = runner.run(self.truth.losses, moved, recorded)
        except CANNOT as error:
            return str(error)
        if not differ(found, expected, ROUNDING):
            return {key: each.element_size() * each[0].numel() for key, each in recorded.items()}
        if isinstance(suffix, WholeModel):
            raise ValueError(
                f"chains cannot move {', '.join(moved)}: the model holds them elsewhere than as its modules' own "
                "parameters too (in a list, in a closure); register them in modules, as nn.ParameterList does"
            )
        return f"its losses differ by {largest_difference(found, expected):.2g}"
