"""BlackJAX 1.7.1: its SGLD kernel in scan, vmap and jit."""

from __future__ import annotations

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

from bench.small.contestant import Advance, Run, contest
from bench.small.peers.jax_run import cross_entropy
from bench.small.peers.models import losses
from bench.small.workload import Workload


def prepare(run: Run, workload: Workload, arrays: dict[str, np.ndarray]) -> Advance:
    x, y = jnp.array(arrays["x"]), jnp.array(arrays["y"])
    center = [jnp.array(array) for name, array in arrays.items() if name not in ("x", "y")]
    loss = losses(jax.nn.relu, cross_entropy)[workload.name]

    def log_density(parameters: list[jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        pull = sum(jnp.square(w - c).sum() for w, c in zip(parameters, center, strict=True))
        return -workload.n_beta * loss(parameters, *batch) - workload.localization / 2 * pull

    # Its step is w + size·gradient + √(2·size)·noise.
    sgld = blackjax.sgld(jax.grad(log_density))

    def step(parameters: list[jax.Array], key: jax.Array) -> tuple[list[jax.Array], None]:
        choice, noise = jax.random.split(key)
        samples = jax.random.randint(choice, (workload.batch_size,), 0, len(x))
        return sgld.step(noise, parameters, (x[samples], y[samples]), workload.lr / 2), None

    def chain(key: jax.Array) -> list[jax.Array]:
        return jax.lax.scan(step, sgld.init(center), jax.random.split(key, run.steps))[0]

    chains = jax.jit(jax.vmap(chain))
    keys = jax.random.split(jax.random.PRNGKey(0), run.chains)
    return lambda: [np.asarray(each) for each in jax.block_until_ready(chains(keys))]


if __name__ == "__main__":
    contest(prepare)
