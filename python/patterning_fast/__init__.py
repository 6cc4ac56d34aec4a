"""Susceptibilities of a trained network, the data that would change it as wanted, and training on that data."""

from importlib.metadata import version

import torch  # noqa: F401  loaded first, so that the kernels share its OpenMP threads

from patterning_fast import ops
from patterning_fast.categories import (
    BiasWarning,
    BlindWarning,
    BudgetWarning,
    DamagedWarning,
    DivergedWarning,
    PatterningWarning,
    SubstitutionWarning,
    UnsettledWarning,
    WholeModelWarning,
)
from patterning_fast.engine.calibrated import Calibrated, calibrated
from patterning_fast.engine.calibration import calibrate
from patterning_fast.engine.linear_response import linear_response
from patterning_fast.engine.run import ChainDivergedError
from patterning_fast.engine.sample import sample
from patterning_fast.engine.trace_checksums import load_traces
from patterning_fast.estimators.aggregation import aggregate
from patterning_fast.estimators.extrapolation import extrapolate
from patterning_fast.estimators.intervals import intervals
from patterning_fast.estimators.statistics import Statistics
from patterning_fast.estimators.training_response import training_response
from patterning_fast.ops.library import use_backend
from patterning_fast.ops.sparse_features import SparseFeatures
from patterning_fast.patterning.adaptive import AdaptiveRun, PosteriorSampling, train_towards
from patterning_fast.patterning.constraints import Constraints
from patterning_fast.patterning.embedding import embed_data
from patterning_fast.patterning.extremes import extreme_data
from patterning_fast.patterning.fluctuation_dissipation import fluctuation_dissipation
from patterning_fast.patterning.importance import importance_check
from patterning_fast.patterning.inversion import invert
from patterning_fast.patterning.matching import match_modes
from patterning_fast.patterning.modes import Mode, Modes, modes
from patterning_fast.patterning.plan import Plan
from patterning_fast.patterning.targets import InfeasibleTargetError, between_solutions
from patterning_fast.patterning.verification import verify
from patterning_fast.posterior import losses
from patterning_fast.posterior.components import Component, attention_heads, component, layers
from patterning_fast.posterior.gathering import as_data
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.naming import components
from patterning_fast.posterior.preview import preview
from patterning_fast.posterior.weights import spread_weights
from patterning_fast.samplers.rmsprop_sgld import RMSPropSGLD
from patterning_fast.samplers.sghmc import SGHMC
from patterning_fast.samplers.sgld import SGLD
from patterning_fast.samplers.sgnht import SGNHT
from patterning_fast.training.adjoint import training_adjoint
from patterning_fast.training.huggingface import TrainerLoss
from patterning_fast.training.metasmoothness import metasmoothness
from patterning_fast.training.replicas import train_replicas
from patterning_fast.training.train import train, weighted_loss
from patterning_fast.training.weights_file import load_weights, save_weights

__version__ = version("patterning_fast")

__all__ = [
    "SGHMC",
    "SGLD",
    "SGNHT",
    "AdaptiveRun",
    "BiasWarning",
    "BlindWarning",
    "BudgetWarning",
    "Calibrated",
    "ChainDivergedError",
    "Component",
    "Constraints",
    "DamagedWarning",
    "DivergedWarning",
    "InfeasibleTargetError",
    "LocalPosterior",
    "Mode",
    "Modes",
    "PatterningWarning",
    "Plan",
    "PosteriorSampling",
    "RMSPropSGLD",
    "SparseFeatures",
    "Statistics",
    "SubstitutionWarning",
    "TrainerLoss",
    "UnsettledWarning",
    "WholeModelWarning",
    "aggregate",
    "as_data",
    "attention_heads",
    "between_solutions",
    "calibrate",
    "calibrated",
    "component",
    "components",
    "embed_data",
    "extrapolate",
    "extreme_data",
    "fluctuation_dissipation",
    "importance_check",
    "intervals",
    "invert",
    "layers",
    "linear_response",
    "load_traces",
    "load_weights",
    "losses",
    "match_modes",
    "metasmoothness",
    "modes",
    "ops",
    "preview",
    "sample",
    "save_weights",
    "spread_weights",
    "train",
    "train_replicas",
    "train_towards",
    "training_adjoint",
    "training_response",
    "use_backend",
    "verify",
    "weighted_loss",
]
