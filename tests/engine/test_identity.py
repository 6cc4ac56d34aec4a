"""What a checkpoint belongs to: a change of model, loss or functions is told in words, and a new process is none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.engine import identity
from patterning_fast.engine.identity import as_read_back, check_losses, described, differences, model_identity
from patterning_fast.posterior.losses import Batch
from tests.models import language_model

TEMPERATURE = 1.0


def network(activation: Callable[[], nn.Module] = nn.Tanh, dropout: float = 0.1, eps: float = 1e-5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), activation(), nn.Dropout(dropout), nn.LayerNorm(4, eps), nn.Linear(4, 2))


class Own(nn.Module):
    """Configured by what is no module."""

    def __init__(
        self, act: Callable[[Tensor], Tensor] = F.relu, power: float = 2.0, names: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.linear, self.act, self.power, self.names = nn.Linear(3, 2), act, power, names

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x)) ** self.power


class Doubled(Own):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def scaled(temp: Any) -> Callable[[nn.Module, Batch], Tensor]:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return pf.losses.squared_error(model, batch) / temp

    return loss


def with_default(temp: float) -> Callable[..., Tensor]:
    def loss(model: nn.Module, batch: Batch, temp: float = temp) -> Tensor:
        return pf.losses.squared_error(model, batch) / temp

    return loss


def of_global(model: nn.Module, batch: Batch) -> Tensor:
    return pf.losses.squared_error(model, batch) / TEMPERATURE


def of_helper(model: nn.Module, batch: Batch) -> Tensor:
    return helper(model, batch)


def helper(model: Any, batch: Batch) -> Tensor:
    return pf.losses.squared_error(model, batch)


def other_helper(model: Any, batch: Batch) -> Tensor:
    return 2 * pf.losses.squared_error(model, batch)


class Scaled:
    """A loss that is an object."""

    def __init__(self, temp: float) -> None:
        self.temp, self._calls = temp, 0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self._calls += 1
        return self.scale(pf.losses.squared_error(model, batch))

    def scale(self, losses: Tensor) -> Tensor:
        return losses / self.temp


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (network(), network(nn.ReLU), "the model's 1 is nn.Tanh() there, nn.ReLU(inplace=False) here"),
        (network(), network(dropout=0.2), "the model's 2 is nn.Dropout(p=0.1, inplace=False) there, "),
        (network(), network(eps=1e-6), "the model's 3 is nn.LayerNorm((4,), eps=1e-05, "),
        (Own(), Own(power=3.0), "Own(act=torch.nn.functional.relu, power=2.0, names=[]) there, "),
        (Own(), Own(F.gelu), "the model is tests.engine.test_identity.Own(act=torch.nn.functional.relu, "),
        (Own(lambda x: x + 1), Own(lambda x: x + 2), "code.act: its code is another here"),
        (Own(), Doubled(), "the model is tests.engine.test_identity.Own("),
        (Own(names=("a",) * 99), Own(names=("a",) * 98), "names="),
    ],
)  # fmt: skip
def test_a_model_of_the_same_weights_is_another(there: nn.Module, here: nn.Module, message: str) -> None:
    here.load_state_dict(there.state_dict())
    found = differences(model_identity(there), model_identity(here))
    assert message in "\n".join(found)
    assert not differences(model_identity(there), as_read_back(model_identity(there)))


def decoder(hidden_act: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, hidden_act=hidden_act, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def test_configurations_of_hugging_face_are_known() -> None:
    found = differences(model_identity(decoder("silu")), model_identity(decoder("gelu")))
    assert "the model's config.hidden_act is silu there, gelu here" in found
    assert any("mlp.act_fn" in line for line in found)


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (partial(with_default(1), temp=1), partial(with_default(1), temp=5), "loss.temp: 1 there, 5 here"),
        (partial(helper, 1), partial(helper, 2), "loss.arguments: [1] there, [2] here"),
        (scaled(1), scaled(2), "loss.closure.temp: 1 there, 2 here"),
        (scaled(torch.ones(2)), scaled(torch.zeros(2)), "loss.closure.temp: "),
        (scaled(scaled(1)), scaled(scaled(2)), "loss.closure.temp.closure.temp: 1 there, 2 here"),
        (scaled(Own()), scaled(Own(power=3.0)), "loss.closure.temp.structure.the model: "),
        (with_default(1), with_default(2), "loss.defaults: [1] there, [2] here"),
        (lambda model, batch: model(batch), lambda model, batch: -model(batch), "loss: its code is another here"),
        (lambda x: (lambda y: y + 1)(x), lambda x: (lambda y: y + 2)(x), "loss: its code is another here"),
        (lambda x: x.sin(), lambda x: x.cos(), "loss: its code is another here"),
        (lambda x: x in {"a", "b"}, lambda x: x in {"a", "c"}, "loss: its code is another here"),
        (Scaled(1), Scaled(2), "loss.temp: 1 there, 2 here"),
        (Scaled(1).scale, Scaled(2).scale, "loss.of.temp: 1 there, 2 here"),
        (pf.SGLD(1e-3), pf.SGLD(2e-3), "loss.lr: 0.001 there, 0.002 here"),
        (pf.losses.squared_error, pf.losses.cross_entropy, "loss.name: patterning_fast.posterior.losses.squared_error"),
        (float("nan"), 1.0, "loss: nan there, 1.0 here"),
    ],
)  # fmt: skip
def test_a_changed_function_or_object_is_another(there: object, here: object, message: str) -> None:
    first, second = ({"loss": described(each)} for each in (there, here))
    assert message in "\n".join(differences(first, second))
    assert not differences(first, as_read_back({"loss": described(there)}))


def test_what_a_function_uses_of_its_module_and_class(monkeypatch: pytest.MonkeyPatch) -> None:
    here = sys.modules[__name__]
    before = [described(each) for each in (of_global, of_helper, Scaled(1))]
    monkeypatch.setattr(here, "TEMPERATURE", 2.0)
    monkeypatch.setattr(here, "helper", other_helper)
    monkeypatch.setattr(Scaled, "scale", lambda self, losses: losses * self.temp)
    after = [described(each) for each in (of_global, of_helper, Scaled(1))]
    found = [differences(*both) for both in zip(before, after, strict=True)]
    assert found[0] == ["uses.TEMPERATURE: 1.0 there, 2.0 here"]
    assert "uses.helper: its code is another here" in found[1]
    assert any("method scale" in line for line in found[2])


def test_what_holds_itself_and_what_has_been_called_is_described() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model, batch) if model is None else model(batch)

    held: dict[str, Any] = {}
    holder = Scaled(1.0)
    holder.temp = held  # type: ignore[assignment]
    held["me"] = holder
    described([loss, lru_cache(loss), torch.Generator(), sys])
    assert described(holder)["temp"] == {"me": "tests.engine.test_identity.Scaled"}
    called = Scaled(1.0)
    before = described(called)
    called(nn.Identity(), (torch.ones(1, 1), torch.ones(1, 1)))
    assert described(called) == before


def test_a_vocabulary_is_hashed() -> None:
    words = {f"word {number}": number for number in range(1000)}
    assert described({"words": words, "size": 8}) == {"words": identity.hashed(words), "size": 8}


def everything() -> str:
    """One hash of things of every kind."""
    named, member = set("letters"), (lambda x: x in {"l", "e", "t", "r", "s"})
    things = [scaled(3.0), partial(with_default(2.0), temp=torch.ones(2)), Scaled(1.0), pf.SGLD(1e-3)]
    models = [network(), Own(), language_model(), decoder("silu")]
    found = {"models": [model_identity(each) for each in models], "things": [described(each) for each in things]}
    return identity.fingerprint(found | {"sets": described([named, member])})


def test_another_process_is_no_other_run() -> None:
    """Whatever the order of its sets and the addresses of its objects."""
    command = [sys.executable, "-c", "from tests.engine.test_identity import everything; print(everything())"]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == everything()


class Hidden:
    """A loss with what no description shows."""

    def __init__(self, temp: float) -> None:
        self._temp = temp

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return pf.losses.squared_error(model, batch) / self._temp


DATA = (torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(12, 2))


def sampled(folder: Path, temp: float, **changes: Any) -> None:
    posterior = pf.LocalPosterior(network(), Hidden(temp), DATA, n_beta=10.0, localization=10.0)
    pf.sample(posterior, pf.SGLD(1e-4), chains=2, draws=2, tile=1, checkpoint=folder, progress=False, **changes)


def responded(folder: Path, temp: float) -> None:
    posterior = pf.LocalPosterior(network(), Hidden(temp), DATA, n_beta=10.0, localization=10.0)
    pf.linear_response(posterior, pf.SGLD(1e-4), chains=2, draws=2, tile=1, checkpoint=folder, progress=False)


def trained(folder: Path, temp: float) -> None:
    pf.train(network(), DATA, Hidden(temp), steps=2, batch_size=2, lr=0.1, checkpoint=folder, progress=False)


@pytest.mark.parametrize("run", [sampled, partial(sampled, precision="bfloat16"), responded, trained])
def test_losses_tell_what_descriptions_do_not(tmp_path: Path, run: Callable[[Path, float], None]) -> None:
    run(tmp_path, 1.0)
    run(tmp_path, 1.0 + 1e-5)  # as another machine may round
    with pytest.raises(
        ValueError, match=r"of another run: the loss at w\* is .* there and .* here. The code of the model"
    ):
        run(tmp_path, 1.5)


def test_losses_of_a_model_that_fits_exactly_may_differ_by_rounding() -> None:
    check_losses(torch.full((3,), 1e-12), torch.full((3,), 3e-12))
    check_losses(torch.tensor([5.0, 1e-9]), torch.tensor([5.001, 1e-4]))
    for there, here in (([5.0, 1.0], [5.0, 1.1]), ([1e-3], [1.1e-3]), ([1.0], [float("nan")])):
        with pytest.raises(ValueError, match="of another run"):
            check_losses(torch.tensor(there), torch.tensor(here))
