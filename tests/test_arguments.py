"""Every public function declares the domain of every parameter, and refuses what lies outside, in three parts."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.arguments import Count, Estimate, KeywordsOf, Number, Positive, Seed, Share, checked, explained
from patterning_fast.domains import Anything, Distinct, Domain, Holds, Mend, ProtocolDomain, domain_of, holds
from tests.models import language_model, language_posterior, tokens
from tests.public import exported, public

WRONG: tuple[Any, ...] = (
    None, "", "x", 2.5, math.nan, math.inf, -1, 0, 10**30, True, [], ["x"], {}, {"x": None}, (), b"x", object(), int,
    np.float64("nan"), torch.zeros(2), lambda: None, Path(),
)  # fmt: skip
"""Values of which every domain excludes some."""


def is_record(each: object) -> bool:
    """A NamedTuple is read by those who take it."""
    return inspect.isclass(each) and issubclass(each, tuple)


def is_held(name: str, each: Any) -> bool:
    """Whether calls of it are to be checked: not of errors, protocols and what has no parameters."""
    if inspect.isclass(each) and (issubclass(each, BaseException) or is_record(each) or is_protocol(each)):
        return False
    owner = public().get(name.rpartition(".")[0])
    return not is_protocol(owner) and bool(inspect.signature(each).parameters.keys() - {"self"})


def is_protocol(each: object) -> bool:
    return bool(getattr(each, "_is_protocol", False))


HELD = {name: each for name, each in public().items() if is_held(name, each)}


def test_the_walk_finds_what_is_exported() -> None:
    names = {*pf.__all__, *(f"ops.{name}" for name in pf.ops.__all__)} - {"losses", "ops"}
    assert names <= exported().keys()
    for each in ("Statistics.susceptibilities", "LocalPosterior.reweighted", "posterior.losses.next_token",
                 "report.figures.png", "models.attention_only.AttentionOnlyLM.forward", "SGLD.update_row",
                 "fluctuation_dissipation"):  # fmt: skip
        assert each in HELD, each
    assert len(HELD) > 150


@pytest.mark.parametrize("name", HELD)
def test_every_parameter_has_a_domain_that_is_checked(name: str) -> None:
    function = HELD[name]
    assert hasattr(function, "domains"), f"{name} is not checked: decorate it with @checked"
    declared = function.domains()  # which raises where an annotation says nothing
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
            assert parameter.name in declared


def test_all_that_is_checked_can_be() -> None:
    """Beyond what is public too: an annotation that says nothing fails here, and not in a call."""
    for found in pkgutil.walk_packages(pf.__path__, "patterning_fast."):
        if "triton" not in found.name and "_C" not in found.name:
            module = importlib.import_module(found.name)
            for each in vars(module).values():
                if getattr(each, "__module__", "") == found.name and hasattr(each, "domains"):
                    each.domains()


@pytest.mark.parametrize("name", HELD)
def test_what_lies_outside_a_domain_is_refused_in_three_parts(name: str) -> None:
    function = HELD[name]
    owner = getattr(function, "__qualname__", name).removesuffix(".__init__")
    refused = 0
    for parameter, domain in function.domains().items():
        for wrong in WRONG:
            if type(domain) is Domain or holds(domain, wrong):
                continue
            with pytest.raises((TypeError, ValueError)) as caught:
                call(function, parameter, wrong)
            assert re.match(
                rf"{re.escape(owner)}: {parameter}(\[.*\])* must be .+, got .+; .+", str(caught.value), re.DOTALL
            ), str(caught.value)
            assert str(caught.traceback[-1].path).endswith("arguments.py")
            refused += 1
    assert refused or all(type(domain) is Domain for domain in function.domains().values())


def call(function: Any, parameter: str, value: object) -> None:
    """With one argument only: arguments are read before Python misses the others."""
    if (inspect.isclass(function) and "__init__" not in vars(function)) or hasattr(function, "__dataclass_fields__"):
        made = object.__new__(function)
        vars(made)[parameter] = value
        function.__post_init__(made)
    elif "self" in inspect.signature(function).parameters:
        function(object(), **{parameter: value})
    else:
        function(**{parameter: value})


DEFAULT: dict[str, Any] = {"sampler": pf.SGLD(1e-4), "progress": False}

# What domains hold, by kind.


class Record(NamedTuple):
    size: Count
    name: str = "x"


@pytest.mark.parametrize("name", HELD)
def test_numpy_s_scalars_are_taken_for_python_s(name: str) -> None:
    """What is read of them is Python's own, of the kind that the same value in Python gives."""
    for domain in HELD[name].domains().values():
        for scalar in (np.float64(0.5), np.float32(0.5), np.int64(3), np.int32(3), np.uint8(3), np.bool_(True)):
            if type(domain) not in (Domain, ProtocolDomain) and holds(domain, scalar.item()):
                read = domain.read(scalar)
                assert type(read) is type(domain.read(scalar.item()))
                assert read == domain.read(scalar.item())


@pytest.mark.parametrize(
    ("hint", "inside", "outside"),
    [
        (int, [0, -3, np.int64(4)], [True, 1.0, "1", None, np.bool_(True), torch.tensor(1)]),
        (float, [0, 1.5, np.float32(2), np.int32(3)], [True, "1", None, math.nan, math.inf, 10**400, torch.ones(())]),
        (Estimate, [math.nan, 1], [None, "nan", True]),
        (Count, [1, 2**40 - 1], [0, 2**40, 1.0, math.nan]),
        (Seed, [0, 2**63 - 1], [-1, 2**63]),
        (Positive, [1e-30, 3e38], [0, -1, 1e-300, 1e300, math.nan]),
        (Share, [0.1, 1], [0, 1.1]),
        (bool, [True, False, np.bool_(True)], [0, 1, np.int64(1), "yes", None]),
        (str, ["", "x"], [b"x", None, 1]),
        (Literal["a", "b"], ["a", np.str_("a")], ["c", None, 1, np.str_("c")]),
        (Count | None, [None, 3], [0, "x"]),
        (str | Path | None, ["x", Path("x"), None], ["", Path(), "a\0b", b"x", 1]),
        (list[Count], [[], [1, 2]], [(1,), [0], "1"]),
        (tuple[Tensor, Tensor], [(torch.ones(1), torch.ones(1))], [(torch.ones(1),), torch.ones(2), [1, 2]]),
        (Annotated[list[float], Holds(1), Distinct()], [[1.0, 2]], [[], [1.0, 1], [math.nan]]),
        (dict[str, Count], [{}, {"x": 1}], [{"x": 0}, {1: 1}, [("x", 1)], None]),
        (Tensor, [torch.ones(2)], [torch.eye(2).to_sparse(), [1.0], np.ones(2)]),
        (nn.Module, [nn.Linear(1, 1)], [nn.Linear, None, lambda x: x]),
        (Record, [Record(1)], [Record(0), (1, "x"), Record(1, None)]),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_domains_hold_what_they_say(hint: Any, inside: list[Any], outside: list[Any]) -> None:
    domain = domain_of(hint)
    assert [each for each in inside if not holds(domain, each)] == []
    assert [each for each in outside if holds(domain, each)] == []


def test_what_declares_no_domain_is_an_error_of_ours() -> None:
    for hint in (Any, Annotated[Any, Mend("x")], 3):
        with pytest.raises(TypeError, match="declares no domain"):
            domain_of(hint)
    assert holds(domain_of(object), 3) is False
    assert type(domain_of(Annotated[Any, Anything("it is only shown")])) is Domain


def test_numbers_of_numpy_become_those_of_python() -> None:
    @checked
    def given(number: Number, *others: Count, rates: list[float] | None = None) -> list[Any]:
        return [number, *others, *(rates or [])]

    numbers: list[Any] = [np.float32(0.5), np.int64(3), 4]
    found = given(*numbers, rates=[np.float64(1), 2])
    assert found == [0.5, 3, 4, 1.0, 2.0]
    assert [type(each) for each in found] == [float, int, int, float, float]
    with pytest.raises(ValueError, match="given: others must be a whole number >= 1, got 0"):
        given(1.0, 2, 0)
    with pytest.raises(TypeError, match=r"given: its arguments must be among .*, got rate=3 .* did you mean rates="):
        given(1.0, rate=3)  # type: ignore[call-arg]


def test_an_op_explains_its_failure_and_costs_nothing_else() -> None:
    @explained
    def op(params: Tensor, count: Count) -> Tensor:
        return params.reshape(count)

    with pytest.raises(ValueError, match="op: count must be a whole number >= 1, got -7"):
        op(torch.ones(2), -7)
    with pytest.raises(RuntimeError, match="invalid"):  # what it was given lies in its domains
        op(torch.ones(2), 3)


@checked
def inner(x: Count, rate: Positive = 1.0) -> float:
    return x * rate


@checked
def outer(x: Count, **rest: Annotated[Any, KeywordsOf(inner)]) -> float:
    return inner(x, **rest)


def test_keywords_are_those_of_the_function_that_gets_them() -> None:
    assert outer(2, rate=3) == 6.0
    with pytest.raises(ValueError, match="outer: rate must be a finite number > 0, got 0"):
        outer(2, rate=0)
    with pytest.raises(TypeError, match="outer: its arguments must be among x, rate, got rat="):
        outer(2, rat=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sampler": pf.SGLD}, TypeError, r"sampler must be .* got the class SGLD; .* make one with SGLD\(\.\.\.\)"),
        ({"sampler": "sgld"}, TypeError, r"sampler must be .* got 'sgld' \(str\); pass pf.SGLD\(lr=1e-3\)"),
        ({"sampler": pf.ops.SGHMC(torch.zeros(3))}, TypeError, r"rules in pf\.ops are for the op langevin_step"),
        ({"components": ["l0h1"]}, TypeError, r'components must be a mapping .* pass pf\.components\(model, "l0h1"'),
        ({"components": {"a": None}}, TypeError, r"components\['a'\] must be a Component, got None"),
        ({"probes": [tokens()]}, TypeError, r"probes must be a mapping .*; name each set of samples"),
        ({"burn_in": math.nan}, TypeError, "burn_in must be a whole number >= 0, got nan"),
        ({"burn_in": 10**30}, ValueError, "burn_in must be .* at most 1,099,511,627,775"),
        ({"draws": 2**39, "steps_between_draws": 2}, ValueError, r"must be below 2\^40, the steps that the noise"),
        ({"draws": True}, TypeError, r"draws must be a whole number >= 1, got True \(bool\); a bool is no number"),
        ({"loss_samples": True}, TypeError, "loss_samples must be"),
        ({"loss_samples": torch.tensor([0, 3, 3])}, ValueError, "loss_samples must be distinct"),
        ({"loss_samples": torch.tensor([0.0, 3.0])}, TypeError, "loss_samples must be int64"),
        ({"antithetic": "yes"}, TypeError, "antithetic must be True or False, got 'yes'"),
        ({"checkpoint": ""}, ValueError, r"checkpoint must be a path that is not empty, .* pathlib\.Path\.cwd\(\)"),
        ({"traces": ""}, ValueError, "traces must be a path that is not empty"),
        ({"precision": "float16"}, ValueError, "did you mean 'bfloat16'"),
        ({"chain": 3}, TypeError, "got chain=3 .*did you mean chains="),
    ],
)  # fmt: skip
def test_sample_says_what_is_wrong(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pf.sample(**DEFAULT | {"posterior": language_posterior()} | arguments)


def test_a_rate_twice_is_refused_by_calibrate() -> None:
    with pytest.raises(ValueError, match=r"lr must be .*without repetition, got .*; leave out what comes twice"):
        pf.calibrate(language_posterior(), pf.SGLD(1.0), lr=[1e-4, 1e-3, 1e-4], progress=False)


@pytest.mark.parametrize(
    ("indices", "error"),
    [
        (torch.tensor([-1, 2]), ValueError),
        (torch.tensor([2, 1]), ValueError),
        (torch.tensor([1, 1]), ValueError),
        (torch.tensor([1, 2], dtype=torch.int32), TypeError),
        (torch.tensor([], dtype=torch.int64), ValueError),
        (torch.tensor([[1, 2]]), ValueError),
        (torch.tensor([True, False]), TypeError),
        ([1, 2], TypeError),
    ],
)
def test_a_component_holds_its_own_invariant(indices: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"Component|component 'c'"):
        pf.Component("c", {"weight": indices})
    assert pf.Component("c", {"weight": torch.tensor([0, 2]), "bias": None}).size(
        dict(nn.Linear(2, 2).named_parameters())
    ) == 4  # fmt: skip


def test_a_subclass_of_a_sampler_is_held_to_its_fields() -> None:
    class Still(pf.SGLD):
        pass

    with pytest.raises(ValueError, match="SGLD: lr must be a finite number > 0, got nan"):
        Still(math.nan)


@pytest.mark.parametrize("wrong", [{"lr": "0.1"}, {"lr": math.nan}, {"n_beta": True}, {"seed": -1}, {"step": 2**40}])
def test_an_op_refuses_what_it_would_take_for_something_else(wrong: dict[str, Any]) -> None:
    params = torch.zeros(2, 3)
    arguments: dict[str, Any] = {"lr": 0.1, "n_beta": 1.0, "localization": 1.0, "seed": 0, "step": 0} | wrong
    with pytest.raises((TypeError, ValueError), match=f"langevin_step: {next(iter(wrong))} must"):
        pf.ops.langevin_step(params, torch.zeros(2, 3), torch.zeros(3), **arguments)
    assert not params.any()


def test_what_fuzzing_found_is_told_so() -> None:
    """Of calls that ended in others' tracebacks."""
    posterior = language_posterior()
    heads = pf.attention_heads(posterior.model)
    chi = pf.linear_response(posterior, pf.SGLD(1e-3), components=heads, draws=2, burn_in=2, progress=False)
    chi = chi.drop_vars("settled")
    modes = pf.modes(chi)
    with pytest.raises(TypeError, match="weights must be an array of numbers, got None"):
        pf.training_response({"a": [1.0]}, None, units=["a", "b"], counts=[1, 1])  # type: ignore[arg-type]
    with pytest.raises(TypeError) as caught:
        pf.invert(chi, lambda moved: None, strength=0.1)  # type: ignore[arg-type,return-value]
    assert "invert: target failed, which must take dμ" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match=r"there are \d modes and 0 others"):
        pf.match_modes(modes, pf.Modes(modes.table.isel(mode=slice(0))))
    with pytest.raises(RuntimeError) as caught_step:
        pf.train(language_model(), tokens(), pf.losses.next_token, steps=1, batch_size=2, lr=3e38, progress=False)
    assert "optimizer.step() failed" in caught_step.value.__notes__[0]
