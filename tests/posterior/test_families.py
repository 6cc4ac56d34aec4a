"""Heads of the families of Hugging Face and of torch's own attention: what they change, and what changes them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.posterior.families import FAMILIES
from tests.decoders import decoder
from tests.families import HEADS, NAMES, OUTPUT, output, random_model

Owned = dict[str, Tensor]

every_family = pytest.mark.parametrize("name", NAMES)

made = cache(random_model)


def heads_of(model: nn.Module) -> dict[tuple[int, int], Owned]:
    """Layer and head to the flat indices of each parameter."""
    found = {}
    for name, head in pf.attention_heads(model).items():
        layer, _, index = name.removeprefix("l").partition("h")
        parameters = dict(model.named_parameters())
        whole = {key: torch.arange(parameters[key].numel()) for key in head.coordinates}
        found[int(layer), int(index)] = {key: whole[key] if at is None else at for key, at in head.coordinates.items()}
    return found


def owners(heads: dict[tuple[int, int], Owned], layer: int, parameter: str, index: Tensor) -> list[int]:
    """The heads that own any of some coordinates."""
    return [head for head in range(HEADS) if torch.isin(index, heads[layer, head].get(parameter, index[:0])).any()]


def output_projection(model: Any) -> str:
    return OUTPUT.get(model.config.model_type, "o_proj")


def output_projections(model: Any) -> list[nn.Module]:
    """What reads the heads' outputs, side by side `[batch, T, heads × head width]`, in each layer."""
    named = [(name, module) for name, module in model.named_modules() if name.endswith(output_projection(model))]
    return [module for name, module in named if ".mlp." not in name]


def head_outputs(model: nn.Module, layer: int) -> Tensor:
    """Outputs of the heads of a layer, `[batch, T, heads, head width]`."""
    seen: list[Tensor] = []
    hook = output_projections(model)[layer].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        output(model)
    hook.remove()
    return seen[0].unflatten(-1, (HEADS, -1))


def is_output(model: Any, parameter: str) -> bool:
    return f".{output_projection(model)}." in f".{parameter}"


@every_family
@torch.no_grad()
def test_what_a_head_owns_changes_its_output_alone(name: str) -> None:
    """And that of those that it shares keys and values with."""
    model = made(name)
    heads = heads_of(model)
    assert list(heads) == [(layer, head) for layer in range(2) for head in range(HEADS)]
    for (layer, head), owned in heads.items():
        before = head_outputs(model, layer)
        for parameter, index in owned.items():
            if is_output(model, parameter):
                continue
            weights = model.get_parameter(parameter).view(-1)
            kept = weights.clone()
            weights[index] *= -1.5
            changed = (head_outputs(model, layer) != before).any(-1).any(0).any(0).nonzero().flatten().tolist()
            weights.copy_(kept)
            sharing = owners(heads, layer, parameter, index)
            if "bias" in parameter:  # a key's bias may cancel in the softmax
                assert set(changed) <= set(sharing), (parameter, head)
            else:
                assert changed == sharing, (parameter, head)


@every_family
def test_what_passes_through_a_head_depends_on_what_it_owns_alone(name: str) -> None:
    model = made(name)
    heads = heads_of(model)
    attention_weights = {parameter for owned in heads.values() for parameter in owned}
    for (layer, head), owned in heads.items():

        def through_the_head(_: nn.Module, given: tuple[Tensor], head: int = head) -> Tensor:
            outputs = given[0].unflatten(-1, (HEADS, -1))
            kept = torch.zeros_like(outputs)
            kept[:, :, head] = outputs[:, :, head]
            return kept.flatten(-2)

        hook = output_projections(model)[layer].register_forward_pre_hook(through_the_head)
        model.zero_grad()
        found = output(model)
        (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
        hook.remove()
        here = {each for each in attention_weights if f".{layer}." in f".{each}"}
        assert here == set(owned)
        for parameter in here:
            gradient = model.get_parameter(parameter).grad
            outside = torch.ones(gradient.numel(), dtype=torch.bool)
            outside[owned[parameter]] = False
            assert torch.count_nonzero(gradient.view(-1)[outside]) == 0, parameter
            if "bias" not in parameter:
                assert torch.count_nonzero(gradient.view(-1)[~outside]) == int((~outside).sum()), parameter
    model.zero_grad()


@every_family
def test_heads_hold_all_that_is_not_shared(name: str) -> None:
    """All weights of the projections; what several heads own is the keys and values of a group."""
    model = made(name)
    heads = heads_of(model)
    for parameter in {parameter for owned in heads.values() for parameter in owned}:
        held = torch.cat([owned[parameter] for owned in heads.values() if parameter in owned])
        times = held.bincount(minlength=model.get_parameter(parameter).numel())
        assert int(times.min()) >= 1
        assert len(times.unique()) <= 2
        if is_output(model, parameter):
            assert int(times.max()) == 1
    weights = {parameter for owned in heads.values() for parameter in owned}
    biases = {f"{each.removesuffix('weight')}bias" for each in weights if not is_output(model, each)}
    assert biases & {parameter for parameter, _ in model.named_parameters()} <= weights


def test_every_family_is_tried() -> None:
    assert {made(name).config.model_type for name in NAMES} == FAMILIES.keys()


@torch.no_grad()
def test_heads_of_torch_s_own_attention() -> None:
    """Without a projection after them heads lie side by side: what each owns changes its own features."""
    layer = nn.TransformerEncoderLayer(16, HEADS, 8, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    heads = heads_of(model)
    assert list(heads) == [(layer, head) for layer in range(2) for head in range(HEADS)]
    attention = model.layers[1].self_attn
    attention.out_proj.weight.copy_(torch.eye(16))
    given = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    before = attention(given, given, given)[0]
    for head in range(HEADS):
        owned = heads[1, head]
        assert owned.keys() == {f"layers.1.self_attn.{each}" for each in (
            "in_proj_weight", "in_proj_bias", "out_proj.weight",
        )}  # fmt: skip
        for parameter in ("in_proj_weight", "in_proj_bias"):
            weights = attention.get_parameter(parameter).view(-1)
            kept = weights.clone()
            weights[owned[f"layers.1.self_attn.{parameter}"]] += 0.5
            changed = (attention(given, given, given)[0] - before).abs().amax((0, 1)) > 1e-6
            weights.copy_(kept)
            assert changed.view(HEADS, -1).any(1).nonzero().flatten().tolist() == [head]
        columns = owned["layers.1.self_attn.out_proj.weight"] % 16 // 4
        assert columns.unique().tolist() == [head]
    with pytest.raises(ValueError, match="kdim or vdim"):
        pf.attention_heads(nn.MultiheadAttention(16, 4, kdim=8))


def test_layers_share_their_indices() -> None:
    """A real model has hundreds of heads: their indices take the memory of one layer's."""
    heads = pf.attention_heads(decoder("llama"))
    for name, index in heads["l0h1"].coordinates.items():
        other = heads["l1h1"].coordinates[name.replace("layers.0", "layers.1")]
        assert index is not None
        assert other is not None
        assert other.data_ptr() == index.data_ptr()


def test_the_body_of_a_language_model_has_heads_too() -> None:
    body = decoder("llama").base_model
    assert "layers.1.self_attn.o_proj.weight" in pf.attention_heads(body)["l1h3"].coordinates


@pytest.mark.parametrize(("name", "layer"), [("llama", "model.layers.1"), ("gpt2", "transformer.h.1")])
def test_layers_by_name(name: str, layer: str) -> None:
    model = decoder(name)
    inside = [parameter for parameter, _ in model.named_parameters() if parameter.startswith(f"{layer}.")]
    assert list(pf.layers(model)[layer].coordinates) == inside


class Otherwise(nn.Module):
    """Calls itself by a known name, but keeps its weights as nn.Linear does."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(16, 48), "c_proj": nn.Linear(16, 16)})


def test_models_that_only_share_a_name_are_refused() -> None:
    config = decoder("gpt2").config
    with pytest.raises(ValueError, match=r"attn.c_attn.weight has shape \[48, 16\], which its heads do not fill"):
        pf.attention_heads(Otherwise(config))
    replaced = decoder("llama")
    replaced.model.layers[0].self_attn.q_proj = nn.Sequential(nn.Linear(24, 16))
    with pytest.raises(ValueError, match=r"self_attn.q_proj.weight is missing in a model that calls itself 'llama'"):
        pf.attention_heads(replaced)
