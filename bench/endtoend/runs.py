"""The runs that the figures are made of, in the order in which they take turns."""

from __future__ import annotations

from bench.endtoend.contestant import Run

OURS_A = [Run("ours", "A", 4, 50, 2, seed=seed) for seed in (1, 2, 3)]
DEVINTERP_A = [Run("devinterp", "A", 4, 50, 2, seed=seed) for seed in (0, 1)]
OURS_B, DEVINTERP_B = Run("ours", "B", 2, 50, 2), Run("devinterp", "B", 1, 50, 2)  # one chain tells no errors
LONG = Run("ours", "A", 40, 50, 2, "burned-in", seed=9)
"""The reference of figure C, and the run of at least ten minutes that C2 is extrapolated from."""
RESPONSE = Run("ours", "A", 4, 15, 2, "response", seed=5)
THINNED = Run("ours", "A", 4, 50, 2, "thinned", seed=4)
FEW_DRAWS, MANY_DRAWS = Run("ours", "A", 2, 50, 2, "frugal"), Run("ours", "A", 2, 500, 2, "frugal")
MANY_CHAINS = Run("ours", "A", 16, 50, 2, "frugal")
ROUNDED = Run("ours", "A", 4, 50, 2, "bfloat16", seed=1)
HEADS_BY_HAND = [Run("by_hand", "A", 4, 5, 2, variant) for variant in ("1", "4", "1-compiled")]
FULL = Run("ours", "A", 4, 10, 2, "full")
POSTERIORS = [Run("posteriors", "A", 4, 10, 2, batch) for batch in ("1", "4")]
LLC = Run("ours", "A", 4, 10, 2, "llc")
CANONICAL = [Run("canonical", "A", 4, 10, 2)]

TURNS = [
    OURS_A[0], DEVINTERP_A[0], OURS_A[1], DEVINTERP_A[1], OURS_A[2],
    *HEADS_BY_HAND, FULL, *POSTERIORS, LLC, *CANONICAL,
    LONG, RESPONSE, THINNED, OURS_B, DEVINTERP_B, ROUNDED, FEW_DRAWS, MANY_DRAWS, MANY_CHAINS,
]  # fmt: skip
