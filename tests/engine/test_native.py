"""The native engine gives what torch gives, from the same seed, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.chains.bank import ChainBank
from patterning_fast.models.superposition import TiedAutoencoder
from patterning_fast.samplers.langevin import LangevinState, Sampler

SAMPLING: dict[str, Any] = {"chains": 6, "draws": 5, "steps_between_draws": 3, "batch_size": 7, "progress": False}
ZERO = 1e-11
"""nats²: what of sums that cancel is left."""

SAMPLERS: list[Sampler] = [
    pf.SGLD(1e-3),
    pf.SGLD(2e-3, gradient_noise_correction=True),
    pf.RMSPropSGLD(1e-4),
    pf.SGHMC(1e-4),
    pf.SGNHT(3e-3),
]


class Doubled(nn.Sequential):
    """A stack by its modules, another function by its forward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = 2 * layer(x)
        return x


def module(name: str) -> nn.Module:
    torch.manual_seed(3)
    if name == "tied":
        return TiedAutoencoder(6)
    if name == "deep linear":
        return nn.Sequential(*[nn.Linear(*widths, bias=False) for widths in ((6, 5), (5, 4), (4, 6))])
    activation = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "gelu": nn.GELU()}[name]
    return nn.Sequential(nn.Linear(6, 9), activation, nn.Linear(9, 5), nn.Identity(), activation, nn.Linear(5, 6))


def posterior(model: nn.Module, classes: bool = False, **changes: Any) -> pf.LocalPosterior:
    torch.manual_seed(4)
    x, labels = torch.randn(20, 6), torch.randint(6, (20,))
    target = labels if classes else torch.randn(20, 6)
    loss = pf.losses.cross_entropy if classes else pf.losses.squared_error
    arguments: dict[str, Any] = {"n_beta": 20.0, "localization": 50.0}
    return pf.LocalPosterior(model, loss, (x, target), **arguments | changes)


def hold_alike(one: pf.LocalPosterior, sampler: Sampler, **sampling: Any) -> None:
    """To 1e-4 of the largest of each estimate: fifteen steps and their losses, rounded otherwise.

    Biases come from second differences of losses, which keep two digits of that.
    """
    native, in_torch = (pf.sample(one, sampler, engine=engine, **SAMPLING | sampling) for engine in ("native", "torch"))
    assert native.attrs["engine"] == "native"
    assert in_torch.attrs["engine"] == "torch"
    for name in ("llc", "susceptibilities", "influence"):
        found, expected = getattr(native, name)(), getattr(in_torch, name)()
        for variable in expected:
            if not variable.endswith(("reliability", "0.9")):
                scale = float(np.abs(expected[variable].where(np.isfinite(expected[variable]))).max())
                rtol = 2e-2 if variable.endswith("bias_error") else 1e-4
                np.testing.assert_allclose(found[variable], expected[variable], rtol=rtol, atol=1e-4 * scale + ZERO)
    for variable in ("phi", "distance", "gradient_noise"):
        found, expected = native.diagnostics()[variable], in_torch.diagnostics()[variable]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize("name", ["tied", "deep linear", "relu", "tanh", "gelu"])
@pytest.mark.parametrize("classes", [False, True])
def test_every_member_of_the_family(name: str, classes: bool) -> None:
    hold_alike(posterior(module(name), classes), SAMPLERS[0])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda each: type(each).__name__)
def test_every_sampler_on_components(sampler: Sampler) -> None:
    model = module("relu")
    few = torch.zeros(9, 6, dtype=torch.bool)
    few[::2, 1:3] = True
    components = {
        "last": pf.component(model, "last", ["5.weight", "5.bias"]),
        "few": pf.component(model, "few", {"0.weight": few, "2.bias": None}),
    }
    hold_alike(posterior(model), sampler, components=components)


@pytest.mark.parametrize(
    "how",
    [
        {"antithetic": True},
        {"shared_minibatches": True},
        {"loss_samples": 5, "burn_in": 2, "steps_between_draws": 1},
        {"batch_size": 1},
        {"batch_size": 130},
        {"probes": {"a": (torch.randn(3, 6), torch.randn(3, 6)), "b": (torch.randn(70, 6), torch.randn(70, 6))}},
        {"loss_kernel": True},
    ],
    ids=lambda how: "-".join(how),
)
def test_every_way_of_sampling(how: dict[str, Any]) -> None:
    hold_alike(posterior(module("tied")), SAMPLERS[0], **how)


def test_weights() -> None:
    weights = torch.rand(20, generator=torch.Generator().manual_seed(1))
    hold_alike(posterior(module("relu"), weights=weights), SAMPLERS[0])


def test_a_grid_of_settings() -> None:
    one = posterior(module("relu"))
    grid = pf.calibrate(one, pf.SGLD(1e-3), lr=[1e-4, 1e-3], n_beta=[5.0, 20.0], chains=4, draws=6, progress=False)
    assert grid.attrs["engine"] == "native"
    alone = pf.sample(
        posterior(module("relu"), n_beta=5.0), pf.SGLD(1e-4), chains=4, draws=6, engine="torch", progress=False
    )
    found = float(grid["llc"].sel(lr=1e-4, n_beta=5.0, component="full").squeeze())
    assert found == pytest.approx(float(alone.llc()["llc"].sel(component="full")), rel=1e-3)


def test_a_diverged_chain_leaves_the_others_alone() -> None:
    one = posterior(module("relu"))
    alone = pf.sample(one, pf.SGLD(1e-3), chains=2, draws=4, progress=False)
    grid = pf.calibrate(one, pf.SGLD(1e-3), lr=[1e-3, 0.5], chains=2, draws=4, progress=False)
    assert float(grid["diverged"].sel(lr=0.5).max()) == 1
    found = float(grid["llc"].sel(lr=1e-3, component="full").squeeze())
    assert found == float(alone.llc()["llc"].sel(component="full"))


def test_a_run_resumes_to_the_bit(tmp_path: Any) -> None:
    one, folder = posterior(module("tied")), tmp_path / "run"
    whole = pf.sample(one, SAMPLERS[4], **SAMPLING)
    pf.sample(one, SAMPLERS[4], checkpoint=folder, checkpoint_seconds=0, **SAMPLING)
    again = pf.sample(one, SAMPLERS[4], checkpoint=folder, **SAMPLING)
    assert torch.equal(again.totals.cross, whole.totals.cross)


def test_traces_are_what_the_statistics_are_made_of(tmp_path: Any) -> None:
    """With a store a call takes one draw, without many: no bit may depend on it."""
    pytest.importorskip("zarr")
    one, path = posterior(module("tied")), tmp_path / "traces"
    run = pf.sample(one, SAMPLERS[0], traces=path, **SAMPLING)
    assert torch.equal(run.totals.cross, pf.sample(one, SAMPLERS[0], **SAMPLING).totals.cross)
    with pf.load_traces(path) as tree:
        np.testing.assert_array_equal(tree["/chains/phi"].values, run.diagnostics()["phi"].values)
        losses = tree["/probes/data/losses"].values
    shift = run.totals.loss_shift.numpy().astype(float)
    np.testing.assert_allclose((losses - shift).sum((0, 1, 2)), run.totals.loss_sum[:-1].sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Linear(6, 6), nn.Sigmoid()), "layer 1 is Sigmoid"),
        (nn.Sequential(nn.Linear(6, 6), nn.GELU(approximate="tanh")), "layer 1 is GELU"),
        (nn.Sequential(nn.ReLU(), nn.Linear(6, 6)), "layer 0, ReLU.*does not follow"),
        (nn.Sequential(nn.Linear(6, 300), nn.Linear(300, 6)), "0.weight is 300 wide"),
        (nn.Linear(6, 6), "Linear is no nn.Sequential"),
        (Doubled(nn.Linear(6, 6)), "Doubled is no nn.Sequential"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_does_not_fit_runs_in_torch_and_says_why(model: nn.Module, why: str) -> None:
    options: dict[str, Any] = {"chains": 2, "draws": 1, "progress": False}
    assert pf.sample(posterior(model), SAMPLERS[0], **options).attrs["engine"].startswith("torch: ")
    with pytest.raises(ValueError, match=why):
        pf.sample(posterior(model), SAMPLERS[0], engine="native", **options)
    with pytest.raises(ValueError, match="engine must be one of"):
        pf.sample(posterior(model), SAMPLERS[0], engine="fast", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", SAMPLERS[:2], ids=["plain", "corrected"])
def test_data_made_on_the_spot(sampler: Sampler) -> None:
    """Of more samples than could be held; torch sees the very same ones."""
    features = pf.SparseFeatures(2**31, torch.tensor([0.1, 0.9, 1.0, 0.5, 0.3, 0.2]), seed=7)
    one = pf.LocalPosterior(
        module("tied"), pf.losses.squared_error, (features, features), n_beta=20.0, localization=50.0
    )
    probes = {"few": (features[:9], features[:9])}
    hold_alike(one, sampler, probes=probes, loss_samples=30)
    with pytest.raises(ValueError, match=r"2,147,483,648 samples.*name probes"):
        pf.sample(one, sampler, loss_samples=30, **SAMPLING)
    with pytest.raises(ValueError, match=r"2,147,483,648 samples.*loss_samples"):
        pf.sample(one, sampler, probes=probes, **SAMPLING)


def test_made_data_are_those_held() -> None:
    features = pf.SparseFeatures(20, torch.full((6,), 0.4))
    made, held = (
        pf.sample(
            pf.LocalPosterior(module("tied"), pf.losses.squared_error, (x, x), n_beta=20.0, localization=50.0),
            SAMPLERS[0],
            **SAMPLING,
        )
        for x in (features, features[:])
    )
    assert made.attrs["engine"] == held.attrs["engine"] == "native"
    np.testing.assert_allclose(made.llc()["llc"], held.llc()["llc"], rtol=1e-5)


def test_superposition() -> None:
    """The built-in model, from its data to its learning coefficient; what it is made of says what it refuses."""
    torch.manual_seed(0)
    model, x = TiedAutoencoder(5), pf.SparseFeatures(500, torch.full((5,), 0.2))[:]
    pf.train(model, (x, x), pf.losses.squared_error, steps=50, batch_size=50, lr=1e-2, progress=False)
    run = pf.sample(posterior_of(model, x), SAMPLERS[0], chains=4, draws=5, progress=False)
    assert run.attrs["engine"] == "native"
    assert np.isfinite(run.llc()["llc"]).all()
    with pytest.raises(ValueError, match="a whole number >= 1"):
        TiedAutoencoder(0)


def posterior_of(model: TiedAutoencoder, x: torch.Tensor) -> pf.LocalPosterior:
    return pf.LocalPosterior(model, pf.losses.squared_error, (x, x), n_beta=20.0, localization=10.0)


class Still(pf.SGLD):
    """Chains that never move."""

    def update(self, bank: ChainBank, state: LangevinState) -> None:
        bank.grads.zero_()
        state.step += 1


class Tripled(TiedAutoencoder):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def with_forward_hook(model: nn.Module) -> nn.Module:
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)  # type: ignore[index]
    return model


def with_gradient_hook(model: nn.Module) -> nn.Module:
    """The losses are those of the stack, the gradients are not."""
    model[0].register_forward_hook(lambda module, inputs, output: Doubling.apply(output))  # type: ignore[index,no-untyped-call]
    return model


class Doubling(torch.autograd.Function):
    """The identity, with twice its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def test_a_samplers_own_update_runs() -> None:
    """A subclass may move chains otherwise than kernels do."""
    found = pf.sample(posterior(module("tied")), Still(1e-3), tile=1, **SAMPLING)  # the bits are those of the tile
    assert "Still is not one of the library's samplers" in found.attrs["engine"]
    assert not found.traces.phi.any()
    with pytest.raises(ValueError, match='engine="native" cannot run this: Still'):
        pf.sample(posterior(module("tied")), Still(1e-3), engine="native", **SAMPLING)
    with pytest.raises(TypeError, match="only SGLD"):
        pf.linear_response(posterior(module("tied")), Still(1e-3), progress=False)


@pytest.mark.parametrize(
    "build",
    [lambda: Tripled(6), lambda: with_forward_hook(module("relu")), lambda: with_gradient_hook(module("relu"))],
    ids=["forward", "hook", "gradient"],
)
def test_a_model_that_does_more_than_its_layers_runs_in_torch(build: Callable[[], nn.Module]) -> None:
    local = posterior(build())
    found = pf.sample(local, pf.SGLD(1e-3), **SAMPLING)
    assert "the kernel's losses or gradients are not the model's" in found.attrs["engine"]
    assert torch.equal(found.traces.phi, pf.sample(local, pf.SGLD(1e-3), engine="torch", **SAMPLING).traces.phi)
