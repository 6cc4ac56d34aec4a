"""`linear_response`: the exact derivative of chains, and by it χ; in waves, and until it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import patterning_fast as pf
from patterning_fast.engine.torch_ensemble import TorchEnsemble
from patterning_fast.ops.reference.minibatch import minibatch
from patterning_fast.ops.reference.philox import Stream
from tests.models import language_model, language_posterior, tokens

DATUM = tokens(2, seed=5)
RESPONDING: dict[str, Any] = {"chains": 2, "draws": 5, "burn_in": 4, "batch_size": 4, "tile": 1, "progress": False}
SAMPLER = pf.SGLD(1e-3)
SAMPLERS = (SAMPLER, pf.SGHMC(1e-4, friction=0.3), pf.RMSPropSGLD(1e-4, decay=0.8, stability=0.1))

pytestmark = pytest.mark.filterwarnings("ignore:chains of.*have not settled")


def heads(*names: str) -> dict[str, pf.Component]:
    found = pf.attention_heads(language_model())
    return {name: found[name] for name in names}


def mlp() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def mlp_data(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 3, generator=generator), torch.randn(samples, 2, generator=generator)


def roughness(model: nn.Module) -> Tensor:
    """An observable that is no loss."""
    return sum((each.square().sum() for each in model.parameters()), torch.zeros(())).sqrt()


class Chains:
    """Chains in double precision, by a loop of their own, whose data can be up-weighted."""

    def __init__(self, posterior: pf.LocalPosterior, sampler: Any, options: dict[str, Any], apart: int) -> None:
        self.posterior, self.sampler, self.options = posterior, sampler, options
        self.model = posterior.model.double()
        self.base = {name: each.detach().clone() for name, each in self.model.named_parameters()}
        self.steps = (options["burn_in"] + options["draws"]) * apart
        self.begun, self.apart = options["burn_in"] * apart, apart
        plan = pf.chains.plan.chain_plan(
            pf.posterior.components.resolve_components(self.model, None, posterior.moving), options["chains"], False,
            None, (pf.chains.plan.Setting(sampler.lr, posterior.n_beta, posterior.localization),),
        )  # fmt: skip
        self.ids = plan.chain_ids()
        self.step_sizes: dict[tuple[int, int], list[Tensor]] = {}

    def samples(self, chain: int, step: int, stream: Stream, count: int) -> Tensor:
        at = torch.tensor(step, dtype=torch.int64)
        seed = torch.tensor(0, dtype=torch.int64)
        return minibatch(seed, torch.tensor([chain]), at, self.options["batch_size"], count, stream)[0]

    def mean(self, chain: int, observable: Any, up: float, datum: Any) -> float:
        """Mean of an observable over the chain's steps, with datum up-weighted by `up` in what the chain feels."""
        posterior, lr, names = self.posterior, self.sampler.lr, list(self.base)
        here = {name: each.clone().requires_grad_() for name, each in self.base.items()}
        size = sum(each.numel() for each in here.values())
        second, momentum = ({name: torch.zeros_like(each) for name, each in here.items()} for _ in range(2))
        values = []
        for step in range(self.steps + 1):
            if step > self.begun and (value := observable(self, chain, step, here)) is not None:
                values.append(float(value.detach()))
            if step == self.steps:
                break
            batch = taken(posterior.data, self.samples(chain, step, Stream.minibatch, count(posterior.data)))
            felt = self.losses(here, batch).mean()
            if step % self.apart == 0:  # where responses are taken, for all of a draw
                felt = felt + up * self.apart * self.losses(here, datum).sum()
            grads = dict(zip(names, torch.autograd.grad(felt, list(here.values())), strict=True))
            plain = dict(zip(names, torch.autograd.grad(self.losses(here, batch).mean(), list(here.values())), strict=True))
            drawn = torch.empty(1, size)
            pf.ops.normal_(drawn, seed=0, step=step, chain_ids=self.ids[chain : chain + 1])
            noise = dict(zip(names, drawn[0].double().split([each.numel() for each in here.values()]), strict=True))
            with torch.no_grad():
                for name, each in here.items():
                    push = posterior.n_beta * grads[name] + posterior.localization * (each - self.base[name])
                    xi = noise[name].view(each.shape)
                    if isinstance(self.sampler, pf.SGHMC):
                        f = self.sampler.friction
                        momentum[name] = (1 - f) * momentum[name] - lr * push + (2 * f * lr) ** 0.5 * xi
                        each += momentum[name]
                    elif isinstance(self.sampler, pf.RMSPropSGLD):
                        a = self.sampler.decay
                        second[name] = a * second[name] + (1 - a) * plain[name].square()
                        own = lr / ((second[name] / (1 - a ** (step + 1))).sqrt() + self.sampler.stability)
                        own = self.held(chain, step, names.index(name), own)
                        each += -own / 2 * push + own.sqrt() * xi
                    else:
                        each += -lr / 2 * push + lr**0.5 * xi
        return float(np.mean(values))

    def held(self, chain: int, step: int, parameter: int, own: Tensor) -> Tensor:
        """The step sizes that the chain has had when nothing was up-weighted, which come first."""
        had = self.step_sizes.setdefault((chain, parameter), [])
        if step == len(had):
            had.append(own.clone())
        return had[step]

    def losses(self, here: dict[str, Tensor], batch: Any) -> Tensor:
        calling = Calling(self.model, here)
        return self.posterior.loss(calling, batch)


class Calling(nn.Module):
    def __init__(self, model: nn.Module, here: dict[str, Tensor]) -> None:
        super().__init__()
        self.inner, self.here = [model], here

    def forward(self, *inputs: Tensor) -> Tensor:
        doubles = [each.double() if each.is_floating_point() else each for each in inputs]
        return functional_call(self.inner[0], self.here, tuple(doubles))


def taken(data: Any, index: Tensor) -> Any:
    return tuple(each[index] for each in data) if isinstance(data, tuple) else data[index]


def count(data: Any) -> int:
    return len(data[0] if isinstance(data, tuple) else data)


def minibatch_loss(chains: Chains, chain: int, step: int, here: dict[str, Tensor]) -> Tensor:
    """φ on the minibatch of every step."""
    data = chains.posterior.data
    batch = taken(data, chains.samples(chain, step, Stream.minibatch, count(data)))
    return chains.losses(here, batch).mean()


def of_roughness(chains: Chains, chain: int, step: int, here: dict[str, Tensor]) -> Tensor | None:
    """At one step of each draw."""
    return sum((each.square().sum() for each in here.values()), torch.zeros(())).sqrt() if step in AT else None


AT: set[int] = set()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("case", ["language", "language, roughness", "mlp", "mlp, native"])
def test_it_is_the_derivative_of_the_chains(sampler: Any, case: str) -> None:
    """Up-weight a datum in what chains feel, same noise, minibatches and step sizes: means move as the response says.

    The loop is in double precision. One-sided differences leave 1e-2 of a step's curvature at most, of random sign;
    rounding of float32 1e-3 of the largest response.
    """
    apart, up = 2, 1e-3
    options = RESPONDING | {"draws": 4, "burn_in": 3}
    if case.startswith("language"):
        posterior, datum = language_posterior(), DATUM
        probe: Any = DATUM
    else:
        posterior = pf.LocalPosterior(mlp(), pf.losses.squared_error, mlp_data(9, 0), n_beta=10.0, localization=50.0)
        datum = probe = mlp_data(2, 1)
    wanted = {"roughness": roughness} if "roughness" in case else None
    found = pf.linear_response(
        posterior, sampler, probes={"datum": probe}, observable=wanted, steps_between_draws=apart,
        engine="native" if "native" in case else "torch", **options,
    )  # fmt: skip
    assert found.attrs["engine"] == ("native" if "native" in case else "torch")
    generator = torch.Generator().manual_seed(0)
    within = torch.randint(apart, (options["draws"] + options["burn_in"],), generator=generator).tolist()
    AT.clear()
    AT.update(draw * apart + 1 + offset for draw, offset in enumerate(within) if draw >= options["burn_in"])
    chains = Chains(posterior, sampler, options, apart)
    observable = of_roughness if wanted else minibatch_loss
    by_datum = found["chi_group"].values[0].reshape(options["chains"], 2, -1).sum(2)
    for chain in range(options["chains"]):
        chains.mean(chain, observable, 0.0, taken(datum, torch.tensor([0])))
        moved = []
        for which in (0, 1):
            one = taken(datum, torch.tensor([which]))
            ups = [chains.mean(chain, observable, sign * up, one) for sign in (1, -1)]
            moved.append((ups[0] - ups[1]) / (2 * up))
        # What is taken out of each datum's response is the same for all of them.
        response = posterior.n_beta * (by_datum[chain, 0] - by_datum[chain, 1])
        print(case, type(sampler).__name__, response, moved[0] - moved[1])
