"""The CUDA module where nvcc is, GPU or not: that it imports, cuts rows as it must, and spills nothing."""

from __future__ import annotations

import random
import shutil
from types import ModuleType

import pytest
import torch
from bench.registers import cuobjdump, kernels

from patterning_fast.ops.dense_stack import DenseStack, stack_fields
from tests.ops.test_dense_stack import layers_of

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


H100, A100 = 227 * 1024, 163 * 1024
"""Bytes of shared memory that a block may be given."""


@pytest.mark.parametrize("limit", [H100, A100])
def test_a_chain_of_layers_has_room(built: ModuleType, limit: int) -> None:
    generator = random.Random(20261122)

    def plan(widths: list[int], batch: int) -> dict[str, int]:
        layers, size = layers_of(widths, generator.choice(["relu", "gelu"]), bias=True)
        none = torch.zeros(0, dtype=torch.int64)
        stack = DenseStack(layers, torch.zeros(size), none, none, torch.zeros(2, widths[0]), torch.zeros(2, widths[-1]))
        arguments = stack.arguments()  # whose addresses are read
        found: dict[str, int] = built.dense_plan(stack_fields(*arguments), batch, 10, limit, limit // 2)
        whole = limit if found["workspace"] == 0 else limit // 2
        assert 4 * found["shared"] <= whole
        assert found["stride"] // 4 % 2 == 1
        assert found["stride"] >= found["columns"] >= min(4, batch)
        assert found["columns"] % 4 == 0
        # Parameters, gradients, and the units of all layers, with some more.
        least = 2 * size + sum(widths) * found["columns"]
        assert found["shared"] + found["workspace"] >= least
        return found

    for _ in range(300):
        depth, widest = generator.randrange(1, 6), generator.choice([3, 16, 64, 256])
        plan([generator.randint(1, widest) for _ in range(depth + 1)], generator.choice([1, 2, 16, 63, 64, 65, 500]))
    tiny = plan([6, 2, 6], 64)
    assert (tiny["threads"], tiny["columns"], tiny["workspace"]) == (32, 64, 0)
    assert 4 * tiny["shared"] < 9 * 1024, "fewer than 24 chains would share a multiprocessor"
    assert plan([64, 64, 64], 128)["workspace"] == 0
    assert plan([256, 256, 256], 128)["workspace"] > 0


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
