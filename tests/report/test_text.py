"""Strings of data stay strings in pages, pictures, Markdown and on terminals."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from patterning_fast.report.figures import png
from patterning_fast.report.text import READABLE, label, markdown, markdown_code, printable, shown, text_table


def test_what_cannot_be_seen_is_an_escape() -> None:
    assert printable("a\nb\x1b[31mc\u202e\udcff é λ̂") == r"a\nb\x1b[31mc\u202e\udcff é λ̂"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a | b", r"a \| b"),
        ("<script>", r"\<script\>"),
        ("`code`", r"\`code\`"),
        ("w* and *this*", r"w\* and \*this\*"),
        ("snake_case and _this_", r"snake_case and \_this\_"),
        ("[x](http://y)", r"\[x\](http://y)"),
        ("&lt; &#60; R&D", r"\&lt; \&#60; R&D"),
        ("# no heading", r"\# no heading"),
        ("1. no item", r"1\. no item"),
        ("- none", r"\- none"),
        ("---", r"\---"),
        ("5+ of 6", "5+ of 6"),
        ("-0.4 nats", "-0.4 nats"),
        ("$x$", r"\$x\$"),
        ("two\nlines", r"two\\nlines"),
    ],
)
def test_markdown(text: str, expected: str) -> None:
    assert markdown(text) == expected


def test_code_in_markdown() -> None:
    assert markdown_code("run a.toml") == "`run a.toml`"
    assert markdown_code("run `a`") == "`` run `a` ``"
    assert markdown_code("a ``` b\n") == r"````a ``` b\n````"


def test_dollars_in_pictures_are_no_mathematics() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.set_title(label(r"$\frac{$ and 5"))
    axes.set_xscale("log")
    axes.set_xticks([1], [label("$\\nonsense$")])
    png(figure)
    assert axes.title._preprocess_math(axes.title.get_text()) == (r"$\frac{$ and 5", False)  # type: ignore[attr-defined]


def test_terminals_of_ascii() -> None:
    text = "λ̂ ≥ 0.5 ± 0.1, χ of R̂, −1 × √2 nβ Γ: é 漢"
    typed = rb"lambda-hat >= 0.5 +- 0.1, chi of R-hat, -1 x sqrt2 nbeta Gamma: \xe9 \u6f22"
    assert text.encode("ascii", READABLE) == typed
    assert text.encode("latin-1", READABLE).endswith(b"\xe9 \\u6f22")
    assert "\udcff".encode("utf-8", READABLE) == rb"\udcff"


def test_cells() -> None:
    cells = [1.23456, float("nan"), None, 123456.7, 7, "word"]
    assert [shown(cell) for cell in cells] == ["1.23", "–", "–", "123457", "7", "word"]


def test_terminal_tables_are_aligned() -> None:
    lines = text_table([{"run": "base", "step": 839.0}, {"run": "amplified", "step": float("nan")}]).split("\n")
    assert lines == ["run        step", "base       839", "amplified  –"]
