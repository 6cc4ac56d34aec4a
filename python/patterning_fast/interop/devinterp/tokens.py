"""Which sequences a run takes, and in which order: the very ones that devinterp takes for the same seeds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from patterning_fast.domains import Anything, Holds, Mend
from patterning_fast.interop.devinterp.settings import Settings
from patterning_fast.posterior.data import TOKENS
from patterning_fast.posterior.gathering import as_data

TokenDataset = Annotated[Any, Anything("a dataset with a column input_ids, or token ids, told apart by as_data")]
"""Sequences of one length: a dataset with a column "input_ids", or token ids `[samples, T + 1]`."""

ObservableSpecs = Annotated[
    Mapping[str, TokenDataset], Holds(1), Mend("name each dataset: observables={'train': dataset, 'code': (code, 5)}")
]
"""Datasets by name, or pairs (dataset, batches of a draw)."""


def identifier(name: str) -> str:
    """A name as it stands in names of variables: what is no letter, digit or underscore becomes an underscore."""
    plain = "".join(each if each.isalnum() else "_" for each in name)
    return f"_{plain}" if not plain or plain[0].isdigit() else plain


def token_ids(name: str, dataset: TokenDataset) -> Tensor:
    """The ids `[samples, T + 1]` of a dataset, int64.

    Raises TypeError or ValueError for what are no sequences of ids, all of one length of 2 or more.
    """
    data = dataset if isinstance(dataset, Tensor | np.ndarray) else as_data(dataset, columns=[TOKENS])
    if isinstance(data, Mapping) and len(data) > 1:
        raise ValueError(
            f"{name}: its sequences are of several lengths; cut them to one, as tokenize_and_concatenate does"
        )
    ids = torch.as_tensor(data[TOKENS] if isinstance(data, Mapping) else data)
    if ids.dim() != 2 or ids.shape[1] < 2 or ids.is_floating_point():
        raise ValueError(
            f"{name} must be sequences of token ids [samples, T + 1], of 2 or more, got {ids.dtype} of shape "
            f"{list(ids.shape)}; give it a column input_ids"
        )
    return ids.long()


def observed(
    observables: Mapping[str, TokenDataset], known: dict[int, Tensor], settings: Settings
) -> dict[str, Tensor]:
    """The sequences of each observable, by its identifier, the same at every draw: random ones, by `obs_seed`.

    `known` are the ids of datasets by the object's own id, so that each is read once.
    """
    found: dict[str, Tensor] = {}
    for name, spec in observables.items():
        dataset, batches = spec if isinstance(spec, tuple) else (spec, settings.batches_per_draw)
        if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
            raise ValueError(f"observables[{name!r}] must be a dataset, or (dataset, batches) with 1 batch or more")
        if id(dataset) not in known:
            known[id(dataset)] = token_ids(f"observables[{name!r}]", dataset)
        ids, wanted = known[id(dataset)], batches * settings.batch_size
        if wanted > len(ids):
            raise ValueError(
                f"observables[{name!r}] has {len(ids)} sequences, and {batches} batches of {settings.batch_size} are "
                "wanted of it: give more, or lower batches_per_draw or batch_size"
            )
        key = identifier(name)
        if key in found:
            raise ValueError(f"observables: {name!r} and another are both called {key!r} in the results; rename one")
        found[key] = ids[random.Random(settings.obs_seed).sample(range(len(ids)), wanted)]
    return found


def batches(count: int, settings: Settings) -> Tensor:
    """The samples of each chain's batches in turn, int64 `[chains, batches, batch_size]`; after the last, the first.

    Raises ValueError where there is not one batch.
    """
    if count < settings.batch_size:
        raise ValueError(
            f"dataset has {count} sequences, fewer than batch_size={settings.batch_size}: give more, or lower it"
        )
    wanted = settings.gradient_accumulation_steps * max(settings.steps, settings.num_init_loss_batches)

    def of_chain(chain: int) -> Tensor:
        loader = DataLoader(
            TensorDataset(torch.arange(count, dtype=torch.int64)),
            batch_size=settings.batch_size,
            shuffle=settings.shuffle,
            generator=torch.Generator().manual_seed(settings.init_seed + chain),
            drop_last=True,
        )
        return torch.stack([samples for (samples,) in islice(loader, wanted)])

    if settings.match_sampling_input_ids_across_chains:
        return of_chain(0).expand(settings.num_chains, -1, -1)
    return torch.stack([of_chain(chain) for chain in range(settings.num_chains)])


def in_turn(order: Tensor, first: int, number: int) -> Tensor:
    """The samples of some batches in a row, one after the other: int64 `[chains, number · batch_size]`."""
    return order[:, torch.arange(first, first + number, dtype=torch.int64) % order.shape[1]].flatten(1)
