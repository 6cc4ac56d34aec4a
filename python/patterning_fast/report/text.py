"""Strings of data as pages, pictures and terminals can show them, so that none becomes markup or a command."""

from __future__ import annotations

import codecs
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

from patterning_fast.arguments import checked

READABLE = "patterning_fast"
"""Name of `ascii_for` as a handler of errors, for streams that cannot carry all characters."""

SIGNS = str.maketrans({
    "\u0302": "-hat", "\u0304": "-bar", "≥": ">=", "≤": "<=", "×": "x", "−": "-", "–": "-", "—": "-", "±": "+-",
    "·": "*", "√": "sqrt", "∞": "inf", "²": "^2", "³": "^3", "∇": "grad ", "∂": "d", "½": "1/2", "→": "->", "←": "<-",
    "…": "...", "’": "'", "‘": "'", "“": '"', "”": '"', "⏎": "\\n", "§": "section ",
})  # fmt: skip


@checked
def printable(text: str) -> str:
    """`text` with all that moves a cursor or cannot be seen as escapes, such as `\\n` and `\\x1b`."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


@checked
def label(text: str) -> str:
    """For pictures: dollar signs are themselves, not mathematics."""
    return printable(text).replace("$", r"\$")


@checked
def markdown(text: str) -> str:
    """For Markdown, in a line of running text or a cell of a table."""
    text = re.sub(r"[\\`*<>\[\]|~$]|(?<!\w)_|_(?!\w)|&(?=#|\w+;)", r"\\\g<0>", printable(text).strip())
    return re.sub(r"^(\d+(?=[.)](\s|$))|(?=([-+]|#+|-{3,}|=+)(\s|$)))", r"\1\\", text)


@checked
def markdown_code(text: str) -> str:
    """For Markdown, as code."""
    text = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if text.startswith("`") or text.endswith("`") else f"{fence}{text}{fence}"


@checked
def shown(value: object) -> str:
    """A cell, in one line: floats to three digits, a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, float):
        return printable(str(value))
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


@checked
def text_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same keys as a table for a terminal."""
    cells = [list(map(printable, rows[0])), *[[shown(value) for value in row.values()] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def ascii_for(error: UnicodeError) -> tuple[str, int]:
    """Handler of errors of encoding: Greek letters by name and signs as they are typed, all else as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(in_ascii, error.object[error.start : error.end])), error.end


def in_ascii(character: str) -> str:
    name = unicodedata.name(character, "").split()
    if name[:1] == ["GREEK"] and name[2:3] == ["LETTER"] and len(name) == 4:
        return name[3].replace("LAMDA", "LAMBDA").lower() if name[1] == "SMALL" else name[3].title()
    typed = character.translate(SIGNS)
    return typed if typed.isascii() else character.encode("ascii", "backslashreplace").decode()


codecs.register_error(READABLE, ascii_for)
