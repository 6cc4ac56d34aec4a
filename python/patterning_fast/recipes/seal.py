"""Bytes with a checksum of what they hold and what they are for."""

from __future__ import annotations

import hashlib


class DamagedError(ValueError):
    """Bytes that are not those that were sealed, or were sealed for something else."""


def sealed(content: bytes | memoryview, purpose: str) -> bytes:
    """`content` behind a line with its checksum."""
    return b"".join((checksum(content, purpose), content))


def unsealed(data: bytes, purpose: str) -> bytes:
    """The content; raises DamagedError where any bit of `data` has changed, some of it is missing, or it is for
    another purpose.
    """
    line, end, content = data.partition(b"\n")
    if line + end != checksum(content, purpose):
        raise DamagedError("its checksum is of other bytes")
    return content


def checksum(content: bytes | memoryview, purpose: str) -> bytes:
    digest = hashlib.sha256(purpose.encode() + b"\0")
    digest.update(content)
    return f"SHA-256 {digest.hexdigest()}\n".encode()
