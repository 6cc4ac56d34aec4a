"""Found text and the independent measures of induction."""

from __future__ import annotations

import copy

import pytest
import torch

from patterning_fast.models.attention_only import AttentionOnlyLM, vectors
from patterning_fast.ops.reference.rotary_attention import parts
from patterning_fast.tasks.found_text import CHARACTERS, decode, encode
from patterning_fast.tasks.induction import predictable_by_induction, repeated_strings
from tests.models import language_model


def test_text_survives_encoding() -> None:
    assert len(CHARACTERS) == 96
    text = "def f(x):\n    return x  # 100 %\n"
    assert decode(torch.from_numpy(encode(text))) == text
    assert decode(torch.from_numpy(encode("naïve\ttext"))) == "navetext"


def test_predictable_by_induction() -> None:
    tokens = torch.tensor([[1, 2, 3, 4, 9, 1, 2, 3, 4, 8, 2, 3, 4, 8], [5, 6, 7, 5, 6, 8, 5, 6, 7, 0, 1, 2, 3, 4]])
    found = predictable_by_induction(tokens, match=3)
    # The next token at position t is tokens[t + 1]: 4 follows "1 2 3" again, then 8 follows "2 3 4" again.
    assert found[0].nonzero().flatten().tolist() == [7, 12]
    assert not found[1].any()


@torch.no_grad()
def test_head_scores_find_heads_that_do_it() -> None:
    strings = repeated_strings(torch.arange(11), 16, 9, seed=0)
    assert all(
        torch.equal(row[period:], row[:-period])
        for row, period in zip(strings.tokens, strings.periods.tolist(), strict=True)
    )
    queries = torch.arange(8)

    class Attending(AttentionOnlyLM):
        """A model whose every head attends from each position to `source`, `[strings, T]`."""

        source: torch.Tensor

        def attention_patterns(self, tokens: torch.Tensor) -> torch.Tensor:
            source = self.source.clamp(min=0)[None, :, None, :, None].expand(2, len(tokens), 2, 8, 1)
            return torch.zeros(2, len(tokens), 2, 8, 8).scatter_(-1, source, 1.0)

    model = Attending(11, 8, width=8, heads=2, head_width=4)
    model.source = queries - strings.periods[:, None] + 1
    assert strings.head_scores(model)["l1h1"]["induction"] == pytest.approx(1.0)
    model.source = (queries - 1).expand(16, 8)
    assert strings.head_scores(model)["l0h0"]["previous_token"] == pytest.approx(1.0)
    assert strings.head_scores(model)["l0h0"]["induction"] < 0.7


@torch.no_grad()
def test_attention_patterns_are_those_of_the_forward_pass() -> None:
    model = language_model()
    tokens = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(0))
    patterns = model.attention_patterns(tokens)
    hidden = torch.nn.functional.embedding(tokens, model.embedding)
    for layer, pattern in zip(model.attention_layers(), patterns, strict=True):
        _, _, value = parts(vectors(layer.norm(hidden), layer.qkv), model.rotary_cos, model.rotary_sin)
        expected = (pattern @ value).transpose(1, 2).flatten(2) @ layer.output.flatten(0, 1)
        # Sums of 8 float32 products of size 1.
        assert torch.allclose(layer(hidden, model.rotary_cos, model.rotary_sin), expected, atol=1e-5)
        hidden = hidden + layer(hidden, model.rotary_cos, model.rotary_sin)


def test_head_scores_as_observables() -> None:
    """The same numbers, and the gradient of central differences."""
    model = language_model()
    strings = repeated_strings(torch.arange(11), 16, 9, seed=0)
    scores = strings.head_scores(model)
    direction = torch.randn(model.attention_layers()[1].qkv.shape, generator=torch.Generator().manual_seed(1))
    for score in ("induction", "previous_token"):
        every = strings.observable(score)
        assert float(every(model).detach()) == pytest.approx(sum(each[score] for each in scores.values()), rel=1e-5)
        one = strings.observable(score, "l1h0")
        assert float(one(model).detach()) == pytest.approx(scores["l1h0"][score], rel=1e-5)
        (slope,) = torch.autograd.grad(one(model), [model.attention_layers()[1].qkv])
        moved = []
        for step in (1e-2, -1e-2):
            other = copy.deepcopy(model)
            with torch.no_grad():
                other.attention_layers()[1].qkv.add_(direction, alpha=step)
                moved.append(float(one(other)))
        # Float32 values of .2 over a step of .02, and a third order of the same size.
        assert float((slope * direction).sum()) == pytest.approx((moved[0] - moved[1]) / 2e-2, abs=1e-3)
    with pytest.raises(ValueError, match="no head 'l2h0'"):
        strings.observable("induction", "l2h0")(model)
