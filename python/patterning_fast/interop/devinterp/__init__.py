"""devinterp 2.0.1's interface, computed by this library's engine: change the import line, and a script runs as before.

Arguments, results and definitions are devinterp's; what it takes and this library does not is refused by name. See
docs/devinterp.md for what differs, and for what to use beyond it.
"""

from patterning_fast.interop.devinterp.influence import bif, compute_bif
from patterning_fast.interop.devinterp.learning_coefficient import compute_llc, llc
from patterning_fast.interop.devinterp.masks import create_param_masks, preview_weight_restriction
from patterning_fast.interop.devinterp.response import compute_susceptibilities, susceptibilities
from patterning_fast.interop.devinterp.sampling import sample
from patterning_fast.interop.devinterp.text import default_nbeta, tokenize_and_concatenate

__all__ = [
    "bif",
    "compute_bif",
    "compute_llc",
    "compute_susceptibilities",
    "create_param_masks",
    "default_nbeta",
    "llc",
    "preview_weight_restriction",
    "sample",
    "susceptibilities",
    "tokenize_and_concatenate",
]
