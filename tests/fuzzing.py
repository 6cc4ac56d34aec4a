"""Calls of the public functions with arguments from within and without their domains, and what may become of them.

A call starts from one that works, on a model of 13 parameters; some of its arguments are then replaced by values that
their domains give: ordinary ones, those at a bound, and those that are not in it. What comes out must be finite numbers
(or NaN that says why, by a chain that diverged), or an error that this library raises itself.
"""

from __future__ import annotations

import copy
import functools
import linecache
import math
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import xarray as xr
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

import patterning_fast as pf
from patterning_fast import domains as d

PACKAGE = str(Path(pf.__file__).parent)

WRONG = st.sampled_from(
    (None, "", "x", 2.5, math.nan, math.inf, -1, 0, 10**30, -0.0, 1e-320, True, [], ["x"], {}, {"x": None}, (), b"x",
     object(), int, np.float64("nan"), torch.zeros(2), torch.ones(2, 3), lambda: None, Path(), xr.Dataset(),
     xr.DataArray([1.0, math.nan]), np.zeros(0))
)  # fmt: skip
"""What has no business in most domains."""

LONG = {"draws", "burn_in", "steps_between_draws", "steps", "replan", "neighbours"}
"""Numbers that a call takes time in proportion to: their upper bounds are not waited for."""


def values(name: str, domain: d.Domain) -> st.SearchStrategy[Any]:
    """Values of a domain: ordinary ones and those at its bounds."""
    match domain:
        case d.Conditioned():
            bounds = [each for each in domain.conditions if isinstance(each, d.Within | d.Limit)]
            if not bounds:
                return values(name, domain.domain)
            return numbers(name, bounds, whole(domain.domain))
        case d.NumberDomain():
            return numbers(name, [], domain.whole)
        case d.LiteralDomain():
            return st.sampled_from(domain.values)
        case d.UnionDomain():
            members = [values(name, each) for each in domain.members]
            return st.one_of(*members, *([st.none()] if domain.optional else []))
        case d.MappingDomain():
            return st.dictionaries(values(name, domain.key), values(name, domain.value), max_size=2)
        case d.SequenceDomain():
            return st.lists(values(name, domain.element), max_size=3)
        case d.CallableDomain():
            return st.sampled_from((lambda *_: None, lambda *_: math.nan, nn.Linear(2, 1), torch.sum))
        case d.PathDomain():
            return st.just(Path("nowhere/at/all"))
        case d.ClassDomain() if domain.cls in KNOWN:
            return st.sampled_from(KNOWN[domain.cls])
    return WRONG


def whole(domain: d.Domain) -> bool:
    return isinstance(domain, d.NumberDomain) and domain.whole


def numbers(name: str, bounds: list[Any], of_int: bool) -> st.SearchStrategy[Any]:
    least = max((each.least if isinstance(each, d.Within) else -math.inf for each in bounds), default=-math.inf)
    most = min((each.most for each in bounds), default=math.inf)
    ends = [end for end in (least, most) if math.isfinite(end) and not (name in LONG and end == most)]
    common: list[Any] = [1, 2, 3, 4] if of_int else [1e-3, 0.1, 0.5, 1.0, 2, 30.0, 1e-30, 1e30]
    return st.sampled_from([*common * 2, *(int(end) if of_int else float(end) for end in ends)])


@functools.cache
def model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


@functools.cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, 2, generator=generator), torch.randn(6, 1, generator=generator)


@functools.cache
def posterior() -> pf.LocalPosterior:
    return pf.LocalPosterior(model(), pf.losses.squared_error, data(), n_beta=10.0, localization=10.0)


QUICK: dict[str, Any] = {"chains": 4, "draws": 3, "batch_size": 2, "tile": 2, "progress": False}

TRAINED: dict[str, Any] = {
    "data": data(), "loss": pf.losses.squared_error, "steps": 2, "batch_size": 2, "lr": 1e-2, "seeds": [0, 1],
    "outcomes": {"norm": lambda model: sum(each.square().sum() for each in model.parameters())},
}  # fmt: skip


@functools.cache
def statistics() -> pf.Statistics:
    observables = {"norm": lambda model: sum(each.square().sum() for each in model.parameters())}
    return pf.sample(
        posterior(), pf.SGLD(1e-3), components=pf.layers(model()), observables=observables, loss_kernel=True, **QUICK
    )


@functools.cache
def chi() -> xr.Dataset:
    """As of settled chains, which would take longer."""
    found = statistics().susceptibilities()
    return found.assign(settled=xr.ones_like(found["settled"]))


@functools.cache
def reachable() -> dict[str, float]:
    """A change of components that stands above the noise."""
    predicted = plan().predicted["dmu"]
    return dict(zip(predicted["component"].values.tolist(), predicted.values.tolist(), strict=True))


@functools.cache
def plan() -> pf.Plan:
    return pf.invert(chi(), pf.modes(chi())[0], strength=0.1, negative_weights="allow")


def damaged(estimates: xr.Dataset) -> list[xr.Dataset]:
    """Estimates that lack something."""
    name = str(next(iter(estimates.data_vars)))
    missing = estimates.copy(deep=True)
    missing[name].values[..., 0] = math.nan
    bare = estimates.copy()
    bare.attrs = {}
    return [
        estimates, missing, bare, xr.Dataset(), estimates.isel(component=[0]), estimates.isel(component=[]),
        estimates.drop_vars(name), estimates * 0, estimates * 1e30, estimates.transpose(), estimates.astype("float32"),
        estimates.drop_vars([each for each in estimates.coords if each != "component"]),
    ]  # fmt: skip


KNOWN: dict[Any, list[Any]] = {
    str: ["x", "full", "0", "phi", "sample", "domain", ""],
    nn.Module: [model(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1).double()],
    torch.Tensor: [
        torch.zeros(6), torch.ones(6), -torch.ones(6), torch.full((6,), math.nan), torch.arange(6), torch.arange(3),
        torch.tensor([0, 0]), torch.tensor(1.0), torch.ones(6, 2), torch.zeros(0), torch.tensor([99]),
        torch.ones(6).double(), torch.rand(6).to_sparse(), torch.ones(4, 13), torch.tensor([True, False]),
    ],
    tuple: [data()],
    pf.LocalPosterior: [posterior(), posterior().reweighted(torch.arange(6.0))],
    pf.Component: [pf.component(model(), "c", ["0.bias"]), pf.Component("c", {"nowhere": None})],
    pf.SparseFeatures: [pf.SparseFeatures(6, torch.full((2,), 0.5))],
    pf.Constraints: [pf.Constraints(), pf.Constraints(cap=2.0), pf.Constraints(kl=0.1), pf.Constraints(reweighted=0.5)],
    pf.SGLD: [pf.SGLD(1e-3), pf.SGLD(1e10), pf.SGLD(1e-3, gradient_noise_correction=True)],
    xr.Dataset: [*damaged(chi()), *damaged(statistics().llc()), statistics().contributions()],
    xr.DataArray: [
        plan().weights, plan().weights * math.nan, plan().weights[:3], xr.DataArray(np.ones(6), dims="sample"),
        pf.modes(chi())[0].data, chi()["chi"], plan().weights.drop_vars("sample"),
    ],
    pf.Mode: [pf.modes(chi())[0], -pf.modes(chi())[0]],
    pf.Modes: [pf.modes(chi()), pf.modes(chi())[:1], pf.modes(chi())[:0]],
    pf.Plan: [plan(), pf.invert(chi(), reachable(), negative_weights="allow", regularization="none")],
}  # fmt: skip
SAMPLERS = [
    pf.SGLD(1e-3), pf.SGLD(1e-3, gradient_noise_correction=True), pf.RMSPropSGLD(1e-3), pf.SGHMC(1e-5), pf.SGNHT(1e-2),
    pf.SGLD(1e5), pf.SGHMC(1e30),
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A function, arguments with which it works, and what its result is made of, as arrays that must be finite."""

    function: Callable[..., Any]
    arguments: Callable[[Path], dict[str, Any]]
    numbers: Callable[[Any], list[Any]] = lambda _: []


def of_statistics(run: pf.Statistics) -> list[Any]:
    if bool(run.traces.diverged.any()):
        return []
    estimates, found = run.llc(), run.susceptibilities()
    return [estimates["llc"], estimates["llc_error"], found["chi"], found["chi_error"], run.influence()["influence"]]


def saved_weights(path: Path) -> Path:
    pf.save_weights(path / "weights.parquet", plan(), data())
    return path / "weights.parquet"


def traces(path: Path) -> Path:
    pf.sample(posterior(), pf.SGLD(1e-3), components=pf.layers(model()), traces=path / "traces.zarr", **QUICK)
    return path / "traces.zarr"


def trained(**arguments: Any) -> list[Any]:
    own = arguments["model"]
    rows = pf.train(**arguments)
    return [*own.parameters(), *(each["loss"] for each in rows[1:])]


trained.domains = pf.train.domains  # type: ignore[attr-defined]


def fresh() -> nn.Module:
    import copy

    return copy.deepcopy(model())


def lines(path: Path) -> dict[str, Any]:
    return {"model": fresh(), "data": data(), "loss": pf.losses.squared_error, "steps": 2, "batch_size": 2, "lr": 1e-2,
            "progress": False}  # fmt: skip


TARGETS: dict[str, Target] = {
    "SGLD": Target(pf.SGLD, lambda _: {"lr": 1e-3}),
    "RMSPropSGLD": Target(pf.RMSPropSGLD, lambda _: {"lr": 1e-3}),
    "SGHMC": Target(pf.SGHMC, lambda _: {"lr": 1e-3}),
    "SGNHT": Target(pf.SGNHT, lambda _: {"lr": 1e-3}),
    "Constraints": Target(pf.Constraints, lambda _: {}),
    "Component": Target(pf.Component, lambda _: {"name": "c", "coordinates": {"0.bias": torch.tensor([0, 2])}}),
    "component": Target(pf.component, lambda _: {"model": model(), "name": "c", "masks": ["0.bias"]}),
    "layers": Target(pf.layers, lambda _: {"model": model()}),
    "attention_heads": Target(pf.attention_heads, lambda _: {"model": model()}),
    "SparseFeatures": Target(pf.SparseFeatures, lambda _: {"samples": 4, "presence": torch.ones(2)}),
    "LocalPosterior": Target(
        pf.LocalPosterior,
        lambda _: {"model": model(), "loss": pf.losses.squared_error, "data": data(), "n_beta": 1, "localization": 1},
    ),
    **{
        f"sample, {type(sampler).__name__} {number}, {engine}": Target(
            pf.sample,
            lambda _, sampler=sampler, engine=engine: {  # type: ignore[misc]
                "posterior": posterior(), "sampler": sampler, "engine": engine, **QUICK,
            },
            of_statistics,
        )
        for number, sampler in enumerate(SAMPLERS)
        for engine in ("native", "torch")
    },
    "sample, checkpoint": Target(
        pf.sample,
        lambda path: {"posterior": posterior(), "sampler": pf.SGLD(1e-3), "checkpoint": path / "saved", **QUICK},
        of_statistics,
    ),
    "linear_response": Target(
        pf.linear_response,
        lambda _: {"posterior": posterior(), "sampler": pf.SGLD(1e-3), **QUICK},
        lambda found: [found["chi"], found["chi_error"]],
    ),
    "fluctuation_dissipation": Target(
        pf.fluctuation_dissipation,
        lambda _: {"posterior": posterior(), "sampler": pf.SGLD(1e-3), "response": {"draws": 2, "burn_in": 1}, **QUICK},
        lambda found: [found["covariance"], found["response"]] if found.attrs["lr"] < 1 else [],
    ),
    "calibrate": Target(
        pf.calibrate,
        lambda _: {"posterior": posterior(), "sampler": pf.SGLD(1e-3), "lr": [1e-3, 1e-2], **QUICK},
        lambda found: [found["llc"].where(found["diverged"] == 0, 0.0)],
    ),
    "calibrated": Target(
        pf.calibrated,
        lambda _: {
            "model": model(), "loss": pf.losses.squared_error, "data": data(), "max_burn_in": 5, "chains": 2,
            "draws": 3, "batch_size": 2, "progress": False,
        },
    ),
    "susceptibilities": Target(pf.Statistics.susceptibilities, lambda _: {"self": statistics()}),
    "influence": Target(pf.Statistics.influence, lambda _: {"self": statistics()}, lambda found: [found["influence"]]),
    "modes": Target(pf.modes, lambda _: {"chi": chi()}, lambda found: [found.table["singular_value"]]),
    "match_modes": Target(pf.match_modes, lambda _: {"modes": pf.modes(chi()), "others": pf.modes(chi())}),
    "invert, components": Target(
        pf.invert,
        lambda _: {"chi": chi(), "target": reachable(), "negative_weights": "allow"},
        lambda found: [found.weights, found.predicted["dmu"], found.predicted["dmu_error"]],
    ),
    "invert, mode": Target(
        pf.invert,
        lambda _: {"chi": chi(), "target": pf.modes(chi())[0], "strength": 0.1},
        lambda found: [found.weights, found.predicted["dmu"], found.predicted["dmu_error"]],
    ),
    "aggregate": Target(pf.aggregate, lambda _: {"estimates": chi(), "groups": list("aabbcc")}),
    "spread_weights": Target(
        pf.spread_weights,
        lambda _: {
            "weights": xr.DataArray([1.0, 2.0], {"domain": ["a", "b"]}, ("domain",)), "groups": list("aabbab"),
        },
        lambda found: [found],
    ),
    "between_solutions": Target(
        pf.between_solutions,
        lambda _: {"favoured": statistics().contributions(), "other": statistics().contributions()},
    ),
    "training_response": Target(
        pf.training_response,
        lambda _: {
            "outcomes": {"a": np.arange(20.0) % 7}, "weights": np.random.default_rng(0).uniform(0.5, 1.5, (20, 3)),
            "units": ["x", "y", "z"], "counts": [1, 2, 3],
        },
        lambda found: [found["chi"], found["chi_error"]],
    ),
    "training_adjoint": Target(
        pf.training_adjoint,
        lambda _: {"models": [copy.deepcopy(model()), copy.deepcopy(model())], **TRAINED},
        lambda found: [found["chi"], found["chi_error"]],
    ),
    "metasmoothness": Target(
        pf.metasmoothness,
        lambda _: {"models": [model(), model()], "weights": torch.linspace(0.5, 1.5, 6), **TRAINED},
        lambda found: [found["first"], found["second"]],
    ),
    "extreme_data": Target(
        pf.extreme_data, lambda _: {"mode": pf.modes(chi())[0], "texts": list("abcdef"), "count": 2}
    ),
    "verify": Target(
        pf.verify,
        lambda _: {
            "plan": plan(), "posterior": posterior(), "sampler": pf.SGLD(1e-3), "fractions": [1.0],
            "components": pf.layers(model()), **QUICK,
        },
        lambda found: [found["predicted"]],
    ),
    "importance_check": Target(pf.importance_check, lambda path: {"plan": plan(), "traces": traces(path)}),
    "save_weights": Target(
        pf.save_weights, lambda path: {"path": path / "weights.parquet", "weights": plan(), "data": data()}
    ),
    "load_weights": Target(
        pf.load_weights, lambda path: {"path": saved_weights(path), "data": data()}, lambda found: [found]
    ),
    "train": Target(trained, lines, lambda found: found),
    "train_replicas": Target(
        pf.train_replicas,
        lambda _: {
            "model": fresh(), "initial": torch.zeros(2, 13) + 0.1, "data": data(), "loss": pf.losses.squared_error,
            "steps": 2, "batch_size": 2, "optimizer": functools.partial(SGD, lr=1e-2), "progress": False,
        },
    ),
    "train_towards": Target(
        pf.train_towards,
        lambda path: lines(path)
        | {
            "trajectory": {0: {"0": 1e-4}}, "replan": [0], "strength": 0.1, "inversion": {"negative_weights": "allow"},
            "estimate": pf.PosteriorSampling(pf.SGLD(1e-3), 10.0, 10.0, {
                "chains": 4, "draws": 3, "components": pf.layers(model()),
            }),
        },
    ),
    "weighted_loss": Target(pf.weighted_loss, lambda _: {"losses": torch.ones(3), "weights": torch.ones(3)}),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A call: a target, and what replaces its arguments."""

    target: str
    changes: Mapping[str, Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Calls with up to three arguments replaced, each by a value of its domain, mostly."""
    name = draw(st.sampled_from(list(TARGETS)))
    function = TARGETS[name].function
    known: Mapping[str, d.Domain] = function.domains()  # type: ignore[attr-defined]
    if not known:
        return Case(name, {})
    chosen = draw(st.lists(st.sampled_from(list(known)), max_size=3, unique=True))
    changes = {}
    for each in chosen:
        wanted = values(each, known[each])
        if each == "sampler":
            wanted = st.sampled_from([*SAMPLERS, pf.SGLD, pf.ops.SGHMC(torch.zeros(3)), "sgld", None])
        changes[each] = draw(st.one_of(wanted, wanted, wanted, WRONG))
    if changes.keys() & {"error", "reliability"} and "max_seconds" in known:
        changes["max_seconds"] = 1.0  # a goal may be out of reach
    return Case(name, changes)


def run(case: Case) -> str | None:
    """What is wrong with what became of a call; None where it came to numbers or to a refusal of ours."""
    target = TARGETS[case.target]
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = target.arguments(Path(folder)) | dict(case.changes)
        arguments = {name: relocated(each, Path(folder)) for name, each in arguments.items()}
        try:
            result = target.function(**arguments)
        except Exception as error:
            return None if is_ours(error) else "".join(traceback.format_exception(error))
        broken = [each for each in target.numbers(result) if not finite(each)]
        return f"not finite, without a word: {broken[0]}" if broken else None


def relocated(value: Any, folder: Path) -> Any:
    """Paths within the case's own folder."""
    return folder / value if isinstance(value, Path) and value.parts[:1] == ("nowhere",) else value


def finite(value: Any) -> bool:
    return bool(np.isfinite(np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)).all())


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised by a `raise` of this library, or tells of a function that it was given."""
    if any("which must" in note for note in getattr(error, "__notes__", [])):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    return last.filename.startswith(PACKAGE) and line.startswith("raise")
