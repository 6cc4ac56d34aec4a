"""What every contestant samples: two language models, their data and the settings, the same files for all.

Only `prepare` and `our_model` need patterning_fast: the peers read what is left in build/endtoend/, in an environment
without it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.endtoend.model import PlainLM

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "endtoend"


@dataclass(frozen=True)
class Workload:
    """A model, its data, and how its posterior is sampled.

    A draw evaluates L on `loss_batches` and tracks the losses of `probe_batches`, both of `batch_size` samples, because
    devinterp takes its observables in whole batches.
    """

    name: str
    vocabulary: int
    context: int
    """Tokens of a sample; the losses of all but its first are taken."""
    width: int
    batch_size: int
    loss_batches: int
    probe_batches: int
    component_heads: tuple[str, ...] | None
    """The heads that are sampled beside "full"; None for all."""
    training_steps: int
    heads: int = 8
    layers: int = 2
    samples: int = 2048
    chains: int = 4
    draws: int = 50
    lr: float = 1e-3
    n_beta: float = 30.0
    localization: float = 300.0

    @property
    def loss_samples(self) -> int:
        return self.loss_batches * self.batch_size

    @property
    def tokens_per_draw(self) -> int:
        return (self.loss_batches + self.probe_batches) * self.batch_size * (self.context - 1)

    def path(self) -> Path:
        return FOLDER / f"{self.name}.safetensors"

    def model(self) -> PlainLM:
        """The model at w*, in plain torch."""
        model = PlainLM(self.vocabulary, self.context, self.width, self.heads, self.layers)
        model.load_state_dict(self.weights())
        return model.eval()

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.load().items() if not name.startswith("data.")}

    def load(self) -> dict[str, Tensor]:
        """Weights by name, and token ids `[samples, context]` as "data.train", "data.loss" and "data.probe"."""
        if not self.path().exists():
            raise FileNotFoundError(f"{self.path()} is missing: run python -m bench.endtoend.workload first")
        return load_file(self.path())

    def data(self, name: str) -> Tensor:
        """Token ids: "train", which is sampled; "loss", the first of them, which L is evaluated on; "probe"."""
        return self.load()[f"data.{name}"]

    def head_masks(self, model: nn.Module) -> dict[str, dict[str, Tensor]]:
        """Masks of the parameters that each sampled head owns, bool, of the parameters' shapes."""
        parameters = dict(model.named_parameters())
        masks: dict[str, dict[str, Tensor]] = {}
        for layer, head in itertools.product(range(self.layers), range(self.heads)):
            name = f"l{layer}h{head}"
            if self.component_heads is None or name in self.component_heads:
                qkv, output = (torch.zeros_like(parameters[f"layers.{layer}.{each}"], dtype=torch.bool)
                               for each in ("qkv", "output"))  # fmt: skip
                qkv[:, head] = True
                output[head] = True
                masks[name] = {f"layers.{layer}.qkv": qkv, f"layers.{layer}.output": output}
        return masks

    def component_count(self) -> int:
        """Components sampled, "full" among them."""
        return 1 + (self.layers * self.heads if self.component_heads is None else len(self.component_heads))


A = Workload("A", vocabulary=1000, context=64, width=128, batch_size=16, loss_batches=2, probe_batches=1,
             component_heads=None, training_steps=600)  # fmt: skip
B = Workload("B", vocabulary=5000, context=256, width=256, batch_size=8, loss_batches=3, probe_batches=2,
             component_heads=("l0h0", "l0h5", "l1h2", "l1h7"), training_steps=300)  # fmt: skip
TOY = Workload("A", vocabulary=300, context=16, width=16, batch_size=4, loss_batches=2, probe_batches=1,
               component_heads=None, training_steps=5, heads=2, samples=64)  # fmt: skip
WORKLOADS = {each.name: each for each in (A, B)}


def prepare(workload: Workload) -> None:
    """Cut the text of Python's own library into samples, train the model a little, and leave both for everyone."""
    if workload.path().exists():
        return
    import patterning_fast as pf
    from patterning_fast.tasks.found_text import domain_text

    torch.manual_seed(0)
    ids = token_ids(domain_text("code") + domain_text("reference"), workload.vocabulary)
    windows = ids[: len(ids) // workload.context * workload.context].view(-1, workload.context)
    windows = windows[torch.randperm(len(windows))]
    probes = workload.probe_batches * workload.batch_size
    probe, training = windows[:probes], windows[probes:]
    model = our_model(workload)
    pf.train(model, training, pf.losses.next_token, steps=workload.training_steps,
             batch_size=2 * workload.batch_size, lr=2e-3, description=f"training model {workload.name}")  # fmt: skip
    sampled = training[: workload.samples]
    data = {"data.train": sampled, "data.loss": sampled[: workload.loss_samples], "data.probe": probe}
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({**model.state_dict(), **{name: each.clone() for name, each in data.items()}}, workload.path())


def our_model(workload: Workload) -> nn.Module:
    """The library's own model of a workload's shape, untrained."""
    from patterning_fast.models.attention_only import AttentionOnlyLM

    shape = (workload.vocabulary, workload.context, workload.width, workload.heads, workload.width // workload.heads)
    return AttentionOnlyLM(*shape, workload.layers)


def token_ids(text: str, vocabulary: int) -> Tensor:
    """Ids `[T]` in byte-level pairs."""
    from patterning_fast.tasks.found_text import domain_text
    from patterning_fast.tasks.tokenizer import train_tokenizer

    pieces = train_tokenizer({"code": [domain_text("code")]}, vocabulary).encode_batch(text.splitlines(keepends=True))
    return torch.tensor([index for piece in pieces for index in piece.ids])


if __name__ == "__main__":
    for each in WORKLOADS.values():
        prepare(each)
