"""Stability of modes: the estimate repeated with its noise drawn anew (a bootstrap over groups of chains)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from patterning_fast.patterning.spectrum import Spectrum, ratio

REPEATS = 200
QUANTILES = (0.025, 0.5, 0.975)


@dataclass(frozen=True)
class Stability:
    """How modes vary between repeats of the estimate."""

    error: np.ndarray
    """Standard error of singular values, `[modes]`."""
    signal_error: np.ndarray
    """Of singular values without noise, `[modes]`."""
    component_cosine: np.ndarray
    """|cosine| of a mode's loadings with those it has in a repeat, `[modes, quantiles]`."""
    data_cosine: np.ndarray


def stability(spectrum: Spectrum, modes: int, generator: np.random.Generator) -> Stability:
    """Repeat the estimate of the first `modes` modes, with their singular values freed of noise taken for the truth.

    Repeats are of random contrasts of groups: what counts of groups drawn with replacement are, made smooth, as a few
    groups allow few different draws. The modes of each are dealt to the given ones by the |cosines| of their loadings on
    data (Hungarian algorithm). All is done on inner products, none of it on data.
    """
    values, vectors = (each[..., :modes] for each in spectrum.modes)
    found, signals, components, data = (np.empty((REPEATS, modes)) for _ in range(4))
    for repeat in range(REPEATS):
        contrast = generator.standard_normal(len(spectrum.products) - 1)
        drawn = spectrum.repeat(contrast / np.linalg.norm(contrast))
        own_values, own_vectors = spectrum.leading(drawn.gram, modes)
        on_data = vectors.T @ drawn.with_estimate @ spectrum.centring @ own_vectors
        cosines = np.abs(ratio(on_data, np.outer(values, own_values)))
        partner = linear_sum_assignment(cosines, maximize=True)[1]
        found[repeat] = own_values[partner]
        signals[repeat] = spectrum.without_noise(own_values, own_vectors)[partner]
        components[repeat] = np.abs(np.sum(vectors * own_vectors[:, partner], 0))
        data[repeat] = cosines[np.arange(modes), partner]
    return Stability(
        found.std(0, ddof=1),
        signals.std(0, ddof=1),
        np.quantile(components, QUANTILES, axis=0).T,
        np.quantile(data, QUANTILES, axis=0).T,
    )

