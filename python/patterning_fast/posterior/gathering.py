"""Data as others have them (arrays, lists, datasets), as the tensors that this library takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from patterning_fast.arguments import checked
from patterning_fast.domains import Anything, shown
from patterning_fast.posterior.losses import NO_LABEL, OF_LANGUAGE_MODELS, Batch

TOKENS, MASK, LABELS = OF_LANGUAGE_MODELS

PADDING = {TOKENS: 0, MASK: 0, LABELS: NO_LABEL}
"""What samples that are shorter than others are filled up with, on the right."""


@checked
def as_data(
    source: Annotated[Any, Anything("arrays, lists and datasets of any library, told apart here")],
    columns: Sequence[str] | None = None,
) -> Batch:
    """Data that `LocalPosterior`, `train` and the others take, of what other libraries have.

    - a numpy array, a `np.memmap` among them, or a list of samples of one length: a tensor, which shares the array's
      memory. Whole numbers of fewer than 32 bits are copied to int32.
    - lists of token ids of several lengths: a mapping of `input_ids` and `attention_mask`, padded on the right, as
      `pf.losses.causal_lm` takes it.
    - a mapping of those, or a map-style dataset whose items are mappings (`datasets.Dataset` is one): a mapping of
      tensors, padded alike. `columns` names those to take; by default those that `causal_lm` knows, where there are
      `input_ids`, else all.
    - a map-style dataset whose items are tuples, such as torchvision's: a tuple of tensors.

    Raises TypeError for streams, and for a DataLoader, whose dataset is to be passed; ValueError for columns that are
    missing or that have no one length and are not of tokens.
    """
    if isinstance(source, DataLoader):
        raise TypeError(
            "as_data takes data, not a loader of them: pass loader.dataset; chains draw their own minibatches"
        )
    if isinstance(source, IterableDataset) or not hasattr(source, "__len__"):
        raise TypeError(
            f"as_data takes data with a length, got {type(source).__name__}: weights belong to samples by their "
            "number, which a stream does not have; take as many samples as you want into a list"
        )
    if len(source) == 0:
        raise ValueError(f"as_data got {type(source).__name__} without a sample")
    if isinstance(source, np.ndarray | Tensor):
        return tensor_of("the array", source)
    first = None if isinstance(source, Mapping) else source[0]
    if isinstance(source, Mapping) or isinstance(first, Mapping):
        return named(source, columns, list(source if isinstance(source, Mapping) else first))  # type: ignore[arg-type]
    items = [source[at] for at in range(len(source))]
    if isinstance(first, tuple):
        if any(len(item) != len(first) for item in items):
            raise ValueError("the items of the dataset are tuples of several lengths; give each as many parts")
        return tuple(tensor_of(f"part {part}", [item[part] for item in items]) for part in range(len(first)))
    if len({len(item) for item in items if hasattr(item, "__len__")}) > 1:
        return padded({TOKENS: items})
    return tensor_of("the list", items)


def named(source: Any, columns: Sequence[str] | None, there: list[str]) -> Batch:
    """The columns of a mapping, or of a dataset of mappings, as a mapping of tensors."""
    wanted = columns or ([each for each in OF_LANGUAGE_MODELS if each in there] if TOKENS in there else there)
    if missing := [each for each in wanted if each not in there]:
        raise ValueError(
            f"there is no column {', '.join(missing)}; there are {', '.join(there)}: name others by columns="
        )
    if isinstance(source, Mapping):
        return padded({name: source[name] for name in wanted})
    items = [source[at] for at in range(len(source))]
    return padded({name: [item[name] for item in items] for name in wanted})


def padded(columns: Mapping[str, Any]) -> dict[str, Tensor]:
    """Columns as tensors; those of tokens of several lengths are filled up on the right, with a mask that says so."""
    found, lengths = {}, {}
    for name, values in columns.items():
        several = {len(each) for each in values if hasattr(each, "__len__")}
        if len(several) < 2:
            found[name] = tensor_of(name, values)
            continue
        if name not in PADDING:
            raise ValueError(
                f"the samples of {name} have {min(several)} to {max(several)} values; give each as many, or leave it "
                "out by columns="
            )
        rows = [torch.as_tensor(each) for each in values]
        lengths[name] = torch.tensor([len(each) for each in rows], dtype=torch.int64)
        found[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING[name])
    if TOKENS in lengths and MASK not in found:
        found[MASK] = (torch.arange(found[TOKENS].shape[1]) < lengths[TOKENS][:, None]).long()
    return found


def tensor_of(name: str, values: Any) -> Tensor:
    """Values as a tensor, which shares memory where it can; raises TypeError for what are no numbers."""
    try:
        if isinstance(values, Sequence) and isinstance(values[0], Tensor | np.ndarray):
            return torch.stack([torch.as_tensor(each) for each in values])
        array = values if isinstance(values, Tensor) else np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name} is no samples of one shape: {error}") from None
    if isinstance(array, Tensor):
        return array
    if array.dtype.kind not in "iufb":
        raise TypeError(f"{name} holds no numbers but {shown(values[0])}; turn text into token ids first")
    if array.dtype.kind in "iu" and array.dtype.itemsize < 4:
        array = array.astype(np.int32)
    elif array.dtype.kind == "u":
        array = array.astype(np.int64)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
