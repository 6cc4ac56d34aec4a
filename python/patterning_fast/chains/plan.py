"""Which chains run: every component at every setting, several replicas each, in groups that give standard errors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from patterning_fast.posterior.components import Component

REPLICA_BITS = 16
MOST_GROUPS = 16
"""More independent groups make the standard errors little better."""


@dataclass(frozen=True)
class Setting:
    """Hyper-parameters of a chain: ε, nβ and γ."""

    lr: float
    n_beta: float
    localization: float


@dataclass(frozen=True)
class ChainPlan:
    """`chains` replicas of each cell, a cell being a component at a setting; a cell's rows of the bank are in turn.

    Cell c is component c // settings at setting c % settings.
    """

    components: list[Component]
    chains: int
    antithetic: bool
    groups: int
    """Independent groups per cell."""
    settings: tuple[Setting, ...]
    first_unit: int = 0
    """Number of a cell's first unit, where others of its chains run in another plan."""

    @property
    def cells(self) -> int:
        return len(self.components) * len(self.settings)

    @property
    def rows(self) -> int:
        return self.cells * self.chains

    @property
    def chains_per_draw(self) -> int:
        """Chains that share one noise: 2 in antithetic pairs, else 1."""
        return 2 if self.antithetic else 1

    @property
    def units(self) -> int:
        """Independent chains or pairs of each cell."""
        return self.chains // self.chains_per_draw

    def component(self, row: int) -> int:
        """Index of the component of a row."""
        return row // (self.chains * len(self.settings))

    def setting(self, row: int) -> Setting:
        """Setting of a row."""
        return self.settings[row // self.chains % len(self.settings)]

    def cell_rows(self, component: int, setting: int) -> slice:
        """Rows of a component at a setting."""
        start = (component * len(self.settings) + setting) * self.chains
        return slice(start, start + self.chains)

    def tiles(self, rows: range, size: int) -> list[slice]:
        """Rows in slices of at most `size`, each within one cell."""
        slices, start = [], rows.start
        while start < rows.stop:
            stop = min(start + size, start - start % self.chains + self.chains, rows.stop)
            slices.append(slice(start, stop))
            start = stop
        return slices

    def row_name(self, row: int) -> str:
        return f"{self.components[self.component(row)].name}[{row % self.chains}]"

    def bundles(self, units: int) -> Tensor:
        """Bundle of each row, int64 `[rows]`, that many independent units of one group making a bundle."""
        return torch.arange(self.rows) // (self.chains_per_draw * units)

    def chain_ids(self) -> Tensor:
        """Noise id of each row, int64 `[rows]`: from the component's name and the replica alone.

        So a component's chains are the same whichever others run beside it, and differ between settings by nothing but
        the setting. The two of a pair share an id.
        """
        ids: dict[int, str] = {}
        for each in self.components:
            digest = int.from_bytes(hashlib.blake2s(each.name.encode(), digest_size=3).digest(), "big")
            while digest in ids:
                digest = (digest + 1) % 2**24
            ids[digest] = each.name
        of_component = (torch.tensor(list(ids), dtype=torch.int64) << REPLICA_BITS)[:, None, None]
        return (of_component + self.replica_units()).expand(-1, len(self.settings), -1).flatten()

    def replica_units(self) -> Tensor:
        """Unit of each replica within its cell, int64 `[chains]`."""
        return self.first_unit + torch.arange(self.chains) // self.chains_per_draw

    def noise_scale(self) -> Tensor:
        """1, and −1 for the second chain of each antithetic pair; float32 `[rows]`."""
        sign = torch.ones(self.chains, dtype=torch.float32)
        if self.antithetic:
            sign[1::2] = -1.0
        return sign.repeat(self.cells)

    def setting_values(self, name: str) -> Tensor:
        """A hyper-parameter of each row, float32 `[rows]`."""
        values = torch.tensor([getattr(each, name) for each in self.settings], dtype=torch.float32)
        return values.repeat_interleave(self.chains).repeat(len(self.components))


def chain_plan(
    components: list[Component], chains: int, antithetic: bool, groups: int | None, settings: tuple[Setting, ...]
) -> ChainPlan:
    """Check and complete a plan; raises ValueError where chains cannot be split into independent groups."""
    if antithetic and chains % 2:
        raise ValueError(f"antithetic chains come in pairs: chains must be even, got {chains}")
    independent = chains // 2 if antithetic else chains
    if independent < 2:
        unit = "pairs" if antithetic else "chains"
        raise ValueError(
            f"standard errors need at least 2 independent {unit} per component, got chains={chains}; "
            f"use chains={4 if antithetic else 2} or more"
        )
    if independent >= 2**REPLICA_BITS:
        raise ValueError(f"at most {2**REPLICA_BITS} independent chains per component, got {independent}")
    if groups is None:
        groups = max(count for count in range(1, MOST_GROUPS + 1) if independent % count == 0)
        groups = independent if groups == 1 else groups
    if not 2 <= groups <= independent or independent % groups:
        raise ValueError(f"groups must divide the {independent} independent chains and be at least 2, got {groups}")
    return ChainPlan(components, chains, antithetic, groups, settings)
