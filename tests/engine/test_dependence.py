"""What layers depend on, and the trial that suffixes stand besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.engine.dependence import Dependence, dependence
from patterning_fast.engine.suffix import FromLayer, Stack, WholeModel
from patterning_fast.engine.trial import Trial


class Layered(nn.Module):
    """Three layers in a row, each with what a test adds to it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return self.head(hidden).square().sum(1)


class Skipping(Layered):
    def forward(self, x: Tensor) -> Tensor:
        first = self.layers[0](self.stem(x))
        return self.head(self.layers[2](self.layers[1](first) + first)).square().sum(1)


class Detached(Layered):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.head.weight.detach().sum(0))


class ThroughABuffer(Layered):
    """The head's bias is written into a buffer that the first layer's input is made with."""

    kept: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.kept[:2].copy_(self.head.bias)
        return super().forward(x + self.kept)


class ThroughPython(Layered):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * float(self.head.bias.sum()))


class ThroughNumpy(Layered):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * float(self.head.bias.numpy().sum()))


class Noting(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.mean(0)
        return super().forward(x)


class OnTheSide(Layered):
    """The last layer reads what the first has left on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[0] = Noting(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        losses, first = super().forward(x), self.layers[0]
        assert isinstance(first, Noting)
        return losses + first.seen.square().sum()


class InPlace(Layered):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers[1](self.layers[0](self.stem(x)).relu_())
        return self.head(self.layers[2](hidden)).square().sum(1)


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Pairs(Layered):
    def __init__(self) -> None:
        super().__init__()
        self.layers[1] = Pair(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden, before = self.layers[1](self.layers[0](self.stem(x)))
        return self.head(self.layers[2](hidden + before)).square().sum(1)


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def of(model: nn.Module) -> Dependence:
    return dependence(model, ["layers.0", "layers.1", "layers.2"], lambda model: model(X), len(X))


@pytest.mark.parametrize(
    ("kind", "moving", "recalled"),
    [
        (Layered, "stem.weight", 0),
        (Layered, "layers.0.weight", 0),
        (Layered, "layers.1.bias", 1),
        (Layered, "layers.2.weight", 2),
        (Layered, "head.bias", 3),
        (Detached, "head.weight", 0),
        (Detached, "head.bias", 3),
        (ThroughABuffer, "head.bias", 0),
        (ThroughABuffer, "head.weight", 3),
        (ThroughPython, "head.bias", 0),
        (ThroughPython, "head.weight", 3),
        (ThroughNumpy, "head.bias", 0),
        (OnTheSide, "head.bias", 0),
        (InPlace, "head.bias", 0),
        (Pairs, "head.bias", 1),
    ],
)
def test_layers_that_can_be_recalled(kind: Callable[[], Layered], moving: str, recalled: int) -> None:
    assert of(kind()).unmoved([moving]) == recalled


def test_the_last_layer_is_enough_unless_one_is_skipped() -> None:
    assert [of(Layered()).last_is_enough(number) for number in (1, 2, 3)] == [True, True, True]
    assert [of(Skipping()).last_is_enough(number) for number in (1, 2, 3)] == [True, False, True]


def test_tied_parameters_are_one() -> None:
    model = Layered()
    model.head.weight = nn.Parameter(model.stem.weight[:2].detach().clone())
    model.layers[2].weight = model.stem.weight
    assert of(model).unmoved(["stem.weight"]) == 0
    assert of(model).unmoved(["head.weight"]) == 3


def loss(model: nn.Module, x: Any) -> Tensor:
    return model(x)


def test_the_trial_is_a_guard_of_its_own() -> None:
    """A suffix that recalls what moves is refused, where a parameter is 0 or weakly felt too; the right one is not."""
    model = Layered()
    with torch.no_grad():
        model.stem.bias.zero_()
        model.get_parameter("layers.0.weight").mul_(0.03)
    trial = Trial(pf.LocalPosterior(model, loss, X, n_beta=1.0, localization=1.0))
    stack = Stack("layers", ("0", "1", "2"))
    for name in ("stem.weight", "stem.bias", "layers.0.weight", "layers.1.bias", "head.weight"):
        component = pf.component(model, name, [name])
        move = trial.truth.felt_move(component)
        assert move is not None
        wrong = trial.sizes_or_disagreement(FromLayer(component, stack, 3, every=False), *move)
        assert (wrong == {"layers.2": 16}) if name == "head.weight" else "its losses differ by" in wrong
        assert trial.sizes_or_disagreement(WholeModel(component), *move) == {}


def test_what_no_loss_feels_runs_the_whole_model() -> None:
    model = Layered()
    model.unused = nn.Parameter(torch.ones(3))
    local = pf.LocalPosterior(model, loss, X, n_beta=1.0, localization=1.0)
    components = {"unused": pf.component(model, "unused", ["unused"])}
    with pytest.warns(UserWarning, match=r"unused runs the whole model, not .*: no move of it changes the losses"):
        found = pf.sample(local, pf.SGLD(1e-3), components=components, chains=2, draws=2, progress=False)
    assert not found.traces.phi[:2].any()
