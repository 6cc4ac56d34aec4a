"""λ of a solution as if the loss were quadratic: a closed form to hold λ̂ of chains against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from .estimates import model_at
from .runs import task_of
from .settings import Settings

STRINGS, AT_ONCE = 1000, 50
COLDER = 4.0
"""Times nβ."""


def second_order(settings: Settings, parameters: Tensor) -> dict[str, float]:
    """λ around a solution, ½ Σ nβ·h/(nβ·h + localization) over eigenvalues h of the second derivative of a loss.

    "of the loss": the training loss, by its Fisher information. "of margins": half the mean squared change of the
    logits' margin, which has its minimum at the solution.
    """
    inputs, _ = task_of(settings).training
    some = inputs[:: max(1, len(inputs) // STRINGS)]
    model = model_at(settings, parameters)
    named = {name: each.detach() for name, each in model.named_parameters()}

    def margin(named: dict[str, Tensor], string: Tensor) -> Tensor:
        logits = functional_call(model, named, (string[None],))[0]
        return logits[0] - logits[1]

    slopes = torch.cat([
        torch.cat([each.flatten(1) for each in vmap(grad(margin), (None, 0))(named, few).values()], 1).double()
        for few in some.split(AT_ONCE)
    ])  # fmt: skip
    with torch.no_grad():
        chances = model(some).double().softmax(1)
    certainty = chances.prod(1).sqrt()[:, None]  # the loss's second derivative by the margin is p(1 − p)
    found = {}
    for name, rows in (("of the loss", slopes * certainty), ("of margins", slopes)):
        eigenvalues = torch.linalg.eigvalsh(rows @ rows.T / len(rows)).clamp(min=0)
        for when, n_beta in (("", settings.llc_n_beta), (f", {COLDER:g} × nβ", COLDER * settings.llc_n_beta)):
            scaled = n_beta * eigenvalues
            found[f"λ {name}{when}"] = float((scaled / (scaled + settings.llc_localization)).sum() / 2)
    return found
