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

    Repeats are of random contrasts of groups: what counts of groups drawn with replacement are, made smooth, as few
    groups allow few different draws. The modes of each are dealt to those of χ without noise by the |cosines| of their
    loadings on data (Hungarian algorithm). All is done on inner products, none of it on data.
    """
    true_values, true_vectors = spectrum.leading(spectrum.truth, modes)
    # In the order of the given modes: those of χ without its noise may have changed places.
    order = linear_sum_assignment(np.abs(spectrum.modes[1][:, :modes].T @ true_vectors), maximize=True)[1]
    true_values, true_vectors = true_values[order], true_vectors[:, order]
    found, signals, components, data = (np.empty((REPEATS, modes)) for _ in range(4))
    for repeat in range(REPEATS):
        contrast = generator.standard_normal(len(spectrum.products) - 1)
        drawn = spectrum.repeat(contrast / np.linalg.norm(contrast))
        values, vectors = spectrum.leading(drawn.gram, modes)
        on_data = true_vectors.T @ drawn.with_truth @ spectrum.centring @ vectors
        cosines = np.abs(ratio(on_data, np.outer(true_values, values)))
        partner = linear_sum_assignment(cosines, maximize=True)[1]
        found[repeat] = values[partner]
        signals[repeat] = spectrum.without_noise(values, vectors)[partner]
        components[repeat] = np.abs(np.sum(true_vectors * vectors[:, partner], 0))
        data[repeat] = cosines[np.arange(modes), partner]
    return Stability(
        found.std(0, ddof=1),
        signals.std(0, ddof=1),
        np.quantile(components, QUANTILES, axis=0).T,
        np.quantile(data, QUANTILES, axis=0).T,
    )
