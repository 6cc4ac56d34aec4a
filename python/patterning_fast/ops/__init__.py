"""The kernels, as torch ops: contract, checks and dispatch. Each is defined by its namesake in `ops.reference`."""

from patterning_fast.ops.comoments_update import comoments_update, loss_comoments_update
from patterning_fast.ops.dense_stack import DenseLayer, DenseStack, dense_draws, dense_losses, dense_steps
from patterning_fast.ops.fused_draw import fused_draw
from patterning_fast.ops.langevin_step import SGHMC, SGNHT, RMSProp, StepStatistics, langevin_step
from patterning_fast.ops.library import use_backend
from patterning_fast.ops.linear_cross_entropy import linear_cross_entropy, weighted_linear_cross_entropy
from patterning_fast.ops.normal import normal_
from patterning_fast.ops.per_sample_langevin_step import per_sample_langevin_step
from patterning_fast.ops.rotary_attention import rotary_attention
from patterning_fast.ops.sparse_features import SparseFeatures
from patterning_fast.ops.weighted_cross_entropy import weighted_cross_entropy

__all__ = [
    "SGHMC",
    "SGNHT",
    "DenseLayer",
    "DenseStack",
    "RMSProp",
    "SparseFeatures",
    "StepStatistics",
    "comoments_update",
    "dense_draws",
    "dense_losses",
    "dense_steps",
    "fused_draw",
    "langevin_step",
    "linear_cross_entropy",
    "loss_comoments_update",
    "normal_",
    "per_sample_langevin_step",
    "rotary_attention",
    "use_backend",
    "weighted_cross_entropy",
    "weighted_linear_cross_entropy",
]
