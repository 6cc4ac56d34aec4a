"""Suffix evaluation: the losses and gradients of the whole model, from less of it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.engine import recording, trial
from patterning_fast.engine.suffix import Modules, Suffix, WholeModel, layers_of, suffixes_for
from patterning_fast.engine.workers import workers
from patterning_fast.posterior.components import Component
from tests.models import VOCABULARY, language_model, language_posterior, tokens

SMALL: dict[str, Any] = {"chains": 2, "draws": 3, "batch_size": 4, "tile": 1, "progress": False}


class Residual(nn.Module):
    """A stack that is no nn.Sequential, between an embedding and a head."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh()) for _ in range(layers))
        self.head = nn.Linear(6, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embedding(x)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden)


class Stream(Residual):
    """Each block takes the stream and puts out the stream."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embedding(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


class Recurrent(Residual):
    """The blocks run twice."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embedding(x)
        for block in [*self.blocks, *self.blocks]:
            hidden = block(hidden)
        return self.head(hidden)


def moved(model: nn.Module, component: Component, generator: torch.Generator) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    packed = {
        name: parameters[name].detach() if index is None else parameters[name].detach().flatten()[index]
        for name, index in component.coordinates.items()
    }
    return {
        name: (values + 0.1 * torch.randn(values.shape, generator=generator)).requires_grad_()
        for name, values in packed.items()
    }


def losses_and_gradient(
    model: nn.Module, suffix: Suffix, moved: dict[str, Tensor], data: Any, loss: Any
) -> tuple[Tensor, Tensor]:
    runner = suffix.runner(Modules(model))
    recorded = runner.record(lambda model: loss(model, data))
    assert set(recorded) == set(suffix.keys)
    losses = runner.run(lambda model: loss(model, data), moved, recorded)
    weights = torch.linspace(-1, 2, losses.numel()).view_as(losses)
    grads = torch.autograd.grad((weights * losses).sum(), list(moved.values()))
    return losses.detach(), torch.cat([grad.flatten() for grad in grads])


def check(model: nn.Module, component: Component, data: Any, loss: Any, generator: torch.Generator) -> list[str]:
    """Hold every suffix of a component to the whole model; their names."""
    model.requires_grad_(False)
    at = moved(model, component, generator)
    samples = len(data[0] if isinstance(data, tuple) else data)
    *better, whole = suffixes_for(model, component, layers_of(model, lambda model: loss(model, data), samples))
    expected = losses_and_gradient(model, whole, at, data, loss)
    for suffix in better:
        for found, value in zip(losses_and_gradient(model, suffix, at, data, loss), expected, strict=True):
            # The same float32 operations in another order: some ten sums of at most 100 terms.
            assert torch.allclose(found, value, rtol=0, atol=2e-5 * float(1 + value.abs().max())), suffix.name
        assert float((expected[0] - loss(model, data)).abs().max()) > 1e-3
    return [suffix.name for suffix in better]


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("l0h1", ["head l0h1"]),
        ("l1h0", ["head l1h0 on known logits", "head l1h0", "from layers.1"]),
    ],
)
def test_heads_of_the_built_in_model(head: str, names: list[str], generator: torch.Generator) -> None:
    model = language_model()
    with torch.no_grad():  # a norm that does something
        model.final_norm.weight.copy_(torch.rand(8, generator=generator) + 0.5)
        model.final_norm.bias.copy_(torch.randn(8, generator=generator))
        model.attention_layers()[1].norm.weight.copy_(torch.rand(8, generator=generator) + 0.5)
    component = pf.attention_heads(model)[head]
    assert check(model, component, tokens(5), pf.losses.next_token, generator) == names


def plain_next_token(model: nn.Module, batch: Any) -> Tensor:
    """A loss of a user's own, from logits."""
    logits = model(batch[:, :-1])
    return -logits.log_softmax(-1).gather(-1, batch[:, 1:, None]).squeeze(-1)


@pytest.mark.parametrize("head", ["l0h1", "l1h0"])
def test_losses_that_ask_for_logits_get_them(head: str, generator: torch.Generator) -> None:
    model = language_model()
    assert check(model, pf.attention_heads(model)[head], tokens(5), plain_next_token, generator)


@pytest.mark.parametrize("kind", [Residual, Stream])
@pytest.mark.parametrize(
    ("parameter", "name", "keys"),
    [
        ("blocks.0.1.weight", "whole model", ()),
        ("blocks.1.1.weight", "from blocks.1", ("blocks.0",)),
        ("blocks.2.1.weight", "from blocks.2", ("blocks.0", "blocks.1")),
        ("head.weight", "after blocks", ("blocks.0", "blocks.1", "blocks.2")),
    ],
)
def test_layers_of_any_stack(
    kind: type[Residual], parameter: str, name: str, keys: tuple[str, ...], generator: torch.Generator
) -> None:
    """Blocks that hand on the stream recall the last alone, blocks that add to it recall every one."""
    torch.manual_seed(0)
    model = kind()
    component = pf.component(model, "moving", [parameter])
    suffix = chosen(model, component)
    assert suffix.name == name
    assert suffix.keys == (keys if kind is Residual else keys[-1:])
    at = moved(model, component, generator)
    expected = losses_and_gradient(model, WholeModel(component), at, tokens(5), plain_next_token)
    found = losses_and_gradient(model, suffix, at, tokens(5), plain_next_token)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def chosen(model: nn.Module, component: Component) -> Suffix:
    """The suffix that the engine chooses for a component."""
    posterior = pf.LocalPosterior(model, plain_next_token, tokens(), n_beta=1.0, localization=1.0)
    with workers(lambda: recording.Runners(posterior), torch.device("cpu")) as pool:
        return recording.recordings(posterior, [component], [posterior.data], 2**20, pool).suffixes[0]


def test_a_sequential_model(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3))
    data = (torch.randn(10, 4, generator=generator), torch.randint(3, (10,), generator=generator))
    assert check(model, pf.layers(model)["2"], data, pf.losses.cross_entropy, generator) == ["from 2"]


def test_chains_are_those_of_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = pf.attention_heads(language_model())
    with_suffixes = pf.sample(language_posterior(), pf.SGLD(1e-3), components=heads, **SMALL)
    monkeypatch.setattr(trial, "suffixes_for", lambda model, component, layers: [WholeModel(component)])
    whole = pf.sample(language_posterior(), pf.SGLD(1e-3), components=heads, **SMALL)
    assert set(whole.evaluated) == {"whole model"}
    assert with_suffixes.evaluated[:4] == [
        "head l0h0", "head l0h1", "head l1h0 on known logits", "head l1h1 on known logits",
    ]  # fmt: skip
    # φ is a difference of losses near 2.5 in float32, each with a few roundings.
    assert torch.allclose(with_suffixes.traces.phi, whole.traces.phi, rtol=0, atol=5e-6)
    assert float(whole.traces.phi.abs().max()) > 1e-3


@pytest.mark.parametrize("budget", [0, 4000])
def test_what_does_not_fit_in_memory_is_not_recorded(budget: int) -> None:
    """Without memory for the sets the whole model runs; with some, minibatches are recorded at every step."""
    heads = pf.attention_heads(language_model())
    probes = {"few": tokens(1, seed=3)}
    sampling = SMALL | {"probes": probes, "loss_samples": 1}
    expected = pf.sample(language_posterior(), pf.SGLD(1e-3), components=heads, **sampling)
    with pytest.warns(UserWarning, match="runs the whole model") if budget == 0 else contextlib.nullcontext():
        found = pf.sample(language_posterior(), pf.SGLD(1e-3), components=heads, recording_bytes=budget, **sampling)
    assert ("whole model" in found.evaluated[:4]) == (budget == 0)
    assert torch.allclose(found.traces.phi, expected.traces.phi, rtol=0, atol=5e-6)


def test_layers_that_run_twice_are_not_recalled() -> None:
    torch.manual_seed(0)
    model = Recurrent()
    component = pf.component(model, "last", ["blocks.2.1.weight"])
    assert chosen(model, component).name == "whole model"


def test_dropout_is_off_in_copies() -> None:
    """A suffix's modules are copies made of a model in eval mode."""
    model = Residual()
    for block in model.blocks:
        assert isinstance(block, nn.Sequential)
        block.append(nn.Dropout(0.5))
    posterior = pf.LocalPosterior(model, plain_next_token, tokens(), n_beta=1.0, localization=10.0)
    sampling = SMALL | {"components": {"last": pf.component(model, "last", ["blocks.2.1.weight"])}}
    one = pf.sample(posterior, pf.SGLD(1e-3), **sampling)
    assert one.evaluated[0] == "from blocks.2"
    assert torch.equal(one.traces.phi, pf.sample(posterior, pf.SGLD(1e-3), **sampling).traces.phi)
