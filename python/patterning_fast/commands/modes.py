"""`patterning-fast modes`: along which directions components and data of an estimate answer each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import xarray as xr

from patterning_fast.arguments import Count, Seed, checked
from patterning_fast.commands.dataset_file import load_dataset, save_dataset
from patterning_fast.commands.estimate import CHI, TOKENS, chi_of
from patterning_fast.commands.folder import fingerprint, next_command, noting, write_settings
from patterning_fast.commands.options import Help
from patterning_fast.commands.samples import Samples
from patterning_fast.durable import clear_partial, put_folder, writing
from patterning_fast.patterning.extremes import extreme_data
from patterning_fast.patterning.modes import Modes, modes
from patterning_fast.report import figures
from patterning_fast.report.text import text_table

MODES = "modes.safetensors"
STRONGEST = 4
"""Components of a mode that are named."""
EXTREMES, BEFORE = 5, 8
"""Tokens at either end of a mode that are shown, and tokens before each."""


@dataclass(frozen=True)
@checked
class ModesSettings:
    """How modes are found."""

    centre_data: Annotated[bool, Help("take out what all components share")] = True
    keep: Annotated[Count, Help("modes, the strongest first")] = 8
    unsettled: Annotated[bool, Help("take components whose chains had not settled, too")] = False
    seed: Annotated[Seed, Help("of the draws of noise that errors come from")] = 0


def find_modes(folder: Path, settings: ModesSettings) -> str:
    """Find the modes of a run's estimate, in place of those found before; raises OSError or ValueError."""
    chi = chi_of(folder)
    notes: list[str] = []
    with noting(notes):
        found = modes(chi, **asdict(settings))
    target = folder / "modes"

    def write(partial: Path) -> None:
        write_settings(partial / "modes.toml", settings, {"chi": fingerprint(folder / CHI)})
        save_dataset(partial / MODES, found.table.assign_attrs(seconds=chi.attrs["seconds"]))
        (partial / "scree.png").write_bytes(figures.png(figures.scree(found)))

    with writing("modes", target):
        clear_partial(target)
        put_folder(target, write)
    samples = Samples.load(folder / TOKENS)
    above = int(found.table["above_floor"].sum())
    return "\n".join([
        *notes,
        text_table(mode_rows(found)),
        text_table(token_rows(found, samples)),
        extremes(found, samples),
        f"trust: {above} of {len(found)} modes stand above the noise floor, {found.table.attrs['noise_floor']:.3g}. "
        + ("Plan along one of these" if above else "Estimate with more chains, or other components or data, first"),
        f"written: {target}",
        next_command("plan", folder, " --mode 1 --strength 0.3"),
    ])  # fmt: skip


def mode_rows(found: Modes) -> list[dict[str, Any]]:
    """A row for each mode."""
    rows = []
    for number, mode in enumerate((found[at] for at in range(len(found))), 1):
        order = abs(mode.components.values).argsort()[::-1][:STRONGEST]
        rows.append({
            "mode": number,
            "singular value": mode.singular_value,
            "error": mode.singular_value_error,
            "above the floor": "yes" if mode.above_floor else "no",
            "components": ", ".join(f"{mode.components['component'].values[at]} {mode.components.values[at]:.2f}"
                                    for at in order),
        })  # fmt: skip
    return rows


def token_rows(found: Modes, samples: Samples) -> list[dict[str, Any]]:
    """The tokens that the first mode loads on most and least, after what comes before them."""
    text, document = samples.table["text"].values, samples.table["document"].values
    rows = extreme_data(found[0], [list(each) for each in text], count=EXTREMES, context=BEFORE)
    return [
        {"mode 1": row["loading"], "document": str(document[row["sample"]]), "after": row["text so far"],
         "token": row["token"]}
        for row in rows
    ]  # fmt: skip


def extremes(found: Modes, samples: Samples) -> str:
    """The documents that the first mode loads on most and least, on average over their tokens."""
    loading = found[0].data * found[0].data.size ** 0.5
    mean = xr.DataArray(loading.values, dims="token").groupby(xr.DataArray(loading["document"].values, dims="token",
                                                                            name="document")).mean()  # fmt: skip
    order = mean.values.argsort()
    return (
        f"mode 1 loads most on documents {named(mean, order[::-1][:3])}; least on {named(mean, order[:3])} "
        f"(mean over tokens, whose root mean square is 1; {len(samples)} samples)"
    )


def named(mean: xr.DataArray, order: Any) -> str:
    return ", ".join(f"{mean['document'].values[at]} {mean.values[at]:.2f}" for at in order)


def modes_of(folder: Path) -> Modes:
    """Those found in a run; raises FileNotFoundError where there are none."""
    return Modes(load_dataset(folder / "modes" / MODES, f"modes {folder}"))
