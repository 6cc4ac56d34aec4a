"""Which chains run: every component, several replicas each, gathered in groups that give the standard errors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from patterning_fast.posterior.components import Component

REPLICA_BITS = 16
MOST_GROUPS = 16
"""More independent groups make the standard errors little better, and memory grows with them."""


@dataclass(frozen=True)
class ChainPlan:
    """`chains` replicas of each component; row r of the bank is replica r % chains of component r // chains."""

    components: list[Component]
    chains: int
    antithetic: bool
    groups: int
    """Independent groups per component."""

    @property
    def rows(self) -> int:
        return len(self.components) * self.chains

    def component(self, row: int) -> int:
        """Index of the component of a row."""
        return row // self.chains

    def row_name(self, row: int) -> str:
        return f"{self.components[self.component(row)].name}[{row % self.chains}]"

    def row_groups(self) -> Tensor:
        """Group of each row, int64 `[rows]`; the two chains of an antithetic pair share one."""
        independent = torch.arange(self.chains) // self.chains_per_draw
        within = independent * self.groups // (self.chains // self.chains_per_draw)
        return (torch.arange(len(self.components))[:, None] * self.groups + within).flatten()

    def chain_ids(self) -> Tensor:
        """Noise id of each row, int64 `[rows]`: from the component's name and the replica alone.

        So a component's chains are the same whichever others run beside it. The two of a pair share an id.
        """
        ids: dict[int, str] = {}
        for each in self.components:
            digest = int.from_bytes(hashlib.blake2s(each.name.encode(), digest_size=3).digest(), "big")
            while digest in ids:
                digest = (digest + 1) % 2**24
            ids[digest] = each.name
        replica = torch.arange(self.chains) // self.chains_per_draw
        return ((torch.tensor(list(ids)) << REPLICA_BITS)[:, None] + replica).flatten()

    def noise_scale(self) -> Tensor:
        """1, and −1 for the second chain of each antithetic pair; float32 `[rows]`."""
        sign = torch.ones(self.chains)
        if self.antithetic:
            sign[1::2] = -1.0
        return sign.repeat(len(self.components))

    @property
    def chains_per_draw(self) -> int:
        """Chains that share one noise: 2 in antithetic pairs, else 1."""
        return 2 if self.antithetic else 1


def chain_plan(components: list[Component], chains: int, antithetic: bool, groups: int | None) -> ChainPlan:
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
    return ChainPlan(components, chains, antithetic, groups)
