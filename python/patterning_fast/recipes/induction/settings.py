"""Settings of the induction recipe."""

from __future__ import annotations

from dataclasses import dataclass

MIXTURE = "mixture"
"""A source: text found on this machine, by character, with passages that come twice within a context."""

GOALS = {"amplified": 1.4, "suppressed": 2.0, "control": 0.1}
"""Amplified runs this many times earlier, suppressed ones later; controls within this share of the base run."""

WAYS = ("amplified", "suppressed")

CONTROLS = {
    "random": "the amplifying weights dealt out at random",
    "loss-matched": "the amplifying weights dealt out at random among tokens of like loss",
    "matched early": "the amplifying weights dealt out at random among tokens of like loss before the circuit",
    "loss alone": "the same as loss-matched, but for tokens that induction predicts, which have a weight of 1",
    "length-matched": "the amplifying weights dealt out at random among tokens after as many others",
    "gradient": "weights by how far a step down the loss on repeats lowers each token's loss",
    "no loss": "amplified, from chains that feel no loss (nβ = 0)",
}


@dataclass(frozen=True)
class Settings:
    """Sizes and settings of one run of the recipe."""

    seeds: tuple[int, ...] = (0,)
    """Of text, initialisation, minibatches and noise."""
    source: str = MIXTURE
    """"mixture", of characters; or what `tasks.domains.domains` takes, in tokens of a vocabulary of its own."""
    vocabulary: int = 5000
    """Of the tokenizer of a source; the mixture has 96 characters."""
    contexts: int = 2048
    length: int = 65
    quoted: float = 0.5
    """Share of the mixture's contexts whose passages come twice; its other three domains share the rest."""
    chi_contexts: int = 0
    """Contexts that χ is estimated on, from which the mode is continued to all others; 0 for all."""
    width: int = 64
    heads: int = 2
    head_width: int = 32
    train_steps: int = 1500
    train_batch: int = 64
    train_lr: float = 3e-3
    weight_decay: float = 0.01
    metrics_every: int = 25
    n_beta: float = 30.0
    localization: float = 20.0
    lr: float = 1e-3
    chains: int = 8
    draws: int = 12
    steps_between_draws: int = 3
    sampler_batch: int = 16
    strengths: tuple[float, ...] = (0.3,)
    """Root mean square of ρ − 1; controls have the last."""
    controls: tuple[str, ...] = ("random",)
    """Of `CONTROLS`."""
    early_step: int = 300
    """Of the base run, before the circuit: its losses there are what "matched early" goes by."""
    llc_steps: tuple[int, ...] = ()
    """Training steps at which λ̂ is estimated, in the base run and those of the last strength."""
    verify: bool = False
    """Sample again under the weights of the first seed."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.controls) - set(CONTROLS))
        if unknown or not self.seeds or not self.strengths:
            raise ValueError(
                f"controls must be among {', '.join(CONTROLS)}, with at least one seed and one strength; "
                f"got {self.controls}, {self.seeds} and {self.strengths}"
            )
        if self.chi_contexts > self.contexts:
            raise ValueError(f"chi_contexts must be at most all {self.contexts} contexts, got {self.chi_contexts}")
