"""How far work has come: a bar on a terminal and in Jupyter, elsewhere a line now and then, fit for a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from tqdm import tqdm

EVERY = 30.0
"""Seconds between lines."""


class Progress(Protocol):
    """What tqdm's bars and lines have in common."""

    total: float | None

    def __iter__(self) -> Iterator[Any]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def update(self, number: int = 1, /) -> object: ...
    def set_description(self, desc: str, /) -> None: ...


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    desc: str = "",
    unit: str = "step",
    position: int | None = None,
    disable: bool = False,
) -> Progress:
    """What shows progress on stderr; the arguments are tqdm's.

    Use it as a context manager and call `update`, or go through `iterable` with it.
    """
    stream: TextIO | None = sys.stderr
    if disable or stream is None or draws_bars(stream):
        return tqdm(
            iterable, total=total, initial=initial, desc=desc, unit=unit, position=position,
            disable=disable or stream is None,
        )  # fmt: skip
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return Lines(iterable, total, initial, desc, unit, stream)


def draws_bars(stream: TextIO) -> bool:
    """Whether a line on `stream` can be written over."""
    return stream.isatty() or type(stream).__module__.startswith("ipykernel.")


class Lines:
    """Progress as plain lines: one every `every` seconds at most, and a last one if there was time for any."""

    def __init__(
        self,
        iterable: Iterable[Any] | None,
        total: int | None,
        initial: int,
        desc: str,
        unit: str,
        stream: TextIO,
        every: float = EVERY,
    ) -> None:
        self.iterable, self.initial, self.done = iterable, initial, initial
        self.total: float | None = total
        self.desc, self.unit, self.stream, self.every = desc, unit, stream, every
        self.started = self.said_at = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for each in self.iterable or ():
                yield each
                self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, number: int = 1) -> None:
        """Count that many more as done."""
        self.done += number
        now = time.monotonic()
        if now - self.said_at >= self.every and self.done != self.total:
            self.said_at = now
            rate = (self.done - self.initial) / (now - self.started)
            self.say(f"{in_words((self.total - self.done) / rate)} left" if self.total and rate > 0 else "")

    def set_description(self, desc: str) -> None:
        """What the next lines say is being done."""
        self.desc = desc

    def close(self) -> None:
        """Say where it ended, if it took long enough for a line."""
        taken = time.monotonic() - self.started
        if taken >= self.every:
            self.say(f"took {in_words(taken)}")
            self.started = float("inf")  # once

    def say(self, more: str) -> None:
        parts = [f"{self.done:,} {self.unit}s"]
        if self.total:
            parts = [f"{self.done:,} of {self.total:,} {self.unit}s", f"{100 * self.done / self.total:.0f} %"]
        text = ", ".join([*parts, more] if more else parts)
        print(f"{self.desc}: {text}" if self.desc else text, file=self.stream, flush=True)


def in_words(seconds: float) -> str:
    """A duration as one reads it."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
