"""The attention-only language model, run from one moving head on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning_fast.engine.suffix import AllRecorded, SuffixError
from patterning_fast.posterior.decoders import LogitFactors

if TYPE_CHECKING:
    from patterning_fast.models.attention_only import AttentionOnlyLM


@dataclass(frozen=True, eq=False)
class HeadSuffix:
    """One head, and the layers after its own. Other heads of its layer are recalled with the stream.

    For a head of the last layer logits can be recalled too: it changes them by a product as wide as the head, beside
    the scale of the final norm, so that the unembedding's cost falls by width / (2 · head_width + 1).
    """

    model: AttentionOnlyLM
    layer: int
    head: int
    recalls_logits: bool

    @property
    def name(self) -> str:
        return f"head l{self.layer}h{self.head}" + (" on known logits" if self.recalls_logits else "")

    @property
    def keys(self) -> tuple[str, ...]:
        own = (f"l{self.layer} normed", f"l{self.layer} mixed", f"l{self.layer} stream")
        return (*own, "logits") if self.recalls_logits else own

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
        scaled = self.model.unembedding * norm.weight
        self.from_stream = scaled - scaled.mean(1, keepdim=True)
        self.constant = self.model.unembedding @ norm.bias
        self.known_output = self.from_stream @ self.output.T

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
        self.recorded = dict(zip(runner.suffix.keys, (normed, mixed, stream), strict=False))
        if runner.suffix.recalls_logits:
            self.recorded["logits"] = stream @ runner.from_stream.T
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
        runner, model = self.runner, self.runner.model
        normed, all_mixed, stream, *logits = self.recorded
        known_mixed = all_mixed[..., runner.own]
        mixed = runner.mix(normed, self.qkv)
        stream = stream + mixed @ self.output - known_mixed @ runner.output
        if not logits:
            cos, sin = model.rotary(tokens.shape[-1])
            for layer in model.attention_layers()[runner.suffix.layer + 1 :]:
                stream = stream + layer(stream, cos, sin)
            return LogitFactors(model.final_norm(stream), model.unembedding)
        centred = stream - stream.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1) + model.final_norm.eps).rsqrt()
        hidden = torch.cat((mixed, -known_mixed), -1) * scale[..., None]
        hidden = torch.cat((hidden, torch.ones_like(scale)[..., None]), -1)
        moved_output = runner.from_stream @ self.output.T
        unembedding = torch.cat((moved_output, runner.known_output, runner.constant[:, None]), 1)
        return LogitFactors(hidden, unembedding, logits[0], scale)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, unembedding, offset, scale = self.logit_factors(tokens)
        logits = F.linear(hidden, unembedding)
        return logits if offset is None or scale is None else torch.addcmul(logits, offset, scale[..., None])
