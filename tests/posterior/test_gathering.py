"""Data of other libraries, as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import patterning_fast as pf
from tests.models import language_model, tokens

RAGGED = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
PADDED = {
    "input_ids": [[1, 2, 3, 0], [4, 5, 0, 0], [6, 7, 8, 9]],
    "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]],
}


def listed(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: each.tolist() for name, each in data.items()}
    return tuple(map(listed, data)) if isinstance(data, tuple) else data.tolist()


class Items(Dataset[Any]):
    """A map-style dataset."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.arange(6, dtype=np.uint16).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.arange(6, dtype=np.uint32).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ([torch.tensor([1, 2]), torch.tensor([3, 4])], [[1, 2], [3, 4]]),
        (RAGGED, PADDED),
        ([np.array(each) for each in RAGGED], PADDED),
        ({"input_ids": RAGGED, "text": ["a", "b", "c"]}, PADDED),
        (Items([{"input_ids": each, "text": "a"} for each in RAGGED]), PADDED),
        (
            {"input_ids": RAGGED, "labels": [[-100, 2, 3], [4, 5], [6, 7, 8, 9]]},
            PADDED | {"labels": [[-100, 2, 3, -100], [4, 5, -100, -100], [6, 7, 8, 9]]},
        ),
        (TensorDataset(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])), ([[1.0], [2.0]], [0, 1])),
        ({"x": np.ones((2, 1)), "y": [0, 1]}, {"x": [[1.0], [1.0]], "y": [0, 1]}),
    ],
)  # fmt: skip
def test_sources_become_tensors(source: Any, expected: Any) -> None:
    assert listed(pf.as_data(source)) == expected


def test_columns_are_chosen_by_name() -> None:
    source = Items([{"image": [0.5], "label": 0, "name": "a"}, {"image": [1.0], "label": 1, "name": "b"}])
    assert listed(pf.as_data(source, ["image", "label"])) == {"image": [[0.5], [1.0]], "label": [0, 1]}
    with pytest.raises(ValueError, match="there is no column input_ids; there are image, label, name: name others by"):
        pf.as_data(source, ["input_ids"])


def test_datasets_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    source = datasets.Dataset.from_dict({"input_ids": RAGGED, "text": ["a", "b", "c"]})
    assert listed(pf.as_data(source)) == PADDED
    assert listed(pf.as_data(source.with_format("torch"))) == PADDED


def test_a_file_of_tokens_is_not_read_before_it_is_used(tmp_path: Path) -> None:
    """The tensor's memory is the file's: what is written to the one is in the other."""
    path = tmp_path / "tokens.bin"
    np.arange(24, dtype=np.int32).tofile(path)
    mapped = np.memmap(path, dtype=np.int32, mode="r+", shape=(8, 3))
    found = pf.as_data(mapped)
    assert isinstance(found, torch.Tensor)
    mapped[0, 0] = 99
    assert int(found[0, 0]) == 99
    assert found.dtype == torch.int32


def test_lists_of_tokens_go_the_whole_way() -> None:
    """From lists to χ and to training on a plan."""
    ids = [row[: 4 + number % 6].tolist() for number, row in enumerate(tokens())]
    data = pf.as_data(ids)
    where = pf.LocalPosterior(language_model(), pf.losses.causal_lm, data, n_beta=30.0, localization=300.0)
    assert where.item_count == sum(len(each) - 1 for each in ids)
    sampling: dict[str, Any] = {"chains": 2, "draws": 2, "batch_size": 4, "progress": False}
    chi = pf.linear_response(where, pf.SGLD(1e-3), **sampling)
    plan = pf.invert(chi, {"full": -1e-4}, strength=0.2, negative_weights="clip", unsettled=True)
    pf.train(
        language_model(),
        data,
        pf.losses.causal_lm,
        weights=plan.weights,
        steps=2,
        batch_size=4,
        lr=1e-3,
        progress=False,
    )


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (DataLoader(Items([1, 2])), TypeError, r"pass loader.dataset"),
        (Stream(), TypeError, "which a stream does not have; take as many samples as you want into a list"),
        (iter([1, 2]), TypeError, "takes data with a length, got list_iterator"),
        ([], ValueError, "as_data got list without a sample"),
        (["some", "text"], TypeError, "holds no numbers but 'some' .* turn text into token ids first"),
        ({"input_ids": RAGGED, "scores": RAGGED}, None, ""),
        ({"scores": RAGGED}, ValueError, "the samples of scores have 2 to 4 values; give each as many"),
        (Items([(1, 2), (3,)]), ValueError, "tuples of several lengths"),
        ([[[1, 2], [3]], [[1, 2], [3]]], ValueError, "the list is no samples of one shape"),
    ],
)  # fmt: skip
def test_sources_that_are_no_data(source: Any, error: type[Exception] | None, message: str) -> None:
    if error is None:  # what causal_lm does not know is left out
        assert pf.as_data(source).keys() == PADDED.keys()  # type: ignore[union-attr]
        return
    with pytest.raises(error, match=message):
        pf.as_data(source)
