"""`patterning-fast estimate`: susceptibilities of a language model on data, in a folder that later steps read."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import xarray as xr

from patterning_fast.arguments import Count, NonNegative, Positive, Seed, Whole, checked
from patterning_fast.commands.dataset_file import load_dataset, save_dataset
from patterning_fast.commands.documents import check_source, documents
from patterning_fast.commands.folder import goes_on, next_command, noting, read, write_settings
from patterning_fast.commands.language import Language, check_language, language, parameters_sha256
from patterning_fast.commands.options import Help
from patterning_fast.commands.samples import Samples, cut, losses_on, of_token_file
from patterning_fast.domains import Holds, Within
from patterning_fast.engine.linear_response import linear_response
from patterning_fast.posterior import losses
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.naming import components
from patterning_fast.posterior.preview import preview
from patterning_fast.report.text import text_table
from patterning_fast.samplers.sgld import SGLD

CHI, TOKENS, CHECKPOINT = "chi.safetensors", "tokens.safetensors", "estimate.checkpoint"
GOALS = ("reliability", "max_chains", "max_seconds")
"""Settings that a run may be given others of, to go on further."""


COLUMNS = {"chi_reliability": "reliability", "chains_run": "chains", "settled": "settled",
           "relaxation_steps": "relaxation steps", "blind_correlation": "goes with chi of no loss"}  # fmt: skip
"""What is told of a component, in words."""

GEOMETRY = 0.9
"""Correlation with chi of no loss above which that is said."""

SHOWN = 20
"""Components of which it is told, the most reliable first."""


@dataclass(frozen=True)
@checked
class EstimateSettings:
    """What is estimated, on what, and how."""

    model: Annotated[str, Help("a folder of Hugging Face's, a file.gguf, smollm2 (of pip), or a name on the hub")] = ""
    data: Annotated[str, Help("a file .jsonl, .parquet, .txt or .bin (tokens), a folder of files, or hf:NAME")] = ""
    components: Annotated[
        tuple[str, ...], Holds(1), Help("what moves, as pf.components names it, with commas: heads,l0 mlp,embed")
    ] = ("heads",)
    reliability: Annotated[
        float, Within(least=0, below=1), Help("run chains until chi repeats so well; 0: --chains")
    ] = 0.9
    tokenizer: Annotated[str, Help("folder or name of the tokenizer, where it is not with the model")] = ""
    column: Annotated[str, Help("of tables: text, or lists of token ids")] = "text"
    token_type: Annotated[str, Help("of a .bin file: uint16 or uint32")] = "uint16"
    samples: Annotated[Count, Help("strings of tokens, at most")] = 64
    length: Annotated[Count, Help("tokens of a string that are predicted, at most")] = 64
    n_beta: Annotated[NonNegative, Help("inverse temperature times the number of data")] = 30.0
    localization: Annotated[NonNegative, Help("strength of the pull to the model's weights")] = 300.0
    lr: Annotated[Positive, Help("step size of SGLD")] = 1e-3
    chains: Annotated[Count, Help("of a component, at least 2; with --reliability, those of the first wave")] = 4
    draws: Annotated[Count, Help("of a chain, after burn-in")] = 15
    burn_in: Annotated[Whole, Help("draws that are left out at first")] = 5
    steps_between_draws: Annotated[Count, Help("steps of a chain from draw to draw")] = 4
    batch_size: Annotated[Count, Help("samples of a step's gradient")] = 16
    max_chains: Annotated[Count, Help("of a component, at which chains end")] = 1024
    max_seconds: Annotated[NonNegative, Help("at which chains end; 0: never")] = 0.0
    seed: Annotated[Seed, Help("of minibatches and noise")] = 0


def estimate(folder: Path, settings: EstimateSettings) -> str:
    """Estimate chi into a folder, or go on with it; raises OSError, ValueError or ImportError."""
    settings = in_full(settings)
    check_language(settings.model)
    file, checkpoint = folder / "estimate.toml", folder / CHECKPOINT
    if folder.exists() and not file.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not a folder of a run; choose another --out")
    begun = goes_on(file, settings, {}, [checkpoint, folder / CHI], GOALS)
    if not begun:
        check_source(settings.data)
    goal = json.dumps([getattr(settings, name) for name in GOALS])
    if (folder / CHI).exists() and (chi := chi_of(folder)).attrs["goal"] == goal:
        return said(folder, chi, ["the estimate is there already"])
    found = language(settings.model, settings.tokenizer)
    samples = Samples.load(folder / TOKENS) if begun else samples_from(settings, found).decoded(found.decode)
    print(f"data: {samples.said()}", flush=True)
    posterior = posterior_of(settings, found.model, samples)
    chosen = components(posterior.model, *settings.components)
    first = next(iter(chosen.values()))
    print(f"components: {len(chosen)}, {first.name} among them\n{preview(posterior.model, first)}", flush=True)
    loss, notes = float(np.nanmean(losses_on(posterior.model, samples))), list[str]()
    if loss > np.log(found.rows) + 1:
        notes.append(f"note: the loss, {loss:.1f} nats a token, is worse than guessing: is the tokenizer the model's?")
    write_settings(file, settings, {})
    samples.save(folder / TOKENS)
    with noting(notes):
        chi = linear_response(
            posterior,
            SGLD(settings.lr),
            components=chosen,
            reliability=settings.reliability or None,
            max_seconds=settings.max_seconds or None,
            checkpoint=checkpoint,
            **{name: getattr(settings, name) for name in
               ("chains", "draws", "burn_in", "steps_between_draws", "batch_size", "max_chains", "seed")},
        )  # fmt: skip
    chi = samples.labels(chi).assign_attrs(
        goal=goal, model_sha256=parameters_sha256(found.model), loss=loss, notes=notes
    )
    save_dataset(folder / CHI, chi)
    return said(folder, chi, [])


def in_full(settings: EstimateSettings) -> EstimateSettings:
    """With paths that hold wherever a later step is run from."""
    full: dict[str, Any] = {name: str(Path(value).absolute()) for name in ("model", "data", "tokenizer")
            if (value := getattr(settings, name)) and Path(value).exists()}  # fmt: skip
    return replace(settings, **full)


def samples_from(settings: EstimateSettings, found: Language) -> Samples:
    """Samples of the source; raises what reading it does."""
    count, length = settings.samples, settings.length
    if settings.data.endswith(".bin"):
        return of_token_file(Path(settings.data), settings.token_type, count, length, found.rows)
    return cut(documents(settings.data, settings.column), found.encode, count, length)


def posterior_of(settings: EstimateSettings, model: Any, samples: Samples) -> LocalPosterior:
    """What chains sample: here their settings are chosen."""
    return LocalPosterior(
        model, losses.causal_lm, samples.data(), n_beta=settings.n_beta, localization=settings.localization
    )


def settings_of(folder: Path) -> EstimateSettings:
    """What the estimate of a run was told; raises FileNotFoundError where there is none."""
    told = dict(read(folder / "estimate.toml")["settings"])
    return EstimateSettings(**told | {"components": tuple(told["components"])})


def chi_of(folder: Path) -> xr.Dataset:
    """The estimate of a run; raises FileNotFoundError where there is none."""
    return load_dataset(folder / CHI, "estimate")


def reloaded(folder: Path, chi: xr.Dataset, name: str = "") -> Language:
    """The model of a run, or another as the start of a training, with the run's tokenizer.

    Raises ValueError where the model is not the one that chi was estimated of.
    """
    settings = settings_of(folder)
    check_language(name or settings.model)
    found = language(name or settings.model, settings.tokenizer)
    if not name and parameters_sha256(found.model) != chi.attrs["model_sha256"]:
        raise ValueError(
            f"the model {settings.model} has changed since {folder} was estimated of it: bring back the one it was, "
            "or estimate into another folder"
        )
    return found


def said(folder: Path, chi: xr.Dataset, first: list[str]) -> str:
    """What was found, how far to trust it, and what to type next."""
    rows: list[dict[str, Any]] = [
        {"component": name} | {told: chi[each].values[at].item() for each, told in COLUMNS.items() if each in chi}
        for at, name in enumerate(chi["component"].values.tolist())
    ]
    rows.sort(key=lambda row: -np.nan_to_num(row["reliability"], nan=-1.0))
    wanted, count = json.loads(chi.attrs["goal"])[0], len(rows)
    settled, known = (int(which.sum()) for which in (chi["settled"], chi["chi_reliability"] >= wanted))
    ball = int((chi["blind_correlation"] > GEOMETRY).sum()) if "blind_correlation" in chi else 0
    repeat = f"{known} of {count} components repeat with reliability {wanted:g} or more" if wanted else (
        "a reliability near 1 repeats, one near 0 is noise"
    )  # fmt: skip
    lines = [
        *first,
        f"chi: {count} components by {chi.sizes['token']:,} tokens, loss {chi.attrs['loss']:.3g} nats a token, "
        f"{chi.attrs['seconds']:.0f} s",
        text_table(rows[:SHOWN]) + (f"\n... and {count - SHOWN} others" if count > SHOWN else ""),
        *chi.attrs["notes"],
        f"trust: {repeat}; chains of {settled} of {count} had settled",
    ]
    if ball:
        lines.append(
            f"trust: chi of {ball} of {count} goes with that of no loss by {GEOMETRY:g} or more: chains that feel "
            "no loss, in a Gaussian ball around the weights, know it as well; raise --n-beta or lower --localization"
        )
    if wanted and known < len(rows):
        lines.append("the same command with a larger --max-chains or --max-seconds goes on from these chains")
    return "\n".join([*lines, f"written: {folder / CHI}", next_command("modes", folder)])
