"""Half an hour of calls with arguments from within and without their domains: `python -m bench.fuzz [minutes] [calls]`.

Rounds run in processes of their own, so that one that dies or hangs is a failure that is told with its call. Prints the
calls and failures of each target, and what failed; the exit status is 1 where anything did.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, Phase, given, seed, settings

COMMAND = ["-m", "bench.fuzz"]
"""What a round's interpreter runs."""

HANG = 300
"""Seconds after which a round of calls that each take milliseconds hangs."""


def main(minutes: float, calls_of_a_round: int) -> int:
    """Rounds until the time is up."""
    started, number, calls, failures = time.monotonic(), 0, Counter[str](), dict[str, str]()
    with TemporaryDirectory() as folder:
        while time.monotonic() - started < 60 * minutes:
            report, number = Path(folder) / f"{number}.jsonl", number + 1
            try:
                command = [sys.executable, *COMMAND, "round", str(number), str(report), str(calls_of_a_round)]
                status = subprocess.run(command, timeout=HANG)
                ended = "" if status.returncode == 0 else f"the process ended with {status.returncode}"
            except subprocess.TimeoutExpired:
                ended = f"no end within {HANG} s"
            lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
            for line in lines:
                calls[line["target"]] += line["failure"] is None
                if line["failure"]:
                    failures.setdefault(f"{line['target']}: {line['failure'][-300:]}", line["call"])
            if ended and lines:
                failures.setdefault(f"{lines[-1]['target']}: {ended}", lines[-1]["call"])
            spent = (time.monotonic() - started) / 60
            print(f"{spent:5.1f} of {minutes:g} min: {sum(calls.values())} calls, {len(failures)} failures", flush=True)
    seconds = time.monotonic() - started
    for failure, call in failures.items():
        print(f"FAILED {failure}\n  by {call}")
    print(json.dumps({"calls": sum(calls.values()), "seconds": round(seconds), "failures": len(failures)}))
    print(json.dumps(dict(calls.most_common())))
    return int(bool(failures))


def one_round(number: int, report: Path, number_of_calls: int) -> None:
    """Calls, each written down before it is made and again if it fails."""
    import torch
    from tests.fuzzing import Case, cases, run

    torch.set_num_threads(1)
    with report.open("w", buffering=1) as file:

        @seed(number)
        @settings(
            max_examples=number_of_calls, deadline=None, phases=[Phase.generate], database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(cases())
        def calls(case: Case) -> None:
            line = {"target": case.target, "call": repr(case)[:2000], "failure": None}
            file.write(json.dumps(line) + "\n")
            failure = run(case)
            if failure:
                file.write(json.dumps(line | {"failure": failure}) + "\n")

        calls()


if __name__ == "__main__":
    if sys.argv[1:2] == ["round"]:
        one_round(int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        given_minutes, given_calls = (*sys.argv[1:], *("30", "400")[len(sys.argv) - 1 :])
        raise SystemExit(main(float(given_minutes), int(given_calls)))
