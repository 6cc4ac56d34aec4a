"""Every op against its limit and its peers: one table, and the rows in bench/results/."""

from __future__ import annotations

from bench.ops import (
    comoments_update,
    gpu,
    langevin_step,
    linear_cross_entropy,
    per_sample_langevin_step,
    weighted_cross_entropy,
)
from bench.results import record

MODULES = [langevin_step, per_sample_langevin_step, comoments_update, linear_cross_entropy, weighted_cross_entropy, gpu]


def line(row: dict[str, object]) -> str:
    """A row of the table."""
    value, bar, peers = row["value"], row["bar"], row["peers"]
    assert isinstance(value, float)
    assert isinstance(peers, dict)
    judged = "" if bar is None else f"bar {bar:g}, {'holds' if row['holds'] else 'MISSED'}"
    others = ", ".join(f"{name} {each:.3g}" for name, each in peers.items())
    unverified = " NOT VERIFIED" if row["verified"] is False else ""
    return f"{row['op']:<25} {row['form']:<10} {row['figure']:<52} {value:>8.3g}  {judged:<18} {others}{unverified}"


def main() -> None:
    rows: list[dict[str, object]] = []
    for module in MODULES:
        size = None
        for row in module.rows():
            if row["size"] != size:
                size = row["size"]
                print(f"\n{size}")
            print(line(row), flush=True)
            rows.append(row)
    record("ops", rows)


if __name__ == "__main__":
    main()
