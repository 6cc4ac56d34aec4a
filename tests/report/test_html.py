"""Reports: what came from text on the machine cannot become markup, and missing numbers are dashes."""

from __future__ import annotations

from patterning_fast.report import html


def test_text_is_escaped() -> None:
    page = html.page("a < b", [html.table([{"token": "<script>alert('x')</script>"}]), html.paragraph("1 & 2")])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a &lt; b" in page
    assert "1 &amp; 2" in page


def test_cells() -> None:
    cells = [1.23456, float("nan"), 123456.7, 7, "word"]
    assert [html.shown(cell) for cell in cells] == ["1.23", "–", "123457", "7", "word"]


def test_terminal_tables_are_aligned() -> None:
    lines = html.text_table([{"run": "base", "step": 839.0}, {"run": "amplified", "step": float("nan")}]).split("\n")
    assert lines == ["run        step", "base       839", "amplified  –"]
