"""Susceptibilities of a trained network, the data that would change it as wanted, and training on that data."""

import torch  # noqa: F401  loaded first, so that the kernels share its OpenMP threads

from patterning_fast import ops
from patterning_fast.engine.sample import ChainDivergedError, sample
from patterning_fast.posterior import losses
from patterning_fast.posterior.components import Component, attention_heads, component, layers
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.samplers.sgld import SGLD

__all__ = [
    "SGLD",
    "ChainDivergedError",
    "Component",
    "LocalPosterior",
    "attention_heads",
    "component",
    "layers",
    "losses",
    "ops",
    "sample",
]
