"""Linear regression at its least-squares solution, where the posterior is Gaussian and estimates have closed forms.

With H = (1/n)Σxxᵀ and Σ the exact stationary covariance of SGLD, whose eigenvalues are 1/(a(1 − lr·a/4)) for
a = n_beta·h + localization: E[L] − L* = ½tr(HΣ), χ(z_j) = −½(x_jᵀΣHΣx_j − tr(HΣHΣ)), and
Cov(l_i, l_j) = ½(x_iᵀΣx_j)² + r_i r_j x_iᵀΣx_j. Restricted chains: x by its coordinates in the component.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import patterning_fast as pf


@dataclass(frozen=True)
class LinearRegression:
    x: Tensor
    y: Tensor
    n_beta: float
    localization: float
    lr: float

    def model(self) -> nn.Linear:
        model = nn.Linear(self.x.shape[1], 1, bias=False)
        solution = torch.linalg.lstsq(self.x.double(), self.y.double()).solution
        with torch.no_grad():
            model.weight.copy_(solution.T)
        return model

    def posterior(self, model: nn.Module) -> pf.LocalPosterior:
        return pf.LocalPosterior(
            model, pf.losses.squared_error, (self.x, self.y), n_beta=self.n_beta, localization=self.localization
        )

    def curvature(self, coordinates: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """x, H and Σ of the chains that move these coordinates."""
        x = self.x.double()[:, coordinates]
        h, vectors = torch.linalg.eigh(x.T @ x / len(x))
        a = self.n_beta * h + self.localization
        return x, x.T @ x / len(x), vectors @ torch.diag(1 / (a * (1 - self.lr * a / 4))) @ vectors.T

    def llc(self, coordinates: list[int]) -> float:
        _, hessian, sigma = self.curvature(coordinates)
        return self.n_beta * 0.5 * float(torch.trace(hessian @ sigma))

    def contribution(self, coordinates: list[int]) -> Tensor:
        """dλ̂/dρ_j by covariances: β·½x_jᵀΣx_j − nβ·β·½x_jᵀΣHΣx_j, β = n_beta/n."""
        x, hessian, sigma = self.curvature(coordinates)
        inner = sigma - self.n_beta * sigma @ hessian @ sigma
        return self.n_beta / len(x) * 0.5 * torch.einsum("ni,ij,nj->n", x, inner, x)

    def weighted_llc(self, coordinates: list[int], weights: Tensor) -> float:
        """λ̂_ρ = n_beta·(E_ρ[L_ρ] − L_ρ(w*)) of the continuous posterior, w* held where it is: Gaussian, off centre."""
        x = self.x.double()[:, coordinates]
        solution = self.model().weight.detach().double().T
        residual = (self.x.double() @ solution - self.y.double()).flatten()
        gradient, hessian = x.T @ (weights * residual) / len(x), x.T @ (weights[:, None] * x) / len(x)
        sigma = torch.linalg.inv(self.n_beta * hessian + self.localization * torch.eye(len(coordinates)).double())
        shift = -self.n_beta * sigma @ gradient
        return self.n_beta * float(gradient @ shift + 0.5 * torch.trace(hessian @ (sigma + torch.outer(shift, shift))))

    def susceptibility(self, coordinates: list[int]) -> Tensor:
        x, hessian, sigma = self.curvature(coordinates)
        inner = sigma @ hessian @ sigma
        return -0.5 * (torch.einsum("ni,ij,nj->n", x, inner, x) - torch.trace(hessian @ inner))

    def realised_response(self, weights: Tensor, coordinates: list[int]) -> float:
        """E[φ] under the weighted loss less that without weights, however large they are: still a Gaussian.

        With A = n_beta·H_ρ + localization, δ = −n_beta·A⁻¹·(1/n)Σ ρ_j r_j x_j is where its mean has moved to, and
        E_ρ[φ] = ½tr(HΣ_ρ) + ½δᵀHδ.
        """
        x, hessian, sigma = self.curvature(coordinates)
        solution = self.model().weight.detach().double().T
        residual = (self.x.double() @ solution - self.y.double()).flatten()
        identity = torch.eye(len(coordinates), dtype=torch.float64)
        a = self.n_beta * (x.T * weights) @ x / len(x) + self.localization * identity
        shift = -self.n_beta * torch.linalg.solve(a, x.T @ (weights * residual) / len(x))
        weighted = torch.linalg.inv(a @ (identity - self.lr / 4 * a))
        return 0.5 * float(torch.trace(hessian @ (weighted - sigma)) + shift @ hessian @ shift)

    def susceptibility_by_response(self, coordinates: list[int]) -> Tensor:
        """What the discrete chain responds by: with K = lr/2·a, −½(x_jᵀ(1 − K)ΣHΣx_j − tr(H(1 − K)ΣHΣ)).

        From −(lr/2)·Σ_n tr(X_j(1 − K)ⁿ⁻¹H(1 − K)ⁿΣ) with Σ = lr/(2K − K²). It is χ to second order in K, as the
        covariance above is to first.
        """
        x, hessian, sigma = self.curvature(coordinates)
        identity = torch.eye(len(coordinates), dtype=torch.float64)
        memory = identity - self.lr / 2 * (self.n_beta * hessian + self.localization * identity)
        inner = memory @ sigma @ hessian @ sigma
        return -0.5 * (torch.einsum("ni,ij,nj->n", x, inner, x) - torch.trace(hessian @ inner))

    def loss_correlation(self, coordinates: list[int]) -> Tensor:
        kernel = self.loss_kernel(coordinates)
        deviation = kernel.diagonal().sqrt()
        return kernel / (deviation[:, None] * deviation)

    def loss_kernel(self, coordinates: list[int]) -> Tensor:
        x, _, sigma = self.curvature(coordinates)
        between = x @ sigma @ x.T
        solution = self.model().weight.detach().double().T
        residual = (self.x.double() @ solution - self.y.double()).flatten()
        return 0.5 * between**2 + residual[:, None] * residual * between


def linear_regression(seed: int, samples: int = 40, width: int = 6) -> LinearRegression:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, width, generator=generator)
    y = x @ torch.randn(width, 1, generator=generator) + 0.3 * torch.randn(samples, 1, generator=generator)
    return LinearRegression(x, y, n_beta=30.0, localization=5.0, lr=0.01)
