"""`patterning-fast plan`: weights of the data that move the model as wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import xarray as xr

from patterning_fast.arguments import Positive, checked
from patterning_fast.commands.dataset_file import load_dataset, save_dataset
from patterning_fast.commands.estimate import CHI, TOKENS, chi_of
from patterning_fast.commands.folder import (
    check_needs,
    fingerprint,
    goes_on,
    next_command,
    noting,
    read,
    write_settings,
)
from patterning_fast.commands.modes import MODES, modes_of
from patterning_fast.commands.options import Help
from patterning_fast.commands.samples import Samples
from patterning_fast.domains import Holds
from patterning_fast.patterning.inversion import invert
from patterning_fast.patterning.modes import Mode
from patterning_fast.patterning.plan import Plan
from patterning_fast.patterning.targets import Target
from patterning_fast.report.text import text_table
from patterning_fast.training.weights_file import save_weights

PLAN, WEIGHTS = "plan.safetensors", "weights.parquet"
NAME = Annotated[str, Holds(1), Help("folder of the plan within the run: a run may have several")]


@dataclass(frozen=True)
@checked
class PlanSettings:
    """What is wanted of the weights."""

    mode: Annotated[int, Help("number of a mode, from 1; below 0 against it")] = 1
    target: Annotated[tuple[str, ...], Help("in place of a mode, NAME=CHANGE [nats] of components: l1h0=-0.01")] = ()
    strength: Annotated[Positive, Help("root mean square of the weights less 1")] = 0.3
    unit: Annotated[str, Help("one weight for each token, sample, document or domain")] = "token"
    negative_weights: Annotated[str, Help("project, clip or allow")] = "project"
    regularization: Annotated[str, Help("wiener, truncated or none")] = "wiener"
    unsettled: Annotated[bool, Help("take components whose chains had not settled, too")] = False
    plan: NAME = "plan"


def make_plan(folder: Path, settings: PlanSettings) -> str:
    """Make a plan from a run's estimate; raises OSError, ValueError or ImportError."""
    check_needs("a plan", ["pyarrow"])
    chi = chi_of(folder)
    made_from = {"chi": fingerprint(folder / CHI)}
    target: Target
    if settings.target:
        target = dict(map(change_of, settings.target))
    else:
        target = mode_of(folder, settings.mode)
        made_from["modes"] = fingerprint(folder / "modes" / MODES)
    own = folder_of(folder, settings.plan)
    file = own / "plan.toml"
    if goes_on(file, settings, made_from, [own] if file.exists() else []) and (own / WEIGHTS).exists():
        return said(folder, own, plan_of(own), chi, ["it is planned already"])
    how = {name: getattr(settings, name) for name in ("strength", "negative_weights", "regularization", "unsettled")}
    notes: list[str] = []
    with noting(notes):
        found = invert(chi, target, unit=None if settings.unit == "token" else settings.unit, **how)
    write_settings(file, settings, made_from)
    samples = Samples.load(folder / TOKENS)
    save_dataset(own / PLAN, found.predicted.assign(weight=found.weights).assign_attrs(found.attrs))
    save_weights(own / WEIGHTS, found, samples.data())
    return said(folder, own, found, chi, notes)


def change_of(text: str) -> tuple[str, float]:
    """A component and its change; raises ValueError for anything else."""
    name, equals, value = text.partition("=")
    try:
        return name.strip(), float(value if equals else "")
    except ValueError:
        raise ValueError(f"a target is NAME=CHANGE, a component and nats, such as l1h0=-0.01; got {text!r}") from None


def mode_of(folder: Path, number: int) -> Mode:
    """A mode by its number, against it where that is below 0; raises ValueError where there is none."""
    found = modes_of(folder)
    if read(folder / "modes" / "modes.toml")["made_from"] != {"chi": fingerprint(folder / CHI)}:
        raise ValueError(f"the modes are of an earlier estimate: run `patterning-fast modes {folder}` again")
    if not 1 <= abs(number) <= len(found):
        raise ValueError(f"--mode must be 1 to {len(found)}, or -1 to {-len(found)} against it, got {number}")
    chosen = found[abs(number) - 1]
    return chosen if number > 0 else -chosen


def folder_of(folder: Path, name: str) -> Path:
    """Where a plan of a run lies; raises ValueError for a name that is no folder's."""
    if Path(name).name != name or name in ("modes", "estimate.checkpoint"):
        raise ValueError(f"--plan is the name of a folder within the run, such as plan-2, got {name!r}")
    return folder / name


def plan_of(own: Path) -> Plan:
    """A plan of a run; raises FileNotFoundError where there is none."""
    table = load_dataset(own / PLAN, f"plan {own.parent} --plan {own.name}")
    weights = table["weight"]
    predicted = table.drop_vars(["weight", *(name for name, each in weights.coords.items())])
    return Plan(weights, predicted, table.attrs)


def said(folder: Path, own: Path, found: Plan, chi: xr.Dataset, first: list[str]) -> str:
    """What the weights are, what they should do, and how far that is to be trusted."""
    changes = component_rows(found)
    clear = sum(abs(row["change [nats]"]) > 2 * row["error"] for row in changes)
    more = "" if own.name == "plan" else f" --plan {own.name}"
    return "\n".join([
        *first,
        f"{found.weights.size:,} weights from {float(found.weights.min()):.3g} to {float(found.weights.max()):.3g}, "
        f"strength {found.attrs['strength']:.3g}; as good as {found.attrs['effective_sample_size']:,.0f} tokens",
        "mean weight by " + by_unit(found, "domain" if len(set(chi["domain"].values)) > 1 else "document"),
        text_table(changes),
        f"trust: {clear} of {len(changes)} changes are more than two of their errors; a prediction holds near the "
        "model as it is, and verify says how far",
        f"written: {own}",
        next_command("verify", folder, more),
    ])  # fmt: skip


def component_rows(found: Plan) -> list[dict[str, float]]:
    """The components that should move most."""
    told = found.predicted
    order = np.abs(told["dmu"].values).argsort()[::-1][:12]
    return [
        {"component": told["component"].values[at].item(), "change [nats]": float(told["dmu"].values[at]),
         "error": float(told["dmu_error"].values[at])}
        for at in order
    ]  # fmt: skip


def by_unit(found: Plan, unit: Literal["domain", "document"]) -> str:
    """Mean weights of the units with the highest, and the lowest."""
    names, codes, counts = np.unique(found.weights[unit].values, return_inverse=True, return_counts=True)
    mean = np.bincount(codes, found.weights.values) / counts
    order = mean.argsort()[::-1]
    shown = order if len(order) <= 8 else [*order[:4], *order[-4:]]
    return f"{unit}: " + ", ".join(f"{names[at]} {mean[at]:.3g}" for at in shown)
