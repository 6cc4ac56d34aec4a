"""A loss that is not what estimates take it for is refused at the start, in a sentence that says which it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import patterning_fast as pf
from tests.models import language_model

Loss = Callable[[nn.Module, Any], Tensor]
SAMPLING: dict[str, Any] = {"chains": 3, "draws": 2, "batch_size": 4, "progress": False}


class Net(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Counting(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Drifting(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.data.mul_(1.001)
        return super().forward(x)


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Dropping(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, training=True)


class BatchNormed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(super().forward(x), None, None, training=True)


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)).detach())


class Quantised(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(F.linear(x, self.first.weight.sign().detach(), self.first.bias)))


class WithoutGradient(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)


def posterior(model: nn.Module, loss: Loss = pf.losses.cross_entropy, **changes: Any) -> pf.LocalPosterior:
    return pf.LocalPosterior(model, loss, data(), **{"n_beta": 10.0, "localization": 10.0} | changes)


def noisy(model: nn.Module, batch: Any) -> Tensor:
    return pf.losses.cross_entropy(model, batch) + 0.1 * torch.randn(len(batch[0]))


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    features = model(batch[0])
    return F.cross_entropy(features @ features.T, torch.arange(len(features)), reduction="none")


def mean_of_batch(model: nn.Module, batch: Any) -> Tensor:
    losses = pf.losses.cross_entropy(model, batch)
    return losses.mean().expand(len(losses))


def detached(model: nn.Module, batch: Any) -> Tensor:
    return pf.losses.cross_entropy(model, batch).detach()


def number(model: nn.Module, batch: Any) -> Any:
    return pf.losses.cross_entropy(model, batch).tolist()


def inputs_cleared(model: nn.Module, batch: Any) -> Tensor:
    losses = pf.losses.cross_entropy(model, batch)
    batch[0].zero_()
    return losses


@pytest.mark.parametrize(
    ("kind", "loss", "sentence"),
    [
        (Counting, pf.losses.cross_entropy, "the loss changes calls of the model"),
        (Drifting, pf.losses.cross_entropy, r"the loss changes first\.weight of the model"),
        (InPlace, pf.losses.cross_entropy, "changes its input in place"),
        (Net, inputs_cleared, "changes its input in place"),
        (Dropping, pf.losses.cross_entropy, "the loss is random: two calls .* differ .* random_loss=True"),
        (Net, noisy, "the loss is random"),
        (BatchNormed, pf.losses.cross_entropy, "depends on the others in its batch"),
        (Net, contrastive, "depends on the others in its batch"),
        (Net, mean_of_batch, "depends on the others in its batch"),
        (Net, detached, "no gradient by any parameter"),
        (WithoutGradient, pf.losses.cross_entropy, "no gradient by any parameter"),
        (Detached, pf.losses.cross_entropy, r"depends on first\.weight, first\.bias but has no gradient"),
        (Quantised, pf.losses.cross_entropy, r"depends on first\.weight but has no gradient"),
    ],
)
def test_unfit_losses_are_refused(kind: type[Net], loss: Loss, sentence: str) -> None:
    given = data()
    with pytest.raises(ValueError, match=sentence):
        pf.LocalPosterior(kind(), loss, given, n_beta=1.0, localization=1.0)
    assert all(torch.equal(one, other) for one, other in zip(given, data(), strict=True))


def test_a_loss_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="the loss returned list; it must return a tensor"):
        posterior(Net(), number)


def test_models_in_training_mode_are_looked_at_in_eval_mode() -> None:
    """Dropout and batch norm that eval mode turns off are no fault, and the caller's model keeps its mode."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    posterior(model)
    assert model.training


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_few_samples(samples: int) -> None:
    x, classes = (each[:samples] for each in data())
    pf.LocalPosterior(Net(), pf.losses.cross_entropy, (x, classes), n_beta=1.0, localization=1.0)


def test_a_random_loss_can_be_allowed() -> None:
    local = posterior(Dropping(), random_loss=True)
    found = pf.sample(local, pf.SGLD(1e-3), **SAMPLING)
    assert found.attrs["random_loss"] == 1
    assert bool(found.traces.phi.isfinite().all())
    with pytest.raises(ValueError, match="a random loss cannot be differentiated"):
        pf.linear_response(local, pf.SGLD(1e-3), chains=2, draws=2, progress=False)
    assert pf.sample(posterior(Net()), pf.SGLD(1e-3), **SAMPLING).attrs["random_loss"] == 0


def test_the_callers_data_stay() -> None:
    """In training too."""
    given = data()
    with pytest.raises(ValueError, match="changes its input in place"):
        pf.train(InPlace(), given, pf.losses.cross_entropy, steps=2, batch_size=4, lr=1e-3)
    assert torch.equal(given[0], data()[0])


def test_observables_leave_the_model_alone() -> None:
    def pruned(model: nn.Module) -> Tensor:
        weight = model.get_parameter("first.weight")
        weight[0] = 0
        return weight.sum()

    local = posterior(Net())
    before = local.model.get_parameter("first.weight").clone()
    with pytest.raises(ValueError, match=r"observables\['pruned'\] changes first\.weight"):
        pf.sample(local, pf.SGLD(1e-3), observables={"pruned": pruned}, **SAMPLING)
    assert torch.equal(local.model.get_parameter("first.weight"), before)


def frozen_but_for(model: nn.Module, free: set[str]) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in free)
    return model


def test_what_requires_no_gradient_stays() -> None:
    """As with adapters: "full" is what is trained, and so are layers."""
    model = frozen_but_for(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), {"2.weight", "2.bias"})
    local = posterior(model)
    assert list(pf.layers(model)) == ["2"]
    found = pf.sample(local, pf.SGLD(1e-3), components=pf.layers(model), **SAMPLING)
    assert set(found.plan.components[-1].coordinates) == {"2.weight", "2.bias"}
    assert all(parameter.requires_grad == name.startswith("2") for name, parameter in model.named_parameters())
    for run in (pf.sample, pf.linear_response):
        with pytest.raises(ValueError, match=r"moves the parameter '0\.weight', which has requires_grad=False"):
            run(local, pf.SGLD(1e-3), components={"first": pf.component(model, "first", ["0.weight"])})
    with pytest.raises(ValueError, match="no parameter of Sequential requires a gradient"):
        posterior(frozen_but_for(model, set()))


def test_heads_leave_out_what_requires_no_gradient() -> None:
    model = frozen_but_for(language_model(), {"layers.0.qkv"})
    heads = pf.attention_heads(model)
    assert list(heads) == ["l0h0", "l0h1"]
    assert {name for head in heads.values() for name in head.coordinates} == {"layers.0.qkv"}
    with pytest.raises(ValueError, match="no head of AttentionOnlyLM has a parameter that requires a gradient"):
        pf.attention_heads(frozen_but_for(model, {"embedding"}))
