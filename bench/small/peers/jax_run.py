"""JAX: jit of vmap over chains of scan over steps, as a good engineer writes it; XLA uses both cores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bench.small.contestant import Advance, Run, contest
from bench.small.peers.models import losses
from bench.small.workload import Workload


def cross_entropy(logits: jax.Array, classes: jax.Array) -> jax.Array:
    own = jnp.take_along_axis(logits, classes[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, 1) - own).mean()


def prepare(run: Run, workload: Workload, arrays: dict[str, np.ndarray]) -> Advance:
    x, y = jnp.array(arrays["x"]), jnp.array(arrays["y"])
    center = [jnp.array(array) for name, array in arrays.items() if name not in ("x", "y")]
    gradient = jax.grad(losses(jax.nn.relu, cross_entropy)[workload.name])
    lr = workload.lr

    def step(parameters: list[jax.Array], key: jax.Array) -> tuple[list[jax.Array], None]:
        choice, *noises = jax.random.split(key, 1 + len(parameters))
        samples = jax.random.randint(choice, (workload.batch_size,), 0, len(x))
        grads = gradient(parameters, x[samples], y[samples])
        return [
            w
            - lr / 2 * (workload.n_beta * g + workload.localization * (w - c))
            + lr**0.5 * jax.random.normal(noise, w.shape)
            for w, g, c, noise in zip(parameters, grads, center, noises, strict=True)
        ], None

    def chain(key: jax.Array) -> list[jax.Array]:
        return jax.lax.scan(step, center, jax.random.split(key, run.steps))[0]

    chains = jax.jit(jax.vmap(chain))
    keys = jax.random.split(jax.random.PRNGKey(0), run.chains)
    return lambda: [np.asarray(each) for each in jax.block_until_ready(chains(keys))]


if __name__ == "__main__":
    contest(prepare)
