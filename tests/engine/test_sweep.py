"""Every parameter of many kinds of model as a component of its own: its chains see the model itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import patterning_fast as pf
from patterning_fast.engine.recording import Runners, recordings
from patterning_fast.engine.suffix import Modules
from patterning_fast.engine.workers import workers
from patterning_fast.posterior.components import Component
from patterning_fast.posterior.probing import ROUNDING, differ
from tests.models import VOCABULARY, tokens

SAMPLES = 5
SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
FEED_FORWARD = {"intermediate_size": 12, "max_position_embeddings": 16}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models so small take longest to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, 3, 8, 8, generator=generator), torch.randint(3, (SAMPLES,), generator=generator)


def classed_tokens() -> tuple[Tensor, Tensor]:
    return tokens(SAMPLES), torch.randint(3, (SAMPLES,), generator=torch.Generator().manual_seed(1))


def class_logits(model: nn.Module, batch: Any) -> Tensor:
    x, classes = batch
    output = model(x)
    return F.cross_entropy(getattr(output, "logits", output), classes, reduction="none")


def translated(model: nn.Module, batch: Any) -> Tensor:
    source, target = batch[:, :4], batch[:, 4:]
    logits = model(input_ids=source, decoder_input_ids=target[:, :-1]).logits
    return F.cross_entropy(logits.transpose(1, 2), target[:, 1:], reduction="none")


class Transformer(nn.Module):
    """Torch's own encoder, positions first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.stem = nn.Linear(8, 8)
        nn.init.zeros_(self.stem.bias)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, 0.0), 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(self.embedding(x)).transpose(0, 1)).mean(0))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(VOCABULARY, 8), nn.LSTM(8, 6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x).transpose(0, 1))[0][-1])


class Shared(nn.Module):
    """A block that comes twice in its list."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        one, other = (nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2))
        self.blocks, self.head = nn.ModuleList([one, other, one]), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embedding(x).mean(1)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


class Aliased(nn.Module):
    """Modules under two names, and a layer whose weight is used elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)
        self.net = nn.Sequential(self.fc1, nn.Tanh(), self.fc2, nn.Tanh(), nn.Linear(8, 8, bias=False))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net(self.embedding(x).mean(1))
        return self.head(hidden @ self.fc1.weight)


class Branching(nn.Module):
    """More than a row of layers: a weight read from outside, an output that skips layers, one changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        blocks: Any = self.blocks
        hidden = self.embedding(x).mean(1)
        first = torch.tanh(blocks[0](hidden))
        second = torch.tanh(blocks[1](first)) + 0.1 * first
        third = blocks[2](second).tanh_()
        fourth = blocks[3](third + 0.1 * first + blocks[0].weight.diagonal())
        return self.head(torch.tanh(blocks[4](fourth)))


def build(kind: Any, configured: Any, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: kind(configured(**settings))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], Callable[[], Any], int]] = {
    "vit": (
        build(
            ViTForImageClassification, ViTConfig, image_size=8, patch_size=4, num_labels=3, intermediate_size=12,
            **SMALL,
        ),
        class_logits, images, 16,
    ),
    "bert": (
        build(BertForSequenceClassification, BertConfig, num_labels=3, **SMALL | FEED_FORWARD),
        class_logits, classed_tokens, 14,
    ),
    "gpt2": (
        build(GPT2LMHeadModel, GPT2Config, vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=2, n_head=2),
        pf.losses.next_token, lambda: tokens(SAMPLES), 12,
    ),
    "llama": (
        build(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=False, **SMALL | FEED_FORWARD),
        pf.losses.next_token, lambda: tokens(SAMPLES), 11,
    ),
    "neox": (
        build(GPTNeoXForCausalLM, GPTNeoXConfig, **SMALL | FEED_FORWARD),
        pf.losses.next_token, lambda: tokens(SAMPLES), 15,
    ),
    "gemma2": (
        build(
            Gemma2ForCausalLM, Gemma2Config, num_key_value_heads=1, head_dim=4, query_pre_attn_scalar=4,
            **SMALL | FEED_FORWARD,
        ),
        pf.losses.next_token, lambda: tokens(SAMPLES), 12,
    ),
    "resnet": (
        build(
            ResNetForImageClassification, ResNetConfig, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 2],
            layer_type="basic", num_labels=3,
        ),
        class_logits, images, 0,
    ),
    "transformer": (Transformer, class_logits, classed_tokens, 0),
    "lstm": (Recurrent, class_logits, classed_tokens, 0),
    "t5": (
        build(
            T5ForConditionalGeneration, T5Config, vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=12, num_layers=2,
            num_heads=2,
        ),
        translated, lambda: tokens(SAMPLES), 0,
    ),
    "shared blocks": (Shared, class_logits, classed_tokens, 0),
    "aliased modules": (Aliased, class_logits, classed_tokens, 4),
    "branching": (Branching, class_logits, classed_tokens, 0),
}  # fmt: skip
"""Model, loss, data, and how many of the parameters' chains must at least recall something."""


def posterior(name: str) -> pf.LocalPosterior:
    make, loss, data, _ = MODELS[name]
    torch.manual_seed(0)
    return pf.LocalPosterior(make(), loss, data(), n_beta=100.0, localization=10.0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*whole model.*", "ignore:.*batching rule.*")
def test_every_parameter_alone(name: str) -> None:
    """In three orders, on models whose own parameters are moved, at several sizes of the move, with gradients."""
    local = posterior(name)
    each = [Component(parameter, {parameter: None}) for parameter in local.moving]
    shuffled = [each[at] for at in torch.randperm(len(each), generator=torch.Generator().manual_seed(2))]
    chosen = []
    with workers(lambda: Runners(local), torch.device("cpu")) as pool:
        for order in (each, each[::-1], shuffled):
            found = recordings(local, order, [local.data], 2**28, pool)
            chosen.append({one.name: suffix for one, suffix in zip(order, found.suffixes, strict=True)})
    names = [{key: suffix.name for key, suffix in some.items()} for some in chosen]
    assert names[1:] == names[:1] * 2
    for one in each:
        check(local, one, chosen[0][one.name])
    recalling = sum(suffix.name != "whole model" for suffix in chosen[0].values())
    assert recalling >= MODELS[name][3], recalling


def check(local: pf.LocalPosterior, component: Component, suffix: Any) -> None:
    """Losses and gradients of a suffix, where the parameter has moved, against a deep copy that is moved in place."""
    (name,) = component.coordinates
    center = dict(local.model.named_parameters())[name].detach()
    truth = copy.deepcopy(local.model).requires_grad_()
    own = dict(truth.named_parameters())[name]
    generator = torch.Generator().manual_seed(3)
    runner = suffix.runner(Modules(local.model))
    data: Any = local.data
    recorded = runner.record(lambda model: local.loss(model, data))
    for size in (0.03, 1.0):
        moved = (center + size * torch.randn(center.shape, generator=generator)).requires_grad_()
        own.data.copy_(moved.detach())
        losses, expected = (
            runner.run(lambda model: local.loss(model, data), {name: moved}, recorded),
            local.loss(truth, data),
        )
        (gradient,) = torch.autograd.grad(losses.sum(), moved, materialize_grads=True)
        (slope,) = torch.autograd.grad(expected.sum(), own, materialize_grads=True)
        assert not differ(losses.detach(), expected.detach(), ROUNDING), (name, suffix.name, size)
        assert not differ(gradient, slope, ROUNDING), (name, suffix.name, size)


SAMPLING: dict[str, Any] = {"chains": 2, "draws": 3, "batch_size": 4, "tile": 1, "progress": False}


@pytest.mark.parametrize(
    ("name", "moving"),
    [
        ("llama", {"embedding": ["model.embed_tokens.weight"], "unembedding": ["lm_head.weight"]}),
        ("gpt2", {"wte": ["transformer.wte.weight"], "norm": ["transformer.ln_f.weight"]}),
        ("vit", {"class": ["vit.embeddings.cls_token"], "head": ["classifier.weight"]}),
    ],
)
def test_chains_do_not_depend_on_the_order_of_components(name: str, moving: dict[str, list[str]]) -> None:
    """What is recalled for the parameters after a stack must not be recalled for those before it."""
    local = posterior(name)
    components = {key: pf.component(local.model, key, names) for key, names in moving.items()}
    phi = []
    for order in (list(components), list(components)[::-1]):
        run = pf.sample(local, pf.SGLD(1e-3), components={key: components[key] for key in order}, **SAMPLING)
        phi.append({key: run.traces.phi[2 * at : 2 * at + 2] for at, key in enumerate(order)})
        assert {"whole model"} < set(run.evaluated)
    with pytest.warns(UserWarning, match="runs the whole model"):
        whole = pf.sample(local, pf.SGLD(1e-3), components=components, recording_bytes=0, **SAMPLING)
    for at, key in enumerate(components):
        assert torch.equal(phi[0][key], phi[1][key])
        # φ is a difference of losses of about 2 in float32, each with a few roundings.
        assert torch.allclose(phi[0][key], whole.traces.phi[2 * at : 2 * at + 2], rtol=0, atol=5e-6)
        assert float(phi[0][key].abs().max()) > 1e-4


def test_modules_under_two_names_move() -> None:
    """The same model written with each module under one name has the same chains."""
    aliased = posterior("aliased modules")

    class Plain(Aliased):
        def __init__(self) -> None:
            super().__init__()
            del self.net
            self.last = nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.fc2(torch.tanh(self.fc1(self.embedding(x).mean(1)))))
            return self.head(self.last(hidden) @ self.fc1.weight)

    plain = Plain()
    own = dict(aliased.model.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(own[name.replace("last", "net.4")])
    same = pf.LocalPosterior(plain, class_logits, aliased.data, n_beta=100.0, localization=10.0)
    both = [
        pf.sample(each, pf.SGLD(1e-3), components={"fc1": pf.component(each.model, "fc1", ["fc1.weight"])}, **SAMPLING)
        for each in (aliased, same)
    ]
    assert torch.allclose(both[0].traces.phi[:2], both[1].traces.phi[:2], rtol=0, atol=5e-6)
    assert float(both[0].traces.phi.abs().min()) > 1e-5


class InAList(nn.Module):
    """Uses a parameter from a list of its own beside the module that has it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 3)
        self.kept = [self.head.weight]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.embedding(x).mean(1)), self.kept[0], self.head.bias)


def test_parameters_that_chains_cannot_move_are_refused() -> None:
    local = pf.LocalPosterior(InAList(), class_logits, classed_tokens(), n_beta=1.0, localization=1.0)
    with pytest.raises(ValueError, match=r"cannot move .*head\.weight.* elsewhere .*nn\.ParameterList"):
        pf.sample(local, pf.SGLD(1e-3), **SAMPLING)
