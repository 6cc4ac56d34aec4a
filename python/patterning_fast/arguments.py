"""Arguments are read in one place: the annotation of a parameter is its domain, and `checked` holds calls to it.

    @checked
    def sample(posterior: LocalPosterior, *, chains: Count = 8, probes: Mapping[str, Data] | None = None): ...

Every refusal says what is expected, what was given, and how to mend it: TypeError for the wrong kind of thing,
ValueError for a bad value. Common ranges have names here, and type checkers see plain `int` and `float`; `domains` has
what else annotations can say. Conditions between several arguments stay in the functions.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import numpy.typing as npt
import torch

from patterning_fast.domains import Domain, Holds, Kind, Limit, Mend, OrNaN, Refused, Within, domain_of, shown

Checked = TypeVar("Checked", bound=Callable[..., object])

LARGEST_FLOAT32, SMALLEST_FLOAT32 = 3.4028234e38, 1.1754944e-38

# Numbers.

Whole = Annotated[int, Within(least=0), Limit(2**40 - 1)]
"""Steps, chains and places in a chain's row have 40 bits in the noise."""
Count = Annotated[int, Within(least=1), Limit(2**40 - 1)]
Bytes = Annotated[int, Within(least=0), Limit(2**63 - 1)]
Seed = Annotated[int, Within(least=0), Limit(2**63 - 1)]
Number = Annotated[float, Limit(LARGEST_FLOAT32, SMALLEST_FLOAT32)]
Positive = Annotated[float, Within(above=0), Limit(LARGEST_FLOAT32, SMALLEST_FLOAT32)]
NonNegative = Annotated[float, Within(least=0), Limit(LARGEST_FLOAT32, SMALLEST_FLOAT32)]
Estimate = Annotated[float, OrNaN()]
Share = Annotated[float, Within(above=0, most=1)]
Name = Annotated[str, Holds(1)]

# What `np.asarray` takes, by what it makes.

Numbers = Annotated[
    npt.ArrayLike, Kind("iuf", "an array of numbers"), Mend("pass a numpy array, a tensor or a list of numbers")
]
Labels = Annotated[npt.ArrayLike, Kind("iufbUSO", "an array of names"), Mend("pass a numpy array or a list of names")]


@dataclass(frozen=True)
class KeywordsOf:
    """Of `**keywords`: those of another checked function."""

    function: Callable[..., object]


def checked(function: Checked) -> Checked:
    """Hold every call of a function or method to the annotations of its parameters.

    Of a class: every construction and call of a public method. A class without an `__init__` is about to become a
    dataclass, and is held to the annotations of its fields.
    """
    if isinstance(function, type):
        return check_class(function)
    read, domains = reader(function)

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():  # which follows the function, and cannot follow its annotations
            return function(*given, **named)
        return function(*read(given, named), **named)

    call.domains = domains  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def explained(op: Checked) -> Checked:
    """`checked` where every microsecond counts: arguments are read once the function has failed, to say why it did.

    It must refuse by itself what it would take without failing.
    """
    read, domains = reader(op)

    @functools.wraps(op)
    def call(*given: Any, **named: Any) -> Any:
        try:
            return op(*given, **named)
        except Exception:
            if not torch.compiler.is_compiling():
                read(given, named)
            raise

    call.domains = domains  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def reader(
    function: Callable[..., Any],
) -> tuple[Callable[[tuple[Any, ...], dict[str, Any]], list[Any]], Callable[[], dict[str, Domain]]]:
    """What reads a function's arguments: positional ones are returned, named ones are read in place; and its domains.

    Annotations are looked at when the first call comes, for their names may not be there before.
    """
    owner = function.__qualname__.removesuffix(".__init__").rpartition("<locals>.")[2]
    signature = inspect.signature(function)
    parameters = signature.parameters
    places = [each.name for each in parameters.values() if each.kind not in (each.KEYWORD_ONLY, each.VAR_KEYWORD)]
    starred = any(each.kind is each.VAR_POSITIONAL for each in parameters.values())
    others = next((each.name for each in parameters.values() if each.kind is each.VAR_KEYWORD), "")

    @functools.cache
    def domains() -> dict[str, Domain]:
        return declared(function)

    def read(given: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        known, values = domains(), list(given)
        names = places if not starred else places[:-1] + places[-1:] * len(given)
        for at, (name, value) in enumerate(zip(names, given, strict=False)):
            if name in known:
                values[at] = argument(owner, name, known[name], value, signature)
        for name, value in named.items():
            if name in known:
                named[name] = argument(owner, name, known[name], value, signature)
            elif others in known:
                named[name] = argument(owner, name, known[others], value, signature)
            elif name not in parameters:
                raise unknown(owner, name, value, list(known))
        return values

    return read, domains


def check_class(cls: Any) -> Any:
    """`checked` of a class."""
    for name, member in list(vars(cls).items()):
        if isinstance(member, staticmethod | classmethod) and not name.startswith("_"):
            setattr(cls, name, type(member)(checked(member.__func__)))
        elif inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")):
            setattr(cls, name, checked(member))
    if "__init__" in vars(cls):
        cls.domains = staticmethod(cls.__init__.domains)
        return cls
    if "__annotations__" not in vars(cls):  # no fields of its own
        return cls
    after = getattr(cls, "__post_init__", None)

    @functools.cache
    def domains() -> dict[str, Domain]:
        hints = resolved(cls)
        own = [each.name for each in fields(cls) if each.init and each.name in vars(cls).get("__annotations__", {})]
        return {name: domain_of(hints[name]) for name in own}

    def read_fields(self: Any) -> None:
        if not torch.compiler.is_compiling():
            known = cls.domains()
            for name, value in list(vars(self).items()):
                if name in known:
                    object.__setattr__(self, name, argument(cls.__name__, name, known[name], value, None))
        if after:
            after(self)

    cls.__post_init__, cls.domains = read_fields, staticmethod(domains)
    return cls


def argument(owner: str, name: str, domain: Domain, value: Any, signature: inspect.Signature | None) -> Any:
    """The argument, read; raises TypeError or ValueError in words of the function that it was given to."""
    try:
        return domain.read(value)
    except Refused as refused:
        mend = refused.mend or way_out(name, refused, signature)
        error = refused.kind(
            f"{owner}: {name}{refused.place} must be {refused.expected}, got {shown(refused.value)}; {mend}"
        )
    raise error


def way_out(name: str, refused: Refused, signature: inspect.Signature | None) -> str:
    """How to mend an argument where nothing better is known: by its default, or by an example."""
    parameter = signature.parameters.get(name) if signature else None
    if parameter is None or parameter.default is parameter.empty or refused.place:
        return f"for example {name}{refused.place}={refused.domain.example}"
    if parameter.default is None:
        return "leave it out"
    return f"leave it out for its default, {shown(parameter.default, typed=False)}"


def read_keywords(owner: str, keywords: Mapping[str, Any], function: Callable[..., object]) -> dict[str, Any]:
    """Arguments for a checked function that is called later, read now; raises as that would."""
    known: dict[str, Domain] = function.domains()  # type: ignore[attr-defined]
    for name, value in keywords.items():
        if name not in known:
            raise unknown(owner, name, value, list(known))
    return {name: argument(owner, name, known[name], value, None) for name, value in keywords.items()}


def unknown(owner: str, name: str, value: object, names: Sequence[str]) -> TypeError:
    """The error for a keyword that there is not."""
    near = difflib.get_close_matches(name, names, 1)
    mend = f"did you mean {near[0]}=?" if near else "leave it out"
    return TypeError(f"{owner}: its arguments must be among {', '.join(names)}, got {name}={shown(value)}; {mend}")


def declared(function: Callable[..., object]) -> dict[str, Domain]:
    """The domain of each parameter; raises TypeError, with its name, for one that declares none."""
    hints = resolved(function)
    domains: dict[str, Domain] = {}
    for at, (name, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if at == 0 and name in ("self", "cls"):
            continue
        if name not in hints:
            raise TypeError(f"{function.__qualname__}: {name} has no annotation")
        hint = hints[name]
        keywords = next((each for each in get_args(hint)[1:] if isinstance(each, KeywordsOf)), None)
        if parameter.kind is parameter.VAR_KEYWORD and keywords:
            others: dict[str, Domain] = keywords.function.domains()  # type: ignore[attr-defined]
            domains = others | domains
        elif get_origin(hint) is typing.Unpack:
            domains |= {key: domain_of(each) for key, each in resolved(get_args(hint)[0]).items()}
        else:
            domains[name] = domain_of(hint)
    return domains


def resolved(function: Any) -> dict[str, Any]:
    """Type hints, with the names that a module imports for type checkers alone."""
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:
        module = sys.modules[function.__module__]
        names: dict[str, Any] = {}
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                exec(compile(ast.Module(node.body, []), module.__name__, "exec"), names)
        return get_type_hints(function, vars(module) | names, include_extras=True)
