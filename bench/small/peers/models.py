"""The three models in terms that jax.numpy and torch share: loss of a minibatch from a list of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Loss = Callable[[list[Any], Any, Any], Any]


def losses(relu: Callable[[Any], Any], cross_entropy: Callable[[Any, Any], Any]) -> dict[str, Loss]:
    """Mean losses of a minibatch `(x, y)`, by workload."""

    def superposition(parameters: list[Any], x: Any, y: Any) -> Any:
        w, b = parameters
        return 0.5 * ((relu(x @ w.T @ w + b) - y) ** 2).sum(1).mean()

    def deep_linear(parameters: list[Any], x: Any, y: Any) -> Any:
        first, second, third = parameters
        return 0.5 * ((x @ first.T @ second.T @ third.T - y) ** 2).sum(1).mean()

    def mlp(parameters: list[Any], x: Any, y: Any) -> Any:
        w0, b0, w1, b1 = parameters
        return cross_entropy(relu(x @ w0.T + b0) @ w1.T + b1, y)

    return {"superposition": superposition, "deep-linear": deep_linear, "mlp": mlp}
