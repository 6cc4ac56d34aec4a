"""Do susceptibilities single out the induction heads of a real language model?

SmolLM2-135M copies what its context has said before: on random tokens said twice its loss falls from 13 nats to 1.
Which heads attend to the token after the last occurrence is measured by their attention patterns (Olsson et al. 2022,
arXiv:2209.11895). Here χ per token of such heads and of others is estimated by chains that run only the layers from the
head's own on, and its contrast between what is said a second time and what is said first is held against attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import patterning_fast as pf
from patterning_fast.models.smollm2 import smollm2
from patterning_fast.posterior.families import attention_head_parameters
from patterning_fast.recipes.findings import Findings
from patterning_fast.recipes.pieces import Pieces
from patterning_fast.tasks.found_text import CHARACTERS, domain_text, encode, plain_windows
from patterning_fast.tasks.induction import said_twice

from .findings import BLIND, KINDS, findings

CHARACTERS_READ = 400_000


@dataclass(frozen=True)
class Settings:
    """Chains, strings and heads."""

    model: str = "smollm2"
    """Or "tiny": a Llama of two layers, random, that shows that all of this runs."""
    layers: tuple[int, ...] = (17, 18, 19, 20, 21, 22, 23)
    """Heads are compared within these."""
    induction_heads: int = 10
    """The heads with the highest attention scores."""
    control_heads: int = 12
    """Drawn from those with attention scores below the median."""
    passage: int = 24
    """Tokens that are said twice."""
    strings: int = 4
    """Of each kind."""
    attention_strings: int = 16
    samples: int = 16
    """Of text said twice, that φ is of."""
    n_beta: float = 30.0
    localization: float = 300.0
    lr: float = 4e-3
    chains: int = 3
    draws: int = 2
    burn_in: int = 1
    steps_between_draws: int = 1
    batch_size: int = 2
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of strings, of the heads that are not induction heads, and of chains; the first at nβ = 0 as well."""


STRINGS, PROBES = 1, 1000
"""Apart from the seeds of the strings that attention is measured on."""


class Loaded(NamedTuple):
    """A language model, and text as its token ids, int64 `[T]`."""

    model: Any
    text: np.ndarray


def run(settings: Settings, pieces: Pieces) -> Findings:
    """Attention scores of all heads, χ of some, and how well the one tells the other."""
    runs = {f"seed {seed}": (seed, settings.n_beta) for seed in settings.seeds}
    runs[f"seed {settings.seeds[0]}, {BLIND}"] = (settings.seeds[0], 0.0)
    attention = {
        seed: pieces.of(f"attention, seed {seed}", partial(attention_scores, settings, seed)) for seed in settings.seeds
    }
    heads = {run: chosen_heads(settings, attention[seed]["scores"], seed) for run, (seed, _) in runs.items()}
    found = pieces.map("susceptibilities", susceptibility, {
        f"{head}, {run}": (settings, head, *how) for run, how in runs.items() for head in heads[run]
    })  # fmt: skip
    spent = [pieces.core_seconds[name] for name in (*found, *(f"attention, seed {seed}" for seed in attention))]
    return findings(
        heads=heads,
        attention={run: attention[seed] for run, (seed, _) in runs.items()},
        chi={run: {head: found[f"{head}, {run}"]["chi"].numpy() for head in each} for run, each in heads.items()},
        core_minutes=sum(spent) / 60,
        model=settings.model,
        seeds=list(settings.seeds),
    )


@cache
def loaded(name: str) -> Loaded:
    """The model of that name; raises ModuleNotFoundError where it is to be installed first."""
    text = domain_text("reference")[:CHARACTERS_READ]
    if name == "smollm2":
        model, tokenizer = smollm2()
        return Loaded(model, np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64))
    if name == "tiny":
        return Loaded(tiny(), encode(text))
    raise ValueError(f"model must be 'smollm2' or 'tiny', got {name!r}")


def tiny() -> Any:
    """A random Llama of characters: two layers of four heads, two of which share keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(CHARACTERS),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.5,
        )
        return LlamaForCausalLM(config).eval()


def attention_scores(settings: Settings, seed: int) -> dict[str, Any]:
    """Each head's attention to the token after the last occurrence, on random tokens said twice, and the losses."""
    model = loaded(settings.model).model
    strings = said_twice(random_passages(settings, settings.attention_strings, seed))
    model.set_attn_implementation("eager")  # others do not give their patterns
    with torch.no_grad():
        patterns = torch.stack(model(strings.tokens[:, :-1], output_attentions=True).attentions)
        losses = pf.losses.next_token(model, strings.tokens)
    model.set_attn_implementation("sdpa")
    again = strings.repeats()
    return {
        "scores": {head: each["induction"] for head, each in strings.scores(patterns).items()},
        "first": float(losses[~again].mean()),
        "again": float(losses[again].mean()),
    }


def random_passages(settings: Settings, count: int, seed: int) -> Tensor:
    """`count` passages of tokens that the text has, int64 `[count, passage]`, each as likely as the others."""
    alphabet = torch.from_numpy(np.unique(loaded(settings.model).text))
    generator = torch.Generator().manual_seed(seed)
    return alphabet[torch.randint(len(alphabet), (count, settings.passage), generator=generator)]


def chosen_heads(settings: Settings, scores: Mapping[str, float], seed: int) -> dict[str, bool]:
    """The heads to compare, from the highest attention score down, and whether each is an induction head."""
    among = sorted(
        (head for head in scores if int(head[1:].partition("h")[0]) in settings.layers), key=lambda head: -scores[head]
    )
    induction = among[: settings.induction_heads]
    others = np.random.default_rng(seed).permutation(among[len(among) // 2 :])[: settings.control_heads]
    controls = set(map(str, others)) - set(induction)
    if not induction or not controls:
        raise ValueError(f"layers {settings.layers} have too few heads to compare: {len(among)}")
    return {head: head in induction for head in among if head in induction or head in controls}


def susceptibility(settings: Settings, head: str, seed: int, n_beta: float) -> dict[str, Any]:
    """χ `[chains, kinds, strings, positions]` of a head's unshared parameters."""
    model, text = loaded(settings.model)
    generator = np.random.default_rng([STRINGS, seed])
    passages = torch.from_numpy(plain_windows(text, settings.strings, settings.passage, generator))
    probes = {
        KINDS[0]: said_twice(random_passages(settings, settings.strings, PROBES + seed)).tokens,
        KINDS[1]: said_twice(passages).tokens,
        KINDS[2]: torch.from_numpy(plain_windows(text, settings.strings, 2 * settings.passage + 1, generator)),
    }
    sampled = said_twice(torch.from_numpy(plain_windows(text, settings.samples, settings.passage, generator))).tokens
    posterior = pf.LocalPosterior(
        model, pf.losses.next_token, sampled, n_beta=n_beta, localization=settings.localization
    )
    found = pf.linear_response(
        posterior,
        pf.SGLD(settings.lr),
        components={head: unshared(model, head)},
        probes=probes,
        chains=settings.chains,
        draws=settings.draws,
        burn_in=settings.burn_in,
        steps_between_draws=settings.steps_between_draws,
        batch_size=settings.batch_size,
        tile=1,
        seed=seed,
        progress=False,
    )
    chi = found["chi_group"].sel(component=head).transpose("group", "token").values
    shape = (settings.chains, len(KINDS), settings.strings, 2 * settings.passage)
    return {"chi": torch.from_numpy(chi.reshape(shape))}


def unshared(model: Any, head: str) -> pf.Component:
    """A head without the keys and values that it shares with others: heads are then disjoint, as a test needs them."""
    heads = attention_head_parameters(model)
    assert heads is not None
    others = [owned for name, owned in heads.items() if name != head]
    own = {
        parameter: index
        for parameter, index in heads[head].items()
        if not any(parameter in owned and torch.equal(owned[parameter], index) for owned in others)
    }
    return pf.component(model, head, own)
