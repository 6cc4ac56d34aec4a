"""Weighted losses in Hugging Face's `Trainer`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn
from torch.utils.data import Dataset

from patterning_fast.arguments import checked
from patterning_fast.posterior.weights import weights_for
from patterning_fast.training.train import weighted_loss

COLUMN = "sample"
"""What numbers the samples within a batch."""

IGNORED = -100
"""The label of positions that have no loss."""


class Items(Sized, Protocol):
    """A dataset with a length, whose items are mappings."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Numbered(Dataset[dict[str, Any]]):
    """The items of a dataset, each with its number as the column `sample`."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.items[index], COLUMN: index}


@checked
class TrainerLoss:
    """Σρl/Σρ of a dataset for `Trainer`, by its `compute_loss_func`; for causal language models and classifiers.

        weighted = pf.TrainerLoss(model, dataset, plan.weights)
        Trainer(model, TrainingArguments(..., remove_unused_columns=False), train_dataset=weighted.dataset,
                compute_loss_func=weighted)

    `Trainer` tells a loss nothing of which samples it is of. So the items of `dataset` carry their number, and a hook
    on `model` takes it from each batch before the forward pass. Batches without gradients, as in evaluation, need no
    number and have the plain mean loss; batches to train on without one are refused.

    The loss of a batch is Σρl divided by the number of its losses times the mean of ρ: then gradient accumulation and
    processes add up as in `Trainer` itself, and the expectation over batches is Σρl/Σρ of the data. `DataParallel`,
    which splits a batch behind the hook, is refused when it runs: start one process for each GPU.

    Args:
        model: as given to `Trainer`.
        dataset: items `{"input_ids", "labels", ...}`, all of one length for weights of tokens; position p is the loss
            of label p + 1, as in `pf.losses.next_token`.
        weights: ρ of each item, or of each label but the first.

    Raises TypeError for a dataset without length, ValueError for weights that do not fit (see `pf.train`).
    """

    def __init__(self, model: nn.Module, dataset: Items, weights: Tensor | xr.DataArray) -> None:
        if not hasattr(dataset, "__len__"):
            raise TypeError(
                f"the dataset must have a length and numbered items, got {type(dataset).__name__}; weights belong to "
                "items by their number, which a stream does not have"
            )
        self.dataset = Numbered(dataset)
        of_samples = math.prod(weights.shape) == len(dataset)
        losses_each = () if of_samples else (len(dataset[0]["input_ids"]) - 1,)
        self.weights = weights_for(weights, len(dataset), losses_each)
        self.mean_weight = self.weights.mean(dtype=torch.float64).item()
        self.samples: Tensor | None = None
        # A lambda, so that copies of the model share this loss and do not copy it with its dataset.
        model.register_forward_pre_hook(
            lambda _, arguments, batch: (arguments, self.without_samples(batch)), with_kwargs=True
        )

    def without_samples(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as the model knows it; which samples it is of is kept for the loss."""
        self.samples = batch.get(COLUMN)
        return {name: each for name, each in batch.items() if name != COLUMN}

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of a batch; `num_items_in_batch` counts its losses, with those it accumulates gradients with."""
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        if labels.dim() == 2:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = F.cross_entropy(
            logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
        ).view(labels.shape)
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        samples, self.samples = self.samples, None
        if samples is None and not torch.is_grad_enabled():
            return losses.sum() / count
        return weighted_loss(losses, self.weights_of(samples, labels), self.mean_weight * count)

    def weights_of(self, samples: Tensor | None, labels: Tensor) -> Tensor:
        """ρ of a batch's losses, shaped as they are."""
        if samples is None or len(samples) != len(labels):
            raise ValueError(
                f"the batch of {len(labels)} says which samples {0 if samples is None else len(samples)} of it are; "
                "give Trainer train_dataset=weighted.dataset, TrainingArguments(remove_unused_columns=False), a "
                f"collator that keeps the column {COLUMN!r}, and one process for each GPU"
            )
        self.weights = self.weights.to(labels.device)
        weights = self.weights[samples]
        if weights.dim() == labels.dim() and weights.shape != labels.shape:
            raise ValueError(
                f"the batch has losses of shape {list(labels.shape)} and weights of tokens {list(weights.shape)}: "
                "they belong to items that are not padded or cut by the collator; for those give weights of samples"
            )
        return weights if weights.dim() == labels.dim() else weights[:, None].expand(labels.shape)
