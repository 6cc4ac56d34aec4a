"""`patterning-fast verify`: sample again under a plan's weights, and hold what comes against what was predicted."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import xarray as xr

from patterning_fast.arguments import Count, Positive, Seed, Whole, checked
from patterning_fast.commands.dataset_file import load_dataset, save_dataset
from patterning_fast.commands.estimate import TOKENS, chi_of, posterior_of, reloaded, settings_of
from patterning_fast.commands.folder import fingerprint, goes_on, next_command, noting, write_settings
from patterning_fast.commands.options import Help
from patterning_fast.commands.plan import NAME, PLAN, folder_of, plan_of
from patterning_fast.commands.samples import Samples
from patterning_fast.domains import Holds
from patterning_fast.durable import put, writing
from patterning_fast.patterning.verification import verify
from patterning_fast.posterior.naming import components
from patterning_fast.report import figures
from patterning_fast.report.text import text_table
from patterning_fast.samplers.sgld import SGLD

VERIFICATION = "verification.safetensors"


@dataclass(frozen=True)
@checked
class VerifySettings:
    """How a plan is checked."""

    fractions: Annotated[tuple[Positive, ...], Holds(1), Help("of the plan's strength, with commas")] = (0.5, 1.0)
    tolerance: Annotated[Positive, Help("relative deviation that still counts as agreement")] = 0.25
    chains: Annotated[Count, Help("of a component")] = 8
    draws: Annotated[Count, Help("of a chain, after burn-in")] = 50
    burn_in: Annotated[Whole, Help("draws that are left out at first")] = 5
    steps_between_draws: Annotated[Count, Help("steps of a chain from draw to draw")] = 4
    batch_size: Annotated[Count, Help("samples of a step's gradient")] = 16
    seed: Annotated[Seed, Help("of minibatches and noise; another than the estimate's")] = 1
    plan: NAME = "plan"


def check_plan(folder: Path, settings: VerifySettings) -> str:
    """Check a run's plan, or go on with it; raises OSError, ValueError or ImportError."""
    chi, own = chi_of(folder), folder_of(folder, settings.plan)
    plan = plan_of(own)
    file, checkpoint, made_from = own / "verify.toml", own / "verify.checkpoint", {"plan": fingerprint(own / PLAN)}
    goes_on(file, settings, made_from, [own / VERIFICATION, checkpoint])
    if (own / VERIFICATION).exists():
        return said(folder, own, load_dataset(own / VERIFICATION, "verify"), ["it is verified already"])
    told = settings_of(folder)
    model, notes = reloaded(folder, chi).model, list[str]()
    chosen = components(model, *told.components)
    posterior = posterior_of(told, model, Samples.load(folder / TOKENS))
    write_settings(file, settings, made_from)
    with noting(notes):
        found = verify(
            plan,
            posterior,
            SGLD(told.lr),
            components=chosen,
            fractions=settings.fractions,
            tolerance=settings.tolerance,
            checkpoint=checkpoint,
            **{name: getattr(settings, name)
               for name in ("chains", "draws", "burn_in", "steps_between_draws", "batch_size", "seed")},
        )  # fmt: skip
    save_dataset(own / VERIFICATION, found)
    picture = figures.png(figures.verification(found))
    with writing("a picture", own):
        put(own / "verification.png", partial(Path.write_bytes, data=picture))
    shutil.rmtree(checkpoint)  # all that it was for is on the disk
    return said(folder, own, found, notes)


def verification_rows(found: xr.Dataset) -> list[dict[str, object]]:
    """A row for each strength."""
    return [
        {name: found[name].values[at].item() for name in ("strength", "verdict", "deviation", "deviation_error")}
        for at in range(found.sizes["strength"])
    ]


def said(folder: Path, own: Path, found: xr.Dataset, notes: list[str]) -> str:
    """Which strengths the prediction held at."""
    radius, verdicts = found.attrs["radius"], set(found["verdict"].values.tolist())
    if radius:
        trust = f"the prediction is kept up to strength {radius:.3g}"
    elif verdicts == {"too noisy"}:
        trust = f"the prediction is lost in noise: remove {own / VERIFICATION}, and take more --chains or --draws"
    else:
        trust = "the prediction did not hold: plan at a smaller strength"
    more = "" if own.name == "plan" else f" --plan {own.name}"
    return "\n".join([*notes, text_table(verification_rows(found)), f"trust: {trust}", f"written: {own}",
                      next_command("train", folder, more)])  # fmt: skip
