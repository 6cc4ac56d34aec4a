"""Until when `sample` goes on, where it is not told a number of draws."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from patterning_fast.categories import BudgetWarning
from patterning_fast.estimators.goal import Goal, amount_to_add
from patterning_fast.estimators.statistics import Statistics


@dataclass(frozen=True)
class Until:
    """A goal for some components, and what it may cost."""

    goal: Goal
    components: list[str]
    max_draws: int
    max_seconds: float

    def more(self, statistics: Statistics, seconds: float) -> tuple[int, str]:
        """How many more draws to take, and what to say of it; none, and why, where it is over."""
        draws, places = int(statistics.attrs["draws"]), statistics.component_names
        known = {name: statistics.known(places.index(name)) for name in self.components}
        left = [name for name in known if not self.goal.reached(name, known[name])]
        if not left:
            return 0, "reached"
        affordable, available = (self.max_seconds - seconds) * draws / max(seconds, 1e-9), self.max_draws - draws
        needed = max(self.goal.needed(name, known[name]) for name in left)
        more = amount_to_add(needed, draws, max(1, draws // 8), min(affordable, available))
        if more:
            return more, self.goal.said(known)
        stopped = "max_seconds" if affordable < available else "max_draws"
        warnings.warn(
            f"{stopped} was spent before all components were known as well as wanted: {self.goal.said(known)} after "
            f"{draws} draws; raise {stopped}",
            BudgetWarning,
            stacklevel=6,
        )
        return 0, stopped
