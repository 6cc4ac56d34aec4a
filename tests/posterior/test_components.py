"""Components: which coordinates they hold, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import patterning_fast as pf
from patterning_fast.posterior.components import resolve_components
from tests.models import language_model


def test_attention_heads_partition_the_attention_weights() -> None:
    model = language_model()
    heads = pf.attention_heads(model)
    assert list(heads) == ["l0h0", "l0h1", "l1h0", "l1h1"]
    for name, parameter in model.named_parameters():
        if "qkv" in name or "output" in name:
            owned = [index for head in heads.values() if (index := head.coordinates.get(name)) is not None]
            assert sorted(torch.cat(owned).tolist()) == list(range(parameter.numel()))


@torch.no_grad()
def test_a_head_s_coordinates_are_what_its_output_depends_on() -> None:
    model = language_model()
    layer = model.attention_layers()[0]
    hidden = torch.randn(1, 8, 8)
    before = layer(hidden, model.rotary_cos, model.rotary_sin)
    for name, index in pf.attention_heads(model)["l0h1"].coordinates.items():
        assert index is not None
        model.get_parameter(name).view(-1)[index] = 0.0
    layer_without = layer(hidden, model.rotary_cos, model.rotary_sin)
    layer.output[0] = 0.0
    assert not torch.equal(before, layer_without)
    assert torch.count_nonzero(layer_without) > 0
    assert torch.count_nonzero(layer(hidden, model.rotary_cos, model.rotary_sin)) == 0


def test_layers_of_a_sequential() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    found = pf.layers(model)
    assert {name: sorted(each.coordinates) for name, each in found.items()} == {
        "0": ["0.bias", "0.weight"],
        "2": ["2.bias", "2.weight"],
    }


def test_mask_of_everything_is_the_whole_parameter() -> None:
    model = nn.Linear(3, 2)
    each = pf.component(model, "all", {"weight": torch.ones(2, 3, dtype=torch.bool)})
    assert each.coordinates == {"weight": None}
    assert each.size(dict(model.named_parameters())) == 6


def test_flat_indices_are_masks_too() -> None:
    model = nn.Linear(3, 2)
    mask = torch.tensor([[False, True, False], [True, True, False]])
    by_mask, by_index = (pf.component(model, "c", {"weight": each}) for each in (mask, torch.tensor([1, 3, 4])))
    for each in (by_mask, by_index):
        index = each.coordinates["weight"]
        assert index is not None
        assert index.tolist() == [1, 3, 4]
    assert pf.component(model, "all", {"weight": torch.arange(6)}).coordinates == {"weight": None}


@pytest.mark.parametrize("wrong", [[1, 1], [2, 1], [-1, 2], [0, 6]])
def test_indices_that_name_no_coordinate_or_one_twice_are_refused(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match=r"indices of 'weight' must (rise|be below 6)"):
        pf.component(nn.Linear(3, 2), "c", {"weight": torch.tensor(wrong)})


def test_full_is_sampled_alone_or_where_it_is_named() -> None:
    """A head of a large model must not cost the whole model's chains."""
    model = language_model()
    assert [each.name for each in resolve_components(model, None)] == ["full"]
    assert [each.name for each in resolve_components(model, pf.components(model, "l0h1"))] == ["l0h1"]
    moving = ["layers.0.qkv", "layers.0.output"]
    both = resolve_components(model, pf.components(model, "full", "l0h1"), moving)
    assert [each.name for each in both] == ["full", "l0h1"]
    assert list(both[0].coordinates) == moving


def test_bad_components_are_refused() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"'wieght', which the model lacks; it has weight, bias"):
        pf.component(model, "c", ["wieght"])
    with pytest.raises(ValueError, match=r"must be bool of shape \[2, 3\], got torch.bool of shape \[3, 2\]"):
        pf.component(model, "c", {"weight": torch.ones(3, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="must be bool"):
        pf.component(model, "c", {"weight": torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"is empty: nothing in it would move"):
        pf.component(model, "c", {"weight": torch.zeros(2, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="Linear does not say where its heads lie"):
        pf.attention_heads(model)
    with pytest.raises(ValueError, match=r"Linear has no nn.ModuleList or nn.Sequential"):
        pf.layers(model)
    wider = pf.component(nn.Linear(9, 2), "c", {"weight": torch.eye(2, 9, dtype=torch.bool)})
    with pytest.raises(ValueError, match="moves coordinate 10 of 'weight', which has only 6"):
        resolve_components(model, {"c": wider})
    with pytest.raises(ValueError, match=r"moves the parameter 'layers.0.qkv', which the model lacks"):
        resolve_components(model, pf.attention_heads(language_model()))


def test_layers_are_those_of_outer_stacks() -> None:
    """A stack within a layer is part of the layer, so that no parameter is in two."""
    block = nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "layers": nn.ModuleList([block, nn.Linear(2, 2)])})
    found = pf.layers(model)
    assert list(found) == ["layers.0", "layers.1"]
    assert len(found["layers.0"].coordinates) == 4
