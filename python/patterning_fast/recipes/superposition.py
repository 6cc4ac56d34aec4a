"""The superposition recipe: which polygon a toy model makes of its features, and data that decide it.

After arXiv:2310.06301 (stages of training are regular polygons, each with its learning coefficient) and Patterning Toy
Models of Superposition (Timaeus 2026: the frequencies of features decide which are formed). Thousands of replicas are
trained from random starts; weights come from differences between solutions, and wanted polygons are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import patterning_fast as pf
from patterning_fast.models.superposition import TiedAutoencoder
from patterning_fast.progress import progress_bar
from patterning_fast.recipes.findings import Findings, Picture, Rows
from patterning_fast.recipes.pieces import Pieces
from patterning_fast.recipes.responses import comparison, with_comparison
from patterning_fast.report import figures
from patterning_fast.report import polygons as drawn
from patterning_fast.tasks.polygons import Polygons, one_active, polygons, regular_polygon

T = TypeVar("T")
K = TypeVar("K", str, int)

Course = dict[str, Tensor]
"""Replicas: `sides`, `positive`, `loss` `[snapshots, replicas]`, `held` by feature as well; `final` parameters."""

UNITS = ("feature", "magnitude", "sample")
FAINT, BRIGHT, MASS_OF_FAINT = 1 / 16, 3 / 4, 0.85
"""The weights by hand: magnitudes below and above, and the share of the weight that the first have."""
GOAL, AT_MOST = 0.9, 0.5


@dataclass(frozen=True)
class Settings:
    """Sizes and settings of one run of the recipe."""

    features: int = 6
    magnitudes: int = 32
    wanted: tuple[int, ...] = (6, 5, 4)
    """k for the k-gon of the first k features, all others left out."""
    replicas: int = 1000
    initial_scale: float = 0.7
    steps: int = 3000
    batch_size: int = 16
    lr: float = 5e-3
    snapshots: int = 30
    seeds: tuple[int, ...] = (0, 1)
    """The first for all that is tried, the others for the base and for what came out best."""
    n_beta: float = 1000.0
    localization: float = 10.0
    sampling_lr: float = 5e-4
    chains: int = 64
    draws: int = 150
    burn_in: int = 50
    steps_between_draws: int = 20
    sampling_batch: int = 192
    rivals: int = 8
    """Replicas that contributions of what the base run came to are taken from."""
    stages: int = 10
    """Snapshots along training at which λ̂ is estimated."""
    strengths: tuple[float, ...] = (0.35, 1.0, 2.0)
    """Of plans by differences of losses; those of λ̂ are made at the first."""
    strengths_again: tuple[float, ...] = (0.5, 1.0)
    """Of a second plan, made from what came of the best of the first, on top of it."""
    frequencies: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 2.0, 4.0)
    """Weights of the last feature, others having 1."""
    device: str = "cpu"
    """Where replicas are trained."""


class Weighting(NamedTuple):
    """Weights of the data, and what they are for."""

    wanted: int
    way: str
    unit: str
    strength: float
    weights: Tensor

    @property
    def name(self) -> str:
        strength = "" if np.isnan(self.strength) else f", {self.strength:g}"
        return f"{self.wanted}-gon: {self.way} by {self.unit}{strength}"


def run(settings: Settings, pieces: Pieces) -> Findings:
    """Train the base run, make plans of it, train replicas on each, and count polygons."""
    first, *others = settings.seeds
    base = pieces.map("base run", trained, {"base": (settings, first, None)})["base"]
    paths, courses = base["parameters"], {"base": course_of(settings, base)}
    traced = representatives(courses["base"])
    models = {
        f"λ̂ of {kind} at {at}": paths[at, replica]
        for kind, replica in traced.items()
        for at in stage_snapshots(settings)
    } | {name: exact_polygon(settings, *kind) for name, kind in exact_kinds(settings).items()}
    coefficients = parts(pieces, "λ̂", coefficient, {name: (settings, each) for name, each in models.items()})
    of_base = {sides: (settings, sides, paths[-1]) for sides in settings.wanted}
    planned = parts(pieces, "plans", plans_for, of_base)
    tried = [
        Weighting(sides, way, unit, strength, weights)
        for sides, found in planned.items()
        for way, unit, strength, weights in found["plans"]
    ]

    def retrain(description: str, more: list[Weighting]) -> None:
        found = pieces.map(description, retrained, {each.name: (settings, first, each.weights) for each in more})
        courses.update(found)

    retrain("retraining", [*tried, *frequencies(settings), by_hand(settings)])
    best = {sides: best_for(sides, tried, courses) for sides in settings.wanted}
    again = parts(pieces, "plans again", plans_again, {
        sides: (settings, each, courses[each.name]["final"]) for sides, each in best.items()
    })  # fmt: skip
    second = [
        Weighting(sides, f"again after {best[sides].unit}, loss", "magnitude", strength, weights)
        for sides, plans in again.items()
        for strength, weights in plans
    ]
    controls = [shuffled(settings, each) for each in best.values()]
    retrain("retraining again, and controls", [*second, *controls])
    tried += second
    best = {sides: best_for(sides, tried, courses) for sides in settings.wanted}
    kept = {each.name: each.weights for each in (*best.values(), by_hand(settings))}
    courses |= pieces.map("other seeds", retrained, {
        seeded(name, seed): (settings, seed, kept.get(name)) for seed in others for name in ("base", *kept)
    })  # fmt: skip
    checked = parts(pieces, "verification", verification, of_base)
    made = Outcome(
        settings, base["step"].numpy(), paths, traced, coefficients, planned, tried, best, controls, checked, courses
    )
    compared = pieces.of("covariances against responses", partial(responses, settings, paths[-1][0]))
    return with_comparison(findings(made), compared["rows"], "around what the first replica came to")


def parts(
    pieces: Pieces, description: str, function: Callable[..., T], arguments: Mapping[K, tuple[Any, ...]]
) -> dict[K, T]:
    """Parts `function(*arguments)` with all threads: kernels share out chains, whose whole loops are theirs."""
    return {
        name: pieces.of(f"{description}: {name}", partial(function, *each))
        for name, each in progress_bar(arguments.items(), desc=description, unit="part")
    }


def trained(settings: Settings, seed: int, weights: Tensor | None) -> dict[str, Tensor]:
    """Replicas from random starts: `parameters` `[snapshots, replicas, 3 · features]`, `loss`, and the `step`s."""
    generator = torch.Generator().manual_seed(seed)
    size = settings.features
    columns = settings.initial_scale * torch.randn(
        settings.replicas, 2 * size, generator=generator, dtype=torch.float32
    )
    initial = torch.cat((columns, columns.new_zeros(settings.replicas, size)), 1).to(settings.device)
    x = one_active(size, settings.magnitudes).x.to(settings.device)
    found = pf.train_replicas(
        TiedAutoencoder(size).to(settings.device),
        initial,
        (x, x),
        pf.losses.squared_error,
        steps=settings.steps,
        batch_size=settings.batch_size,
        optimizer=lambda params: torch.optim.Adam(params, lr=settings.lr),
        weights=None if weights is None else weights[None],
        snapshots=settings.snapshots,
        seed=seed,
        progress=False,
    )
    return {
        "parameters": torch.from_numpy(found["parameters"].values[:, 0]),
        "loss": torch.from_numpy(found["loss"].values[:, 0]),
        "step": torch.from_numpy(found["step"].values),
    }


def course_of(settings: Settings, found: Mapping[str, Tensor]) -> Course:
    """What the replicas were at each snapshot."""
    each = [polygons(parameters.numpy(), settings.features) for parameters in found["parameters"]]
    return {
        "sides": torch.from_numpy(np.stack([one.sides for one in each])).to(torch.int8),
        "positive": torch.from_numpy(np.stack([one.positive for one in each])).to(torch.int8),
        "held": torch.from_numpy(np.stack([one.held for one in each])),
        "loss": found["loss"],
        "final": found["parameters"][-1],
    }


def retrained(settings: Settings, seed: int, weights: Tensor | None) -> Course:
    """What replicas trained on weights become."""
    return course_of(settings, trained(settings, seed, weights))


def at_snapshot(course: Course, snapshot: int) -> Polygons:
    """What the replicas were at a snapshot."""
    return Polygons(*(course[name][snapshot].numpy() for name in ("sides", "positive", "held")))


def as_wanted(found: Polygons, sides: int) -> np.ndarray:
    """Which models are a polygon of the first `sides` features `[models]`."""
    first = np.arange(found.held.shape[-1]) < sides
    return (found.sides == sides) & (found.held == first).all(-1)


def wanted_shares(course: Course, sides: int) -> np.ndarray:
    """Share of replicas that are as wanted, by snapshot."""
    return np.array([as_wanted(at_snapshot(course, at), sides).mean() for at in range(len(course["sides"]))])


def best_for(sides: int, tried: list[Weighting], courses: Mapping[str, Course]) -> Weighting:
    """Of the plans tried for a polygon, the one that most replicas followed."""
    return max(
        (each for each in tried if each.wanted == sides), key=lambda each: wanted_shares(courses[each.name], sides)[-1]
    )


def seeded(name: str, seed: int) -> str:
    return f"{name}, seed {seed}"


def vector(model: TiedAutoencoder) -> Tensor:
    """All parameters in one."""
    return parameters_to_vector(model.parameters()).detach()


def exact_polygon(settings: Settings, sides: int, positive: int = 0) -> Tensor:
    """The parameters of an exact critical point."""
    return vector(regular_polygon(settings.features, sides, settings.magnitudes, positive))


def exact_kinds(settings: Settings) -> dict[str, tuple[int, int]]:
    """Polygons of four corners and more, with features left out dead or positive, by name."""
    size = settings.features
    kinds = [(sides, more) for sides in range(size, 3, -1) for more in range(size - sides + 1)]
    return {f"exact {sides}" + "+" * more: (sides, more) for sides, more in kinds}


def representatives(course: Course) -> dict[str, int]:
    """A replica of each of the four kinds that most of the base run came to."""
    names = at_snapshot(course, -1).names.tolist()
    kinds = [kind for kind, _ in Counter(names).most_common() if kind != "other"][:4]
    return {kind: names.index(kind) for kind in kinds}


def stage_snapshots(settings: Settings) -> list[int]:
    """Snapshots, closer to each other early on."""
    spaced = np.geomspace(1, settings.snapshots, settings.stages).round().astype(int) - 1
    return sorted(set(spaced.tolist()))


def posterior_at(settings: Settings, parameters: Tensor) -> pf.LocalPosterior:
    """The posterior around a model."""
    model = TiedAutoencoder(settings.features)
    vector_to_parameters(parameters, model.parameters())
    x = one_active(settings.features, settings.magnitudes).x
    return pf.LocalPosterior(
        model, pf.losses.squared_error, (x, x), n_beta=settings.n_beta, localization=settings.localization
    )


def sampling(settings: Settings) -> dict[str, Any]:
    """How chains are run."""
    return {
        "chains": settings.chains,
        "draws": settings.draws,
        "burn_in": settings.burn_in,
        "steps_between_draws": settings.steps_between_draws,
        "batch_size": settings.sampling_batch,
        "antithetic": True,
        "progress": False,
    }


def sampled(settings: Settings, parameters: Tensor) -> pf.Statistics:
    """Chains around a model."""
    return pf.sample(posterior_at(settings, parameters), pf.SGLD(settings.sampling_lr), **sampling(settings))


def responses(settings: Settings, parameters: Tensor) -> dict[str, Any]:
    """χ of the data by covariances against that by responses."""
    keywords = sampling(settings)
    return comparison(posterior_at(settings, parameters), pf.SGLD(settings.sampling_lr), None, **keywords)


def coefficient(settings: Settings, parameters: Tensor) -> dict[str, Any]:
    """λ̂ of a model with its error, R̂ of the chains, and what the model is."""
    statistics = sampled(settings, parameters)
    llc = statistics.llc().sel(component="full")
    return {
        "kind": str(polygons(parameters[None].numpy(), settings.features).names[0]),
        "loss": float(losses_of(settings, parameters[None]).mean()),
        "λ̂": float(llc["llc"]),
        "error": float(llc["llc_error"]),
        "R̂": float(statistics.diagnostics()["r_hat"].sel(component="full")),
    }


def losses_of(settings: Settings, parameters: Tensor) -> np.ndarray:
    """Losses `[models, samples]` of models `[models, 3 · features]`."""
    x = one_active(settings.features, settings.magnitudes).x
    weight, bias = parameters[:, : -settings.features].unflatten(1, (2, -1)), parameters[:, -settings.features :]
    said = torch.relu(torch.einsum("sf,mhf,mhg->msg", x, weight, weight) + bias[:, None])
    return (0.5 * (said - x).square().sum(-1)).numpy()


def susceptibilities_at(settings: Settings, statistics: pf.Statistics) -> xr.Dataset:
    """χ by sample, with the feature and the magnitude that are active in it."""
    data = one_active(settings.features, settings.magnitudes)
    chi = statistics.susceptibilities()
    return chi.assign_coords(feature=("sample", data.feature), magnitude=("sample", data.magnitude))


def loss_direction(chi: xr.Dataset, favoured: np.ndarray, others: np.ndarray) -> xr.DataArray:
    """What each sample's loss is more at other solutions, from losses `[solutions, samples]`."""
    like = chi["chi"].sel(component="full", drop=True)
    own, other = (
        xr.Dataset({"loss": like.copy(data=each.mean(0)), "loss_error": xr.zeros_like(like)})
        for each in (favoured, others)
    )
    return pf.between_solutions(own, other, "loss")


def coefficient_direction(settings: Settings, own: xr.Dataset, rivals: Tensor) -> xr.DataArray:
    """What each sample contributes more to λ̂ at other solutions; errors are of how some of them differ."""
    some = torch.randperm(len(rivals), generator=torch.Generator().manual_seed(0))[: settings.rivals]
    theirs = xr.concat([sampled(settings, each).contributions()["contribution"] for each in rivals[some]], "solution")
    error = theirs.std("solution", ddof=1) / np.sqrt(theirs.sizes["solution"])
    other = xr.Dataset({"contribution": theirs.mean("solution"), "contribution_error": error})
    return pf.between_solutions(own, other)


def plan(chi: xr.Dataset, direction: xr.DataArray, unit: str, strength: float) -> pf.Plan:
    """Weights along a direction, the same for all samples of a unit."""
    return pf.invert(
        chi,
        direction,
        strength=strength,
        negative_weights="clip",
        unit=None if unit == "sample" else unit,
        unsettled=True,
    )


def plans_for(settings: Settings, sides: int, finals: Tensor) -> dict[str, Any]:
    """Weights `[samples]` that favour the polygon of the first `sides` features over what the base run came to.

    `plans` are (way, unit, strength, weights), by differences of losses and of contributions to λ̂; `refused` says
    which differences their errors do not tell from none, by way.
    """
    rivals = finals[torch.from_numpy(~as_wanted(polygons(finals.numpy(), settings.features), sides))]
    solution = exact_polygon(settings, sides)
    statistics = sampled(settings, solution)
    chi = susceptibilities_at(settings, statistics)
    made: dict[str, Callable[[], xr.DataArray]] = {
        "loss": lambda: loss_direction(chi, losses_of(settings, solution[None]), losses_of(settings, rivals)),
        "λ̂": lambda: coefficient_direction(settings, statistics.contributions(), rivals),
    }
    plans, refused = [], {}
    for way, direction in made.items():
        try:
            found = direction()
        except pf.InfeasibleTargetError as why:
            refused[way] = str(why)
            continue
        strengths = settings.strengths if way == "loss" else settings.strengths[:1]
        for unit in UNITS:
            for strength in strengths:
                weights = torch.from_numpy(plan(chi, found, unit, strength).weights.values).float()
                plans.append((way, unit, strength, weights))
    return {"plans": plans, "refused": refused}


def plans_again(settings: Settings, before: Weighting, finals: Tensor) -> list[tuple[float, Tensor]]:
    """Weights on top of a plan, by magnitude, from where replicas that followed it differ from those that did not."""
    followed = torch.from_numpy(as_wanted(polygons(finals.numpy(), settings.features), before.wanted))
    if followed.all() or not followed.any():
        return []
    chi = susceptibilities_at(settings, sampled(settings, finals[followed][0]))
    direction = loss_direction(chi, losses_of(settings, finals[followed]), losses_of(settings, finals[~followed]))
    both = [
        before.weights * torch.from_numpy(plan(chi, direction, "magnitude", strength).weights.values).float()
        for strength in settings.strengths_again
    ]
    return [(strength, each / each.mean()) for strength, each in zip(settings.strengths_again, both, strict=True)]


def verification(settings: Settings, sides: int, finals: Tensor) -> dict[str, Any]:
    """Predicted against realised dμ at an exact polygon, of the weakest plan for it by loss and sample."""
    rivals = finals[torch.from_numpy(~as_wanted(polygons(finals.numpy(), settings.features), sides))]
    solution = exact_polygon(settings, sides)
    chi = susceptibilities_at(settings, sampled(settings, solution))
    direction = loss_direction(chi, losses_of(settings, solution[None]), losses_of(settings, rivals))
    weakest = plan(chi, direction, "sample", settings.strengths[0])
    found = pf.verify(
        weakest, posterior_at(settings, solution), pf.SGLD(settings.sampling_lr), seed=1, **sampling(settings)
    ).sel(component="full")
    names = ("strength", "predicted", "predicted_error", "realised", "realised_error")
    return {name: found[name].values.tolist() for name in (*names, "verdict")} | {
        "radius": float(found.attrs["radius"])
    }


def frequencies(settings: Settings) -> list[Weighting]:
    """The last feature more often, or less."""
    last = torch.from_numpy(one_active(settings.features, settings.magnitudes).feature) == settings.features - 1
    made = [torch.where(last, factor, 1.0) for factor in settings.frequencies]
    return [
        Weighting(0, "frequency", "feature", factor, each / each.mean())
        for factor, each in zip(settings.frequencies, made, strict=True)
    ]


def by_hand(settings: Settings) -> Weighting:
    """Faint and bright samples alone, for all features to be held."""
    magnitude = one_active(settings.features, settings.magnitudes).magnitude
    shares = ((magnitude < FAINT, MASS_OF_FAINT), (magnitude > BRIGHT, 1 - MASS_OF_FAINT))
    weights = sum(share * which / which.mean() for which, share in shares)
    return Weighting(settings.features, "by hand", "magnitude", float("nan"), torch.from_numpy(weights).float())


def shuffled(settings: Settings, best: Weighting) -> Weighting:
    """The control: the same weights for other features and magnitudes, so of equal norm in a random direction."""
    order = np.random.default_rng(0).permutation(settings.magnitudes)
    moved = best.weights.view(settings.features, settings.magnitudes).roll(1, 0)[:, torch.from_numpy(order)]
    return best._replace(way=f"shuffled, {best.way}", weights=moved.flatten())


@dataclass(frozen=True)
class Outcome:
    """All that findings are made of."""

    settings: Settings
    steps: np.ndarray
    """Of the snapshots."""
    paths: Tensor
    """Parameters of the base run by snapshot and replica."""
    traced: dict[str, int]
    """Replicas whose λ̂ was followed, by what they came to."""
    coefficients: dict[str, dict[str, Any]]
    planned: dict[int, dict[str, Any]]
    tried: list[Weighting]
    best: dict[int, Weighting]
    controls: list[Weighting]
    checked: dict[int, dict[str, Any]]
    courses: dict[str, Course]

    def share(self, name: str, sides: int) -> float:
        """Share of replicas that are as wanted at the end."""
        return float(wanted_shares(self.courses[name], sides)[-1])

    def error(self, share: float) -> float:
        """Standard error of a share over replicas."""
        return float(np.sqrt(share * (1 - share) / self.settings.replicas))

    def half(self, shares: np.ndarray) -> float:
        """Step of the first snapshot at which half of the replicas are so; NaN for never."""
        passed = np.flatnonzero(shares >= 0.5)
        return float(self.steps[passed[0]]) if len(passed) else float("nan")

    def over_seeds(self, name: str, sides: int) -> list[float]:
        """Shares at all seeds, the first of them that on which plans were made and chosen."""
        names = [name, *(seeded(name, seed) for seed in self.settings.seeds[1:])]
        return [self.share(each, sides) for each in names]


def findings(made: Outcome) -> Findings:
    """Tables, pictures and sentences."""
    settings = made.settings
    return Findings(
        title="Superposition: which polygon a toy model makes of its features",
        claim=(
            "Training a toy model of superposition passes through polygons of its features, each with its learning "
            "coefficient, and the frequencies of features decide which polygons are formed, sooner, later or never "
            "(arXiv:2310.06301; Patterning Toy Models of Superposition, Timaeus 2026)."
        ),
        goal=(
            f"The wanted final state in at least {GOAL:.0%} of {settings.replicas} replicas, where the base run has it "
            f"in at most {AT_MOST:.0%}."
        ),
        said=[*of_goal(made), *of_ways(made), *of_frequencies(made), *of_stages(made)],
        seeds=list(settings.seeds),
        tables={
            "What replicas come to": end_rows(made),
            "All plans": plan_rows(made),
            "Frequency of the last feature": frequency_rows(made),
            "Exact polygons": exact_rows(made),
            "Verification": verification_rows(made),
        },
        pictures=pictures(made),
        data={"weights": weight_rows(made), "shares": share_rows(made), "stages": stage_rows(made)},
    )


def named(sides: int, features: int) -> str:
    """A wanted polygon in words."""
    *most, last = [str(each + 1) for each in range(sides, features)] or [""]
    left_out = f"s {', '.join(most)} and {last}" if most else f" {last}"
    return f"{sides}-gon" + (f" without feature{left_out}" if last else "")


def percent(shares: list[float]) -> str:
    return ", ".join(f"{each:.1%}" for each in shares)


def of_goal(made: Outcome) -> list[str]:
    """For each wanted polygon: what came of the best plan, at all seeds."""
    said = []
    for sides, best in made.best.items():
        base, found = made.over_seeds("base", sides), made.over_seeds(best.name, sides)
        control = next(each for each in made.controls if each.wanted == sides)
        met = min(found) >= GOAL and max(base) <= AT_MOST
        said.append(
            f"{named(sides, made.settings.features)}: {percent(base)} of the replicas of the base run at seeds "
            f"{', '.join(map(str, made.settings.seeds))}, and {percent(found)} with the best plan ({best.way} by "
            f"{best.unit}, strength {best.strength:g}), chosen at the first seed: the goal is "
            f"{'met' if met else 'missed'}. Control, the best plan of the first round dealt out to other "
            f"features and magnitudes: {made.share(control.name, sides):.1%}."
        )
    return said


def of_ways(made: Outcome) -> list[str]:
    """What differences of losses and of λ̂ did, and weights by hand."""
    features = made.settings.features
    said = []
    for sides, found in made.planned.items():
        ways = [way for way in ("loss", "λ̂") if way not in found["refused"]]
        each = {
            way: max((made.share(one.name, sides), one.name) for one in made.tried if one[:2] == (sides, way))
            for way in ways
        }
        said.append(
            f"{named(sides, features)}, plans of one round: "
            + "; ".join(f"by {way} at most {share:.1%} ({name.split(': ')[1]})" for way, (share, name) in each.items())
            + "".join(f"; by {way} refused: {why}" for way, why in found["refused"].items())
            + f"; base {made.share('base', sides):.1%}."
        )
    hand = by_hand(made.settings)
    said.append(
        f"Weights by hand, {MASS_OF_FAINT:.0%} of them on magnitudes below {FAINT:g} and the rest above {BRIGHT:g}, "
        f"alike for all features: a {features}-gon in {percent(made.over_seeds(hand.name, features))} of replicas, by "
        "seed. No plan was made from a difference of solutions here: it was found by trying."
    )
    return said


def last_held(course: Course) -> np.ndarray:
    """Share of replicas that hold the last feature, by snapshot; only in polygons can one tell."""
    return (course["held"][..., -1] & (course["sides"] > 0)).double().mean(1).numpy()


def of_frequencies(made: Outcome) -> list[str]:
    """Speeding up, preventing and redirecting by how often the last feature is active."""
    rows = {row["weight of the last feature"]: row for row in frequency_rows(made)}
    size = made.settings.features
    pentagon = {weight: row[named(size - 1, size)] for weight, row in rows.items()}
    when = {
        weight: "" if np.isnan(row["half hold it by step"]) else f" (half by step {row['half hold it by step']:.0f})"
        for weight, row in rows.items()
    }
    held = [f"{row['hold it at the end']:.1%}{when[weight]} at weight {weight:g}" for weight, row in rows.items()]
    said = [
        f"By frequency alone, replicas with feature {size} in a polygon at the end: {', '.join(held)}; those that are "
        f"a {named(size - 1, size)}: "
        + ", ".join(f"{share:.1%} at weight {weight:g}" for weight, share in pentagon.items())
        + "."
    ]
    if 0.0 in pentagon and pentagon[0.0] < max(pentagon.values()):
        said.append("Weight 0 does less than a small one: a feature that is never seen is not pushed out either.")
    return said


def of_stages(made: Outcome) -> list[str]:
    """λ̂ of exact polygons and along training."""
    rows = exact_rows(made)
    held = [f"{each['polygon']}: {each['λ̂']:.2f} ± {each['error']:.2f}" for each in rows if each["λ̂"] > 0]
    left = [each["polygon"] for each in rows if each["λ̂"] <= 0]
    said = [f"λ̂ of exact polygons at nβ = {made.settings.n_beta:g}: " + ", ".join(held) + "."]
    if left:
        said.append(f"Chains leave {', '.join(left)}, no minima at this temperature: λ̂ is negative there.")
    return said


def collapsed(course: Course) -> dict[str, np.ndarray]:
    """Shares by kind and snapshot `[snapshots]`: corners, "+" where some left out have a positive bias, or "other"."""
    snapshots = [at_snapshot(course, at) for at in range(len(course["sides"]))]
    codes = np.array([np.where(each.sides > 0, 2 * each.sides - (each.positive > 0), 0) for each in snapshots])
    names = {code: "other" if code == 0 else f"{(code + 1) // 2}" + "+" * (code % 2) for code in np.unique(codes)}
    return {name: (codes == code).mean(1) for code, name in sorted(names.items())}


def ends(made: Outcome) -> list[tuple[str, int, Course]]:
    """The base run, the best plans, the controls and the weights by hand, at every seed there is."""
    names = ["base", *(each.name for each in made.best.values()), by_hand(made.settings).name]
    names += [each.name for each in made.controls]
    first, *others = made.settings.seeds
    found = [(name, first, made.courses[name]) for name in dict.fromkeys(names)]
    for seed in others:
        found += [(name, seed, made.courses[each]) for name in names if (each := seeded(name, seed)) in made.courses]
    return found


def end_rows(made: Outcome) -> Rows:
    """Shares of kinds at the end."""
    rows: Rows = []
    kinds = sorted({kind for _, _, course in ends(made) for kind in collapsed(course)}, reverse=True)
    for name, seed, course in ends(made):
        found = collapsed(course)
        rows.append(
            {"weights": name, "seed": seed}
            | {kind: float(found[kind][-1]) if kind in found else 0.0 for kind in kinds}
            | {
                f"{sides}-gon of the first {sides}": float(wanted_shares(course, sides)[-1])
                for sides in made.settings.wanted
                if sides < made.settings.features
            }
            | {"mean loss, unweighted": float(course["loss"][-1].mean())}
        )
    return rows


def plan_rows(made: Outcome) -> Rows:
    """Every plan that was tried, and what came of it."""
    rows: Rows = []
    for each in (*made.tried, *made.controls, by_hand(made.settings)):
        shares = wanted_shares(made.courses[each.name], each.wanted)
        five = (made.courses[each.name]["sides"] >= 5).double().mean(1).numpy()
        rows.append(
            {
                "wanted": f"{each.wanted}-gon",
                "by difference of": each.way,
                "alike within": each.unit,
                "strength": each.strength,
                "rms of ρ − 1": float((each.weights - 1).square().mean().sqrt()),
                "weights of 0": float((each.weights == 0).double().mean()),
                "effective samples": float(each.weights.sum() ** 2 / each.weights.square().sum()),
                "share as wanted": float(shares[-1]),
                "error": made.error(float(shares[-1])),
                "half as wanted by step": made.half(shares),
                "half past 4 corners by step": made.half(five),
            }
        )
    return rows


def frequency_rows(made: Outcome) -> Rows:
    """What the frequency of the last feature does."""
    size = made.settings.features
    rows: Rows = []
    for factor, course in by_frequency(made).items():
        held = last_held(course)
        rows.append(
            {
                "weight of the last feature": factor,
                "hold it at the end": float(held[-1]),
                "error": made.error(float(held[-1])),
                "half hold it by step": made.half(held),
                f"{size}-gon": float(wanted_shares(course, size)[-1]),
                named(size - 1, size): float(wanted_shares(course, size - 1)[-1]),
            }
        )
    return rows


def by_frequency(made: Outcome) -> dict[float, Course]:
    """Courses by the weight of the last feature, the base run among them."""
    found = {each.strength: made.courses[each.name] for each in frequencies(made.settings)}
    return dict(sorted((found | {1.0: made.courses["base"]}).items()))


def verification_rows(made: Outcome) -> Rows:
    """Predicted and realised dμ of the weakest plans."""
    return [
        {"at": f"{sides}-gon"}
        | {name: found[name][at] for name in found if name != "radius"}
        | {"kept up to strength": found["radius"]}
        for sides, found in made.checked.items()
        for at in range(len(found["strength"]))
    ]


def exact_rows(made: Outcome) -> Rows:
    """Loss and λ̂ of exact polygons."""
    rows = [made.coefficients[name] for name in exact_kinds(made.settings)]
    return [{"polygon": row["kind"]} | {name: each for name, each in row.items() if name != "kind"} for row in rows]


def stage_rows(made: Outcome) -> Rows:
    """λ̂ of single replicas along training."""
    return [
        {"ends as": kind, "step": int(made.steps[at]), **made.coefficients[f"λ̂ of {kind} at {at}"]}
        for kind in made.traced
        for at in stage_snapshots(made.settings)
    ]


def weight_rows(made: Outcome) -> Rows:
    """All weights, one row a sample."""
    data = one_active(made.settings.features, made.settings.magnitudes)
    every = [*made.tried, *made.controls, by_hand(made.settings), *frequencies(made.settings)]
    return [
        {"weights": each.name, "feature": int(feature) + 1, "magnitude": float(magnitude), "weight": weight}
        for each in every
        for feature, magnitude, weight in zip(data.feature, data.magnitude, each.weights.tolist(), strict=True)
    ]


def share_rows(made: Outcome) -> Rows:
    """Shares of kinds along training of every run."""
    return [
        {"run": name, "step": int(step), "kind": kind, "share": float(share)}
        for name, course in made.courses.items()
        for kind, shares in collapsed(course).items()
        for step, share in zip(made.steps, shares, strict=True)
    ]


def pictures(made: Outcome) -> dict[str, Picture]:
    """All pictures, with what they show."""
    settings, steps, size = made.settings, made.steps, made.settings.features
    over_training = {"base run": made.courses["base"]}
    over_training |= {f"for a {sides}-gon:\n{each.way}, {each.unit}, {each.strength:g}": made.courses[each.name]
                      for sides, each in made.best.items()}  # fmt: skip
    hand = by_hand(settings)
    over_training |= {f"for a {size}-gon: by hand": made.courses[hand.name]}
    control = made.controls[-1]
    over_training |= {f"control of that for a {control.wanted}-gon": made.courses[control.name]}
    followed = {
        kind: drawn.Stage(*([row[name] for row in stage_rows(made) if row["ends as"] == kind]
                            for name in ("step", "loss", "λ̂", "error", "kind")))
        for kind in made.traced
    }  # fmt: skip
    final = made.paths[-1][:, : 2 * size].unflatten(1, (2, size)).numpy()
    maps = {f"for a {sides}-gon: {each.way}\n{each.unit}, {each.strength:g}": each.weights for sides, each in
            made.best.items()} | {"by hand": hand.weights}  # fmt: skip
    return {
        "shares": Picture(
            drawn.shares({title: (steps, collapsed(course)) for title, course in over_training.items()}),
            "Shares of polygons along training. Hatched (+): features that are left out, some of them with a positive "
            "bias, so that they are said to be active always, by their mean.",
        ),
        "strengths": Picture(
            drawn.strengths(
                {named(sides, size): (curves_of(made, sides), made.share("base", sides)) for sides in settings.wanted},
                GOAL,
            ),
            "Share of replicas that are the wanted polygon, against the strength of plans, with 95 % intervals.",
        ),
        "weights": Picture(
            drawn.weight_maps({title: each.view(size, settings.magnitudes).numpy() for title, each in maps.items()}),
            "Weights of samples by active feature and its magnitude.",
        ),
        "stages": Picture(
            drawn.stages(followed),
            "Loss and λ̂ (95 %) of one replica of each kind along training of the base run, and what it is at the time. "
            "Where a replica is not at a minimum chains go on downhill, and λ̂ is too low or negative.",
        ),
        "columns": Picture(
            drawn.columns({f"{kind}": final[replica] for kind, replica in made.traced.items()}),
            "Columns of W of these replicas at the end: where features lie.",
        ),
        "frequencies": Picture(
            drawn.frequencies(
                {f"weight {factor:g}": (steps, last_held(course)) for factor, course in by_frequency(made).items()},
                f"share of replicas that hold feature {size}",
            ),
            "How often the last feature is active decides whether and when it is held.",
        ),
        "verification": Picture(
            verification_picture(made),
            f"Predicted against realised dμ at the exact {settings.wanted[0]}-gon, for the weakest plan by loss.",
        ),
    }


def curves_of(made: Outcome, sides: int) -> dict[str, drawn.Tried]:
    """Shares by strength for each way and unit."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    for each in (*made.tried, *made.controls):
        if each.wanted == sides:
            label = f"{each.way} by {each.unit}"
            label = "again, on top of the best" if each.way.startswith("again") else label
            label = "shuffled best" if each.way.startswith("shuffled") else label
            share = made.share(each.name, sides)
            points.setdefault(label, []).append((each.strength, share, made.error(share)))
    return {label: drawn.Tried(*zip(*sorted(own), strict=True)) for label, own in points.items()}


def verification_picture(made: Outcome) -> Figure:
    """Of the first wanted polygon."""
    found = next(iter(made.checked.values()))
    numbers = {
        name: (("strength", "component"), np.array(found[name])[:, None])
        for name in ("predicted", "predicted_error", "realised", "realised_error")
    }
    table = xr.Dataset(
        numbers | {"verdict": ("strength", found["verdict"])},
        coords={"strength": found["strength"], "component": ["full"]},
        attrs={"radius": found["radius"]},
    )
    return figures.verification(table)
