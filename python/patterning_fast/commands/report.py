"""`patterning-fast report`: a page about all that a run has come to."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from patterning_fast.commands.dataset_file import load_dataset
from patterning_fast.commands.estimate import TOKENS, chi_of, settings_of
from patterning_fast.commands.estimate import said as said_of_chi
from patterning_fast.commands.modes import MODES, extremes, mode_rows, modes_of, token_rows
from patterning_fast.commands.plan import PLAN, component_rows, plan_of
from patterning_fast.commands.samples import Samples
from patterning_fast.commands.train import RECORD
from patterning_fast.commands.verify import VERIFICATION, verification_rows
from patterning_fast.durable import put, writing
from patterning_fast.recipes.templates import environment

REPORT = "report.html"


@dataclass(frozen=True)
class ReportSettings:
    """There is nothing to set: a page has all that there is."""


def make_report(folder: Path, settings: ReportSettings) -> str:
    """Write `report.html`; raises OSError or ValueError."""
    chi = chi_of(folder)
    sections: list[dict[str, Any]] = [{
        "title": "Estimate", "settings": (folder / "estimate.toml").read_text(encoding="utf-8"),
        "text": said_of_chi(folder, chi, []).rpartition("\nwritten: ")[0],
    }]  # fmt: skip
    if (folder / "modes" / MODES).exists():
        found, samples = modes_of(folder), Samples.load(folder / TOKENS)
        sections.append({"title": "Modes", "rows": mode_rows(found),
                         "settings": text_of(folder / "modes" / "modes.toml"),
                         "picture": picture(folder / "modes" / "scree.png")})  # fmt: skip
        sections.append({"title": "Tokens at either end of the first mode", "rows": token_rows(found, samples),
                         "text": extremes(found, samples)})  # fmt: skip
    for own in sorted(path.parent for path in folder.glob(f"*/{PLAN}")):
        plan = plan_of(own)
        sections.append({"title": f"{own.name}: expected changes", "rows": component_rows(plan), "text": repr(plan),
                         "settings": text_of(own / "plan.toml")})  # fmt: skip
        if (own / VERIFICATION).exists():
            checked = load_dataset(own / VERIFICATION, "verify")
            sections.append({"title": f"{own.name}: verified", "rows": verification_rows(checked),
                             "settings": text_of(own / "verify.toml"),
                             "picture": picture(own / "verification.png")})  # fmt: skip
        if (own / RECORD).exists():
            sections.append({"title": f"{own.name}: losses [nats] before and after training",
                             "rows": json.loads(text_of(own / RECORD)),
                             "settings": text_of(own / "train.toml")})  # fmt: skip
    told = settings_of(folder)
    page = environment(Path(__file__).parent, in_markup=True).get_template("report.html.j2")
    text = page.render(title=f"{Path(told.model).name} on {Path(told.data).name}", sections=sections)
    with writing("a report", folder / REPORT):
        put(folder / REPORT, partial(Path.write_text, data=text, encoding="utf-8"))
    return f"report: {folder / REPORT}, {len(sections)} sections"


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def picture(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
