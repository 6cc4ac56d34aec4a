"""Chain plans: ids, groups and antithetic pairs."""

from __future__ import annotations

import pytest
import torch

import patterning_fast as pf
from patterning_fast.chains.plan import ChainPlan, Setting, chain_plan
from patterning_fast.posterior.components import resolve_components
from tests.models import language_model


def plan(
    chains: int = 4,
    antithetic: bool = False,
    groups: int | None = None,
    names: int = 4,
    settings: tuple[Setting, ...] = (Setting(1e-3, 10.0, 100.0),),
) -> ChainPlan:
    model = language_model()
    some = dict(list(pf.attention_heads(model).items())[:names]) | pf.components(model, "full")
    return chain_plan(resolve_components(model, some), chains, antithetic, groups, settings)


def test_every_chain_has_its_own_noise() -> None:
    ids = plan(chains=100).chain_ids()
    assert len(set(ids.tolist())) == 500
    assert 0 <= int(ids.min()) <= int(ids.max()) < 2**40


def test_a_component_s_chains_do_not_depend_on_the_others() -> None:
    assert torch.equal(plan(names=1).chain_ids()[:4], plan(names=4).chain_ids()[:4])
    assert torch.equal(plan(chains=2).chain_ids()[:2], plan(chains=8).chain_ids()[:2])


def test_antithetic_pairs_share_noise_with_opposite_signs_and_a_group() -> None:
    each = plan(chains=8, antithetic=True)
    assert each.chain_ids().view(-1, 2).diff().abs().max() == 0
    assert each.noise_scale().view(-1, 2).tolist() == [[1.0, -1.0]] * 20
    assert each.bundles(each.units // each.groups).view(-1, 2).diff().abs().max() == 0
    assert each.groups == 4


def test_groups_split_chains_evenly_and_never_mix_components() -> None:
    each = plan(chains=6, groups=3)
    assert each.bundles(each.units // each.groups)[:12].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert plan(chains=64).groups == 16
    assert plan(chains=34).groups == 2
    assert plan(chains=17).groups == 17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chains": 1}, "at least 2 independent chains per component, got chains=1; use chains=2"),
        ({"chains": 2, "antithetic": True}, "at least 2 independent pairs"),
        ({"chains": 5, "antithetic": True}, "antithetic chains come in pairs"),
        ({"chains": 6, "groups": 4}, "groups must divide the 6 independent chains"),
        ({"chains": 6, "groups": 1}, "at least 2, got 1"),
    ],
)
def test_bad_plans_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**arguments)  # type: ignore[arg-type]
