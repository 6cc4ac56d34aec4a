"""The attention-only language model, run from one moving head on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning_fast.arguments import Whole, checked
from patterning_fast.engine.suffix import AllRecorded, SuffixError
from patterning_fast.posterior.decoders import LogitFactors

if TYPE_CHECKING:
    from patterning_fast.models.attention_only import AttentionOnlyLM


@dataclass(frozen=True, eq=False)
@checked
class HeadSuffix:
    """One head, and the layers after its own. Other heads of its layer are recalled with the stream.

    For a head of the last layer logits can be recalled too: it changes them by a product as wide as the head, beside
    the scale of the final norm, so that the unembedding's cost falls by width / (2 · head_width + 1).
    """

    model: AttentionOnlyLM
    layer: Whole
    head: Whole
    recalls_logits: bool

    @property
    def name(self) -> str:
        return f"head l{self.layer}h{self.head}" + (" on known logits" if self.recalls_logits else "")

    @property
    def keys(self) -> tuple[str, ...]:
        own = f"l{self.layer} normed", f"l{self.layer} mixed"
        return (*own, "centred", "variance", "logits") if self.recalls_logits else (*own, f"l{self.layer} stream")

    def runner(self, modules: object) -> HeadSuffixRunner:
        return HeadSuffixRunner(self)


class HeadSuffixRunner:
    """Runs a head suffix; the model is only read."""

    def __init__(self, suffix: HeadSuffix) -> None:
        self.suffix, self.model = suffix, suffix.model
        layer = self.model.attention_layers()[suffix.layer]
        self.qkv = layer.qkv[:, suffix.head].detach()
        self.output = layer.output[suffix.head].detach()
        self.own = slice(suffix.head * len(self.output), (suffix.head + 1) * len(self.output))
        norm = self.model.final_norm
        # Logits are unembedding @ (norm.weight * centred / σ + norm.bias): linear in the stream but for σ.
        self.from_centred = self.model.unembedding * norm.weight
        self.constant = self.model.unembedding @ norm.bias

    def record(self, compute: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
        recording = Recording(self)
        try:
            with torch.no_grad():
                compute(recording)
        except AllRecorded:
            return recording.recorded
        raise SuffixError("the loss does not run the model")

    def run(
        self, compute: Callable[[nn.Module], Tensor], moved: Mapping[str, Tensor], recorded: Mapping[str, Tensor]
    ) -> Tensor:
        name = f"layers.{self.suffix.layer}"
        qkv, output = moved[f"{name}.qkv"].view(self.qkv.shape), moved[f"{name}.output"].view(self.output.shape)
        return compute(Recalling(self, qkv, output, recorded))

    def mix(self, normed: Tensor, qkv: Tensor) -> Tensor:
        """What the head's attention gathers, `[batch, T, head_width]`."""
        layer = self.model.attention_layers()[self.suffix.layer]
        return layer.mix(normed, qkv[:, None], *self.model.rotary(normed.shape[-2]))


class Recording(nn.Module):
    """The model at w*, which notes what the suffix will recall."""

    def __init__(self, runner: HeadSuffixRunner) -> None:
        super().__init__()
        self.runner, self.recorded = runner, dict[str, Tensor]()

    def logit_factors(self, tokens: Tensor) -> LogitFactors:
        runner, model = self.runner, self.runner.model
        at = runner.suffix.layer
        streams = model.streams(tokens, at)
        layer = model.attention_layers()[at]
        normed = layer.norm(streams[at])
        mixed = layer.mix(normed, layer.qkv, *model.rotary(tokens.shape[-1]))
        stream = streams[at] + mixed @ layer.output.flatten(0, 1)
        known: tuple[Tensor, ...] = (stream,)
        if runner.suffix.recalls_logits:
            centred = stream - stream.mean(-1, keepdim=True)
            known = centred, centred.square().mean(-1), centred @ runner.from_centred.T
        self.recorded = dict(zip(runner.suffix.keys, (normed, mixed, *known), strict=True))
        raise AllRecorded

    def forward(self, tokens: Tensor) -> Tensor:
        self.logit_factors(tokens)
        raise AssertionError


class Recalling(nn.Module):
    """The model with one head moved; all before it and beside it is recalled."""

    def __init__(self, runner: HeadSuffixRunner, qkv: Tensor, output: Tensor, recorded: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.runner, self.qkv, self.output = runner, qkv, output
        self.recorded = [recorded[key] for key in runner.suffix.keys]

    def logit_factors(self, tokens: Tensor) -> LogitFactors:
        normed, mixed, *known = self.recorded
        # The stream moves by a product as wide as two heads: what the head puts out less what it put out at w*.
        moved = torch.cat((self.runner.mix(normed, self.qkv), mixed[..., self.runner.own]), -1)
        output = torch.cat((self.output, -self.runner.output))
        if self.runner.suffix.recalls_logits:
            return self.beside_known_logits(moved, output, *known)
        model, (stream,) = self.runner.model, known
        stream = torch.addmm(stream.flatten(0, 1), moved.flatten(0, 1), output).view(stream.shape)
        cos, sin = model.rotary(tokens.shape[-1])
        for layer in model.attention_layers()[self.runner.suffix.layer + 1 :]:
            stream = stream + layer(stream, cos, sin)
        return LogitFactors(model.final_norm(stream), model.unembedding)

    def beside_known_logits(
        self, moved: Tensor, output: Tensor, centred: Tensor, variance: Tensor, logits: Tensor
    ) -> LogitFactors:
        """Logits by how the stream has moved, c + mP; its variance grows by 2 c·mP + |mP|²."""
        output = output - output.mean(1, keepdim=True)
        before = centred.flatten(0, 1) @ output.T
        growth = torch.addmm(before, moved.flatten(0, 1), output @ output.T, beta=2).view(moved.shape)
        variance = variance + (moved * growth).sum(-1) / centred.shape[-1]
        scale = (variance + self.runner.model.final_norm.eps).rsqrt()
        hidden = torch.cat((moved * scale[..., None], torch.ones_like(scale)[..., None]), -1)
        unembedding = torch.cat((self.runner.from_centred @ output.T, self.runner.constant[:, None]), 1)
        return LogitFactors(hidden, unembedding, logits, scale)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, unembedding, offset, scale = self.logit_factors(tokens)
        logits = F.linear(hidden, unembedding)
        return logits if offset is None or scale is None else torch.addcmul(logits, offset, scale[..., None])
