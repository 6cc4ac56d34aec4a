"""Weights in Hugging Face's own `Trainer`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.posterior.losses import Batch
from tests.models import tokens

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

SAMPLES, LENGTH, VOCABULARY = 12, 9, 11
STEPS = 4


def language_model() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16,
        )
    )  # fmt: skip


def dataset() -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "labels": row.clone()} for row in tokens(SAMPLES)]


def weights(seed: int = 3) -> Tensor:
    return 2 * torch.rand(SAMPLES, LENGTH - 1, generator=torch.Generator().manual_seed(seed))


def arguments(folder: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 0.5,
        "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "remove_unused_columns": False,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return transformers.TrainingArguments(**settings | changes)


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class InOrder(transformers.Trainer):  # type: ignore[misc,name-defined]
    """Takes a dataset in its order, so that a test knows the batches."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trained(
    folder: Path, rho: Tensor | xr.DataArray, items: Any = None, collator: Any = None, **changes: Any
) -> tuple[Any, Tensor]:
    model = language_model()
    weighted = pf.TrainerLoss(model, dataset() if items is None else items, rho)
    trainer = InOrder(
        model, arguments(folder, **changes), train_dataset=weighted.dataset, data_collator=collator,
        compute_loss_func=weighted,
    )  # fmt: skip
    trainer.train()
    return trainer, parameters(model)


def by_hand(rho: Tensor, batch_size: int = 4) -> Tensor:
    """Plain descent on Σρl / (losses · mean ρ) of batches in order."""
    model, data = language_model(), tokens(SAMPLES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(STEPS):
        here = torch.arange(step * batch_size, (step + 1) * batch_size) % SAMPLES
        logits = model(data[here]).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), data[here, 1:], reduction="none")
        optimizer.zero_grad()
        ((rho[here] * losses).sum() / (losses.numel() * rho.mean())).backward()
        optimizer.step()
    return parameters(model)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To four steps in float32, whose sums come in another order."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_trainer_descends_the_weighted_loss(tmp_path: Path) -> None:
    _, found = trained(tmp_path, weights())
    assert_close(found, by_hand(weights()))
    assert float((found - by_hand(weights(4))).abs().max()) > 0.01


def test_weights_of_samples_and_of_plans(tmp_path: Path) -> None:
    of_samples = torch.linspace(0, 2, SAMPLES)
    _, found = trained(tmp_path, of_samples)
    assert_close(found, by_hand(of_samples[:, None].expand(-1, LENGTH - 1)))
    spread = pf.spread_weights(xr.DataArray([0.5, 1.5], dims="domain", coords={"domain": ["a", "b"]}), ["a", "b"] * 6)
    _, found = trained(tmp_path, spread[::-1])
    expected = torch.tensor([0.5, 1.5] * 6)[:, None].expand(-1, LENGTH - 1)
    assert_close(found, by_hand(expected))


def test_gradient_accumulation_adds_up_to_the_batch(tmp_path: Path) -> None:
    _, found = trained(tmp_path, weights(), per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert_close(found, by_hand(weights()))


def test_weights_of_one_are_the_loss_of_trainer_itself(tmp_path: Path) -> None:
    model = language_model()
    InOrder(model, arguments(tmp_path), train_dataset=dataset()).train()
    _, found = trained(tmp_path, torch.ones(SAMPLES))
    assert_close(found, parameters(model))


def test_labels_that_are_ignored_have_no_loss(tmp_path: Path) -> None:
    """Half of each sample is a prompt: replacing the weights there changes nothing but the mean weight."""
    items = dataset()
    for item in items:
        item["labels"][:4] = -100
    rho, other = weights(), weights()
    other[:, :3] = rho[:, :3].flip(0)
    _, found = trained(tmp_path, rho, items)
    _, there = trained(tmp_path, other, items)
    assert_close(found, there)
    assert float((found - by_hand(rho)).abs().max()) > 0.01


def test_the_collator_of_language_models_and_workers(tmp_path: Path) -> None:
    """Columns pass through a collator that pads and makes labels, in other processes."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({str(word): word for word in range(VOCABULARY)})
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), pad_token="[PAD]")
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    items = [{"input_ids": row} for row in tokens(SAMPLES).tolist()]
    _, found = trained(tmp_path, weights(), items, collator, dataloader_num_workers=1)
    assert_close(found, by_hand(weights()))


def test_evaluation_is_not_weighted(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, weights())
    expected = pf.losses.next_token(trainer.model, tokens(SAMPLES)).mean().detach()
    assert trainer.evaluate(dataset())["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_batches_that_do_not_say_what_they_hold_are_refused(tmp_path: Path) -> None:
    model = language_model()
    weighted = pf.TrainerLoss(model, dataset(), weights())
    for changes, data in (({}, dataset()), ({"remove_unused_columns": True}, weighted.dataset)):
        trainer = transformers.Trainer(
            model, arguments(tmp_path, **changes), train_dataset=data, compute_loss_func=weighted
        )
        with pytest.raises(ValueError, match=r"remove_unused_columns=False\), a collator that keeps"):
            trainer.train()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights of shape \[11, 8\] do not fit the data, .* shape \[12, 8\]"):
        pf.TrainerLoss(language_model(), dataset(), weights()[:-1])
    with pytest.raises(ValueError, match="the weights are all zero"):
        pf.TrainerLoss(language_model(), dataset(), torch.zeros(SAMPLES))
    with pytest.raises(TypeError, match="must have a length and numbered items, got generator"):
        pf.TrainerLoss(language_model(), (item for item in dataset()), weights())  # type: ignore[arg-type]


def test_weights_of_tokens_do_not_shift_under_padding(tmp_path: Path) -> None:
    def padded(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: torch.stack([F.pad(item[name], (3, 0)) if name != "sample" else torch.tensor(item[name])
                               for item in items])
            for name in items[0]
        }  # fmt: skip

    with pytest.raises(ValueError, match=r"losses of shape \[4, 11\] and weights of tokens \[4, 8\]"):
        trained(tmp_path, weights(), collator=padded)
    trained(tmp_path, torch.rand(SAMPLES), collator=padded)


def test_copies_of_the_model_do_not_copy_the_data() -> None:
    model = language_model()
    weighted = pf.TrainerLoss(model, dataset(), weights())
    other = copy.deepcopy(model)
    other(input_ids=tokens(2), sample=torch.tensor([4, 5]))
    assert weighted.samples is not None
    assert weighted.samples.tolist() == [4, 5]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.linear(x)}


def logits_loss(model: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(batch, tuple)
    x, y = batch
    return F.cross_entropy(model(x)["logits"], y, reduction="none")


def test_classifiers(tmp_path: Path, generator: torch.Generator) -> None:
    """One batch of all samples is one step of `pf.train` on them, but for the order of sums."""
    x, y = torch.randn(6, 3, generator=generator), torch.randint(4, (6,), generator=generator)
    rho = torch.linspace(0, 2, 6)
    model = Classifier()
    weighted = pf.TrainerLoss(model, [{"x": x[at], "labels": y[at]} for at in range(6)], rho)
    transformers.Trainer(
        model, arguments(tmp_path, max_steps=1, per_device_train_batch_size=6), train_dataset=weighted.dataset,
        compute_loss_func=weighted,
    ).train()  # fmt: skip
    other = Classifier()
    pf.weighted_loss(logits_loss(other, (x, y)), rho).backward()
    for found, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert expected.grad is not None
        torch.testing.assert_close(found, expected - 0.5 * expected.grad, rtol=1e-5, atol=1e-6)
