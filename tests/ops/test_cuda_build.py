"""The CUDA module where nvcc is, GPU or not: that it imports, cuts rows as it must, and spills nothing."""

from __future__ import annotations

import random
import shutil
from types import ModuleType

import pytest
from bench.registers import cuobjdump, kernels

pytestmark = pytest.mark.unsanitized
PIECE = 2048


@pytest.fixture
def built() -> ModuleType:
    """`_C_cuda`; where nvcc is there it must be."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    from patterning_fast import _C_cuda

    return _C_cuda


def test_imports_without_a_gpu_and_names_its_architectures(built: ModuleType) -> None:
    info = built.build_info()
    assert {"80-real", "90-real"} <= set(info["architectures"])
    assert info["nvcc"].split(".")[0].isdigit()


def cut(lengths: list[int]) -> list[tuple[int, int, int]]:
    """The pieces of rows, the plain way."""
    return [
        (row, begin, min(PIECE, length - begin))
        for row, length in enumerate(lengths)
        for begin in range(0, length, PIECE)
    ]


def test_every_piece_of_every_row_is_found_once(built: ModuleType) -> None:
    generator = random.Random(20261121)
    near = [0, 1, 2, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 1, 5 * PIECE + 7]
    for _ in range(500):
        lengths = [
            generator.choice(near) if generator.random() < 0.7 else generator.randrange(9 * PIECE)
            for _ in range(generator.randrange(1, 40))
        ]
        row_starts = [0]
        for length in lengths:
            row_starts.append(row_starts[-1] + length)
        slots = built.row_pieces(row_starts)
        assert [piece for piece in slots if piece[2] > 0] == cut(lengths)


def test_no_kernel_spills(built: ModuleType) -> None:
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump")
    assert built.__file__ is not None
    found = kernels(built.__file__, tool)
    assert {kernel["architecture"] for kernel in found} >= {"sm_80", "sm_90"}
    for kernel in found:
        assert kernel["stack"] == kernel["local"] == 0, kernel
        assert kernel["registers"] < 255, kernel
