"""Functions of the user's: whose error it is where one fails, and what it must return."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from patterning_fast.domains import Refused, domain_of, shown


@contextmanager
def calling(what: str, must: str) -> Iterator[None]:
    """An error within keeps its type and traceback, and gets a note of which function it came from and what it must."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{what} failed, which must {must}; call it by itself to see why")
        raise


def returned(what: str, value: object, hint: Any) -> Any:
    """What a function returned, read as the domain of `hint`; raises TypeError or ValueError where it is outside."""
    try:
        return domain_of(hint).read(value)
    except Refused as refused:
        error = refused.kind(f"{what} must return {refused.expected}, got {shown(refused.value)}; change the function")
    raise error
