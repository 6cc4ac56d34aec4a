"""Heads of Hugging Face decoders: what their coordinates move, and what moves them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import patterning_fast as pf
from tests.decoders import CONFIGS, OUTPUT, decoder
from tests.models import tokens

HEADS = 4
Owned = dict[str, Tensor]

every_decoder = pytest.mark.parametrize("name", CONFIGS)


def heads_of(model: nn.Module) -> dict[tuple[int, int], Owned]:
    """Layer and head to the flat indices of each parameter."""
    found = {}
    for name, head in pf.attention_heads(model).items():
        layer, _, index = name.removeprefix("l").partition("h")
        parameters = dict(model.named_parameters())
        whole = {key: torch.arange(parameters[key].numel()) for key in head.coordinates}
        found[int(layer), int(index)] = {key: whole[key] if at is None else at for key, at in head.coordinates.items()}
    return found


def output_projections(model: Any) -> list[nn.Module]:
    """What reads the heads' outputs, side by side `[batch, T, heads × head width]`, in each layer."""
    projection = OUTPUT.get(model.config.model_type, "o_proj")
    named = [(name, module) for name, module in model.named_modules() if name.endswith(projection)]
    return [module for name, module in named if ".mlp." not in name]


def head_outputs(model: nn.Module, layer: int) -> Tensor:
    """Outputs of the heads of a layer, `[batch, T, heads, head width]`."""
    seen: list[Tensor] = []
    hook = output_projections(model)[layer].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(tokens()[:, :-1])
    hook.remove()
    return seen[0].unflatten(-1, (HEADS, -1))


def is_output(model: Any, parameter: str) -> bool:
    return f".{OUTPUT.get(model.config.model_type, 'o_proj')}." in parameter


@every_decoder
@torch.no_grad()
def test_what_a_head_owns_changes_its_output_alone(name: str) -> None:
    model = decoder(name)
    sharing = HEADS // getattr(model.config, "num_key_value_heads", HEADS)
    for (layer, head), owned in heads_of(model).items():
        before = head_outputs(model, layer)
        for parameter, index in owned.items():
            if is_output(model, parameter):
                continue
            shared = "k_proj" in parameter or "v_proj" in parameter
            group = [each for each in range(HEADS) if each // sharing == head // sharing] if shared else [head]
            weights = model.get_parameter(parameter).view(-1)
            kept = weights.clone()
            weights[index] *= -1.5
            changed = (head_outputs(model, layer) != before).any(-1).any(0).any(0)
            weights.copy_(kept)
            if "k_proj.bias" not in parameter:
                assert changed.nonzero().flatten().tolist() == group, (parameter, head)
            else:
                assert set(changed.nonzero().flatten().tolist()) <= set(group)


@every_decoder
def test_what_passes_through_a_head_depends_on_what_it_owns_alone(name: str) -> None:
    model = decoder(name)
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
        pf.losses.next_token(model, tokens()).mean().backward()
        hook.remove()
        here = {each for each in attention_weights if f".{layer}." in each}
        assert here == set(owned)
        for parameter in here:
            gradient = model.get_parameter(parameter).grad
            outside = torch.ones(gradient.numel(), dtype=torch.bool)
            outside[owned[parameter]] = False
            assert torch.count_nonzero(gradient.view(-1)[outside]) == 0, parameter
            if "bias" not in parameter:  # a key's bias may cancel in the softmax
                assert torch.count_nonzero(gradient.view(-1)[~outside]) == int((~outside).sum()), parameter


@every_decoder
def test_heads_hold_all_that_is_not_shared(name: str) -> None:
    """All weights of the projections, once, but for the keys and values that a group of heads shares."""
    model = decoder(name)
    heads = heads_of(model)
    sharing = HEADS // getattr(model.config, "num_key_value_heads", HEADS)
    assert list(heads) == [(layer, head) for layer in range(2) for head in range(HEADS)]
    for parameter in {parameter for owned in heads.values() for parameter in owned}:
        held = torch.cat([owned[parameter] for owned in heads.values() if parameter in owned])
        times = sharing if "k_proj" in parameter or "v_proj" in parameter else 1
        assert held.sort().values.tolist() == [
            index for index in range(model.get_parameter(parameter).numel()) for _ in range(times)
        ]
    biased = {parameter for parameter, _ in model.named_parameters() if "att" in parameter and "bias" in parameter}
    biased -= {parameter for parameter in biased if "norm" in parameter or is_output(model, parameter)}
    assert biased <= {parameter for owned in heads.values() for parameter in owned}


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
