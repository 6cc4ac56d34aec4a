"""What a run is: all that its numbers depend on, as plain JSON with hashes in place of tensors and code."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from patterning_fast.chains.plan import ChainPlan
from patterning_fast.engine.evaluation import EvaluationSet, Precision
from patterning_fast.ops.sparse_features import SparseFeatures
from patterning_fast.posterior.components import Component
from patterning_fast.posterior.data import parts_of
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Data
from patterning_fast.samplers.langevin import Sampler

Identity = dict[str, Any]
"""Nested JSON: names to hashes, and the configuration in clear."""

VERSIONS = "versions"
"""Section of an identity in which a run may differ from its checkpoint, where that is allowed."""

BYTECODE = "bytecode"
"""Key of the hash of a function's code. Another version of Python or of a library compiles other code."""

STRUCTURE = "structure"
"""Section of an identity that says the model's parts in words."""

LONGEST = 200
"""Characters of a list that is kept in clear; a longer one is hashed."""

LONGEST_MAPPING = 5000
"""The same of a mapping: a model's configuration is kept in clear, a vocabulary is not."""

TELLING_NOTHING = {"training", "name_or_path", "generation_config"}
"""Attributes of modules that no loss depends on: the mode, which is always eval, and what Hugging Face adds."""

DEEPEST = 6
"""Objects within objects that are described; what lies deeper is known by its class."""

ROUNDING: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 5e-2}
"""How far the losses of one model may lie apart on two machines, relative to their root mean square.

float32 rounds by 6e-8, bfloat16 by 4e-3; instruction sets add in different orders, through tens of layers.
"""

LEAST_ROUNDING = 1e-6
"""The same in nats, for models that fit their data exactly."""


def run_identity(
    posterior: LocalPosterior,
    sampler: Sampler,
    plan: ChainPlan,
    sets: list[EvaluationSet],
    observables: Mapping[str, Callable[..., Any]],
    configuration: Mapping[str, Any],
) -> Identity:
    """What tells a run from others: configuration, structure, code, and hashes of parameters and data."""
    return as_read_back({
        "configuration": dict(configuration),
        "sampler": described(sampler),
        **model_identity(posterior.model),
        "loss": described(posterior.loss),
        "random_loss": posterior.random_loss,
        "observables": {name: described(each) for name, each in observables.items()},
        "data": digests(posterior.data),
        "weights": None if posterior.weights is None else digest(posterior.weights),
        "components": {each.name: coordinates(each) for each in plan.components},
        "probes": {each.name: [*digests(each.data), f"losses {list(each.loss_shape)}"] for each in sets},
        VERSIONS: versions(posterior.model),
    })  # fmt: skip


def as_read_back(identity: Mapping[str, Any]) -> Identity:
    """An identity as JSON gives it back: tuples are lists, keys are strings."""
    return json.loads(json.dumps(identity))


def versions(model: nn.Module) -> dict[str, str]:
    """Of Python, torch, this library, and the package that the model's class is from."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "torch": str(torch.__version__)}
    for package in ("patterning_fast", package_of(type(model))):
        try:
            found.setdefault(package, version(package))
        except PackageNotFoundError:  # code that is not installed as a package
            continue
    return found


def model_identity(model: nn.Module) -> Identity:
    """The model's modules in words, their code, and hashes of parameters and buffers."""
    description, words, code = Description(), dict[str, Any](), dict[str, Any]()
    for name, module in model.named_modules(remove_duplicate=False):
        words[f"the model's {name}" if name else "the model"] = module_in_words(module)
        if package_of(type(module)) != "torch":
            forward = inspect.unwrap(type(module).forward)
            code.setdefault(code_name(module), description.of_function(forward, type(module)))
        for key, value in settings(module).items():
            place = f"{name}.{key}" if name else key
            if is_dataclass(value) or hasattr(value, "to_dict"):  # a configuration
                if not description.knows(value):
                    words[f"the model's {place}"] = description.of(value)
            elif callable(value):
                code[place] = description.of(value)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {STRUCTURE: words, "code": code, "model": {name: digest(tensor) for name, tensor in tensors}}


def module_in_words(module: nn.Module) -> str:
    """Class and configuration of a module without its children: `nn.Dropout(p=0.1, inplace=False)`."""
    words = re.sub(r" at 0x[0-9a-f]+", "", module.extra_repr())
    said = [words] if words else []
    for name, value in settings(module).items():
        if f"{name}=" not in words:
            if callable(value):
                said.append(f"{name}={code_name(value)}")
            elif is_plain(value):
                said.append(f"{name}={shortened(described(value))}")
    name = re.sub(r"^torch\.nn\.modules\.\w+\.", "nn.", code_name(module))
    return f"{name}({', '.join(said)})"


def settings(module: nn.Module) -> dict[str, Any]:
    """Attributes of a module that are neither parameters, buffers nor children."""
    return {name: value for name, value in public(module).items() if name not in TELLING_NOTHING}


def public(value: object) -> dict[str, Any]:
    """Attributes of an object whose names do not begin with an underscore."""
    slots = [name for each in type(value).__mro__ for name in getattr(each, "__slots__", ())]
    own = vars(value) if hasattr(value, "__dict__") else {}
    named = {name: getattr(value, name) for name in slots if hasattr(value, name)} | own
    return {name: each for name, each in named.items() if not name.startswith("_")}


def is_plain(value: object) -> bool:
    """Whether a value is a number, a string, or a list of them."""
    if isinstance(value, list | tuple):
        return all(is_plain(each) for each in value)
    return isinstance(value, bool | int | float | str | Enum | torch.dtype | torch.device | None)


def described(value: object) -> Any:
    """Any value as JSON that is the same in every process: without addresses, and without the order of sets.

    Functions by name, code, closure, defaults, and the plain globals and functions of their module that they use;
    objects by class, public attributes, and the code of a call; tensors and long lists by hash.
    """
    return Description().of(value)


class Description:
    """Describes values; a function or an object that comes twice is described once and named from then on."""

    def __init__(self) -> None:
        self.known: dict[int, object] = {}
        self.depth = 0

    def knows(self, value: object) -> bool:
        return id(value) in self.known

    def of(self, value: object) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Enum | torch.dtype | torch.device):
            return str(value)
        if isinstance(value, np.generic):
            return self.of(value.item())
        if isinstance(value, Tensor):
            return digest(value)
        if isinstance(value, np.ndarray):
            return digest(torch.from_numpy(value.copy())) if value.dtype.kind in "biufc" else self.of(value.tolist())
        if isinstance(value, xr.DataArray | xr.Dataset):
            return hashed(self.of(value.to_dict(data="list")))
        if isinstance(value, Component):
            return coordinates(value)
        if isinstance(value, Mapping):
            return shortened({str(name): self.of(each) for name, each in value.items()}, LONGEST_MAPPING)
        if isinstance(value, list | tuple):
            return shortened([self.of(each) for each in value])
        if isinstance(value, Set):
            return shortened(sorted((self.of(each) for each in value), key=json.dumps))
        if isinstance(value, ModuleType):
            return value.__name__
        if isinstance(value, type) or self.knows(value) or self.depth >= DEEPEST:
            return code_name(value)
        self.depth += 1
        try:
            return self.once(value)
        finally:
            self.depth -= 1

    def once(self, value: object) -> Any:
        """What comes for the first time, and may hold itself."""
        if isinstance(value, FunctionType):
            return self.of_function(value)
        self.known[id(value)] = value
        if isinstance(value, partial):
            named = {name: self.of(each) for name, each in value.keywords.items()}
            return {"partial": self.of(value.func), "arguments": self.of(value.args)} | named
        if isinstance(value, MethodType):
            return {"method": self.of_function(value.__func__, type(value.__self__)), "of": self.of(value.__self__)}
        if isinstance(value, SparseFeatures):
            return digests(value)
        if isinstance(value, nn.Module):
            return {"name": code_name(value), **model_identity(value)}
        if hasattr(value, "__wrapped__"):  # by functools.lru_cache and its like
            return {"name": code_name(value), "wraps": self.of(value.__wrapped__)}
        call = inspect.getattr_static(value, "__call__", None)
        code = {"call": self.of_function(call, type(value))} if isinstance(call, FunctionType) else {}
        return {"name": code_name(value)} | code | {name: self.of(each) for name, each in public(value).items()}

    def of_function(self, function: Any, owner: type | None = None) -> dict[str, Any]:
        """A function, or a method of `owner`. Of torch and of this library it is known by its name and version."""
        found: dict[str, Any] = {"name": code_name(function)}
        if not isinstance(function, FunctionType):
            return found
        package = package_of(function)
        if self.knows(function) or package == "torch":
            inner = getattr(function, "__wrapped__", None)
            return found if inner is None or self.knows(function) else found | {"wraps": self.of(inner)}
        self.known[id(function)] = function
        found["closure"] = {
            name: self.of(cell.cell_contents)
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
            if name != "__class__" and filled(cell)
        }
        found["defaults"] = [self.of(each) for each in function.__defaults__ or ()]
        found["keywords"] = self.of(function.__kwdefaults__ or {})
        if package != "patterning_fast":
            found[BYTECODE] = bytecode(function.__code__)
            found["uses"] = {name: self.of(each) for name, each in used(function, owner)}
        return {name: each for name, each in found.items() if each not in ({}, [])}


def filled(cell: Any) -> bool:
    """Whether a variable of a closure has a value yet."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def used(function: FunctionType, owner: type | None) -> Iterator[tuple[str, object]]:
    """What a function uses of its module and its class: plain values, tensors, and functions."""
    for name in sorted(set(names_in(function.__code__))):
        value = function.__globals__.get(name)
        ours = isinstance(value, FunctionType) and value.__globals__ is function.__globals__
        if name in function.__globals__ and (ours or isinstance(value, Tensor) or is_plain(value)):
            yield name, value
        method = inspect.getattr_static(owner, name, None)
        if isinstance(method, FunctionType) and package_of(method) != "torch":
            yield f"method {name}", method


def names_in(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes in a function and the functions within it."""
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from names_in(each)


def bytecode(code: CodeType) -> str:
    """Hash of what a function does, whatever lines and documentation it has."""
    running = hashlib.blake2b(code.co_code, digest_size=16)
    running.update(repr((code.co_names, code.co_freevars, code.co_cellvars, code.co_exceptiontable)).encode())
    for at, each in enumerate(code.co_consts):
        if isinstance(each, CodeType):
            running.update(bytecode(each).encode())
        elif isinstance(each, frozenset):
            running.update(repr(sorted(map(repr, each))).encode())
        elif at or not isinstance(each, str):  # the first string is the documentation, or counts for nothing else
            running.update(repr(each).encode())
    return running.hexdigest()


def package_of(code: Any) -> str:
    """The package that a class or function is from."""
    return str(code.__module__).partition(".")[0]


def code_name(code: object) -> str:
    """Module and name of a function, or of an object's class."""
    named: Any = code if hasattr(code, "__qualname__") else type(code)
    return f"{getattr(named, '__module__', 'builtins')}.{named.__qualname__}"


def shortened(value: Any, longest: int = LONGEST) -> Any:
    """JSON as it is, or its hash where it is long."""
    return value if len(json.dumps(value)) <= longest else hashed(value)


def hashed(value: Any) -> str:
    """Hash of JSON."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def digest(tensor: Tensor) -> str:
    """blake2b of dtype, shape and bytes."""
    tensor = tensor.detach().cpu().contiguous()
    running = hashlib.blake2b(f"{tensor.dtype} {list(tensor.shape)}".encode(), digest_size=16)
    running.update(tensor.flatten().view(torch.uint8).numpy().data)
    return running.hexdigest()


def digests(data: Data) -> list[str]:
    """One hash for each tensor of the data; of those made on the spot, what they are made from."""
    if isinstance(data, Mapping):
        return [f"{name} {digest(each)}" for name, each in data.items()]
    return [
        f"{digest(each.presence)} {len(each)} {each.seed}" if isinstance(each, SparseFeatures) else digest(each)
        for each in parts_of(data)
    ]


def coordinates(component: Component) -> dict[str, str]:
    """Parameter name to a hash of the coordinates that move."""
    return {name: "all" if index is None else digest(index) for name, index in component.coordinates.items()}


def comparable(identity: Identity, code: bool = True) -> dict[str, Any]:
    """What two runs must have in common, by dotted key; `code` of functions only where it is of the same versions."""
    return {
        name: value
        for name, value in flat(identity).items()
        if not name.startswith(f"{VERSIONS}.") and (code or not name.endswith(f".{BYTECODE}"))
    }


def fingerprint(identity: Identity) -> str:
    """One hash of a whole identity, whatever the versions."""
    return hashed(comparable(identity, code=False))


def differences(theirs: Identity, ours: Identity) -> list[str]:
    """Where two identities differ, one line each: `key: value there, value here`."""
    there, here = flat(theirs), flat(ours)
    keys = [*here, *(key for key in there if key not in here)]
    return [
        said(key, there.get(key, "nothing"), here.get(key, "nothing"))
        for key in keys
        if key not in there or key not in here or there[key] != here[key]
    ]


def said(key: str, there: object, here: object) -> str:
    """A difference in words."""
    section, _, name = key.partition(".")
    if section == STRUCTURE:
        return f"{name} is {there} there, {here} here"
    if key.endswith(f".{BYTECODE}"):
        return f"{key.removesuffix(f'.{BYTECODE}')}: its code is another here"
    return f"{key}: {there} there, {here} here"


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with keys joined by dots."""
    values: dict[str, Any] = {}
    for key, value in nested.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def check_losses(there: Tensor, here: Tensor, precision: Precision = "float32") -> None:
    """Raise ValueError unless losses at w* are those of a checkpoint, but for what machines round differently."""
    there, here = there.double().cpu(), here.double().cpu()
    apart = (there - here).abs()
    most = ROUNDING[precision] * float(there.square().mean().sqrt()) + LEAST_ROUNDING
    if not bool((apart <= most).all()):
        at = int(apart.nan_to_num(torch.inf).argmax())
        raise ValueError(
            f"the checkpoint is of another run: the loss at w* is {float(there[at]):g} there and {float(here[at]):g} "
            "here. The code of the model or of the loss has changed: undo that, or name another folder"
        )
