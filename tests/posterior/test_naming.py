"""Components by name, by what they are in models of several families, and what they are drawn as."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch
from torch import nn

import patterning_fast as pf
from patterning_fast.posterior.naming import Finder
from tests.decoders import decoder
from tests.families import HEADS, NAMES, random_model
from tests.models import language_model

every_family = pytest.mark.parametrize("name", NAMES)


def owned(model: nn.Module, *names: str, **unions: list[str]) -> set[str]:
    """The parameters that move in any of some components."""
    return {each for component in pf.components(model, *names, **unions).values() for each in component.coordinates}


def same(one: pf.Component, other: pf.Component) -> bool:
    def listed(component: pf.Component) -> dict[str, list[int] | None]:
        return {name: None if index is None else index.tolist() for name, index in component.coordinates.items()}

    return listed(one) == listed(other)


@every_family
def test_a_layer_is_its_attention_the_rest_and_its_norms(name: str) -> None:
    """Layers are apart, and heads lie in their layer's attention."""
    model = random_model(name)
    layers = pf.components(model, "layers")
    assert list(layers) == ["l0", "l1"]
    assert not owned(model, "l0") & owned(model, "l1")
    for layer in layers:
        attention, rest = owned(model, f"{layer} attn"), owned(model, f"{layer} mlp")
        assert not attention & rest
        norms = owned(model, layer) - attention - rest
        modules = {each.rpartition(".")[0] for each in norms}
        assert all("norm" in type(model.get_submodule(each)).__name__.lower() for each in modules), norms
        for head in range(HEADS):
            assert owned(model, f"{layer}h{head}") <= attention
            assert same(pf.components(model, f"{layer} h{head}")[f"{layer} h{head}"],
                        pf.attention_heads(model)[f"{layer}h{head}"])  # fmt: skip
    assert pf.components(model, "heads").keys() == pf.attention_heads(model).keys()


@pytest.mark.parametrize("name", ["llama", "falcon", "opt", "gpt2"])
def test_embeddings_are_what_the_model_says(name: str) -> None:
    model = random_model(name)
    parameters = dict(model.named_parameters())
    (embed,) = owned(model, "embed")
    assert parameters[embed] is model.get_input_embeddings().weight
    assert any(parameters[each] is model.get_output_embeddings().weight for each in owned(model, "unembed"))


def test_tied_names_are_aliases() -> None:
    model = decoder("llama")  # whose embeddings are tied
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert owned(model, "lm_head.weight") == owned(model, "unembed") == {"model.embed_tokens.weight"}
    assert list(pf.component(model, "head", ["lm_head.weight"]).coordinates) == ["model.embed_tokens.weight"]
    with pytest.raises(
        ValueError, match=r"names model.embed_tokens.weight and lm_head.weight, which are one parameter"
    ):
        pf.component(model, "both", ["model.embed_tokens.weight", "lm_head.weight"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "phimoe"])
def test_an_expert_changes_what_itself_does(name: str) -> None:
    """The experts' output for tokens that are all sent to one."""
    model = random_model(name)
    experts = next(module for path, module in model.named_modules() if path.endswith("layers.1.mlp.experts"))
    hidden = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))

    def of(expert: int) -> torch.Tensor:
        return experts(hidden, torch.full((6, 1), expert), torch.ones(6, 1))

    before = [of(expert) for expert in range(3)]
    for expert in range(3):
        component = pf.components(model, f"l1e{expert}")[f"l1e{expert}"]
        kept = {each: model.get_parameter(each).clone() for each in component.coordinates}
        for each, index in component.coordinates.items():
            model.get_parameter(each).view(-1)[index] *= -1.5
        changed = [not torch.equal(of(other), before[other]) for other in range(3)]
        for each, values in kept.items():
            model.get_parameter(each).copy_(values)
        assert changed == [other == expert for other in range(3)]
    with pytest.raises(ValueError, match=r"layer 1 of .* has no expert 3"):
        pf.components(model, "l1e3")


def test_a_group_is_the_heads_that_share_keys() -> None:
    model = random_model("mixtral")
    found = pf.components(model, "l1g1", both=["l1h2", "l1h3"])
    assert same(found["l1g1"], found["both"])
    keys = found["l1g1"].coordinates["model.layers.1.self_attn.k_proj.weight"]
    assert keys is not None
    assert keys.numel() == 64  # once, not once a head
    with pytest.raises(ValueError, match="has no group 2 in layer 1; its layers have 2"):
        pf.components(model, "l1g2")


def test_patterns_and_unions() -> None:
    model = language_model()
    assert owned(model, "*.bias") == {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    found = pf.components(model, "l0", "final_norm.*", norms=["layers.*.norm.*", "final_norm.bias"])
    assert list(found) == ["l0", "final_norm.*", "norms"]
    assert len(found["norms"].coordinates) == 5
    assert same(pf.components(model, "full")["full"], pf.component(model, "full", list(dict(model.named_parameters()))))
    whole = pf.components(model, all=["l0h0", "layers.0.qkv"])["all"]
    assert whole.coordinates["layers.0.qkv"] is None  # a part and the whole are the whole


def test_built_in_models_have_attention_by_their_heads() -> None:
    model = language_model()
    assert owned(model, "l1 attn") == {"layers.1.qkv", "layers.1.output"}
    assert owned(model, "embed") == {"embedding"}
    with pytest.raises(ValueError, match="layer 0 of AttentionOnlyLM has nothing beside its attention"):
        pf.components(model, "l0 mlp")


def test_models_of_any_kind_have_layers() -> None:
    stack = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    assert owned(stack, "l2") == {"2.0.weight", "2.0.bias", "2.1.weight", "2.1.bias"}
    with pytest.raises(ValueError, match="nothing in it would move"):
        pf.components(stack, "l1")
    two = nn.ModuleDict({"encoder": nn.ModuleList([nn.Linear(2, 2)] * 3), "decoder": nn.ModuleList([nn.Tanh()] * 3)})
    two["decoder"] = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    with pytest.raises(ValueError, match="'l1': ModuleDict has no stack of layers, or several of equal depth"):
        pf.components(two, "l1")


def test_frozen_parameters_are_left_out() -> None:
    model = language_model()
    model.layers[0].qkv.requires_grad_(False)
    assert owned(model, "l0") == {"layers.0.output", "layers.0.norm.weight", "layers.0.norm.bias"}
    assert owned(model, "l0h1") == {"layers.0.output"}
    with pytest.raises(ValueError, match=r"'layers.0.qkv' has no parameter that requires a gradient"):
        pf.components(model, "layers.0.qkv")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("l2", "AttentionOnlyLM has no layer 2; it has l0 to l1"),
        ("l2h0", "AttentionOnlyLM has no head 'l2h0'; it has l0h0 to l1h1"),
        ("l0h7", "AttentionOnlyLM has no head 'l0h7'; it has l0h0 to l1h1"),
        ("l0e0", "layer 0 of AttentionOnlyLM has no expert 0"),
        ("unembed", None),
        ("charm", "'charm' is no component of AttentionOnlyLM; names are \"full\", \"heads\""),
        ("*.charm", "is no component of AttentionOnlyLM"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing_are_refused(name: str, said: str | None) -> None:
    model = language_model()
    if said is None:
        assert owned(model, name) == {"unembedding"}
        return
    with pytest.raises(ValueError, match=re.escape(said)):
        pf.components(model, name)


def test_embeddings_that_nobody_names_are_refused() -> None:
    with pytest.raises(ValueError, match="Sequential does not say which its embedding is"):
        pf.components(nn.Sequential(nn.Linear(2, 2)), "embed")
    with pytest.raises(ValueError, match="biases is the union of no names"):
        pf.components(language_model(), biases=[])


def test_every_parameter_is_in_a_name() -> None:
    """Layers, embeddings and the last norm are the whole of a decoder."""
    model = random_model("llama")
    every = set(Finder(model).parameters)
    assert owned(model, "layers", "embed", "unembed", "*.norm.weight") == every


def test_a_preview_counts_what_moves() -> None:
    model = random_model("mixtral")
    drawn = pf.preview(model, "l0h1", pf.components(model, "*.q_proj.weight")["*.q_proj.weight"])
    assert "l0h1: 256 of 4,368 coordinates move, 0.0586 of all" in drawn
    assert "├─ q_proj.weight          ▰▰▰▰▱▱▱▱▱▱▱▱▱▱▱▱  64 of 256" in drawn
    assert "0 to 1, each.self_attn.q_proj.weight" in drawn  # layers that are alike, once
    assert "\033" not in drawn
    with pytest.raises(ValueError, match="which the model lacks"):
        pf.preview(language_model(), pf.components(model, "l0h1")["l0h1"])


def test_a_preview_is_in_colour_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def isatty(self) -> bool:
            return True

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    model = language_model()
    plain = pf.preview(model, "l0")
    monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = pf.preview(model, "l0")
    assert "\033[36m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert pf.preview(model, "l0") == plain
