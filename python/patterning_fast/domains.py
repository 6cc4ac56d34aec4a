"""Domains of arguments: what an annotation says of values, with `Annotated` for conditions such as a range.

A class, a union, `Literal`, `Mapping`, `Sequence`, `tuple` or `Callable` says what kind of thing is wanted, a condition
which of that kind. A bool is no number. An int is taken for a float, and numpy's numbers for Python's, into which they
are converted. See `arguments`, which holds calls to them.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import io
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import torch

SHOWN = Repr()
SHOWN.maxstring = SHOWN.maxother = SHOWN.maxlong = 80

MENDS: dict[str, str] = {
    "torch.nn.modules.module.Module": "pass the instance of an nn.Module",
    "torch.Tensor": "make one with torch.as_tensor(...)",
    "xarray.core.dataset.Dataset": "pass what susceptibilities() or another estimate returns",
    "xarray.core.dataarray.DataArray": "pass an array with named dimensions, such as plan.weights",
}


def made_by(text: str) -> Callable[[type], type]:
    """Note on a class how one comes by its instances, for refusals of other things."""

    def note(cls: Any) -> Any:
        MENDS[qualified(cls)] = text
        return cls

    return note


class Refused(Exception):
    """A value outside its domain: what was given, where within the argument, what is expected, and how to mend it."""

    def __init__(self, kind: type[TypeError | ValueError], value: object, domain: Domain, mend: str = "") -> None:
        self.kind, self.value, self.domain, self.mend = kind, value, domain, mend
        self.expected, self.place = domain.expected, ""

    def within(self, key: object) -> Refused:
        """The same, of an element."""
        self.place = f"[{key!r}]{self.place}"
        return self


# Conditions, for Annotated. One that has `read` also says what a value that it holds for is taken for.


@dataclass(frozen=True)
class Within:
    """Bounds of a finite number; `above` and `below` are out themselves."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    @property
    def expected(self) -> str:
        least, most = max(self.least, self.above), min(self.most, self.below)
        if math.isfinite(least) and math.isfinite(most):
            opening, closing = "[" if least > self.above else "(", "]" if most < self.below else ")"
            return f"in {opening}{plain(least)}, {plain(most)}{closing}"
        if math.isfinite(least):
            return f"{'>=' if least > self.above else '>'} {plain(least)}"
        return f"{'<=' if most < self.below else '<'} {plain(most)}" if math.isfinite(most) else ""

    @property
    def example(self) -> float:
        """A number within."""
        least, most = max(self.least, self.above), min(self.most, self.below)
        if isinstance(least, int) and isinstance(most, int):
            return (least + most) // 2
        if math.isfinite(least) and math.isfinite(most):
            return (least + most) / 2
        return least if least > self.above else least + 0.001

    def holds(self, value: Any) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below


def plain(number: float) -> str:
    """A number as it is written in Python."""
    return str(number) if isinstance(number, int) else f"{number:g}"


@dataclass(frozen=True)
class Limit:
    """Bounds of a number's size that are the library's and not of its sense: named only where they are broken."""

    most: float
    least: float = 0

    @property
    def expected(self) -> str:
        return f"at most {self.most:{',' if isinstance(self.most, int) else '.3g'}}" + (
            f", and 0 or at least {self.least:.3g}" if self.least else ""
        )

    def holds(self, value: Any) -> bool:
        return value == 0 or self.least <= abs(value) <= self.most


@dataclass(frozen=True)
class NotZero:
    """A number other than 0."""

    expected = "other than 0"

    def holds(self, value: Any) -> bool:
        return bool(value)


@dataclass(frozen=True)
class Holds:
    """At least so many elements."""

    least: int
    mend = "add what is missing"

    @property
    def expected(self) -> str:
        return "not empty" if self.least == 1 else f"at least {self.least} of them"

    def holds(self, value: Any) -> bool:
        return len(value) >= self.least


@dataclass(frozen=True)
class Distinct:
    """No element twice."""

    expected = "without repetition"
    mend = "leave out what comes twice"

    def holds(self, value: Any) -> bool:
        return len(set(value)) == len(value)


@dataclass(frozen=True)
class Kind:
    """An array whose numpy dtype is of these kinds."""

    kinds: str
    expected: str

    def holds(self, value: Any) -> bool:
        return array_kind(value) in self.kinds


@dataclass(frozen=True)
class OrNaN:
    """A number that is NaN, or infinite, where it is not known."""


@dataclass(frozen=True)
class Mend:
    """How to come by such a thing: the last part of a refusal."""

    text: str


@dataclass(frozen=True)
class Anything:
    """Anything goes, and why."""

    why: str


# Domains: what annotations become. `read` returns the value, as it is or converted, or raises Refused.


@dataclass(frozen=True)
class Domain:
    """Anything."""

    expected: str = "anything"

    @property
    def example(self) -> str:
        """A value of it, as text."""
        return "..."

    def read(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class NumberDomain(Domain):
    """An int (`whole`) or a float, finite unless it `may_be_nan`."""

    whole: bool = True
    may_be_nan: bool = False

    @property
    def example(self) -> str:
        return "1"

    def read(self, value: Any) -> Any:
        number: int | float
        if type(value) is int or (type(value) is float and not self.whole):
            number = value
        elif isinstance(value, bool | np.bool_):
            raise Refused(TypeError, value, self, "a bool is no number: pass int(value) if 0 or 1 is meant")
        elif isinstance(value, numbers.Integral):
            number = int(value)
        elif not self.whole and isinstance(value, float | np.floating):
            number = float(value)
        else:
            raise Refused(TypeError, value, self, how_to_convert(value, "int" if self.whole else "float"))
        if not self.whole:
            try:
                number = float(number)
            except OverflowError:
                number = math.inf
            if not (self.may_be_nan or math.isfinite(number)):
                raise Refused(ValueError, value, self)
        return number


@dataclass(frozen=True)
class ClassDomain(Domain):
    """An instance of a class."""

    cls: type = object

    def read(self, value: Any) -> Any:
        if isinstance(value, self.cls):
            return value
        if isinstance(value, type):
            raise Refused(TypeError, value, self, f"that is a class: make one with {value.__name__}(...)")
        raise Refused(TypeError, value, self, MENDS.get(qualified(self.cls), ""))


@dataclass(frozen=True)
class TensorDomain(ClassDomain):
    """A tensor whose numbers lie in memory one by one."""

    def read(self, value: Any) -> Any:
        super().read(value)
        if value.layout is not torch.strided:
            raise Refused(TypeError, value, self, f"it is {value.layout}: pass .to_dense()")
        return value


@dataclass(frozen=True)
class RecordDomain(ClassDomain):
    """A NamedTuple or a TypedDict, whose fields are read too."""

    fields: tuple[tuple[str, Domain], ...] = ()
    required: frozenset[str] = frozenset()

    def read(self, value: Any) -> Any:
        record = super().read(value)
        given = record if self.cls is dict else record._asdict()
        if lacking := sorted(self.required - given.keys()):
            raise Refused(TypeError, value, self, f"it has no {', '.join(lacking)}")
        read = {name: read_within(each, name, given[name]) for name, each in self.fields if name in given}
        return read if self.cls is dict else record._replace(**read)


@dataclass(frozen=True)
class ProtocolDomain(Domain):
    """An instance of a class with the members of a protocol."""

    cls: type = object
    members: tuple[str, ...] = ()

    def read(self, value: Any) -> Any:
        mend = MENDS.get(qualified(self.cls), "")
        if isinstance(value, type):
            raise Refused(TypeError, value, self, f"that is a class: make one with {value.__name__}(...)")
        lacking = [name for name in self.members if not (hasattr(type(value), name) or hasattr(value, name))]
        if lacking:
            has = f"it has no {', '.join(lacking)}" if len(lacking) < len(self.members) else ""
            raise Refused(TypeError, value, self, "; ".join(filter(None, (has, mend))))
        return value


@dataclass(frozen=True)
class PathDomain(Domain):
    """A path with a name; an empty one would be the working directory."""

    def read(self, value: Any) -> Any:
        if not isinstance(value, str | Path):
            raise Refused(TypeError, value, self, "pass a string or a pathlib.Path")
        if str(value) in ("", ".") or "\0" in str(value):
            raise Refused(ValueError, value, self, "name it; the working directory is pathlib.Path.cwd()")
        return value


@dataclass(frozen=True)
class LiteralDomain(Domain):
    """One of a few values."""

    values: tuple[Any, ...] = ()

    @property
    def example(self) -> str:
        return repr(self.values[0])

    def read(self, value: Any) -> Any:
        if isinstance(value, np.bool_ | np.str_):
            value = value.item()
        if any(type(value) is type(each) and value == each for each in self.values):
            return value
        kind = ValueError if any(type(value) is type(each) for each in self.values) else TypeError
        near = (
            difflib.get_close_matches(value, [each for each in self.values if isinstance(each, str)], 1)
            if isinstance(value, str)
            else []
        )
        raise Refused(kind, value, self, f"did you mean {near[0]!r}?" if near else "")


@dataclass(frozen=True)
class CallableDomain(Domain):
    """A function that can be called with so many arguments; None for any number."""

    arguments: int | None = None

    def read(self, value: Any) -> Any:
        if not callable(value):
            raise Refused(TypeError, value, self, "pass a function")
        if self.arguments is not None and not takes(value, self.arguments):
            raise Refused(TypeError, value, self, "change its parameters, or wrap it in a lambda")
        return value


@dataclass(frozen=True)
class SequenceDomain(Domain):
    """Elements in order (`count` of them, where given); one-dimensional arrays too, but no string."""

    element: Domain = Domain()
    container: type = Sequence
    count: int | None = None

    def read(self, value: Any) -> Any:
        array = self.container is Sequence and isinstance(value, np.ndarray) and value.ndim == 1
        if isinstance(value, str | bytes) or not (array or isinstance(value, self.container)):
            mend = f"put it in brackets: [{shown(value, typed=False)}]" if holds(self.element, value) else ""
            raise Refused(TypeError, value, self, mend)
        if self.container is Iterable and type(value) not in (list, tuple, set):
            return value  # made as it is read: to look at its elements would use it up, or take long
        if self.count is not None and len(value) != self.count:
            raise Refused(ValueError, value, self)
        read = [read_within(self.element, at, each) for at, each in enumerate(value)]
        if array:
            return read
        return value if all(map(is_same, read, value)) else type(value)(read) if type(value) in (list, tuple) else read


@dataclass(frozen=True)
class MappingDomain(Domain):
    """Values by key."""

    key: Domain = Domain()
    value: Domain = Domain()

    def read(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise Refused(TypeError, value, self, "pass a dict, {name: value}")
        read = {self.key.read(key): read_within(self.value, key, each) for key, each in value.items()}
        return value if all(map(is_same, read.values(), value.values())) else read


@dataclass(frozen=True)
class UnionDomain(Domain):
    """One of several domains."""

    members: tuple[Domain, ...] = ()
    optional: bool = False

    @property
    def example(self) -> str:
        return self.members[0].example

    def read(self, value: Any) -> Any:
        if value is None and self.optional:
            return None
        refusals = []
        for member in self.members:
            try:
                return member.read(value)
            except Refused as refused:
                refusals.append(refused)
        nearest = [each for each in refusals if each.kind is ValueError or each.place]
        if len(refusals) == 1 or nearest:
            closest = (nearest or refusals)[0]
            if not closest.place and (len(refusals) > 1 or self.optional):
                closest.expected, closest.domain = self.expected, self
            raise closest
        mends = dict.fromkeys(each.mend for each in refusals if each.mend)
        raise Refused(TypeError, value, self, ", or ".join(mends))


@dataclass(frozen=True)
class Conditioned(Domain):
    """A domain with conditions."""

    domain: Domain = Domain()
    conditions: tuple[Any, ...] = ()
    mend: str = ""

    def read(self, value: Any) -> Any:
        given = value
        try:
            value = self.domain.read(value)
        except Refused as refused:
            if not refused.place:
                refused.expected = self.expected if refused.expected == self.domain.expected else refused.expected
                refused.domain = self
                refused.mend = refused.mend if refused.mend.startswith("that is a class") else self.mend or refused.mend
            raise
        if value is None and isinstance(self.domain, UnionDomain):  # which has allowed it
            return None
        for condition in self.conditions:
            if not condition.holds(value):
                failure = Refused(self.failed, given, self, self.mend or getattr(condition, "mend", ""))
                failure.expected = self.expected_by(condition)
                raise failure
            value = condition.read(value) if hasattr(condition, "read") else value
        return value

    @property
    def example(self) -> str:
        bounds = next((each for each in self.conditions if isinstance(each, Within)), None)
        return plain(bounds.example) if bounds else self.domain.example

    @property
    def failed(self) -> type[TypeError | ValueError]:
        return TypeError if any(isinstance(each, Kind) for each in self.conditions) else ValueError

    def expected_by(self, condition: Any) -> str:
        return self.expected if condition.expected in self.expected else f"{self.expected}, {condition.expected}"


def read_within(domain: Domain, key: object, value: object) -> Any:
    """Read an element of an argument."""
    try:
        return domain.read(value)
    except Refused as refused:
        raise refused.within(key) from None


def is_same(one: object, other: object) -> bool:
    return one is other


def holds(domain: Domain, value: object) -> bool:
    """Whether a value lies in a domain; nothing does in the domain of everything, which says nothing."""
    try:
        domain.read(value)
    except Refused:
        return False
    return type(domain) is not Domain


@functools.cache
def domain_of(hint: Any) -> Domain:
    """The domain that an annotation declares; raises TypeError for one that declares none."""
    origin, given = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return conditioned(hint)
    if origin is typing.NotRequired:
        return domain_of(given[0])
    if hint is int:
        return NumberDomain("a whole number")
    if hint is float:
        return NumberDomain("a finite number", whole=False)
    if hint is bool:
        return LiteralDomain("True or False", (True, False))
    if hint is str:
        return ClassDomain("a string", str)
    if hint is Path:
        return PathDomain("a path that is not empty")
    if origin is Literal:
        return LiteralDomain(f"one of {given}", given)
    if origin in (typing.Union, types.UnionType):
        return union(given)
    if (origin is not None and origin is Callable) or hint is Callable:
        count = len(given[0]) if given and isinstance(given[0], list) else None
        return CallableDomain("callable" if count is None else f"callable with {count} arguments", count)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, value = map(element_of, given)
        return MappingDomain(f"a mapping of {plural(key)} to {plural(value)}", key, value)
    if origin is tuple and given and given[-1] is not Ellipsis:
        element = union(given) if len(set(given)) > 1 else domain_of(given[0])
        return SequenceDomain(f"a tuple of {len(given)}: {plural(element)}", element, tuple, len(given))
    if isinstance(origin, type) and issubclass(origin, Iterable) and origin is not np.ndarray:
        element, container = element_of(given[0]), origin
        name = {Sequence: "list", Iterable: "list"}.get(container, container.__name__)
        return SequenceDomain(f"a {name} of {plural(element)}", element, container)
    cls = origin or hint
    if cls is typing.IO:
        return ClassDomain("an open file", io.IOBase)
    if typing.is_typeddict(cls):
        return RecordDomain(f"a dict of {cls.__name__}", dict, fields_of(cls), cls.__required_keys__)
    if cls is object:
        return Domain()
    if not isinstance(cls, type) or cls is Any:
        raise TypeError(f"{hint} declares no domain: name a class, or add conditions with Annotated")
    article = "an" if cls.__name__[0] in "AEIO" else "a"
    if getattr(cls, "_is_protocol", False):
        inherited = [each for each in cls.__mro__ if getattr(each, "_is_protocol", False)]
        members = {name for each in inherited for name in (*vars(each), *vars(each).get("__annotations__", {}))}
        public = sorted(each for each in members if not each.startswith("_"))
        return ProtocolDomain(f"{article} {cls.__name__}", cls, tuple(public))
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return RecordDomain(f"{article} {cls.__name__}", cls, fields_of(cls))
    if cls is torch.Tensor:
        return TensorDomain("a Tensor", cls)
    return ClassDomain(f"{article} {cls.__name__}", cls)


def fields_of(cls: Any) -> tuple[tuple[str, Domain], ...]:
    """The domains of the fields of a NamedTuple or TypedDict."""
    return tuple((name, domain_of(hint)) for name, hint in typing.get_type_hints(cls, include_extras=True).items())


def element_of(hint: Any) -> Domain:
    """The domain of what a container holds, of which may be left open what it is."""
    return Domain() if hint is Any else domain_of(hint)


def conditioned(hint: Any) -> Domain:
    """The domain of an `Annotated`."""
    inner, *metadata = get_args(hint)
    mend = next((each.text for each in metadata if isinstance(each, Mend)), "")
    conditions = tuple(each for each in metadata if hasattr(each, "holds"))
    if inner is Any or any(isinstance(each, Kind) for each in conditions):
        if any(isinstance(each, Anything) for each in metadata):
            return Domain()
        if not conditions:
            raise TypeError(f"{hint} declares no domain: say why with Anything")
        return Conditioned(conditions[0].expected, Domain(), conditions, mend)
    if any(isinstance(each, OrNaN) for each in metadata):
        return NumberDomain("a number or NaN", whole=False, may_be_nan=True)
    domain = domain_of(inner)
    texts = [each.expected for each in conditions if not isinstance(each, Limit)]
    between = " " if isinstance(domain, NumberDomain) else ", "
    return Conditioned(between.join([domain.expected, *filter(None, texts)]), domain, conditions, mend)


def union(hints: tuple[Any, ...]) -> Domain:
    """The domain of a union; a string beside a Path is a path."""
    members = dict.fromkeys(each for each in hints if each is not types.NoneType)
    if Path in members:
        members.pop(str, None)
    domains = tuple(sorted(map(domain_of, members), key=lambda each: not isinstance(each, ClassDomain)))
    optional = types.NoneType in hints
    expected = " or ".join(each.expected for each in domains) + (", or None" if optional else "")
    return UnionDomain(expected, domains, optional)


def plural(domain: Domain) -> str:
    """What a domain holds, as elements of a container."""
    if isinstance(domain, UnionDomain):
        return " or ".join([*map(plural, domain.members), *(["None"] if domain.optional else [])])
    text = domain.expected
    for article in ("a ", "an "):
        if text.startswith(article):
            noun, _, rest = text.removeprefix(article).partition(" ")
            if noun in ("whole", "finite"):
                return f"{noun} numbers{rest.removeprefix('number')}"
            return f"{noun.removesuffix('s')}s{' ' * bool(rest)}{rest}"
    return text


# Words.


def shown(value: object, typed: bool = True) -> str:
    """A value for a message: its repr, cut short, and its type."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = qualified(type(value)).removeprefix("builtins.")
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{kind} of shape {list(value.shape)} and {value.dtype}"
    text = " ".join(SHOWN.repr(value).split())
    if len(text) > 80:
        text = f"{text[:77]}..."
    return f"{text} ({kind})" if typed else text


def qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def how_to_convert(value: object, kind: str) -> str:
    """How a number may be meant by something that is none."""
    if (hasattr(value, "item") and getattr(value, "size", None) == 1) or getattr(value, "ndim", None) == 0:
        return "take the number out with .item()"
    if isinstance(value, str | float):
        return f"convert it with {kind}(...)"
    return ""


def takes(function: Callable[..., object], count: int) -> bool:
    """Whether a function can be called with so many arguments, as far as it says."""
    forward = getattr(type(function), "forward", None)  # of an nn.Module, which hides its own signature
    try:
        inspect.signature(function if forward is None else function.forward).bind(*[None] * count)  # type: ignore[attr-defined]
    except TypeError:
        return False
    except ValueError:  # a builtin that says nothing
        return True
    return True


def array_kind(value: Any) -> str:
    """The kind of numpy's dtype for what a value makes, "-" for what makes no array of one dimension or more."""
    if isinstance(value, str | bytes | Mapping) or not (hasattr(value, "__array__") or isinstance(value, Sequence)):
        return "-"
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return "-"
    return array.dtype.kind if array.ndim else "-"
