"""The drop-in beside devinterp itself: the same calls, the same layout, the same definitions, numbers within errors."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

pytest.importorskip("devinterp")
pytest.importorskip("datasets")

import devinterp.slt.bif as their_bif
import devinterp.slt.llc as their_llc
import devinterp.slt.sampling as their_sampling
import devinterp.slt.susceptibilities as their_susceptibilities
import devinterp.slt.weight_restrictions as their_masks
import devinterp.utils as their_utils
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

import patterning_fast.interop.devinterp as ours
from patterning_fast.interop.devinterp.settings import Settings
from tests.interop.models import VOCABULARY, dataset, llama, noise

THEIRS: dict[str, Callable[..., Any]] = {
    "sample": their_sampling.sample,
    "llc": their_llc.llc,
    "compute_llc": their_llc.compute_llc,
    "susceptibilities": their_susceptibilities.susceptibilities,
    "compute_susceptibilities": their_susceptibilities.compute_susceptibilities,
    "bif": their_bif.bif,
    "compute_bif": their_bif.compute_bif,
    "create_param_masks": their_masks.create_param_masks,
    "preview_weight_restriction": their_masks.preview_weight_restriction,
    "default_nbeta": their_utils.default_nbeta,
    "tokenize_and_concatenate": their_utils.tokenize_and_concatenate,
}

SETTINGS: dict[str, Any] = {
    "lr": 1e-3, "n_beta": 30.0, "localization": 100.0, "num_chains": 2, "num_draws": 4, "batch_size": 4,
    "num_init_loss_batches": 5, "device": "cpu",
}  # fmt: skip


def theirs(name: str, *given: Any, **named: Any) -> Any:
    """A call of devinterp's, without its warnings."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        return THEIRS[name](*given, **named)


def observables() -> dict[str, Any]:
    return {"train": (dataset(), 2), "no order": (noise(), 1)}


@pytest.mark.parametrize("name", THEIRS)
def test_arguments_are_the_same(name: str) -> None:
    def arguments(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]

    assert set(THEIRS) == set(ours.__all__)
    assert arguments(getattr(ours, name)) == arguments(THEIRS[name])


def test_settings_have_the_defaults_of_sample() -> None:
    parameters = inspect.signature(ours.sample).parameters
    settings = inspect.signature(Settings).parameters
    assert {name: each.default for name, each in settings.items()} == {
        name: parameters[name].default for name in settings
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_burnin_steps": 3, "num_steps_bw_draws": 2},
        {"match_sampling_input_ids_across_chains": False, "gradient_accumulation_steps": 3},
        {"shuffle": False, "num_chains": 1},
        {"sampling_method": "rmsprop_sgld", "rmsprop_eps": 0.2, "bounding_box_size": 0.1},
    ],
)
def test_samples_have_the_layout_and_the_sequences(changes: dict[str, Any]) -> None:
    their = theirs("sample", llama(), dataset(), observables(), **SETTINGS | changes).to_dataset().load()
    own = ours.sample(llama(), dataset(), observables(), **SETTINGS | changes).to_dataset()
    assert set(own.data_vars) == set(their.data_vars)
    assert dict(own.sizes) == dict(their.sizes)
    for name, each in their.data_vars.items():
        assert (own[name].dims, own[name].dtype) == (each.dims, each.dtype), name
        if "input_ids" in str(name):
            np.testing.assert_array_equal(own[name], each)
        assert own[name].notnull().all()
    # Sums of float32 in another order, of losses of some nats.
    np.testing.assert_allclose(own["init_loss"], their["init_loss"], atol=3e-6)
    first = {"step": 0}  # before any noise
    np.testing.assert_allclose(own["sampling_loss_micro"][first], their["sampling_loss_micro"][first], atol=3e-6)
    assert float(abs(own["loss_train"] - their["loss_train"]).max()) > 1e-3  # other noise
    stored = [each.attrs["metadata"]["config"] for each in (own, their)]
    assert stored[0].keys() == stored[1].keys()
    assert stored[0]["observables"] == stored[1]["observables"]
    assert stored[0]["sampler"] == stored[1]["sampler"]
    accumulated = own["sampling_loss_micro"].values.reshape(own.sizes["chain"], own.sizes["step"], -1, 4, 12).mean(2)
    drawn = slice(
        own.sizes["step"] - 4 * changes.get("num_steps_bw_draws", 1), None, changes.get("num_steps_bw_draws", 1)
    )
    np.testing.assert_allclose(own["sampling_loss"], accumulated[:, drawn], atol=1e-6)


def their_samples() -> dict[str, xr.DataTree]:
    """Of "full" and a head."""
    masks = {"full": None, "l0h1": their_masks.create_param_masks(llama(), "l0h1")}
    return {
        name: theirs("sample", llama(), dataset(), observables(), param_masks=each, **SETTINGS)
        for name, each in masks.items()
    }


def test_definitions_are_the_same_on_the_same_samples() -> None:
    """Up to rounding: theirs are sums in float32 of losses of up to 5 nats."""
    samples = their_samples()
    own, their = (call("compute_llc", which, samples["full"]) for which, call in both())
    for name in their.data_vars:
        np.testing.assert_allclose(own[name], their[name], atol=2e-4)  # n_beta times the rounding of a mean
    for include in (False, True):
        own, their = (
            call("compute_susceptibilities", which, samples, "train", None, include) for which, call in both()
        )
        for part in ("susceptibilities", "context"):
            assert_same_tree(own[part].to_dataset(), their[part].to_dataset())
    for options in (
        {},
        {"correlation_method": "sequence"},
        {"average_tokenwise_bif": True, "reduce_chain_dimension_method": "mean"},
        {"compute_covariance": True, "batch_index_range_1": [0, 3], "batch_index_range_2": [5, 1, 2], "batch_size": 2},
        {"compute_covariance": True, "average_tokenwise_bif": True, "loss_keys": ["train"]},
    ):
        own, their = (call("compute_bif", which, samples["full"], **options) for which, call in both())
        assert_same_tree(own, their)


def both() -> list[tuple[str, Callable[..., Any]]]:
    def call(name: str, which: str, *given: Any, **named: Any) -> Any:
        return getattr(ours, name)(*given, **named) if which == "ours" else theirs(name, *given, **named)

    return [("ours", call), ("theirs", call)]


def assert_same_tree(own: xr.Dataset, their: xr.Dataset) -> None:
    assert set(own.variables) == set(their.variables)
    assert own.attrs == their.attrs
    assert set(own.indexes) == set(their.indexes)
    for name, each in their.variables.items():
        assert (own[name].dims, own[name].dtype.kind) == (each.dims, each.dtype.kind), name
        if each.dtype.kind == "f":
            np.testing.assert_allclose(own[name], each, atol=5e-6)
        else:
            np.testing.assert_array_equal(own[name], each)


@pytest.mark.parametrize(
    "model",
    [
        llama,
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=4)),
        lambda: GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24
            )
        ),
    ],
)
@pytest.mark.parametrize(
    "name",
    ["full", "l0", "l1h2", "L1 H2", "l0g1", "l0 attn", "l1 mlp", "embed", "unembed", ["l0h0", "l0h1", "l1 mlp"]],
)
def test_names_mean_the_same(model: Callable[[], Any], name: str | list[str]) -> None:
    made = model()
    own, their = ours.create_param_masks(made, name), their_masks.create_param_masks(made, name)
    if name == "unembed" and not their:  # tied, or of another name: nothing would move
        assert len(own) == 1
        return
    assert list(own) == list(their)
    for parameter, mask in their.items():
        found = own[parameter]
        assert (found is None) == (mask is None)
        if mask is not None and found is not None:
            torch.testing.assert_close(found, mask)


def test_numbers_agree_within_errors() -> None:
    """Chains that share nothing give errors: of 8 each, differences lie within 4 of them; seeds are fixed."""
    many = SETTINGS | {"num_chains": 8, "num_draws": 20, "match_sampling_input_ids_across_chains": False}
    masks = {"full": None, "l1": ours.create_param_masks(llama(), "l1")}
    own, their = (
        {name: call("sample", which, llama(), dataset(), observables(), param_masks=each, **many).to_dataset().load()
         for name, each in masks.items()}
        for which, call in both()
    )  # fmt: skip

    def by_chain(samples: dict[str, xr.Dataset]) -> list[dict[str, xr.DataTree]]:
        return [{name: xr.DataTree(each.isel(chain=[at])) for name, each in samples.items()} for at in range(8)]

    for name in masks:
        own_llc, their_llc = (
            ours.compute_llc(xr.DataTree(each[name]))["llc_per_chain"].values for each in (own, their)
        )
        assert abs(float(standard_difference(own_llc, their_llc))) < 4

    def chi(trees: dict[str, xr.DataTree]) -> np.ndarray:
        return ours.compute_susceptibilities(trees, "train")["susceptibilities"].to_dataset()["sus"].values

    def influence(trees: dict[str, xr.DataTree]) -> np.ndarray:
        found = ours.compute_bif(trees["full"], average_tokenwise_bif=True, compute_covariance=True)
        return found["influences"].values

    for estimate in (chi, influence):
        values = [np.stack([estimate(each) for each in by_chain(samples)]) for samples in (own, their)]
        size = np.abs(values[1].mean(0)) / (values[1].std(0, ddof=1) / 8**0.5)
        assert float(size.max()) > 3  # there is something to see
        # Student's t of 14 degrees has 1.08; tokens and sequences depend on each other, so that it may be more.
        assert np.sqrt((standard_difference(*values) ** 2).mean()) < 1.8


def standard_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The difference of means of chains, over its standard error."""
    error = np.sqrt(sum(each.var(0, ddof=1) / len(each) for each in (one, other)))
    return (one.mean(0) - other.mean(0)) / error


@pytest.mark.parametrize("library", ["devinterp", "patterning_fast"])
def test_a_first_script_runs(library: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The calls of devinterp's quickstart, on a smaller model: one import line apart."""
    calls: dict[str, Callable[..., Any]] = (
        THEIRS if library == "devinterp" else {name: getattr(ours, name) for name in THEIRS}
    )
    n_beta = calls["default_nbeta"](4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = calls["llc"](
            model=llama(), dataset=dataset(), observables={"train": dataset()}, lr=1e-4, n_beta=n_beta, num_chains=2,
            num_draws=5, batch_size=4, num_init_loss_batches=4, device="cpu",
        )  # fmt: skip
        assert np.isfinite(float(result["llc_mean"]) + float(result["llc_std"]))
        head = calls["create_param_masks"](llama(), "l0h0")
        calls["preview_weight_restriction"](llama(), head)
        assert "q_proj" in capsys.readouterr().out
        result = calls["susceptibilities"](
            model=llama(), dataset=dataset(), observables={"train": (dataset(), 2), "probe": (noise(), 2)},
            weight_restrictions={"full": None, "l0h0": head, "l0h1": calls["create_param_masks"](llama(), "l0h1")},
            sampling_task="train", lr=1e-4, n_beta=n_beta, num_chains=2, num_draws=5, batch_size=4,
            num_init_loss_batches=4, device="cpu",
        )  # fmt: skip
        chi = result["susceptibilities"].dataset
        assert dict(chi.sizes) == {"sus_flat": 8 * 12, "wr": 2}
        result = calls["bif"](
            model=llama(), dataset=dataset(), observables={"train": dataset()}, lr=1e-4, n_beta=n_beta, num_chains=2,
            num_draws=5, batch_size=4, correlation_method="token", device="cpu",
        )  # fmt: skip
        assert result["influences"].shape == (12, 12, 12, 12)


@pytest.mark.parametrize("start", [True, False])
def test_text_is_cut_alike(start: bool) -> None:
    words = {f"w{at}": at for at in range(VOCABULARY)} | {
        "<s>": VOCABULARY,
        "</s>": VOCABULARY + 1,
        "?": VOCABULARY + 2,
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    generator = np.random.default_rng(0)
    for texts in ([" ".join(f"w{at}" for at in generator.integers(VOCABULARY, size=70)) for _ in range(5)], ["w1 w2"]):
        own, their = (
            call(
                "tokenize_and_concatenate", which, Dataset.from_dict({"text": texts, "other": texts}),
                PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="?"),
                max_length=9, add_bos_token=start, num_proc=None,
            )
            for which, call in both()
        )  # fmt: skip
        assert own.column_names == ["input_ids"]
        assert own.features == their.features
        torch.testing.assert_close(own["input_ids"][:], their["input_ids"][:])


@pytest.mark.parametrize("arguments", [(4,), (32, 2), (torch.utils.data.DataLoader([1.0] * 9, batch_size=3),)])  # type: ignore[arg-type]
def test_n_beta_is_the_same(arguments: tuple[Any, ...]) -> None:
    assert ours.default_nbeta(*arguments) == pytest.approx(their_utils.default_nbeta(*arguments), rel=1e-12)


def test_what_devinterp_has_stored_is_read(tmp_path: Path) -> None:
    theirs("sample", llama(), dataset(), observables(), **SETTINGS, output_path=tmp_path / "theirs.zarr")
    samples = xr.open_datatree(tmp_path / "theirs.zarr", engine="zarr", consolidated=False)
    assert np.isfinite(float(ours.compute_llc(samples)["llc_mean"]))
