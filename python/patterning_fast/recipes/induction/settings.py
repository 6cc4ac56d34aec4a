"""Settings of the induction recipe."""

from __future__ import annotations

from dataclasses import dataclass

CROSSED = "crossed"
"""A source: contexts of four classes, by character, in which loss and induction come apart."""

GOALS = {"amplified": 1.4, "suppressed": 2.0, "control": 0.15}
"""Amplified runs this many times earlier, suppressed ones later; controls within this share of the base run."""

MODE = "mode of χ"
SOURCES = {
    MODE: "χ of the heads, by responses of settled chains at the end of training: the mode that is induction",
    "induction score": "χ of the induction score of all heads, at the end of training",
    "contrast": "χ of losses: on random strings said again down, on text and on strings said backwards held",
    "early score": "χ of the induction score of all heads, before the circuit",
    "spread": "how chains spread that are still on their way out from w*: covariances in place of responses",
    "gradient": "how far a step down the loss on repeats lowers the loss of a context",
    "early gradient": "the same before the circuit",
    "loss alone": "a low loss at the end of training",
    "compression": "how few bytes a context has once it is compressed: no model has a part in it",
    "colder": "the mode of χ at ten times nβ, where chains feel more of the loss",
    "influence": "how far a context's gradient raises the induction score of the best head, within that head and in "
    "units of its Fisher information",
    "labels": "the tokens that induction predicts, by their labels: the most that weights of contexts can do",
}
"""What weights of contexts are made of."""

ON_THE_WAY = "on the way"
"""Runs whose weights are planned during the run itself, from χ around the model as it is then."""

CONTROLS = {
    "no loss": "the mode of chains that feel no loss (nβ = 0), by their covariances",
    "random": "the weights by the mode dealt out at random",
    "loss-matched": "the weights by the mode dealt out at random among contexts of like loss",
    "matched early": "the same, by losses before the circuit",
}
"""What the weights by the mode must beat."""


@dataclass(frozen=True)
class Settings:
    """Sizes and settings of one run of the recipe."""

    seeds: tuple[int, ...] = (0,)
    """Of text, initialisation, minibatches and noise."""
    source: str = CROSSED
    """"crossed", or what `tasks.domains.domains` takes, in tokens of a vocabulary of its own."""
    vocabulary: int = 5000
    """Of the tokenizer of a source; crossed text has 96 characters."""
    contexts: int = 32768
    length: int = 64
    width: int = 64
    heads: int = 8
    head_width: int = 16
    train_steps: int = 2000
    train_batch: int = 48
    train_lr: float = 4e-3
    weight_decay: float = 0.01
    metrics_every: int = 25
    early_step: int = 1000
    """Of the base run, before the circuit."""
    chi_contexts: int = 160
    """Contexts that χ is estimated on, from which its direction is continued to all others."""
    n_beta: float = 30.0
    localization: float = 300.0
    lr: float = 1e-3
    chains: int = 4
    draws: int = 6
    burn_in: int = 4
    steps_between_draws: int = 4
    sampler_batch: int = 16
    reliability: float = 0.8
    """Of every head's χ: chains are added until it is reached."""
    max_chains: int = 32
    score_contexts: int = 160
    """Contexts that χ of scores and of losses is estimated on, by chains of the whole model."""
    score_n_beta: float = 300.0
    score_localization: float = 3000.0
    score_lr: float = 1e-4
    strength: float = 0.6
    """Root mean square of ρ − 1."""
    retrained: tuple[str, ...] = ("random", "loss-matched")
    """Sources and controls that runs are trained on, beside the mode; "on the way" plans during the run."""
    judged: tuple[str, ...] = ()
    """Sources and controls whose weights are made and described, without a run."""
    replanned: tuple[int, ...] = (400, 800)
    """Steps at which runs on the way plan."""
    verified: int = 0
    """Seeds at which dμ under the weights is sampled, and compared with what χ predicts."""
    verified_reliability: float = 0.9
    """Of every head's χ that predicts."""
    compared: int = 32
    """Contexts on which covariances of the heads are compared with the derivative of the same chains."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds must name at least one seed, got none")
        known = (*SOURCES, *CONTROLS)
        for name, given, among in (
            ("retrained", self.retrained, (*known, ON_THE_WAY)), ("judged", self.judged, known),
        ):  # fmt: skip
            if unknown := sorted(set(given) - set(among)):
                raise ValueError(f"{name} must be among {', '.join(among)}; got {', '.join(unknown)}")
        if self.chi_contexts > self.contexts:
            raise ValueError(f"chi_contexts must be at most all {self.contexts} contexts, got {self.chi_contexts}")
