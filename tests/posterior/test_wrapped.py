"""Models that are compiled or wrapped for many devices: the model within is meant, and shards are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

import patterning_fast as pf
from tests.models import language_model, tokens

Wrap = Callable[[nn.Module], nn.Module]
TRAINING: dict[str, Any] = {"steps": 3, "batch_size": 4, "lr": 1e-2, "progress": False}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process."""
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    meeting: Path = tmp_path_factory.mktemp("group") / "meeting"
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def compiled_outside(model: nn.Module) -> Any:
    return compiled(DistributedDataParallel(model))


def compiled_inside(model: nn.Module) -> Any:
    return DistributedDataParallel(compiled(model))


WRAPS = [compiled, DataParallel, DistributedDataParallel, compiled_outside, compiled_inside]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("wrap", WRAPS)
def test_the_model_within_is_meant(wrap: Wrap) -> None:
    model = language_model()
    wrapped = wrap(copy.deepcopy(model))
    assert pf.components(wrapped, "l0h1", "embed").keys() == pf.components(model, "l0h1", "embed").keys()
    assert (
        pf.component(wrapped, "c", ["embedding"]).coordinates.keys()
        == pf.component(model, "c", ["embedding"]).coordinates.keys()
    )
    assert pf.layers(wrapped).keys() == pf.layers(model).keys()
    assert pf.preview(wrapped, "l0h1") == pf.preview(model, "l0h1")
    heads = pf.attention_heads(wrapped)
    found = []
    for each in (model, wrapped):
        posterior = pf.LocalPosterior(each, pf.losses.next_token, tokens(), n_beta=10.0, localization=100.0)
        assert posterior.moving == [name for name, _ in model.named_parameters()]
        run = pf.sample(posterior, pf.SGLD(1e-4), components={"l1h0": heads["l1h0"]}, chains=2, draws=2, batch_size=4,
                        tile=1, progress=False)  # fmt: skip
        found.append(run.llc()["llc"].values.tolist())
        pf.train(each, tokens(), pf.losses.next_token, **TRAINING)
    assert found[0] == found[1]
    # Trained in place, through the wrapper: to the same bits.
    trained = dict(model.named_parameters())
    for own, other in zip(trained.values(), wrapped.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
def test_shards_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    sharded = language_model()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    for model in (sharded, FullyShardedDataParallel(language_model(), device_id=torch.device("cpu"))):
        for call in (
            lambda model: pf.LocalPosterior(model, pf.losses.next_token, tokens(), n_beta=1.0, localization=1.0),
            lambda model: pf.train(model, tokens(), pf.losses.next_token, **TRAINING),
            lambda model: pf.components(model, "l0h1"),
            pf.preview,
        ):
            with pytest.raises(
                ValueError, match=r"model must be a Module, with whole parameters, .*get_model_state_dict"
            ):
                call(model)
    plain = pf.attention_heads(language_model())
    assert "l0h0" in plain  # what FSDP has loaded harms no other model


def test_lists_of_models_are_read_too() -> None:
    stack = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    data = (torch.randn(6, 2), torch.randn(6, 1))
    outcomes = {"norm": lambda model: sum(each.square().sum() for each in model.parameters())}
    found = [
        pf.training_adjoint(
            models, data, pf.losses.squared_error, outcomes, steps=2, batch_size=2, lr=1e-2, seeds=[0, 1]
        )
        for models in ([copy.deepcopy(stack) for _ in range(2)], [compiled(copy.deepcopy(stack)) for _ in range(2)])
    ]
    assert found[0]["chi"].values.tolist() == found[1]["chi"].values.tolist()
