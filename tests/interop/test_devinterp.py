"""The drop-in for devinterp by itself: what is refused, kept, stored, and left out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.interop import devinterp
from tests.models import language_model, tokens

TOKENS, PROBE = tokens(24), tokens(12, seed=5)
SETTINGS: dict[str, Any] = {
    "lr": 1e-3, "n_beta": 10.0, "localization": 100.0, "num_chains": 2, "num_draws": 3, "batch_size": 4,
    "num_init_loss_batches": 2, "device": "cpu",
}  # fmt: skip
OBSERVABLES = {"train": (TOKENS, 2), "probe": (PROBE, 1)}


def sampled(**changes: Any) -> xr.DataTree:
    return devinterp.sample(language_model(), TOKENS, OBSERVABLES, **SETTINGS | changes)


def values(samples: xr.DataTree, name: str) -> np.ndarray:
    return samples.to_dataset()[name].values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_level": 0.5}, "noise_level=0.5 is not supported"),
        ({"llc_weight_decay": 0.1}, "llc_weight_decay=0.1 is not supported.* localization"),
        ({"init_noise": 0.1}, "init_noise=0.1 is not supported"),
        ({"save_metrics": True}, "save_metrics=True is not supported.*diagnostics"),
        ({"sampling_method_kwargs": {"sketch_dim": 8}}, "'sketch_dim'.* CountSketch"),
        ({"sampling_method_kwargs": {"noise_level": 0.5}}, "'noise_level'"),
        ({"sampling_method_kwargs": {"alpha": 0.9}}, r"'alpha'.* takes none"),
        ({"rmsprop_eps": 0.1}, "goes with sampling_method='rmsprop_sgld'"),
        (
            {"sampling_method": "rmsprop_sgld", "rmsprop_eps": 0.1, "sampling_method_kwargs": {"eps": 0.1}},
            "given twice",
        ),
        ({"sampling_method": "sgnht"}, "sampling_method must be"),
        ({"batch_size": 40}, "has 24 sequences"),
        (
            {"loss_fn": lambda model, ids: pf.losses.next_token(model, ids).mean(1)},
            "loss_fn must return a loss of each",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampled(**changes)


def test_data_that_do_not_fit_are_refused() -> None:
    for observables, message in (
        ({"a b": TOKENS, "a-b": TOKENS}, "both called 'a_b'"),
        ({"short": (tokens(length=5), 1)}, "sequences of 5 tokens and dataset of 9"),
        ({"few": (TOKENS, 7)}, "has 24 sequences, and 7 batches of 4"),
        ({"none": (TOKENS, 0)}, "1 batch or more"),
    ):
        with pytest.raises(ValueError, match=message):
            devinterp.sample(language_model(), TOKENS, observables, **SETTINGS)
    with pytest.raises(ValueError, match="several lengths"):
        devinterp.sample(language_model(), {"input_ids": [[1, 2], [1, 2, 3]]}, OBSERVABLES, **SETTINGS)
    with pytest.raises(ValueError, match='must hold "full"'):
        devinterp.susceptibilities(
            language_model(), TOKENS, OBSERVABLES, {"l0h0": None, "l0h1": None}, sampling_task="train", **SETTINGS
        )


def test_a_seed_gives_the_same_bits_and_another_does_not() -> None:
    first, again, other = (sampled(init_seed=seed).to_dataset() for seed in (3, 3, 4))
    xr.testing.assert_identical(first, again)
    assert not np.array_equal(first["loss_probe"], other["loss_probe"])


def test_restrictions_move_what_they_name_and_nothing_else() -> None:
    """Losses along l0h1's chains are those of its own call, whatever runs beside it."""
    model = language_model()
    head = devinterp.create_param_masks(model, "l0h1")
    result = devinterp.susceptibilities(
        model, TOKENS, OBSERVABLES, {"full": None, "l0h1": head, "l1": devinterp.create_param_masks(model, "l1")},
        sampling_task="train", **SETTINGS,
    )  # fmt: skip
    chi = result["susceptibilities"].to_dataset()
    assert dict(chi.sizes) == {"sus_flat": 4 * 8, "wr": 2}
    assert list(chi["wr"].values) == ["l0h1", "l1"]
    assert chi.attrs["dataset_id_to_name"] == ["probe"]
    alone = devinterp.susceptibilities(
        model, TOKENS, OBSERVABLES, {"full": None, "l0h1": head}, sampling_task="train", **SETTINGS
    )["susceptibilities"].to_dataset()
    np.testing.assert_allclose(alone["sus"][:, 0], chi["sus"][:, 0], atol=1e-6)


def test_with_one_reference_chi_knows_no_constant() -> None:
    """With `init_loss` on the very sequences that φ is taken on, χ is as if all losses were taken from w* on."""
    model = language_model()
    masks = {"full": None, "l0h1": devinterp.create_param_masks(model, "l0h1")}
    many = SETTINGS | {"num_draws": 20, "num_chains": 8, "match_sampling_input_ids_across_chains": False}
    trees = {
        name: devinterp.sample(model, TOKENS, OBSERVABLES, param_masks=each, **many) for name, each in masks.items()
    }
    own = values(trees["full"], "input_ids_train")
    with torch.no_grad():
        center = float(pf.losses.next_token(model, torch.as_tensor(own)).mean())
    assert abs(center - float(values(trees["full"], "init_loss").mean())) > 1e-3
    once = {
        name: xr.DataTree(each.to_dataset().assign(init_loss=("chain", np.full(8, center))))
        for name, each in trees.items()
    }
    chi = devinterp.compute_susceptibilities(once, "train")["susceptibilities"].to_dataset()["sus"].values
    phi = [values(each, "loss_train").mean((2, 3), dtype=np.float64) - center for each in trees.values()]
    with torch.no_grad():
        probe = pf.losses.next_token(model, torch.as_tensor(values(trees["full"], "input_ids_probe"))).numpy()
    moved = [values(each, "loss_probe").astype(np.float64) - probe for each in trees.values()]
    of_head = phi[1][..., None, None]
    expected = (of_head * (of_head - moved[1])).mean((0, 1)) - phi[1].mean() * (phi[0].mean() - moved[0].mean((0, 1)))
    np.testing.assert_allclose(chi[:, 0], expected.ravel(), atol=1e-6)


def test_burn_in_counts_and_can_be_left_out() -> None:
    samples = sampled(num_burnin_steps=4)
    with pytest.warns(UserWarning, match="counts 4 steps of burn-in"):
        counted = devinterp.compute_llc(samples)
    left_out = devinterp.compute_llc(samples.isel(step=slice(4, None)))
    trace = values(samples, "sampling_loss_micro").astype(np.float64).mean((2, 3))
    center = values(samples, "init_loss").astype(np.float64).mean()
    np.testing.assert_allclose(counted["llc_per_chain"], 10 * (trace.mean(1) - center), rtol=1e-9)
    np.testing.assert_allclose(left_out["llc_per_chain"], 10 * (trace[:, 4:].mean(1) - center), rtol=1e-9)


def test_llc_needs_no_observables_and_is_that_of_sample() -> None:
    found = devinterp.llc(language_model(), TOKENS, OBSERVABLES, **SETTINGS)
    xr.testing.assert_identical(found, devinterp.compute_llc(sampled()))


def test_a_store_is_read_by_its_own_call_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "samples.zarr"
    first = sampled(output_path=path).to_dataset().load()
    before = {each: each.stat().st_mtime_ns for each in path.rglob("*")}
    xr.testing.assert_identical(sampled(output_path=path).to_dataset().load(), first)
    assert {each: each.stat().st_mtime_ns for each in path.rglob("*")} == before
    xr.testing.assert_equal(first, sampled().to_dataset())
    with pytest.raises(ValueError, match=r"another run, which differs by lr was 0\.001, and is 0\.002"):
        sampled(output_path=path, lr=2e-3)
    masks = devinterp.create_param_masks(language_model(), "l0h1")
    for arguments in (
        {"model": language_model(seed=1)}, {"param_masks": masks}, {"observables": {"probe": (PROBE, 1)}},
        {"dataset": PROBE},
    ):  # fmt: skip
        given: dict[str, Any] = {"model": language_model(), "dataset": TOKENS, "observables": OBSERVABLES} | arguments
        with pytest.raises(ValueError, match="another run, which differs by the model, its data"):
            devinterp.sample(**given, **SETTINGS, output_path=path)
    (tmp_path / "else").write_text("x")
    with pytest.raises(ValueError, match="is no store of samples"):
        sampled(output_path=tmp_path / "else")


def test_each_restriction_has_a_store(tmp_path: Path) -> None:
    call = {"weight_restrictions": {"full": None, "l1": devinterp.create_param_masks(language_model(), "l1")}}
    arguments: dict[str, Any] = SETTINGS | call | {"sampling_task": "train", "output_path": tmp_path / "s.zarr"}
    first = devinterp.susceptibilities(language_model(), TOKENS, OBSERVABLES, **arguments)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["s_full.zarr", "s_l1.zarr"]
    xr.testing.assert_identical(devinterp.susceptibilities(language_model(), TOKENS, OBSERVABLES, **arguments), first)


class Explosive(nn.Module):
    """One number, whose chains run away where they go below −0.4."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))


def loss_of_one_side(model: nn.Module, ids: Tensor) -> Tensor:
    (w,) = model.parameters()
    return (w**2 + torch.where(w < -0.4, torch.exp(-60 * w), 0.0)).expand(len(ids), ids.shape[1] - 1) + 0.0 * ids[:, 1:]


def test_chains_that_diverge_are_left_out_and_said() -> None:
    arguments: dict[str, Any] = SETTINGS | {"lr": 0.02, "localization": 0.0, "num_draws": 12, "num_chains": 8}
    with pytest.warns(UserWarning, match=r"\d of 8 chains have diverged, and are left out of all .*full\[\d\]"):
        samples = devinterp.sample(Explosive(), TOKENS, {"t": (TOKENS, 1)}, **arguments, loss_fn=loss_of_one_side)
    gone = np.isnan(values(samples, "sampling_loss_micro")).any((1, 2, 3))
    assert 0 < gone.sum() < 8
    with pytest.warns(UserWarning, match="compute_llc: chains .* of 8 have diverged"):
        found = devinterp.compute_llc(samples)
    np.testing.assert_array_equal(np.isnan(found["llc_per_chain"]), gone)
    np.testing.assert_allclose(found["llc_mean"], found["llc_per_chain"].values[~gone].mean())
    with pytest.warns(UserWarning, match="compute_bif"):
        assert np.isfinite(devinterp.compute_bif(samples, compute_covariance=True)["influences"]).all()
    with pytest.raises(pf.ChainDivergedError, match="all 8 chains have diverged by step"):
        devinterp.sample(Explosive(), TOKENS, {"t": (TOKENS, 1)}, **arguments | {"lr": 50.0}, loss_fn=loss_of_one_side)


def test_a_box_holds_the_chains() -> None:
    """Of a model of one number, whose loss says where it is."""

    class Number(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

    def place(model: nn.Module, ids: Tensor) -> Tensor:
        (w,) = model.parameters()
        return w.expand(len(ids), ids.shape[1] - 1) + 0.0 * ids[:, 1:]

    wide = SETTINGS | {"lr": 0.1, "n_beta": 0.0, "localization": 1.0, "num_draws": 30}
    samples = devinterp.sample(Number(), TOKENS, {"t": (TOKENS, 1)}, **wide, loss_fn=place, bounding_box_size=0.25)
    found = values(samples, "loss_t")
    assert found.min() == pytest.approx(0.75, abs=1e-6)
    assert found.max() == pytest.approx(1.25, abs=1e-6)


def test_narrow_weights_are_sampled_in_float32_and_said() -> None:
    model = language_model().to(torch.bfloat16)
    with pytest.warns(UserWarning, match="parameters are torch.bfloat16: chains run on a copy in float32"):
        samples = devinterp.sample(model, TOKENS, OBSERVABLES, **SETTINGS)
    assert next(model.parameters()).dtype == torch.bfloat16
    xr.testing.assert_identical(
        samples.to_dataset(), devinterp.sample(model.float(), TOKENS, OBSERVABLES, **SETTINGS).to_dataset()
    )


def test_frozen_parameters_stay_and_unknown_ones_are_refused() -> None:
    model = language_model()
    masks: dict[str, Tensor | None] = dict.fromkeys(dict(model.named_parameters()))
    model.embedding.requires_grad_(False)
    own, named = sampled(), devinterp.sample(model, TOKENS, OBSERVABLES, **SETTINGS, param_masks=masks)
    assert not np.array_equal(own["loss_probe"], named["loss_probe"])
    xr.testing.assert_identical(
        named.to_dataset(), devinterp.sample(model, TOKENS, OBSERVABLES, **SETTINGS).to_dataset()
    )
    with pytest.raises(ValueError, match="names 'nothing', which the model lacks"):
        devinterp.sample(model, TOKENS, OBSERVABLES, **SETTINGS, param_masks={"nothing": None})


def test_names_and_their_tree(capsys: pytest.CaptureFixture[str]) -> None:
    model = language_model()
    masks = devinterp.create_param_masks(model, ["l0h1", "embed"])
    devinterp.preview_weight_restriction(model, masks)
    assert "embedding" in capsys.readouterr().out
    devinterp.preview_weight_restriction(model, masks, plain=True)
    assert capsys.readouterr().out.split() == sorted(masks)
    with pytest.raises(ValueError, match='"full" is all there is: leave out l0h1'):
        devinterp.create_param_masks(model, ["full", "l0h1"])
    with pytest.raises(ValueError, match="has no head 'l0h7'"):
        devinterp.create_param_masks(model, "l0h7")


def test_n_beta_of_one_sample_is_said() -> None:
    with pytest.warns(UserWarning, match="gradients of one sample"):
        assert devinterp.default_nbeta(1) == 1
    with pytest.raises(TypeError, match="DataLoader with a batch size"):
        devinterp.default_nbeta("4")


def test_other_trees_are_refused() -> None:
    with pytest.raises(ValueError, match="must be what sample returns"):
        devinterp.compute_llc(xr.DataTree(xr.Dataset()))
    samples = sampled()
    with pytest.raises(ValueError, match='must hold "full" and at least one other'):
        devinterp.compute_susceptibilities({"full": samples}, "train")
    with pytest.raises(ValueError, match="no losses of else"):
        devinterp.compute_susceptibilities({"full": samples, "l0": samples}, "else")
    for options, message in (
        ({"loss_keys": ["else"]}, "loss_keys must be among probe, train, got else"),
        ({"batch_index_range_1": [99]}, "batch_index_range_1 must be numbers of the 12 sequences"),
    ):
        with pytest.raises(ValueError, match=message):
            devinterp.compute_bif(samples, **options)


def test_nothing_is_said_where_nothing_is_amiss() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        devinterp.compute_bif(sampled(), average_tokenwise_bif=True)
