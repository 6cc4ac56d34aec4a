"""`patterning-fast train`: train a model on the weighted data, and beside it one on the data as they are."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import xarray as xr

from patterning_fast.arguments import Count, NonNegative, Positive, Seed, checked
from patterning_fast.commands.estimate import TOKENS, chi_of, reloaded
from patterning_fast.commands.folder import check_needs, fingerprint, goes_on, next_command, write_settings
from patterning_fast.commands.options import Help
from patterning_fast.commands.plan import NAME, WEIGHTS, folder_of
from patterning_fast.commands.samples import Samples, losses_on
from patterning_fast.durable import clear_partial, put, put_folder, writing
from patterning_fast.posterior import losses
from patterning_fast.report.text import text_table
from patterning_fast.training.train import train
from patterning_fast.training.weights_file import load_weights

RECORD, MODEL = "train.json", "model"


@dataclass(frozen=True)
@checked
class TrainSettings:
    """How a model is trained on a plan."""

    steps: Annotated[Count, Help("of AdamW")] = 50
    batch_size: Annotated[Count, Help("samples of a step")] = 16
    lr: Annotated[Positive, Help("largest change of a weight in a step, about")] = 1e-5
    weight_decay: Annotated[NonNegative, Help("of AdamW")] = 0.0
    weighting: Annotated[str, Help("loss: weigh losses; sampling: draw by weights")] = "loss"
    start: Annotated[str, Help("a model to start from, such as an earlier checkpoint; by default the run's")] = ""
    seed: Annotated[Seed, Help("of minibatches")] = 0
    plan: NAME = "plan"


def train_on_plan(folder: Path, settings: TrainSettings) -> str:
    """Train on a run's plan, or go on with it; raises OSError, ValueError or ImportError."""
    check_needs("training on a plan", ["pyarrow"])
    chi, own = chi_of(folder), folder_of(folder, settings.plan)
    samples = Samples.load(folder / TOKENS)
    weights = load_weights(own / WEIGHTS, samples.data())
    file, checkpoints, made_from = own / "train.toml", own / "train.checkpoint", {"weights": fingerprint(own / WEIGHTS)}
    goes_on(file, settings, made_from, [own / RECORD, checkpoints])
    if (own / RECORD).exists():
        return said(folder, own, json.loads((own / RECORD).read_text(encoding="utf-8")), ["it is trained already"])
    taken: dict[str, np.ndarray] = {}
    for name, given in (("as they are", None), ("weighted", weights)):
        found = reloaded(folder, chi, settings.start)
        write_settings(file, settings, made_from)
        taken.setdefault("before", losses_on(found.model.eval(), samples))
        train(
            found.model,
            samples.data(),
            losses.causal_lm,
            weights=given,
            checkpoint=checkpoints / name,
            max_grad_norm=1.0,
            description=f"training on data {name}",
            **{key: getattr(settings, key)
               for key in ("steps", "batch_size", "lr", "weight_decay", "weighting", "seed")},
        )  # fmt: skip
        taken[name] = losses_on(found.model.eval(), samples)

    def write(partial: Path) -> None:
        found.model.save_pretrained(partial)
        found.save_tokenizer(partial)

    with writing("the model", own / MODEL):
        clear_partial(own / MODEL)
        put_folder(own / MODEL, write)
    rows = loss_rows(weights, taken, samples)
    with writing("losses", own / RECORD):
        put(own / RECORD, partial(Path.write_text, data=json.dumps(rows, indent=1), encoding="utf-8"))
    shutil.rmtree(checkpoints)  # all that they were for is on the disk
    return said(folder, own, rows, [])


def loss_rows(weights: xr.DataArray, taken: dict[str, np.ndarray], samples: Samples) -> list[dict[str, Any]]:
    """Mean losses [nats] before and after, of all data, of what weighs more and less than 1, and by domain."""
    sample, position = weights["sample"].values, weights["position"].values
    domain = samples.table["domain"].values[sample]
    parts = {"all": np.ones(len(sample), bool), "weight above 1": weights.values > 1, "below 1": weights.values < 1}
    names = sorted(set(domain.tolist()))
    if 1 < len(names) <= 20:
        parts |= {f"domain {name}": domain == name for name in names}
    return [
        {"tokens": part, "share": float(which.mean())}
        | {name: float(each[sample, position][which].mean()) for name, each in taken.items()}
        for part, which in parts.items() if which.any()
    ]  # fmt: skip


def said(folder: Path, own: Path, rows: list[dict[str, Any]], first: list[str]) -> str:
    """What training on the plan did to losses, beside training without it."""
    return "\n".join([
        *first,
        "mean loss [nats] before training, after it on data as they are, and after it on weighted data:",
        text_table(rows),
        "trust: one run each, of the same minibatches; what differs between the last two columns is the plan's doing "
        "at this seed alone",
        f"written: {own / MODEL}",
        next_command("report", folder),
    ])  # fmt: skip
