"""Inversion: time and memory at 512 components × 1,000,000 tokens, and what knowing χ's noise gains.

`python -m bench.inversion` measures both, prints a table of what is missed under noise of several shapes, which
`python -m bench.inversion shapes` does alone, draws docs/images/inversion.png and records the figures. χ, its errors
and the weights are in memory; χ by group, 8 GB here, is on disk, where `invert` reads it in blocks.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xarray as xr
import zarr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student
from tqdm import tqdm

import patterning_fast as pf
from bench.results import record
from patterning_fast.patterning.regularization import Regularization
from patterning_fast.report.figures import COLOURS, png

COMPONENTS, TOKENS, GROUPS = 512, 1_000_000, 4
SECONDS, CHIS = 60.0, 3.0
"""Bars: seconds, and peak resident memory of the whole process over that of χ in float32."""

SHAPES = {
    "independent": "independent",
    "heteroscedastic": "log-normal scales over the data",
    "shared": "shared between components, r .64",
    "2 directions": "in 2 directions of the data",
    "5 directions": "in 5 directions of the data",
}
RATIOS, NUMBERS = (1.0, 0.5), (4, 8, 16)
"""Signal to noise, by root mean squares over all of χ; and numbers of groups."""
WORSE, REFUSED, COVERED = 1.05, 0.5, (0.90, 0.99)
"""Bars: what is missed over what the pseudo-inverse misses; what that misses of targets that are refused; coverage."""

FIRST_SEED = 1000
"""Of the table's draws: settings were chosen on smaller ones."""

STEP = 4096
"""Tokens that are made, and written, at a time."""

PLANS: dict[str, dict[str, Any]] = {
    "projected to be non-negative": {"strength": 1.0},
    "at most 2, non-negative": {"strength": 0.5, "constraints": pf.Constraints(cap=2.0)},
    "nearest in KL": {"strength": 0.5, "constraints": pf.Constraints(kl=0.5)},
}

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "inversion.png"
KNOWN, DATA, DRAWS = 24, 2000, 40
LEVELS = np.geomspace(0.02, 0.6, 8)
"""Standard error of χ, over the root mean square of the known χ."""
NOISE = {DATA: "independent noise", 100: "noise in 100 directions of the data"}
NAMES: dict[Regularization, str] = {"none": "pseudo-inverse", "truncated": "truncated", "wiener": "Wiener (default)"}
STYLES: dict[Regularization, tuple[str, str, str]] = {
    "none": (COLOURS[2], "--", "s"),
    "truncated": (COLOURS[3], ":", "^"),
    "wiener": (COLOURS[1], "-", "o"),
}


def chi_on_disk(folder: Path) -> xr.Dataset:
    """χ with a falling spectrum and an error of 0.03 of its largest mode, in float32; its groups in a Zarr store."""
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((COMPONENTS, COMPONENTS)) / np.sqrt(COMPONENTS)
    mixing = (mixing / np.sqrt(np.arange(1, COMPONENTS + 1))).astype(np.float32)
    chi = np.empty((COMPONENTS, TOKENS), np.float32)
    error = np.full((COMPONENTS, TOKENS), 0.03, np.float32)
    stored = zarr.create_group(folder).create_array(
        "chi_group", shape=(COMPONENTS, GROUPS, TOKENS), chunks=(COMPONENTS, GROUPS, STEP), dtype="float32",
        compressors=None, dimension_names=("component", "group", "token"),
    )  # fmt: skip
    for start in range(0, TOKENS, STEP):
        where = slice(start, min(start + STEP, TOKENS))
        chi[:, where] = mixing @ generator.standard_normal((COMPONENTS, where.stop - start), dtype=np.float32)
        noise = 0.06 * generator.standard_normal((COMPONENTS, GROUPS, where.stop - start), dtype=np.float32)
        stored[:, :, where] = chi[:, None, where] + noise - noise.mean(1, keepdims=True)
    group = xr.open_dataset(folder, engine="zarr", consolidated=False)["chi_group"]
    return xr.Dataset(
        {"chi": (("component", "token"), chi), "chi_error": (("component", "token"), error), "chi_group": group},
        coords={"component": [f"c{at}" for at in range(COMPONENTS)]},
        attrs={"n_beta": 10.0},
    )


def measure() -> list[dict[str, Any]]:
    """Seconds of each plan, and the peak memory [χ's] of this process by then."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        chi = chi_on_disk(Path(folder))
        for name, options in PLANS.items():
            started = time.monotonic()
            plan = pf.invert(chi, {"c3": 1.0, "c77": -0.5}, **options)
            seconds = time.monotonic() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / chi["chi"].nbytes
            rows.append({"plan": name, "seconds": seconds, "peak": peak, "share at zero": plan.attrs["share_zero"]})
    return rows


def at_size() -> list[dict[str, Any]]:
    """The rows of the large problem, from a process of its own."""
    command = [sys.executable, "-m", "bench.inversion", "measure"]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows: list[dict[str, Any]] = []
    for each in measured:
        for what, bar, unit in (("seconds", SECONDS, "s"), ("peak", CHIS, "times χ")):
            figure = f"inversion, {COMPONENTS} × {TOKENS:,}, {each['plan']}: {what}"
            rows.append(
                {
                    "figure": figure,
                    "value": each[what],
                    "bar": bar,
                    "holds": each[what] <= bar,
                    "unit": unit,
                    "peers": {},
                }
            )
    return rows


def known_chi(generator: np.random.Generator) -> np.ndarray:
    """A χ whose modes fall off as 1/k, of root mean square 1 `[components, data]`."""
    left, _ = np.linalg.qr(generator.standard_normal((KNOWN, KNOWN)))
    chi = left / np.arange(1, KNOWN + 1) @ generator.standard_normal((KNOWN, DATA))
    return chi / np.sqrt(np.mean(chi**2))


def with_noise(chi: np.ndarray, level: float, directions: int, generator: np.random.Generator) -> xr.Dataset:
    """χ as 8 groups of chains would estimate it, with noise in that many directions of the data."""
    groups = 8
    noise = np.sqrt(groups) * level * generator.standard_normal((KNOWN, groups, directions))
    if directions < DATA:
        noise = noise @ generator.standard_normal((directions, DATA)) / np.sqrt(directions)
    return of_groups(chi[:, None] + noise)


def of_groups(by_group: np.ndarray) -> xr.Dataset:
    """χ of its values by group `[components, groups, data]`."""
    components, groups, _ = by_group.shape
    return xr.Dataset(
        {
            "chi": (("component", "token"), by_group.mean(1)),
            "chi_error": (("component", "token"), by_group.std(1, ddof=1) / np.sqrt(groups)),
            "chi_group": (("component", "group", "token"), by_group.astype(np.float32)),
        },
        coords={"component": [f"c{at}" for at in range(components)]},
        attrs={"n_beta": 10.0},
    )


def missed(level: float, directions: int) -> dict[Regularization, np.ndarray]:
    """|dμ realised − dμ wanted| / |dμ wanted| of draws whose target no method refuses, by method."""
    found: dict[Regularization, list[float]] = {name: [] for name in get_args(Regularization)}
    for seed in range(DRAWS):
        generator = np.random.default_rng(seed)
        truth = known_chi(generator)
        chi = with_noise(truth, level, directions, generator)
        component = int(generator.integers(KNOWN))
        wanted = np.eye(KNOWN)[component]
        realised = {}
        try:
            for name in found:
                plan = pf.invert(chi, {f"c{component}": 1.0}, negative_weights="allow", regularization=name)
                realised[name] = 10.0 / DATA * (truth - truth.mean(1, keepdims=True)) @ (plan.weights.values - 1)
        except pf.InfeasibleTargetError:
            continue
        for name, each in realised.items():
            found[name].append(float(np.linalg.norm(each - wanted)))
    return {name: np.array(each) for name, each in found.items()}


def shaped_noise(shape: str, components: int, groups: int, data: int, generator: np.random.Generator) -> np.ndarray:
    """Noise of root mean square about 1 by group `[components, groups, data]`."""
    noise = generator.standard_normal((components, groups, data))
    if shape == "heteroscedastic":  # exp(σz) with σ = 1, over its root mean square
        noise *= np.exp(generator.standard_normal(data) - 1.0)
    elif shape == "shared":
        noise = 0.6 * noise + 0.8 * generator.standard_normal((groups, data))
    elif shape.endswith("directions"):
        directions = int(shape.split()[0])
        noise = generator.standard_normal((components, groups, directions))
        noise = noise @ generator.standard_normal((directions, data)) / np.sqrt(directions)
    return noise


def under_shape(
    shape: str, ratio: float, groups: int, draws: int, components: int = 6, data: int = 400
) -> dict[str, float]:
    """What is missed of one component's target under noise of a shape, the mean over draws of χ.

    `missed` of what is not refused, and `pseudo-inverse` of the same draws; `refused`, their share, and the least that
    the pseudo-inverse misses of one; `covered`, how often 95 % intervals of dμ hold what happens, of either inverse.
    """
    missed: dict[str, list[float]] = {"wiener": [], "none": [], "refused": []}
    covered: dict[str, list[float]] = {"wiener": [], "none": []}
    quantile = float(student.ppf(0.975, groups - 1))
    for seed in range(FIRST_SEED, FIRST_SEED + draws):
        generator = np.random.default_rng(seed)
        truth = generator.standard_normal((components, data))
        noise = shaped_noise(shape, components, groups, data, generator) * np.sqrt(groups) / ratio
        chi = of_groups(truth[:, None] + noise)
        answer = 10.0 / data * (truth - truth.mean(1, keepdims=True))
        component = int(generator.integers(components))
        found = {}
        for name in covered:
            try:
                plan = pf.invert(chi, {f"c{component}": 1.0}, negative_weights="allow", regularization=name)  # type: ignore[arg-type]
            except pf.InfeasibleTargetError:
                continue
            realised = answer @ (plan.weights.values - 1)
            found[name] = float(np.linalg.norm(realised - np.eye(components)[component]))
            apart = abs(realised - plan.predicted["dmu"].values) / plan.predicted["dmu_error"].values
            covered[name].append(float(np.mean(apart < quantile)))
        if "wiener" not in found:
            missed["refused"].append(found["none"])
            continue
        for name, each in found.items():
            missed[name].append(each)

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else float("nan")

    return {
        "missed": mean(missed["wiener"]),
        "pseudo-inverse": mean(missed["none"]),
        "refused": len(missed["refused"]) / draws,
        "refused, least missed": min(missed["refused"], default=float("nan")),
        "covered": mean(covered["wiener"]),
        "covered, pseudo-inverse": mean(covered["none"]),
    }


def table(draws: int = DRAWS) -> list[dict[str, Any]]:
    """Prints what is missed by shape of noise, signal to noise and groups; the rows of what is missed."""
    rows: list[dict[str, Any]] = []
    low, high = COVERED
    for shape, title in SHAPES.items():
        for ratio in RATIOS:
            for groups in NUMBERS:
                found = under_shape(shape, ratio, groups, draws)
                figure = f"noise {title}, signal to noise {ratio:g}, {groups} groups"
                print(figure + ": " + ", ".join(f"{name} {each:.2f}" for name, each in found.items()))
                share = found["missed"] / found["pseudo-inverse"]
                refused = not found["refused"] or found["refused, least missed"] > REFUSED
                covered = np.isnan(found["covered"]) or low <= found["covered"] <= high
                holds = bool((np.isnan(share) or share <= WORSE) and refused and covered)
                rows.append(
                    {
                        "figure": f"inversion, {figure}: missed over what the pseudo-inverse does",
                        "value": share,
                        "bar": WORSE,
                        "holds": holds,
                        "unit": "1",
                        "peers": {},
                    }
                    | found
                )
    return rows


def panel(axes: Axes, results: list[dict[Regularization, np.ndarray]], title: str) -> None:
    """Median and middle half of what is missed, against the noise of χ, where at least a quarter is not refused."""
    enough = [at for at, each in enumerate(results) if len(each["wiener"]) >= DRAWS // 4]
    for name, (colour, line, marker) in STYLES.items():
        low, middle, high = np.array([np.quantile(results[at][name], [0.25, 0.5, 0.75]) for at in enough]).T
        axes.fill_between(LEVELS[enough], low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(LEVELS[enough], middle, color=colour, linestyle=line, marker=marker, linewidth=2, label=NAMES[name])
    axes.set(xscale="log", yscale="log", xlabel="standard error of χ over its root mean square", title=title)
    axes.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def under_noise() -> list[dict[str, Any]]:
    """Draws the figure; the rows of what the default misses over what the pseudo-inverse misses."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 2, sharey=True))
    rows: list[dict[str, Any]] = []
    for axes, (directions, title) in zip(panels, NOISE.items(), strict=True):
        results = [missed(level, directions) for level in tqdm(LEVELS, desc=title)]
        panel(axes, results, title)
        every = {name: np.concatenate([each[name] for each in results]) for name in NAMES}
        share = float(np.mean(every["wiener"]) / np.mean(every["none"]))
        rows.append(
            {
                "figure": f"inversion, {title}: what the regularised inverse misses over what the pseudo-inverse does",
                "value": share,
                "bar": 1.0,
                "holds": share < 1,
                "unit": "1",
                "peers": {"truncated": float(np.mean(every["truncated"]) / np.mean(every["none"]))},
                "better, share of draws": float(np.mean(every["wiener"] < every["none"])),
                "draws": len(every["wiener"]),
            }
        )
    panels[0].set_ylabel("|dμ realised − dμ wanted| / |dμ wanted|")
    panels[0].legend(frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(png(figure))
    return rows


def main() -> None:
    rows = [*table(), *under_noise(), *at_size()]
    for row in rows:
        print(f"{row['figure']}: {row['value']:.3g} {row['unit']} (bar {row['bar']:g})")
    record("inversion", rows)


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        print(json.dumps(measure()))
    elif sys.argv[1:] == ["shapes"]:
        record("inversion, shapes of noise", table())
    else:
        main()
