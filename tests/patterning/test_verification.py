"""What `verify` refuses; that it agrees with the closed form is in tests/truth."""

from __future__ import annotations

import pytest

import patterning_fast as pf
from tests.models import language_model, language_posterior, tokens

SAMPLING = {"chains": 4, "draws": 3, "batch_size": 4, "progress": False}


def test_a_plan_must_fit_the_posterior() -> None:
    posterior = language_posterior()
    chi = pf.sample(posterior, pf.SGLD(1e-3), **SAMPLING).susceptibilities()  # type: ignore[arg-type]
    plan = pf.invert(chi, pf.modes(chi.isel(component=[0, 0]), centre_data=False)[0], strength=0.1)
    checked = pf.verify(plan, posterior, pf.SGLD(1e-3), **SAMPLING)
    assert set(checked) == {"predicted", "predicted_error", "realised", "realised_error", "z"}
    with pytest.raises(ValueError, match=r"the plan was made at n_beta 10.0, the posterior has 20.0"):
        pf.verify(plan, language_posterior(n_beta=20.0), pf.SGLD(1e-3), **SAMPLING)
    with pytest.raises(ValueError, match="scale must be a finite number > 0"):
        pf.verify(plan, posterior, pf.SGLD(1e-3), scale=0.0, **SAMPLING)
    fewer = pf.LocalPosterior(language_model(), pf.losses.next_token, tokens(5), n_beta=10.0, localization=1.0)
    with pytest.raises(ValueError, match="must be numbers of the data, 0 to 4"):
        pf.verify(plan, fewer, pf.SGLD(1e-3), **SAMPLING)
