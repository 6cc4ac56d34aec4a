"""Learning coefficients of deep linear networks: the formula by hand, and the sampler by the formula."""

from __future__ import annotations

import pytest
import torch

import patterning_fast as pf
from patterning_fast.models.deep_linear import deep_linear_network, learning_coefficient


@pytest.mark.parametrize(
    ("widths", "rank", "value", "multiplicity"),
    [
        ([3, 2], 0, 3.0, 1),  # one matrix: half its entries
        ([5, 4], 4, 10.0, 1),
        ([1, 1, 1], 0, 0.5, 2),  # (ab)²: two lines that cross
        ([1, 1, 1, 1], 0, 0.5, 3),  # (abc)²: three planes that cross
        ([2, 1, 1], 0, 0.5, 1),  # (a² + b²)c²: c = 0 costs ½, a = b = 0 costs 1
        ([2, 1, 2], 0, 1.0, 2),  # |a|²|b|² of two vectors of two
        ([3, 1, 3], 1, 2.5, 1),  # regular: 6 parameters less a scale
        ([4, 2, 4], 2, 6.0, 1),  # regular: 16 parameters less 2 × 2
        ([2, 2, 2], 1, 2.0, 2),  # the regular part of rank 1, 3/2, and (ab)² beside it
        ([2, 2, 2], 0, 1.5, 1),  # reduced rank regression, Aoyagi & Watanabe 2005: (2(2·2 + 2·2 + 2·2) − 12)/8
        ([10, 8, 8, 10], 3, 36.5, 1),
    ],
)
def test_the_formula_by_hand(widths: list[int], rank: int, value: float, multiplicity: int) -> None:
    found = learning_coefficient(widths, rank)
    assert found.value == pytest.approx(value)
    assert found.multiplicity == multiplicity


def test_one_hidden_layer_is_reduced_rank_regression() -> None:
    """All four cases of Aoyagi & Watanabe 2005, Main Theorem, with input N, hidden H and output M."""
    for inputs in range(1, 7):
        for hidden in range(1, 7):
            for out in range(1, 7):
                for rank in range(min(inputs, hidden, out) + 1):
                    n, h, m, r = inputs, hidden, out, rank
                    if n + r <= m + h and m + r <= n + h and h + r <= m + n:
                        odd = (m + h + n + r) % 2
                        expected = (
                            -((h + r) ** 2) - m**2 - n**2 + 2 * (h + r) * m + 2 * (h + r) * n + 2 * m * n + odd
                        ) / 8
                    elif m + h < n + r:
                        expected = (h * m - h * r + n * r) / 2
                    elif n + h < m + r:
                        expected = (h * n - h * r + m * r) / 2
                    else:
                        expected = m * n / 2
                    assert learning_coefficient([n, h, m], r).value == pytest.approx(expected), (n, h, m, r)


def test_a_network_has_the_rank_it_is_asked_for() -> None:
    network = deep_linear_network([6, 5, 4, 6], 2)
    product = torch.eye(6)
    for layer, weight in zip(network, network.parameters(), strict=True):
        assert torch.linalg.matrix_rank(weight, atol=1e-5) == 2
        product = layer(product)
    assert torch.linalg.matrix_rank(product, atol=1e-5) == 2
    with pytest.raises(ValueError, match="no rank 5"):
        learning_coefficient([6, 5, 4, 6], 5)
    with pytest.raises(ValueError, match="widths must be a list of whole numbers >= 1, at least 2"):
        deep_linear_network([6], 1)


def test_the_estimate_of_a_singular_network() -> None:
    """Within a tenth of the truth, 10: half the parameters are 18."""
    widths, rank, samples = [6, 3, 6], 1, 5000
    network = deep_linear_network(widths, rank)
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(1))
    posterior = pf.LocalPosterior(
        network, pf.losses.squared_error, (x, network(x).detach()), n_beta=500.0, localization=1.0
    )
    run = pf.sample(posterior, pf.SGLD(2e-4), chains=8, draws=300, burn_in=300, steps_between_draws=20, batch_size=256,
                    loss_samples=500, probes={"few": (x[:4], network(x[:4]).detach())}, progress=False)  # fmt: skip
    truth = learning_coefficient(widths, rank).value
    assert run.attrs["engine"] == "native"
    assert float(run.llc()["llc"].sel(component="full")) == pytest.approx(truth, rel=0.1)
