"""Philox4x32-10: known answers, and a counter packing in which no two places meet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patterning_fast import _C
from patterning_fast.ops.reference.minibatch import minibatch
from patterning_fast.ops.reference.philox import INDEX_BITS, Stream, counter, philox4x32

# The known-answer vectors published with the generator (Random123, kat_vectors): counter, key, answer.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("count", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(count: list[int], key: list[int], answer: list[int]) -> None:
    assert philox4x32(torch.tensor(count), torch.tensor(key)).tolist() == answer
    assert list(_C.philox4x32(*count, *key)) == answer


def test_kernel_and_reference_agree_on_random_words(generator: torch.Generator) -> None:
    words = torch.randint(2**32, (1000, 6), generator=generator)
    reference = philox4x32(words[:, :4], words[:, 4:])
    assert [list(_C.philox4x32(*row)) for row in words.tolist()] == reference.tolist()


places = st.tuples(st.sampled_from(list(Stream)), *[st.integers(0, 2**INDEX_BITS - 1)] * 3)


@given(places, places)
@settings(max_examples=500)
def test_two_places_never_share_a_counter(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    def packed(place: tuple[int, ...]) -> list[int]:
        return counter(Stream(place[0]), *(torch.tensor(part) for part in place[1:])).tolist()

    assert (packed(one) == packed(other)) == (one == other)


def test_counter_uses_every_bit_of_a_place() -> None:
    zero = torch.tensor(0)
    seen = {tuple(counter(Stream.noise, zero, zero, zero).tolist())}
    for part in range(3):
        for bit in range(INDEX_BITS):
            place = [zero, zero, zero]
            place[part] = torch.tensor(1 << bit)
            seen.add(tuple(counter(Stream.noise, *place).tolist()))
    assert len(seen) == 1 + 3 * INDEX_BITS


def test_minibatches_are_uniform_and_depend_on_every_argument() -> None:
    seed, step = torch.tensor(1), torch.tensor(2)
    drawn = minibatch(seed, torch.arange(2000), step, 50, 7)
    counts = torch.bincount(drawn.flatten(), minlength=7).double()
    # 100,000 draws over 7 cells: chi-square with 6 degrees of freedom passes 27.9 once in 10,000.
    assert float(((counts - 1e5 / 7) ** 2 / (1e5 / 7)).sum()) < 27.9
    assert not torch.equal(drawn, minibatch(seed + 1, torch.arange(2000), step, 50, 7))
    assert not torch.equal(drawn, minibatch(seed, torch.arange(2000), step + 1, 50, 7))
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[5:7], minibatch(seed, torch.arange(5, 7), step, 50, 7))
