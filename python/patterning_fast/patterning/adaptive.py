"""`train_towards`: training whose data weights are planned again and again, along a trajectory of coordinates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from patterning_fast.arguments import Count, Estimate, KeywordsOf, NonNegative, Positive, Whole, checked, read_keywords
from patterning_fast.callbacks import calling, returned
from patterning_fast.domains import Holds, NotZero
from patterning_fast.engine.checkpoint import checkpoint_folder, discard
from patterning_fast.engine.identity import Identity, described
from patterning_fast.engine.sample import sample
from patterning_fast.patterning.inversion import invert
from patterning_fast.patterning.plan import Plan
from patterning_fast.patterning.targets import InfeasibleTargetError
from patterning_fast.plain_torch import plain_torch
from patterning_fast.posterior.components import resolve_components
from patterning_fast.posterior.local_posterior import LocalPosterior
from patterning_fast.posterior.losses import Batch, Loss
from patterning_fast.posterior.wrapped import Model
from patterning_fast.samplers.langevin import Sampler
from patterning_fast.training.train import train

Values = Mapping[str, float]
Trajectory = Mapping[int, Values] | Callable[[int], Values]
Estimates = tuple[xr.Dataset, xr.Dataset]

OF_LOSSES = {"mu": "nats", "llc": "1"}
"""Coordinates made of φ, and their units."""

SAMPLING = "sampling"
"""Folder, within that of the checkpoint, for the sampling under way."""

REFUSALS = 3
"""Targets that are tried: the nearest to one that was refused may be refused in its turn, for another reason."""


@dataclass(frozen=True)
@checked
class PosteriorSampling:
    """How μ and χ of a model in training are estimated: `sample` around its parameters, on the data it is trained on.

    Every decision takes the next seed, so that errors of one are not those of the next.
    """

    sampler: Sampler
    n_beta: NonNegative
    localization: NonNegative
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of `sample`: components, chains, draws, ..."""

    def posterior(self, model: nn.Module, data: Batch, loss: Loss) -> LocalPosterior:
        """The posterior around the model's parameters, unweighted."""
        return LocalPosterior(model, loss, data, n_beta=self.n_beta, localization=self.localization)

    @property
    def identity(self) -> Identity:
        """What estimates depend on beside the model and its data."""
        settings = {"sampler": described(self.sampler), "n_beta": self.n_beta, "localization": self.localization}
        return settings | described(self.arguments)


@dataclass(frozen=True)
@checked
class AdaptiveRun:
    """What became of training towards a trajectory."""

    decisions: xr.Dataset
    """A row for every decision and a last one for the end, see `train_towards`."""
    history: list[dict[str, Estimate]]
    """The rows of metrics that `train` returns."""
    weights: xr.DataArray | None
    """ρ of the last decision; None for all 1."""


@checked
@plain_torch()
def train_towards(
    model: Model,
    data: Batch,
    loss: Loss,
    trajectory: Trajectory,
    *,
    replan: Count | Annotated[Sequence[Whole], Holds(1)],
    estimate: PosteriorSampling | Callable[[nn.Module], Estimates],
    strength: Positive,
    gain: Positive = 1.0,
    hold: Annotated[float, NotZero()] = 1.0,
    coordinate: str = "mu",
    inversion: Mapping[str, Any] | None = None,
    steps: Count,
    **training: Annotated[Any, KeywordsOf(train)],
) -> AdaptiveRun:
    """Train `model` in place, on weights planned to lead structural coordinates μ_C = E_C[φ] along a trajectory.

    At each time t of `replan` μ and χ are estimated around the current parameters, without weights, and `invert` is
    asked for the weights to train on until the next time t', or the end:

        hold·dμ = gain·(target(t) − μ(t)) + target(t') − target(t) − drift,

    drift being what μ did over the last interval beyond hold times what was predicted, in proportion to the intervals'
    lengths; 0 at first. With gain 1 that is all that is missing at t'. With one time, replan=[0], it is one-off
    patterning: to the bit what `invert` and `train` give.

    A prediction is of the posterior around parameters that stay where they are, and training moves them: what it
    realises may be more, less, or the opposite. Measure it before relying on it, by one plan and its reverse.

    Args:
        trajectory: targets by step, {step: {component: value}}, between which values are linear and beyond which they
            stay; or a function of the step. Components that are named are steered; others go where they go.
        replan: every so many steps, from 0 on; or at these steps.
        estimate: how μ and χ are found: by sampling, or a function of the model that gives what `llc()` returns and
            what `susceptibilities()` or `linear_response` does, on the data that the model is trained on.
        strength: most that √mean((ρ − 1)²) may be; plans for more keep their direction.
        gain: share of what μ is off by that is made up for at a time.
        hold: the share of a prediction that training is taken to realise; negative where it does the opposite. Errors
            die out as long as what it does realise is between 0 and 4/(2 + gain) times that.
        coordinate: what the trajectory is of: "mu" [nats]; "llc", n_beta times that; or one of the observables that are
            sampled, by its name: E_C[O] then takes the place of μ.
        inversion: arguments of `invert` (negative_weights, regularization, constraints, unit, unsettled).
        steps, training: as for `train`. With `checkpoint` decisions are kept with the rest, and an interrupted run
            goes on from where it was, in the midst of sampling too.

    Returns the `AdaptiveRun`. Its `decisions` hold, by decision and component and in the coordinate's units:
    `measured` and `target` at `step`; `next_target`; `drift` and `asked`, as above; `predicted`, of the weights that
    were taken; `realised`, what the coordinate did until the next step; and standard errors of what is measured. By
    decision: `outcome`, `reason`, `strength`, `effective_sample_size`, `unsettled` (whether χ is of chains that
    had not settled, which `inversion` must allow), `seconds`. An outcome is

    - "planned": the weights meet what was asked;
    - "capped": that would take more than `strength`, which was taken;
    - "nearest": `invert` refused, for the `reason` given, and the nearest target that it offers was taken;
    - "unweighted": it refused and offers none; weights are 1 until the next decision;
    - "nothing asked": there is no gap, and weights are 1;
    - "end": the last measurement.

    Raises TypeError or ValueError, before any training, for times outside it, targets that are missing, not finite or
    of unknown components, and arguments that `sample`, `invert` or `train` do not take; else as `train` and `sample`
    do.
    """
    times = planning_times(replan, steps)
    if clash := sorted({"weights", "reweighing"} & training.keys()):
        raise ValueError(f"train_towards decides on the weights: leave {' and '.join(clash)} out")
    controller = Controller(
        data=data,
        loss=loss,
        times=times,
        targets=target_table(trajectory, [*times, steps]),
        estimate=estimate,
        strength=strength,
        gain=gain,
        hold=hold,
        coordinate=coordinate,
        inversion=dict(inversion or {}),
        folder=None if training.get("checkpoint") is None else checkpoint_folder(training["checkpoint"]),
        allow_versions=bool(training.get("allow_versions", False)),
        progress=bool(training.get("progress", True)),
    )
    controller.check(model)
    training = read_keywords("train_towards", training, train)
    history = train(model, data, loss, steps=steps, reweighing=controller, **training)
    controller.discard_sampling()
    return AdaptiveRun(controller.decisions(), history, controller.weights)


@dataclass
class Decision:
    """A row of the record; lists are by component."""

    step: int
    target: list[float]
    measured: list[float]
    measured_error: list[float]
    drift: list[float]
    outcome: str = "end"
    reason: str = ""
    next_target: list[float] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    predicted_error: list[float] = field(default_factory=list)
    strength: float = 0.0
    effective_sample_size: float = math.nan
    unsettled: bool = False
    seconds: float = 0.0


@dataclass
class Controller:
    """Decides on weights at its times, and keeps a record; a `Reweighing` of `train`."""

    data: Batch
    loss: Loss
    times: list[int]
    targets: dict[int, dict[str, float]]
    """At the times and at the end."""
    estimate: PosteriorSampling | Callable[[nn.Module], Estimates]
    strength: float
    gain: float
    hold: float
    coordinate: str
    inversion: dict[str, Any]
    folder: Path | None
    """Of the run's checkpoint."""
    allow_versions: bool
    progress: bool
    weights: xr.DataArray | None = None
    record: list[Decision] = field(default_factory=list)

    @property
    def steered(self) -> list[str]:
        return list(next(iter(self.targets.values())))

    def check(self, model: nn.Module) -> None:
        """Raise ValueError or TypeError for what cannot work, as far as it can be told without an estimate."""
        if taken := sorted({"chi", "target", "strength"} & self.inversion.keys()):
            raise ValueError(f"inversion must leave {' and '.join(taken)} to train_towards, which has its own")
        self.inversion = read_keywords("train_towards: inversion", self.inversion, invert)
        if not isinstance(self.estimate, PosteriorSampling):
            return
        arguments = self.estimate.arguments
        if taken := sorted({"probes", "checkpoint", "allow_versions", "traces", "progress"} & arguments.keys()):
            raise ValueError(
                f"the sampling must leave {' and '.join(taken)} out: χ is of the data that weights are for, and its "
                "checkpoints and progress are those of train_towards"
            )
        read_keywords("PosteriorSampling", arguments, sample)
        known = [*OF_LOSSES, *arguments.get("observables", {})]
        if self.coordinate not in known:
            raise ValueError(
                f"coordinate must be one of {known}, got {self.coordinate!r}; sample others as observables"
            )
        posterior = self.estimate.posterior(model, self.data, self.loss)
        resolved = resolve_components(posterior.model, arguments.get("components"), posterior.moving)
        self.check_known([each.name for each in resolved])

    def check_known(self, components: Sequence[str]) -> None:
        """Raise ValueError for targets of components that are not estimated."""
        if unknown := [name for name in self.steered if name not in components]:
            raise ValueError(
                f"the trajectory names {unknown}, which are not estimated; there are {list(components)}: add them to "
                "the components of the estimate"
            )

    @property
    def identity(self) -> Identity:
        estimate = self.estimate
        return {
            "targets": {str(time): dict(target) for time, target in self.targets.items()},
            "estimate": estimate.identity if isinstance(estimate, PosteriorSampling) else described(estimate),
            "strength": self.strength,
            "gain": self.gain,
            "hold": self.hold,
            "coordinate": self.coordinate,
            "inversion": described(self.inversion),
        }

    def due(self, step: int) -> bool:
        return step in self.targets and not (self.record and self.record[-1].step >= step)

    def decide(self, step: int, model: nn.Module) -> None:
        started = time.monotonic()
        mu, chi = self.estimates(step, model)
        names = [self.coordinate, f"{self.coordinate}_error"]
        if missing := sorted(set(names) - {str(name) for name in mu}):
            raise ValueError(
                f"the first that estimate(model) returns must be what llc() or observed_means() is: {missing} missing"
            )
        self.check_known([name for name in mu["component"].values.tolist() if name in chi["component"].values])
        measured, error = (mu[name].sel(component=self.steered).values.astype(np.float64) for name in names)
        if not np.isfinite(measured).all():
            raise FloatingPointError(
                f"{self.coordinate} of {self.steered} is {measured.tolist()} at step {step}: too many chains have "
                "diverged; lower the sampler's lr"
            )
        target, drift = np.array(list(self.targets[step].values())), self.drift(step, measured)
        row = Decision(step, target.tolist(), measured.tolist(), error.tolist(), drift.tolist())
        if step in self.times:
            coming = np.array(list(self.targets[self.following(step)].values()))
            asked = (self.gain * (target - measured) + coming - target - drift) / self.hold
            row.next_target, row.asked = coming.tolist(), asked.tolist()
            self.plan(row, chi.sel(component=self.steered))
        row.seconds = time.monotonic() - started
        self.record.append(row)

    def estimates(self, step: int, model: nn.Module) -> Estimates:
        """μ and χ around the current parameters; sampling goes on from where it was interrupted."""
        if not isinstance(self.estimate, PosteriorSampling):
            with calling("train_towards: estimate", "take the model and return two datasets"):
                estimated = self.estimate(model)
            return returned("train_towards: estimate", estimated, Estimates)
        arguments = dict(self.estimate.arguments)
        arguments["seed"] = arguments.get("seed", 0) + len(self.record)
        folder = self.folder and self.folder / SAMPLING / str(step)
        if folder and not folder.exists():
            self.discard_sampling()  # of the last decision, which has been saved since
        found = sample(
            self.estimate.posterior(model, self.data, self.loss),
            self.estimate.sampler,
            checkpoint=folder,
            allow_versions=self.allow_versions,
            progress=self.progress,
            **arguments,
        )
        if self.coordinate in OF_LOSSES:
            return found.llc(), found.susceptibilities()
        return found.observed_means(), found.susceptibilities(self.coordinate)

    def discard_sampling(self) -> None:
        """Remove the checkpoints of sampling for decisions that were made."""
        parent = self.folder and self.folder / SAMPLING
        if parent and parent.is_dir():
            for step in self.targets:
                discard(parent / str(step))
            with suppress(OSError):
                parent.rmdir()

    def drift(self, step: int, measured: np.ndarray) -> np.ndarray:
        """What the next interval is expected to add by itself: what the last did, beyond its prediction."""
        if not self.record:
            return np.zeros(len(measured))
        last, ahead = self.record[-1], self.following(step) - step
        kept = self.hold * np.array(last.predicted)
        return (measured - last.measured - kept) * (ahead / (step - last.step))

    def following(self, step: int) -> int:
        """The time of the next decision; at the end, the end."""
        return min((each for each in self.targets if each > step), default=step)

    def plan(self, row: Decision, chi: xr.Dataset) -> None:
        """Decide on the weights for what a row asks, and note what came of it."""
        scale = float(chi.attrs["n_beta"]) if self.coordinate == "llc" else 1.0
        row.outcome, row.reason, plan = self.planned(chi, {
            name: each / scale for name, each in zip(self.steered, row.asked, strict=True)
        })  # fmt: skip
        if plan is None:
            nothing = [0.0] * len(row.asked)
            self.weights, row.predicted, row.predicted_error = None, nothing, nothing
            row.effective_sample_size = float(chi["chi"].shape[1])
            return
        # The policy for negative weights may have made more of the change than was asked for.
        share = min(1.0, self.strength / plan.attrs["strength"])
        self.weights = plan.scaled(share)
        row.predicted, row.predicted_error = (
            (share * scale * plan.predicted[name].values).tolist() for name in ("dmu", "dmu_error")
        )
        row.strength = share * plan.attrs["strength"]
        row.effective_sample_size = float(self.weights.sum() ** 2 / (self.weights**2).sum())
        row.unsettled = "unsettled" in plan.attrs

    def planned(self, chi: xr.Dataset, asked: dict[str, float]) -> tuple[str, str, Plan | None]:
        """What comes of asking for dμ by component: outcome, reason, and the plan if there is one."""
        if not any(asked.values()):
            return "nothing asked", "", None
        outcome, reasons = "planned", list[str]()
        for _ in range(REFUSALS):
            try:
                free = invert(chi, asked, **self.inversion | {"negative_weights": "allow", "constraints": None})
                capped = free.attrs["strength"] > self.strength
                plan = invert(chi, asked, strength=self.strength if capped else None, **self.inversion)
                outcome = "capped" if capped and outcome == "planned" else outcome
                return outcome, "; ".join(reasons), plan
            except InfeasibleTargetError as refused:
                outcome, asked = "nearest", refused.nearest
                reasons.append(str(refused))
                if not any(asked.values()):
                    break
        return "unweighted", "; ".join(reasons), None

    def state_dict(self) -> dict[str, Any]:
        return {"record": [asdict(row) for row in self.record], "weights": packed(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.record = [Decision(**row) for row in state["record"]]
        self.weights = unpacked(state["weights"])

    def decisions(self) -> xr.Dataset:
        """The record as a dataset by decision and component."""
        units, both = OF_LOSSES.get(self.coordinate, "1"), ("decision", "component")
        nowhere = [math.nan] * len(self.steered)

        def table(name: str) -> np.ndarray:
            return np.array([getattr(row, name) or nowhere for row in self.record])

        measured, error = table("measured"), table("measured_error")
        after = np.vstack([measured[1:], nowhere]), np.vstack([error[1:], nowhere])
        of_components = {
            "target": (table("target"), "target at this step"),
            "measured": (measured, "estimate at this step"),
            "measured_error": (error, "standard error of measured"),
            "next_target": (table("next_target"), "target at the next decision"),
            "drift": (table("drift"), "change until then that is expected without weights"),
            "asked": (table("asked"), "change that weights were asked for"),
            "predicted": (table("predicted"), "change that is expected of the weights taken"),
            "predicted_error": (table("predicted_error"), "standard error of predicted"),
            "realised": (after[0] - measured, "change until the next decision"),
            "realised_error": (np.hypot(after[1], error), "standard error of realised"),
        }
        of_decisions = {
            "outcome": ([row.outcome for row in self.record], {}),
            "reason": ([row.reason for row in self.record], {}),
            "strength": ([row.strength for row in self.record], {"long_name": "root mean square of rho - 1"}),
            "effective_sample_size": (
                [row.effective_sample_size for row in self.record],
                {"long_name": "(sum of rho)^2 / sum of rho^2"},
            ),
            "unsettled": ([row.unsettled for row in self.record], {}),
            "seconds": ([row.seconds for row in self.record], {"units": "s"}),
        }
        return xr.Dataset(
            {
                name: (both, values, {"long_name": text, "units": units})
                for name, (values, text) in of_components.items()
            }
            | {name: ("decision", values, attrs) for name, (values, attrs) in of_decisions.items()},
            coords={"component": self.steered, "step": ("decision", [row.step for row in self.record])},
            attrs={"coordinate": self.coordinate, "strength": self.strength, "gain": self.gain, "hold": self.hold},
        )


def planning_times(replan: int | Sequence[int], steps: int) -> list[int]:
    """The steps at which weights are planned; raises ValueError unless they rise and lie within the training."""
    if isinstance(replan, int):
        if replan < 1:
            raise ValueError(f"replan must be at least 1 step, got {replan}; name the steps for one plan: replan=[0]")
        return list(range(0, steps, replan))
    times = [int(each) for each in replan]
    whole = all(each == int(each) for each in replan)
    if not times or not whole or sorted(set(times)) != times or times[0] < 0 or times[-1] >= steps:
        raise ValueError(f"replan must name rising steps of the training, 0 to {steps - 1}, got {list(replan)}")
    return times


def target_table(trajectory: Trajectory, times: list[int]) -> dict[int, dict[str, float]]:
    """The targets at some times; raises ValueError for targets that are missing, not finite, or not always the same."""
    if not callable(trajectory):
        knots = {int(step): dict(trajectory[step]) for step in sorted(trajectory)}
        if not knots or knots.keys() != trajectory.keys():
            raise ValueError(f"a trajectory is {{step: {{component: value}}}}, got {dict(trajectory)}")
        check_targets(knots)
        names, at = list(next(iter(knots.values()))), list(knots)
        return {
            time: {name: float(np.interp(time, at, [each[name] for each in knots.values()])) for name in names}
            for time in times
        }
    with calling("train_towards: trajectory", "take a step and return {component: value}"):
        targets = {time: trajectory(time) for time in times}
    found = {time: dict(returned("train_towards: trajectory", targets[time], Mapping[str, Estimate])) for time in times}
    check_targets(found)
    names = list(found[times[0]])
    return {time: {name: float(each[name]) for name in names} for time, each in found.items()}


def check_targets(targets: Mapping[int, Values]) -> None:
    """Raise ValueError unless all targets are finite and of the same components, at least one."""
    first, wanted = next(iter(targets.items()))
    for step, target in targets.items():
        if not target or target.keys() != wanted.keys():
            raise ValueError(
                f"the trajectory must name the same components at every step, at least one: it has {sorted(wanted)} "
                f"at step {first} and {sorted(target)} at step {step}"
            )
        if not all(math.isfinite(value) for value in target.values()):
            raise ValueError(f"the trajectory must be finite, got {dict(target)} at step {step}")


def packed(weights: xr.DataArray | None) -> dict[str, Any] | None:
    """Weights and their coordinates as `torch.save` takes them: tensors, and lists of what is no number."""
    if weights is None:
        return None

    def plain(array: xr.DataArray) -> tuple[list[str], Tensor | list[str]]:
        values = array.values
        return [str(each) for each in array.dims], (
            torch.from_numpy(values.copy()) if values.dtype.kind in "biuf" else values.astype(str).tolist()
        )

    return {"weights": plain(weights), "coords": {str(name): plain(each) for name, each in weights.coords.items()},
            "attrs": dict(weights.attrs)}  # fmt: skip


def unpacked(state: dict[str, Any] | None) -> xr.DataArray | None:
    """The weights that `packed` has packed."""
    if state is None:
        return None
    dims, values = state["weights"]
    coords = {name: (along, np.asarray(each)) for name, (along, each) in state["coords"].items()}
    return xr.DataArray(values.numpy(), dims=dims, coords=coords, name="weight", attrs=state["attrs"])
