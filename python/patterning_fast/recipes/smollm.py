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
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

import patterning_fast as pf
from patterning_fast.models.smollm2 import smollm2
from patterning_fast.posterior.decoders import attention_head_parameters
from patterning_fast.recipes.findings import Findings, Picture, Rows
from patterning_fast.recipes.pieces import Pieces
from patterning_fast.report.figures import COLOURS
from patterning_fast.tasks.found_text import CHARACTERS, domain_text, encode, plain_windows
from patterning_fast.tasks.induction import said_twice

CHARACTERS_READ = 400_000
KINDS = ("random tokens said twice", "text said twice", "text, then shuffled")
"""Of strings whose χ is estimated; the last, where nothing is said again in its order, is the control."""
BLIND = "nβ = 0"
"""The run whose chains feel no loss."""
UNSCALED = f"{KINDS[0]} [nats²]"
"""The contrast without its unit, the spread of χ over what is said first."""
PUBLISHED = ("l18h6", "l17h3", "l17h4", "l18h7", "l23h2")
"""Heads of SmolLM2 known to do induction before this recipe was written."""


@dataclass(frozen=True)
class Settings:
    """Chains, strings and heads."""

    model: str = "smollm2"
    """Or "tiny": a Llama of two layers, random, that shows that all of this runs."""
    layers: tuple[int, ...] = (17, 18, 19, 20, 21, 22, 23)
    """Heads are compared within these."""
    induction_heads: int = 7
    """The heads with the highest attention scores."""
    control_heads: int = 8
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
    chi = {run: {head: found[f"{head}, {run}"]["chi"].numpy() for head in each} for run, each in heads.items()}
    rows = {
        run: head_rows(
            heads[run], attention[seed]["scores"], chi[run],
            {head: pieces.core_seconds[f"{head}, {run}"] for head in heads[run]},
        )
        for run, (seed, _) in runs.items()
    }  # fmt: skip
    tests = {run: outcome_rows(each) for run, each in rows.items()}
    spent = sum(pieces.core_seconds[name] for name in (*found, *(f"attention, seed {seed}" for seed in attention)))
    first, *_, blind = runs
    seeing = [row for run in runs if run != blind for row in rows[run]]
    return Findings(
        title="Induction heads of SmolLM2-135M, by their susceptibilities",
        claim="Susceptibilities of attention heads tell what the heads do: tokens that an induction circuit predicts "
        "have χ of their own for the heads that it is made of (arXiv:2504.18274, for a model of 3M parameters).",
        goal="In a language model trained by others, of 135M parameters and 270 heads: χ of tokens said a second time, "
        "less χ of those said first, is lower for induction heads than for other heads of the same layers "
        "(AUC ≥ 0.9, p < 0.01), and is not where nothing is said again in its order (p > 0.05).",
        said=in_words(settings, heads[first], rows, tests, attention[settings.seeds[0]], spent),
        seeds=list(settings.seeds),
        tables={
            "Does the contrast tell induction heads?": [{"run": run} | row for run in runs for row in tests[run]],
            "Heads": [{"run": run} | row for run in runs for row in rows[run]],
        },
        pictures={
            "contrast": Picture(
                contrast_figure(seeing),
                "χ of what is said the second time less χ of what is said first, in standard deviations of the head's "
                "χ over what is said first, against attention to the token after the last occurrence. Bars: standard "
                "errors from independent chains; a point a head and seed. Below zero, up-weighting what is said again "
                "lowers the head's mean loss shift.",
            ),
            "contrast_without_loss": Picture(
                contrast_figure(rows[blind]), "The same of chains that feel no loss, nβ = 0, at the first seed."
            ),
            "positions": Picture(
                positions_figure(heads[first], chi[first]),
                "At the first seed: χ by position, in standard deviations of the head's χ over tokens, the mean over "
                "the strings of a kind. Heads from the highest attention score down; those above the line are the "
                "induction heads. Blue: up-weighting the token lowers the head's mean loss shift.",
            ),
        },
        data={"susceptibilities": [{"run": run} | row for run, each in chi.items() for row in long_rows(each)]},
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
    shuffled = said_twice(passages).tokens
    for string in shuffled:
        order = generator.permutation(settings.passage + 1)
        string[settings.passage :] = string[settings.passage :][torch.from_numpy(order)]
    probes = {
        KINDS[0]: said_twice(random_passages(settings, settings.strings, PROBES + seed)).tokens,
        KINDS[1]: said_twice(passages).tokens,
        KINDS[2]: shuffled,
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


def contrasts(chi: np.ndarray) -> np.ndarray:
    """Mean χ of what is said second less that of what is said first `[chains, kinds]` in nats²; of χ
    `[chains, kinds, strings, positions]`."""
    first, second = np.split(chi, 2, axis=-1)
    return second.mean((-2, -1)) - first.mean((-2, -1))


def spread_of_first(chi: np.ndarray) -> float:
    """Standard deviation of the mean χ over what is said first [nats²]: raw χ of heads differ by unknown factors."""
    first, _ = np.split(chi.mean(0), 2, axis=-1)
    return float(first.std())


def head_rows(
    heads: Mapping[str, bool],
    scores: Mapping[str, float],
    chi: Mapping[str, np.ndarray],
    core_seconds: Mapping[str, float],
) -> Rows:
    """One row a head: its attention score, its contrast on each kind of string with the error, its reliability."""
    rows: Rows = []
    for head, induction in heads.items():
        raw, unit = contrasts(chi[head]), spread_of_first(chi[head])
        row: dict[str, Any] = {"head": head, "induction": induction, "attention score": scores[head]}
        for kind, values in zip(KINDS, raw.T / unit, strict=True):
            row[kind] = float(values.mean())
            row[f"{kind}, error"] = float(values.std(ddof=1) / np.sqrt(len(values)))
        flat = chi[head].reshape(len(raw), -1)
        between = np.corrcoef(flat)[np.triu_indices(len(flat), 1)]
        row |= {UNSCALED: float(raw[:, 0].mean()), "r between chains": float(between.mean())}
        rows.append(row | {"core seconds": core_seconds[head]})
    return rows


def outcome_rows(rows: Rows) -> Rows:
    """For each kind of string, how well the contrast tells induction heads from others, and how it goes with attention.

    The AUC is the chance that an induction head's contrast is below another's; p is Mann and Whitney's, two-sided.
    """
    found: Rows = []
    for measure in (*KINDS, UNSCALED):
        induction, others = ([row[measure] for row in rows if row["induction"] is which] for which in (True, False))
        test = stats.mannwhitneyu(others, induction)
        order = stats.spearmanr([row["attention score"] for row in rows], [row[measure] for row in rows])
        found.append(
            {
                "contrast": measure,
                "AUC": float(test.statistic) / (len(induction) * len(others)),
                "p": float(test.pvalue),
                "mean of induction heads": float(np.mean(induction)),
                "mean of others": float(np.mean(others)),
                "rank correlation with attention": float(order.statistic),
                "its p": float(order.pvalue),
            }
        )
    return found


def against_goal(run: str, tests: Rows) -> str:
    """What a run came to, in a sentence."""
    random, text, control, unscaled = tests
    met = random["AUC"] >= 0.9 and random["p"] < 0.01 and control["p"] > 0.05
    return (
        f"{run}: {'reached' if met else 'not reached'}. On random tokens said twice the contrast tells induction heads "
        f"from others with AUC {random['AUC']:.2f} (p = {random['p']:.2g}; in nats², without a unit of each head's "
        f"own, {unscaled['AUC']:.2f}), on text said twice {text['AUC']:.2f} (p = {text['p']:.2g}), and where the "
        f"second half is shuffled {control['AUC']:.2f} (p = {control['p']:.2g}). Its rank correlation with the "
        f"attention score is {random['rank correlation with attention']:.2f} on random tokens and "
        f"{text['rank correlation with attention']:.2f} on text."
    )


def in_words(
    settings: Settings,
    heads: Mapping[str, bool],
    rows: Mapping[str, Rows],
    tests: Mapping[str, Rows],
    attention: Mapping[str, Any],
    spent: float,
) -> list[str]:
    """The outcome of each run against the goal, then how it was measured, in sentences."""
    scores: dict[str, float] = attention["scores"]
    induction = [head for head, is_one in heads.items() if is_one]
    every = [row for each in rows.values() for row in each]
    said = [
        *(against_goal(run, each) for run, each in tests.items()),
        f"{len(induction)} induction heads are held against {len(heads) - len(induction)} others of the same layers, "
        "drawn anew by each seed.",
        f"At the first seed induction heads are those with the highest attention scores, {', '.join(induction)} "
        f"({scores[induction[-1]]:.2f} to {scores[induction[0]]:.2f}); the others were drawn from heads below the "
        f"median (at most {max(scores[head] for head in heads if not heads[head]):.2f}).",
        f"The model's loss is {attention['first']:.1f} nats on random tokens said first and {attention['again']:.1f} "
        "when they are said again.",
        f"χ of one chain correlates {np.mean([row['r between chains'] for row in every]):.2f} over tokens with that of "
        f"another, on average over heads; {settings.chains} chains of each. It took {spent / 60:.0f} core minutes.",
    ]
    if settings.model == "smollm2":
        missing = [head for head in PUBLISHED if head not in induction]
        found = "all are among these" if not missing else f"{', '.join(missing)} are not among these"
        said.append(f"Of the heads known to do induction beforehand, {', '.join(PUBLISHED)}, {found}.")
    else:
        said.append(f"The model is {settings.model}, random: nothing here says anything about induction.")
    return said


def long_rows(chi: Mapping[str, np.ndarray]) -> Rows:
    """χ of every head, string and position, with its standard error."""
    rows: Rows = []
    for head, values in chi.items():
        mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
        for kind, string, position in np.ndindex(mean.shape):
            rows.append(
                {
                    "head": head,
                    "strings": KINDS[kind],
                    "string": string,
                    "position": position,
                    "chi": float(mean[kind, string, position]),
                    "chi_error": float(error[kind, string, position]),
                }
            )
    return rows


def contrast_figure(rows: Rows) -> Figure:
    """A panel for each kind of strings: the contrast of heads against their attention scores."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharex=True, sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set_yscale("symlog", linthresh=1, linscale=1.5)
        axes.yaxis.set_major_formatter("{x:g}")
        named: set[str] = set()
        for which, label, colour, marker in (
            (True, "induction heads", COLOURS[2], "o"),
            (False, "other heads", COLOURS[1], "s"),
        ):
            mine = [row for row in rows if row["induction"] is which]
            x, y = [row["attention score"] for row in mine], [row[kind] for row in mine]
            axes.errorbar(x, y, [row[f"{kind}, error"] for row in mine], color=colour, fmt=marker, label=label)
            for place, index in enumerate(np.argsort(x) if which else []):  # neighbours have names above and below
                if mine[index]["head"] in named:
                    continue
                named.add(mine[index]["head"])
                axes.annotate(
                    mine[index]["head"], (x[index], y[index]), xytext=(0, (7, -13)[place % 2]), ha="center",
                    textcoords="offset points", fontsize=7,
                )  # fmt: skip
        axes.set_title(kind, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("χ said again less χ said first [sd]")
    figure.supxlabel("attention to the token after the last occurrence", fontsize=10)
    panels[-1].legend(frameon=False, fontsize=8)
    return figure


def positions_figure(heads: Mapping[str, bool], chi: Mapping[str, np.ndarray]) -> Figure:
    """A panel for each kind of strings: χ by head and position."""
    figure = Figure(figsize=(11, 1.6 + 0.22 * len(heads)), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    means = {head: values.mean(0) for head, values in chi.items()}
    shown = np.stack([(means[head].mean(1) - means[head].mean()) / means[head].std() for head in heads])
    for index, (axes, kind) in enumerate(zip(panels, KINDS, strict=True)):
        image = axes.imshow(shown[:, index], aspect="auto", cmap="RdBu_r", vmin=-1.5, vmax=1.5, interpolation="nearest")
        axes.axhline(sum(heads.values()) - 0.5, color="black", linewidth=1)
        axes.axvline(shown.shape[-1] / 2 - 0.5, color="black", linewidth=0.8, linestyle="--")
        axes.set_title(kind, fontsize=10)
        axes.set_xlabel("position")
    panels[0].set_yticks(range(len(heads)), list(heads), fontsize=8)
    figure.colorbar(image, ax=list(panels), label="χ [sd]")
    return figure
