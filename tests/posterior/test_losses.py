"""`next_token`: the cross entropy of the logits, wherever they come from, with or without making them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

import patterning_fast as pf
from patterning_fast.engine.suffix import Modules, WholeModel
from tests.decoders import CONFIGS, SCALED, decoder
from tests.models import CONTEXT, language_model, tokens
from tests.ops.cross_entropy import ROUNDING, bounds

DOUBLE = 1e-12
"""Of the largest value: 4,000 roundings of 2⁻⁵³, more than any path through these models goes through."""

MODELS = ["built in", *CONFIGS]


def next_token_of(data: Tensor) -> Any:
    return lambda model: pf.losses.next_token(model, data)


def model_of(name: str) -> Any:
    return language_model() if name == "built in" else decoder(name)


def logits_of(model: nn.Module, data: Tensor) -> Tensor:
    output = model(data[:, :-1])
    return output if isinstance(output, Tensor) else output.logits


def losses_from_logits(model: nn.Module, data: Tensor) -> Tensor:
    return F.cross_entropy(logits_of(model, data).flatten(0, 1), data[:, 1:].flatten(), reduction="none").view(
        len(data), -1
    )


def unembedding(model: Any) -> Tensor:
    return model.unembedding if hasattr(model, "unembedding") else model.get_output_embeddings().weight


def check_within_rounding(model: nn.Module, actual: Tensor, logits: Tensor, hidden: Tensor, labels: Tensor) -> None:
    """Hold losses to those of the logits in double: these and the op's own are each off by the rounding of a sum."""
    weight = unembedding(model).double()
    each = (weight.shape[1] + 1) * ROUNDING * (hidden.double().abs() @ weight.abs().T).amax(-1)
    bound, _ = bounds(logits, labels, torch.ones(labels.shape), -100, 2 * each)
    exact = F.cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    assert torch.all((actual - exact).abs() <= bound)


def hidden_states(model: Any, data: Tensor) -> Tensor:
    if hasattr(type(model), "logit_factors"):
        return model.logit_factors(data[:, :-1]).hidden
    return model.base_model(input_ids=data[:, :-1]).last_hidden_state


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_losses_are_those_of_the_logits(name: str) -> None:
    model, data = model_of(name), tokens()
    losses = pf.losses.next_token(model, data)
    assert losses.shape == (12, CONTEXT)
    assert losses.dtype == torch.float32
    logits = logits_of(model, data)
    if name in SCALED:
        assert torch.equal(losses, losses_from_logits(model, data))
    else:
        check_within_rounding(model, losses, logits, hidden_states(model, data), data[:, 1:])


@pytest.mark.parametrize("name", [name for name in MODELS if name not in SCALED])
def test_gradients_are_those_of_the_logits(name: str) -> None:
    model, data = model_of(name).double(), tokens()
    weights = torch.rand(12, CONTEXT, dtype=torch.float64)
    parameters = list(model.parameters())
    expected = torch.autograd.grad((losses_from_logits(model, data) * weights).sum(), parameters)
    actual = torch.autograd.grad((pf.losses.next_token(model, data) * weights).sum(), parameters)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.all((ours - theirs).abs() <= DOUBLE * theirs.abs().max())


def forbidden(*_: object) -> None:
    raise AssertionError("the logits were made")


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_made_only_where_they_are_more_than_a_product(name: str) -> None:
    model = decoder(name)
    model.get_output_embeddings().register_forward_hook(forbidden)
    if name in SCALED:
        with pytest.raises(AssertionError, match="the logits were made"):
            pf.losses.next_token(model, tokens())
    else:
        pf.losses.next_token(model, tokens())


@torch.no_grad()
def test_a_bias_of_the_unembedding_counts() -> None:
    model, data = decoder("llama", tie_word_embeddings=False), tokens()
    model.lm_head.bias = nn.Parameter(torch.randn(model.lm_head.out_features))
    assert torch.equal(pf.losses.next_token(model, data), losses_from_logits(model, data))


@torch.no_grad()
def test_any_module_that_makes_logits_will_do() -> None:
    model, data = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11)), tokens()
    assert torch.equal(pf.losses.next_token(model, data), losses_from_logits(model, data))


class Wrapper(nn.Module):
    """Passes attributes on, as torch.compile's and adapters do, but is itself what must be called."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, batch: Tensor) -> Tensor:
        output = self.inner(batch)
        return 2 * (output if isinstance(output, Tensor) else output.logits)


@pytest.mark.parametrize("name", ["built in", "llama"])
@torch.no_grad()
def test_a_wrapper_is_called_as_a_whole(name: str) -> None:
    model, data = Wrapper(model_of(name)), tokens()
    assert torch.equal(pf.losses.next_token(model, data), losses_from_logits(model, data))


@pytest.mark.parametrize("name", ["built in", "llama", "gpt2"])
@pytest.mark.parametrize("length", [2, CONTEXT + 1])
@torch.no_grad()
def test_ids_of_any_integer_type_and_any_stride(name: str, length: int) -> None:
    model, data = model_of(name), tokens(length=length)
    expected = pf.losses.next_token(model, data)
    assert expected.shape == (12, length - 1)
    assert torch.equal(pf.losses.next_token(model, data.int()), expected)
    assert torch.equal(pf.losses.next_token(model, data.repeat_interleave(2, 1)[:, ::2]), expected)


@pytest.mark.parametrize("name", ["built in", "llama"])
@torch.no_grad()
def test_in_half_precision(name: str) -> None:
    """A model of bfloat16 makes its logits; under autocast only what comes before them is rounded."""
    model, data = model_of(name), tokens()
    half = model_of(name).bfloat16()
    assert torch.equal(pf.losses.next_token(half, data), losses_from_logits(half, data))
    exact = pf.losses.next_token(model, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = pf.losses.next_token(model, data)
    assert rounded.dtype == torch.float32
    # Some ten products in turn, each rounded to 2⁻⁹ of values that end in losses below 6.
    assert 0 < float((rounded - exact).abs().max()) < 10 * 6 * 2.0**-9


DROPOUT = {"gpt2": {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}, "llama": {"attention_dropout": 0.5}}


@pytest.mark.parametrize("name", DROPOUT)
@torch.no_grad()
def test_dropout_is_what_the_mode_of_the_model_says(name: str) -> None:
    """The same elements drop as in the model's own forward pass in training, none in evaluation."""
    data = tokens()
    model, without = decoder(name, **DROPOUT[name]), decoder(name)
    assert torch.equal(pf.losses.next_token(model, data), pf.losses.next_token(without, data))
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = hidden_states(model, data)
        torch.manual_seed(0)
        logits = logits_of(model, data)
        torch.manual_seed(0)
        losses = pf.losses.next_token(model, data)
        another = pf.losses.next_token(model, data)
    check_within_rounding(model, losses, logits, hidden, data[:, 1:])
    assert not torch.equal(losses, another)
    assert model.training


@pytest.mark.parametrize("name", ["built in", "llama", "llama with biases, no sharing", "gpt2", "gpt_neox"])
def test_parameters_can_be_swapped(name: str) -> None:
    """As chains do: as if they were the model's own, tied ones in all their places."""
    model, data = model_of(name).double(), tokens()
    moved = {key: (parameter.detach() + 0.1).requires_grad_() for key, parameter in model.named_parameters()}
    whole = WholeModel(pf.component(model, "all", moved.keys()))
    losses = whole.runner(Modules(model)).run(next_token_of(data), moved, {})
    gradients = torch.autograd.grad(losses.sum(), list(moved.values()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    expected = losses_from_logits(model, data)
    assert torch.all((losses - expected).abs() <= DOUBLE * expected.max())
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.sum(), list(model.parameters())), strict=True):
        assert torch.all((ours - theirs).abs() <= DOUBLE * theirs.abs().max())


def test_bad_input_is_refused() -> None:
    with pytest.raises(TypeError, match=r"takes token ids \[batch, T \+ 1\] alone"):
        pf.losses.next_token(language_model(), (tokens(), tokens()))
    with pytest.raises(TypeError, match="if it is the body of a model, pass the model with its head"):
        pf.losses.next_token(decoder("llama").base_model, tokens())


class WithLogits(nn.Module):
    """Returns an object that has logits, as classifiers of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        return ImageClassifierOutput(logits=self.linear(x))


@pytest.mark.parametrize("loss", [pf.losses.cross_entropy, pf.losses.squared_error])
def test_logits_of_an_object_are_taken(loss: Any) -> None:
    model, x = WithLogits(), torch.randn(5, 3)
    y = torch.tensor([0, 1, 1, 0, 1]) if loss is pf.losses.cross_entropy else torch.randn(5, 2)
    assert torch.equal(loss(model, (x, y)), loss(model.linear, (x, y)))
    with pytest.raises(TypeError, match=r"needs .* from the model, but LSTM returned tuple, which has no logits"):
        loss(nn.LSTM(3, 2), (x, y))
