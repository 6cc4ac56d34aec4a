"""What a run is: all that its numbers depend on, as plain JSON with hashes in place of tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from patterning_fast.chains.plan import ChainPlan
from patterning_fast.engine.evaluation import EvaluationSet
from patterning_fast.ops.sparse_features import SparseFeatures
from patterning_fast.posterior.components import Component
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Data

Identity = dict[str, Any]
"""Nested JSON: names to hashes, and the configuration in clear."""


def run_identity(
    posterior: LocalPosterior,
    plan: ChainPlan,
    sets: list[EvaluationSet],
    observables: Mapping[str, Callable[..., Any]],
    configuration: Mapping[str, Any],
) -> Identity:
    """What tells a run from others: configuration, and hashes of model, data, weights, components and probes.

    The code of model, loss and observables is known by name alone: a body that changed under the same name is not
    noticed.
    """
    tensors = [*posterior.model.named_parameters(), *posterior.model.named_buffers()]
    identity = {
        "configuration": dict(configuration),
        "code": {"model": code_name(posterior.model), "loss": code_name(posterior.loss)},
        "observables": {name: code_name(each) for name, each in observables.items()},
        "model": {name: digest(tensor) for name, tensor in tensors},
        "data": digests(posterior.data),
        "weights": None if posterior.weights is None else digest(posterior.weights),
        "components": {each.name: coordinates(each) for each in plan.components},
        "probes": {each.name: digests(each.data) for each in sets},
    }
    return json.loads(json.dumps(identity))  # as it will be read back: tuples are lists, keys are strings


def code_name(code: object) -> str:
    """Module and name of a function, or of an object's class."""
    named = code if hasattr(code, "__qualname__") else type(code)
    return f"{named.__module__}.{named.__qualname__}"


def digest(tensor: Tensor) -> str:
    """blake2b of dtype, shape and bytes."""
    tensor = tensor.detach().cpu().contiguous()
    running = hashlib.blake2b(f"{tensor.dtype} {list(tensor.shape)}".encode(), digest_size=16)
    running.update(tensor.flatten().view(torch.uint8).numpy().data)
    return running.hexdigest()


def digests(data: Data) -> list[str]:
    """One hash for each tensor of the data; of those made on the spot, what they are made from."""
    return [
        f"{digest(each.presence)} {len(each)} {each.seed}" if isinstance(each, SparseFeatures) else digest(each)
        for each in (data if isinstance(data, tuple) else (data,))
    ]


def coordinates(component: Component) -> dict[str, str]:
    """Parameter name to a hash of the coordinates that move."""
    return {name: "all" if index is None else digest(index) for name, index in component.coordinates.items()}


def fingerprint(identity: Identity) -> str:
    """One hash of a whole identity."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def differences(theirs: Identity, ours: Identity) -> list[str]:
    """Where two identities differ, one line each: `key: value there, value here`."""
    there, here = flat(theirs), flat(ours)
    keys = [*here, *(key for key in there if key not in here)]
    return [
        f"{key}: {there.get(key, 'nothing')} there, {here.get(key, 'nothing')} here"
        for key in keys
        if key not in there or key not in here or there[key] != here[key]
    ]


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with keys joined by dots."""
    values: dict[str, Any] = {}
    for key, value in nested.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values
