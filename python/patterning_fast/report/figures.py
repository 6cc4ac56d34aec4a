"""Pictures of susceptibilities, modes and training curves; colours that colour-blind readers tell apart."""

from __future__ import annotations

import io
from itertools import cycle

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from patterning_fast.arguments import checked
from patterning_fast.patterning.modes import Modes
from patterning_fast.report import text

COLOURS = ("#000000", "#0072B2", "#D55E00", "#999999", "#009E73", "#CC79A7")  # Okabe & Ito 2008
NAMED = 12
"""Components that a picture has room to name."""
LINES = ("-", "-", "-", "--", ":", "-.")


@checked
def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"font.size": 10}):
        figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    return buffer.getvalue()


def draw_floor(axes: Axes, modes: xr.Dataset) -> None:
    """The noise floor of a spectrum, where it is known."""
    floor = modes.attrs["noise_floor"]
    if np.isfinite(floor):
        axes.axhline(floor, color="black", linestyle="--", linewidth=1)
        axes.annotate(
            "noise floor", (1, floor), xytext=(-2, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="bottom", fontsize=8,
        )  # fmt: skip


@checked
def scree(modes: Modes) -> Figure:
    """Singular values with their errors, what is left of them without noise, and the floor under which all is noise."""
    table = modes.table
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    order, above = np.arange(len(modes)), table["above_floor"].values
    for which, colour, label in ((above, COLOURS[1], "above the floor"), (~above, COLOURS[3], "not above it")):
        axes.errorbar(
            order[which], table["singular_value"].values[which], 1.96 * table["singular_value_error"].values[which],
            fmt="o", color=colour, capsize=3, label=f"singular value, {label} (95 %)",
        )  # fmt: skip
    axes.plot(order, table["signal"].values, "D", color=COLOURS[2], fillstyle="none", label="without noise")
    draw_floor(axes, table)
    edge = table.attrs["marchenko_pastur"]
    axes.axhline(edge, color=COLOURS[3], linestyle=":", linewidth=1, label="Marchenko–Pastur edge")
    axes.set(xlabel="mode", ylabel="singular value of z-scored χ")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


@checked
def matched_modes(matches: xr.Dataset, ours: str, theirs: str) -> Figure:
    """|cosines| between the modes of two estimates; frames are the pairs that `match_modes` made of them."""
    cosines = np.abs(matches["all_cosines"].values)
    rows, columns = cosines.shape
    figure = Figure(figsize=(2.2 + 0.5 * columns, 1.4 + 0.5 * rows), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cosines, cmap="cividis", vmin=0, vmax=1)
    for row, column in np.ndindex(rows, columns):
        colour = "black" if cosines[row, column] > 0.6 else "white"
        axes.text(column, row, f"{cosines[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=7)
    for row, column in enumerate(matches["partner"].values):
        if column >= 0:
            axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=COLOURS[2], lw=2))
    axes.set(xlabel=f"modes of {text.label(theirs)}", ylabel=f"modes of {text.label(ours)}")
    axes.set(xticks=range(columns), yticks=range(rows))
    figure.colorbar(image, ax=axes, label="|cosine| of data loadings", shrink=0.9)
    return figure


@checked
def verification(result: xr.Dataset) -> Figure:
    """Predicted against realised dμ by strength, with 95 % error bars, as `pf.verify` finds them; verdicts in words."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, result.sizes["strength"]))
    for at, (colour, marker) in enumerate(zip(shades, cycle("os^Dv"), strict=False)):
        here = result.isel(strength=at)
        label = f"strength {float(here['strength']):.3g}: {here['verdict'].item()}"
        axes.errorbar(
            here["predicted"].values, here["realised"].values, 1.96 * here["realised_error"].values,
            1.96 * here["predicted_error"].values, fmt=marker, color=colour, capsize=2, markersize=5, label=label,
        )  # fmt: skip
    strongest = result.isel(strength=-1)
    for name in result["component"].values[: 0 if result.sizes["component"] > NAMED else None]:
        where = strongest.sel(component=name)
        axes.annotate(
            text.label(str(name)), (float(where["predicted"]), float(where["realised"])), xytext=(6, -9),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    axes.axline((0, 0), slope=1, color="#888888", linewidth=0.8, zorder=0, label="as predicted")
    axes.set(xlabel="predicted dμ [nats]", ylabel="realised dμ [nats]")
    axes.set_title(f"kept up to strength {result.attrs['radius']:.3g}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


VERDICT_COLOURS = {
    "healthy": "#009E73",
    "not mixed": "#F0E442",
    "too warm": "#CC79A7",
    "steps too long": "#0072B2",
    "on the way out": "#56B4E9",
    "negative": "#E69F00",
    "diverged": "#D55E00",
}
AGREEMENT_COLOURS = {"agree": COLOURS[4], "too noisy to tell": COLOURS[3], "disagree": COLOURS[2]}


@checked
def fluctuation_dissipation(result: xr.Dataset) -> Figure:
    """χ by covariances against χ by responses, as `pf.fluctuation_dissipation` finds them: a panel for each component.

    Both are about their means over data. Lines are the slope there is, freed of noise, and the 1 there should be. Of
    more than 12 components the first are shown.
    """
    names = result["component"].values[:NAMED]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(0.6 + 2.9 * columns, 0.4 + 2.8 * rows), layout="constrained")
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for name, axes in zip(names, panels, strict=False):
        here = result.sel(component=name)
        x, y = (here[each].values - here[each].values.mean() for each in ("response", "covariance"))
        colour = AGREEMENT_COLOURS[here["verdict"].item()]
        axes.scatter(x, y, s=4, color=COLOURS[3], alpha=0.5, linewidths=0, rasterized=True)
        axes.axline((0, 0), slope=1, color=COLOURS[0], linewidth=0.8, linestyle="--")
        slope, error = float(here["slope"]), float(here["slope_error"])
        if np.isfinite(slope):
            axes.axline((0, 0), slope=slope, color=colour, linewidth=2)
        correlation = f"r {float(here['correlation']):.2f} ± {float(here['correlation_error']):.2f}"
        axes.set_title(
            f"{text.label(str(name))}: {here['verdict'].item()}\nslope {slope:.3g} ± {error:.2g}, {correlation}",
            loc="left", fontsize=8, color=colour,
        )  # fmt: skip
        axes.ticklabel_format(scilimits=(-2, 2))
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("χ by linear response [nats²]", fontsize=9)
    figure.supylabel("χ by covariances [nats²]", fontsize=9)
    return figure


@checked
def calibration(grid: xr.Dataset, component: str = "full") -> Figure:
    """Which settings of `pf.calibrate` are healthy: nβ against step size, one panel a localization.

    Colours say the component's verdict; numbers are its learning coefficient and, below, its R̂.
    """
    pulls = grid["localization"].values
    rows, columns = grid.sizes["n_beta"], grid.sizes["lr"]
    figure = Figure(figsize=(1.6 + 0.95 * columns * len(pulls), 1.8 + 0.55 * rows), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(pulls), sharey=True, squeeze=False)[0])
    names = list(VERDICT_COLOURS)
    for pull, axes in zip(pulls, panels, strict=True):
        here = grid.sel(localization=pull, component=component).transpose("n_beta", "lr")
        codes = np.vectorize(names.index)(here["verdict"].values)
        axes.imshow(
            codes,
            cmap=ListedColormap(list(VERDICT_COLOURS.values())),
            vmin=-0.5,
            vmax=len(names) - 0.5,
            aspect="auto",
            origin="lower",
        )
        for row, column in np.ndindex(rows, columns):
            if codes[row, column] < names.index("diverged"):
                cell = here.isel(n_beta=row, lr=column)
                numbers = f"{float(cell['llc']):.3g}\n{float(cell['r_hat']):.2f}"
                axes.text(column, row, numbers, ha="center", va="center", fontsize=7)
        axes.set_xticks(range(columns), [f"{value:g}" for value in grid["lr"].values], rotation=45)
        axes.set_yticks(range(rows), [f"{value:g}" for value in grid["n_beta"].values])
        axes.set(title=f"localization {pull:g}", xlabel="lr")
    panels[0].set_ylabel("n_beta")
    marks = [Patch(color=colour, label=name) for name, colour in VERDICT_COLOURS.items()]
    figure.legend(handles=marks, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(f"{text.label(component)}: learning coefficient and, below it, R̂", fontsize=9)
    return figure
